"""Columns with ends and periods: no draw outside, densities that integrate to one, dependence kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import mcscore as mcs
from mcscore._validation import Table
from mcscore.frames.bounded import fit_bounds, periods_of
from tests.conftest import X64

KEY = jax.random.key(5)
AUTO = mcs.Auto(partitions=1, most_clusters=20)
TAU = 2 * np.pi


def rng(seed=13):
    return np.random.default_rng(seed)


ENDS = {
    "even": (lambda r, n: r.random(n), (0, 1)),
    "beta": (lambda r, n: 3 + 2 * r.beta(2, 0.7, n), (3, 5)),
    "exponential": (lambda r, n: r.exponential(2, n), (0, None)),
    "lognormal": (lambda r, n: np.exp(2 * r.standard_normal(n)), (0, None)),
    "from above": (lambda r, n: 7 - r.gamma(2, 2, n), (None, 7)),
    "far ends": (lambda r, n: r.standard_normal(n), (-50, 80)),
}


@pytest.mark.once
@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("kernel", [AUTO, mcs.Whitened(0.3)], ids=["auto", "whitened"])
def test_no_draw_lies_outside_and_the_density_integrates_to_one(name, kernel):
    make, (low, high) = ENDS[name]
    x = make(rng(), 2000)
    frame = None if kernel is AUTO else mcs.Gaussianize()
    law = mcs.mixture(x[:, None], kernel=kernel, frame=frame, bounds={0: (low, high)})
    draws = np.asarray(law.sample(KEY, 20_000), np.float64)[:, 0]
    assert low is None or draws.min() >= low
    assert high is None or draws.max() <= high
    assert stats.ks_2samp(x, draws).pvalue > 1e-3
    grid = np.concatenate([np.geomspace(1e-6, 1, 3000), np.linspace(1, 40, 3000)[1:]]) * x.std()
    start, sign = (
        (0.0, 1) if low is None and high is None else (low, 1) if low is not None else (high, -1)
    )
    grid = np.sort(start + sign * grid)
    if None not in (low, high):
        inner = np.linspace(0.01, 0.99, 20_001)
        near = np.geomspace(1e-7, 0.01, 2000)
        grid = low + (high - low) * np.unique(np.concatenate([near, inner, 1 - near]))
    mass = np.trapezoid(np.exp(np.asarray(law.log_prob(grid[:, None]), np.float64)), grid)
    assert abs(mass - 1) < 0.01
    beyond = [[e] for e in (low and low - 1e-3, high and high + 1e-3) if e]
    assert not beyond or (np.asarray(law.log_prob(np.array(beyond))) == -np.inf).all()


@pytest.mark.once
def test_the_density_at_an_end_is_finite_and_right():
    x = rng().exponential(1, (8_000, 1))
    law = mcs.mixture(x, kernel=AUTO, bounds={0: (0, None)})
    at = np.array([[0.0], [0.01], [0.1], [1.0], [4.0]])
    np.testing.assert_allclose(law.log_prob(at[1:]), -at[1:, 0], atol=0.15)
    assert np.isfinite(law.log_prob(at[:1])).all()
    without = mcs.mixture(x, kernel=AUTO)
    assert law.report.log_likelihood > without.report.log_likelihood - 0.005


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("library", [np, jnp], ids=["numpy", "jax"])
@pytest.mark.parametrize("name", ENDS)
def test_images_there_and_back(name, library, dtype):
    make, ends = ENDS[name]
    x = np.sort(make(rng(), 500)).astype(dtype)[:, None]
    far = [[-1e37 if ends[0] is None else ends[0]], [1e37 if ends[1] is None else ends[1]]]
    frame = fit_bounds(x.astype(float), np.full(500, 1 / 500), np.array(far, float))
    if library is jnp and dtype is np.float64 and not X64:
        pytest.skip("float64 needs x64")
    image, slope = frame.enter(library.asarray(x))
    assert image.dtype == dtype and (np.diff(np.asarray(image)[:, 0]) >= 0).all()
    back = np.asarray(frame.inverse(image))
    unit = np.ptp(x)
    np.testing.assert_allclose(back / unit, x / unit, atol=2e-6 if dtype == np.float32 else 1e-12)
    wide = frame.enter(x.astype(np.float64))
    if dtype == np.float64:
        h = 1e-6 * np.minimum(1, np.asarray(frame.enter(x)[0]) * 0 + 1) * np.exp(-wide[1])
        inner = slice(5, -5)
        rise = (frame.enter(x + h)[0] - frame.enter(x - h)[0])[inner]
        np.testing.assert_allclose(
            np.log(rise / (2 * h[inner])), np.asarray(slope)[inner], atol=1e-4
        )


@pytest.mark.parametrize(
    "kernel", [mcs.Isotropic(0.5), mcs.Local(0.5, 2)], ids=["isotropic", "local"]
)
def test_ends_that_single_precision_rounds(kernel):
    """No draw beyond 0.1, which float32 has not; a row at float32's pi is at the end."""
    law = mcs.mixture(
        0.1 * rng().beta(2, 0.2, (300, 1)).astype(np.float32), kernel=kernel, bounds={0: (0, 0.1)}
    )
    draws = law.sample(KEY, 20_000)
    assert (np.asarray(draws, np.float64) <= 0.1).all()
    assert np.isfinite(
        mcs.mixture(draws, kernel=kernel, bounds={0: (0, 0.1)}).log_prob(draws[:9])
    ).all()
    angles = np.append(rng().uniform(-3, 3, 300), np.pi).astype(np.float32)[:, None]
    law = mcs.mixture(angles, kernel=kernel, bounds={0: (-np.pi, np.pi)})
    assert np.isfinite(law.log_prob(angles)).all()


def test_gradients_stop_at_an_end():
    x = np.stack([rng().random(300), rng(1).standard_normal(300)], 1)
    law = mcs.mixture(x, kernel=mcs.Isotropic(0.3), bounds={0: (0, 1)})
    at = jnp.asarray([[1.1, 0.0], [0.5, 0.2]], law.dtype)
    slope = np.asarray(jax.grad(lambda x: law.log_prob(x).sum())(at))
    assert (slope[0] == 0).all() and np.isfinite(slope).all() and slope[1].any()


@pytest.mark.once
def test_conditions_and_dependence_near_an_end():
    """A share s of a total: given the total, the share's law; at either end of it nothing leaks."""
    r = rng()
    share = r.beta(0.8, 1.5, 6000)
    y = share + 0.05 * r.standard_normal(6000)
    law = mcs.mixture(np.stack([share, y], 1), kernel=AUTO, bounds={0: (0, 1)})
    for at in (0.02, 0.5):
        given = law.condition([1], [at])
        draws = np.asarray(given.sample(KEY, 5000), np.float64)[:, 0]
        assert draws.min() >= 0 and draws.max() <= 1
        grid = np.linspace(1e-6, 1 - 1e-6, 4001)
        exact = stats.beta.pdf(grid, 0.8, 1.5) * stats.norm.pdf(at, grid, 0.05)
        exact /= np.trapezoid(exact, grid)
        found = np.exp(np.asarray(given.log_prob(grid[:, None]), np.float64))
        assert abs(np.trapezoid(found, grid) - 1) < 0.01
        mean = np.trapezoid(grid * exact, grid)
        spread = np.sqrt(np.trapezoid((grid - mean) ** 2 * exact, grid))
        assert abs(draws.mean() - mean) < 0.25 * spread
        assert 0.8 < draws.std() / spread < 1.25
    with pytest.raises(ValueError, match=r"values: .* outside"):
        law.condition([0], [1.5])


@pytest.mark.once
def test_counts_and_atoms_within_ends():
    r = rng()
    counts = r.poisson(1.0, 3000).astype(float)
    rain = np.where(r.random(3000) < 0.4, 0, r.exponential(2, 3000))
    law = mcs.mixture(
        np.stack([counts, rain, r.standard_normal(3000)], 1),
        kernel=AUTO,
        bounds={0: (0, 12), 1: (0, None)},
    )
    draws = np.asarray(law.sample(KEY, 20_000), np.float64)
    assert set(np.unique(draws[:, 0])) <= set(range(13))
    assert draws[:, 1].min() == 0
    for j, column in enumerate((counts, rain)):
        expected = np.mean(column == 0)
        error = np.sqrt(expected * (1 - expected) * (1 / 3000 + 1 / 20_000))
        assert abs(np.mean(draws[:, j] == 0) - expected) < 3 * error
    few = law.marginal([0])
    masses = np.exp(np.asarray(few.log_prob(np.arange(13.0)[:, None]), np.float64))
    assert abs(masses.sum() - 1) < 0.02
    dry = law.marginal([1])
    grid = np.geomspace(1e-5, 60, 20_001)
    wet = np.trapezoid(np.exp(np.asarray(dry.log_prob(grid[:, None]), np.float64)), grid)
    assert abs(wet + float(np.exp(dry.log_prob(np.zeros((1, 1)))[0])) - 1) < 0.02


@pytest.mark.once
@pytest.mark.parametrize("start", [0.0, -np.pi], ids=["from 0", "around 0"])
def test_a_peak_across_the_seam(start):
    """A peak at the seam of the user's interval is no matter: the circle is cut elsewhere."""
    r = rng()
    phi = r.vonmises(0.0, 4.0, 4000)
    other = np.cos(phi) + 0.1 * r.standard_normal(4000)
    x = np.stack([start + np.mod(phi - start, TAU), other], 1)
    law = mcs.mixture(x, kernel=AUTO, periodic={0: (start, start + TAU)})
    draws = np.asarray(law.sample(KEY, 20_000), np.float64)
    assert (draws[:, 0] >= start).all() and (draws[:, 0] <= start + TAU + 1e-6).all()
    turned = np.angle(np.exp(1j * draws[:, 0]))
    assert stats.ks_2samp(phi, turned).pvalue > 1e-3
    assert np.std(draws[:, 1] - np.cos(turned)) < 0.13
    alone = law.marginal([0])
    grid = np.linspace(start, start + TAU, 4001)
    density = np.exp(np.asarray(alone.log_prob(grid[:, None]), np.float64))
    assert abs(np.trapezoid(density, grid) - 1) < 0.01
    np.testing.assert_allclose(density[0], density[-1], rtol=1e-3)  # the same point
    again = alone.log_prob(grid[:50, None] + 3 * TAU)
    np.testing.assert_allclose(again, np.log(density[:50]), atol=1e-2)
    mean = np.asarray(law.condition([0], [start + TAU]).sample(KEY, 4000)).mean()
    assert abs(mean - np.cos(start)) < 0.15


@pytest.mark.once
def test_hours_of_the_day():
    r = rng()
    hours = np.mod(np.rint(r.normal(23, 3, 3000)), 24)
    law = mcs.mixture(np.stack([hours, r.standard_normal(3000)], 1), kernel=AUTO, periodic={0: 24})
    draws = np.asarray(law.sample(KEY, 20_000), np.float64)[:, 0]
    assert set(np.unique(draws)) <= set(range(24))
    for hour in (21, 23, 0, 2):
        expected = np.mean(hours == hour)
        error = np.sqrt(expected * (1 - expected) * (1 / 3000 + 1 / 20_000))
        assert abs(np.mean(draws == hour) - expected) < 3 * error
    masses = np.exp(np.asarray(law.marginal([0]).log_prob(np.arange(24.0)[:, None]), np.float64))
    assert abs(masses.sum() - 1) < 0.02


def test_weights_are_repeated_rows_for_ends():
    x, weights = rng().exponential(1, (300, 1)), rng(2).integers(1, 4, 300)
    ends = np.array([[0.0], [1e37]])
    once = fit_bounds(x, weights / weights.sum(), ends)
    repeated = np.repeat(x, weights, 0)
    other = fit_bounds(repeated, np.full(len(repeated), 1 / len(repeated)), ends)
    np.testing.assert_allclose(once.units, other.units)
    np.testing.assert_allclose(once.nearest, other.nearest)


@pytest.mark.once
def test_generators_keep_ends_and_periods(tmp_path):
    r = rng()
    x = np.stack([r.random(400), r.uniform(0, TAU, 400), r.standard_normal(400)], 1)
    small = dict(pairs=1000, network=mcs.MLP(width=16, depth=1), epochs=3, refine=0)
    law = dict(kernel=mcs.Local(0.6, clusters=2, partitions=1), frame=mcs.Gaussianize())
    gen = mcs.fit(KEY, x, bounds={0: (0, 1)}, periodic={1: TAU}, **law, **small)
    draws = np.asarray(gen.sample(KEY, 2000))
    assert draws[:, 0].min() >= 0 and draws[:, 0].max() <= 1
    assert draws[:, 1].min() >= 0 and draws[:, 1].max() <= TAU + 1e-5
    gen.save(tmp_path / "model.safetensors")
    again = mcs.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(again.sample(KEY, 2000), draws)
    np.testing.assert_array_equal(again.density(x[:50]).log_prob, gen.density(x[:50]).log_prob)


@pytest.mark.once
def test_names_travel(tmp_path):
    x = pd.DataFrame({"share": rng().random(400), "size": rng(1).standard_normal(400)})
    small = dict(pairs=500, network=mcs.MLP(width=8, depth=1), epochs=2, refine=0)
    how = dict(kernel=mcs.Local(0.6, clusters=2, partitions=1), frame=mcs.Gaussianize())
    made = mcs.fit_stages(KEY, x, **how, **small)
    law = made.mixture
    assert "{'share': (0, 1)}" in str(law.report)
    for draws in (
        law.sample(KEY, 5, as_frame=True),
        law.marginal(["size"]).sample(KEY, 5, as_frame=True),
    ):
        assert isinstance(draws, pd.DataFrame) and draws.columns[-1] == "size"
    made.generator.save(tmp_path / "model.safetensors")
    again = mcs.load(tmp_path / "model.safetensors")
    draws = again.sample(KEY, 5, as_frame=True)
    assert list(draws.columns) == ["share", "size"]
    np.testing.assert_array_equal(draws, made.generator.sample(KEY, 5))
    swapped = x[["size", "share"]]
    for function in (law.log_prob, again.log_prob, again.encode):
        np.testing.assert_array_equal(function(swapped), function(x))
        with pytest.raises(ValueError, match="columns 'share', 'size', got no 'size'"):
            function(x.rename(columns={"size": "width"}))


def test_a_column_that_stops_dead_is_reported():
    r = rng()
    x = np.stack([r.random(1000), r.standard_normal(1000), r.exponential(1, 1000)], 1)
    law = mcs.mixture(x, kernel=mcs.Local(0.5, clusters=2))
    assert law.report.suspected == {0: (0, 1), 2: (0, None)}
    assert "bounds=" in str(law.report) and "{0: (0, 1), 2: (0, None)}" in str(law.report)
    told = mcs.mixture(x, kernel=mcs.Local(0.5, clusters=2), bounds=law.report.suspected)
    assert not told.report.suspected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(bounds={5: (0, 1)}), "bounds: .*distinct indices"),
        (dict(bounds={"a": (0, 1)}), "bounds: .*'a'"),
        (dict(bounds={0: (1, 0)}), r"bounds: expected \(low, high\) of column 0"),
        (dict(bounds={0: 3}), r"bounds: expected \(low, high\) of column 0"),
        (dict(bounds={0: (0.5, None)}), "bounds: column 0 holds .* in row"),
        (dict(bounds={0: "01"}), r"bounds: expected \(low, high\) of column 0"),
        (dict(bounds={0: (0, 10**400)}), r"bounds: expected \(low, high\) of column 0"),
        (dict(bounds={0: (-1e20, 1e20)}), "bounds: column 0 spreads by .* too far from its ends"),
        (dict(periodic={0: True}), "periodic: expected the period of column 0"),
        (dict(periodic={0: 1e-20}), "periodic: column 0 spreads by .*, too far from its period"),
        (dict(periodic={0: 1e20}), "periodic: column 0 spreads by .*, too far from its period"),
        (dict(periodic={0: -1}), "periodic: expected the period of column 0"),
        (dict(periodic={0: np.nan}), "periodic: expected the period of column 0"),
        (dict(periodic={0: "day"}), "periodic: expected the period of column 0"),
        (dict(periodic={0: 1}, bounds={0: (0, 1)}), "periodic: column 0 has bounds too"),
        (dict(bounds={0: (0, 1)}, frame=mcs.Affine().fit(np.eye(2))), "frame yet to be fitted"),
    ],
)
def test_what_does_not_fit_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        mcs.mixture(rng().random((50, 2)), kernel=mcs.Whitened(0.3), **options)


def test_a_circle_is_suspected_and_a_wrong_unit_too():
    angle = np.random.default_rng(2).uniform(0, 360, 1000)
    x = pd.DataFrame({"angle": angle, "other": rng().standard_normal(1000)})
    law = mcs.mixture(x, kernel=mcs.Local(0.5, clusters=2))
    assert law.report.suspected == {0: 360} and "{'angle': 360}" in str(law.report)
    with pytest.warns(UserWarning, match="periodic: column 'angle' runs over 57.* periods"):
        mcs.mixture(x, kernel=mcs.Local(0.5, clusters=2), periodic={"angle": TAU})


def test_the_cut_is_where_rows_are_fewest():
    phi = np.concatenate([rng().normal(1, 0.2, 500), rng(1).normal(5, 0.2, 500)])
    cut = float(periods_of({0: TAU}, Table.of(phi[:, None])).cuts[0])
    assert min(abs(np.angle(np.exp(1j * (cut - m)))) for m in (1, 5)) > 1


@pytest.mark.once
@pytest.mark.parametrize("bounds", [None, {0: (0, None)}], ids=["no ends", "ends"])
@pytest.mark.parametrize(
    "kernel", [mcs.Isotropic(0.3), mcs.Whitened(0.4)], ids=["isotropic", "whitened"]
)
def test_a_density_on_an_atom_is_the_share_of_draws(bounds, kernel):
    """Of the marginal, of a condition on the other column and on the atom; beside it is dense as well."""
    r, n = rng(1), 1000
    z = r.standard_normal(n)
    rain = np.where(r.random(n) < 0.5, 0, r.gamma(0.6, 10, n))
    x = np.stack([rain, np.where(rain == 0, z - 1, z + 1)], 1)
    law = mcs.mixture(x, kernel=kernel, frame=mcs.Gaussianize(), bounds=bounds)
    draws = np.asarray(law.sample(KEY, 100_000), np.float64)
    dry, zero = draws[:, 0] == 0, np.zeros((1, 1))
    alone, given = law.marginal([0]), law.condition([1], [0.3])
    mass = float(np.exp(alone.log_prob(zero)[0]))
    assert abs(mass - dry.mean()) < 0.008
    grid = np.geomspace(1e-9, 3000, 20_001)
    rest = np.trapezoid(np.exp(np.asarray(alone.log_prob(grid[:, None]), np.float64)), grid)
    assert abs(mass + rest - 1) < 0.01
    share = np.mean(np.asarray(given.sample(KEY, 100_000))[:, 0] == 0)
    assert abs(float(np.exp(given.log_prob(zero)[0])) - share) < 0.01
    other = np.asarray(law.condition([0], [0.0]).sample(KEY, 100_000), np.float64)
    assert abs(other.mean() - draws[dry, 1].mean()) < 0.03
    assert abs(other.std() / draws[dry, 1].std() - 1) < 0.03
    at = np.linspace(-2, 2, 5)[:, None]
    joint = law.log_prob(np.concatenate([np.zeros((5, 1)), at], 1))
    parts = alone.log_prob(zero)[0] + law.condition([0], [0.0]).log_prob(at)
    np.testing.assert_allclose(joint, parts, atol=1e-3)


def test_numbers_of_either_precision_have_the_same_ends():
    """The number that says "no end" is rounded down by float32, and is no end for all that."""
    x = np.random.default_rng(0).exponential(1, (300, 2))
    law = mcs.mixture(x, kernel=mcs.Local(0.5, 2, 1), frame=mcs.Affine(), bounds={1: (0, None)})
    single = jax.tree.map(lambda a: np.asarray(a, np.float32), law.frame)
    y = np.random.default_rng(1).standard_normal((50, 2))
    np.testing.assert_allclose(single.inverse(y), law.frame.inverse(y), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(single.forward(x), law.frame.forward(x), rtol=1e-4, atol=1e-4)
