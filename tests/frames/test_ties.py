"""Kinds of columns: found, their ties spread, put back in draws, and what depends on them kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcscore as mcs
from mcscore.frames import placed
from tests.frames.test_frames import COLUMNS, KEY

LOCAL, AFFINE = mcs.Local(0.5, clusters=4), mcs.Affine()
AUTO = mcs.Auto(partitions=1, most_clusters=20)


def rng(seed=11):
    return np.random.default_rng(seed)


def with_noise(column, seed=5):
    return np.stack([column, rng(seed).standard_normal(len(column))], 1)


def rain(n=3000):
    r = rng()
    return with_noise(np.where(r.random(n) < 0.93, 0, r.gamma(0.5, 10, n)))


def zeros_among_integers(n=3000):
    r = rng()
    return with_noise(np.where(r.random(n) < 0.41, 0, r.integers(0, 601, n)).astype(float))


def heaped(n=3000):
    r = rng()
    multiples = r.random(n) < 0.6
    return with_noise(np.where(multiples, 30 * r.integers(1, 20, n), r.integers(1, 600, n)) * 1.0)


def zeros_before_a_gap(n=3000):
    r = rng()
    return with_noise(np.where(r.random(n) < 0.37, 0, 0.003 + r.gamma(1.0, 1.0, n)))


def both_ends(n=3000):
    return with_noise(np.clip(1.5 * rng().standard_normal(n), -1, 2))


def dose(n=40):
    r = rng(7)
    levels = r.integers(0, 5, n)
    return np.stack([levels, 0.168 * levels + 0.015 * r.standard_normal(n)], 1)


def uneven_levels(n=600):
    r = rng()
    levels = r.choice([0.0, 0.1, 1.0, 10.0, 100.0], n)
    return np.stack([levels, np.log(levels + 0.1) + 0.05 * r.standard_normal(n)], 1)


def counts(n=2000):
    r = rng()
    level = r.poisson(np.exp(0.5 * r.standard_normal(n) + 2))
    return np.stack([level, level + 0.3 * r.standard_normal(n)], 1)


def censored(n=3000):
    return np.maximum(rng().multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], n) + 0.2, 0)


def drawn(x, n=20_000, **options):
    law = mcs.mixture(x, **dict(kernel=AUTO) | options)
    return law, np.asarray(law.sample(KEY, n), np.float64)


def share_agrees(x, draws, event, errors=3.0):
    """The event's share among draws is that among rows within so many standard errors of the rows'."""
    expected, found = np.mean(event(x)), np.mean(event(draws))
    error = np.sqrt(expected * (1 - expected) * (1 / len(x) + 1 / len(draws)))
    assert abs(found - expected) <= errors * error, (expected, found, error)


def at(value):
    return lambda x: np.isclose(x[:, 0], value, rtol=1e-6, atol=0)


def spread_within(x):
    """Return the second column's root mean variance at a value of the first, where five rows have it."""
    parts = [x[x[:, 0] == value, 1] for value in np.unique(x[:, 0])]
    return np.sqrt(np.mean([part.var() for part in parts if len(part) >= 5]))


@pytest.mark.once
@pytest.mark.parametrize(
    "make, events",
    [
        (rain, [at(0)]),
        (zeros_among_integers, [at(0), lambda x: x[:, 0] <= 20]),
        (heaped, [lambda x: x[:, 0] % 30 == 0, at(300), at(301)]),
        (zeros_before_a_gap, [at(0), lambda x: (x[:, 0] > 0) & (x[:, 0] < 0.05)]),
        (both_ends, [at(-1), at(2)]),
        (censored, [lambda x: (x == 0).all(1), lambda x: (x == 0).any(1)]),
        (uneven_levels, [at(0), at(0.1), at(100)]),
    ],
)
def test_masses_are_kept(make, events):
    x = make()
    _, draws = drawn(x)
    for event in events:
        share_agrees(x, draws, event)


def test_what_is_no_atom_is_no_copy():
    x = rain()
    _, draws = drawn(x)
    positive = draws[draws[:, 0] > 0, 0]
    assert not np.isin(positive, x[:, 0]).any() and (draws[:, 0] >= 0).all()
    assert len(np.unique(positive)) > 0.99 * len(positive)
    wanted = np.quantile(x[x[:, 0] > 0, 0], [0.25, 0.5, 0.75])
    assert (np.abs(np.log(np.quantile(positive, [0.25, 0.5, 0.75]) / wanted)) < 0.5).all()


@pytest.mark.parametrize("n", [40, 400])
def test_dependence_on_levels_is_kept(n):
    x = dose(n)
    _, draws = drawn(x)
    assert set(np.unique(draws[:, 0])) == set(range(5))
    assert np.corrcoef(draws.T)[0, 1] > 0.99
    assert abs(spread_within(draws) / spread_within(x) - 1) < 0.2


@pytest.mark.once
def test_dependence_of_counts_and_censored_columns_is_kept():
    x = counts()
    _, draws = drawn(x)
    assert np.corrcoef(draws.T)[0, 1] > 0.995 and spread_within(draws) < 1.5 * spread_within(x)
    x = censored()
    _, draws = drawn(x)
    assert abs(np.corrcoef(draws.T)[0, 1] - np.corrcoef(x.T)[0, 1]) < 0.03


@pytest.mark.parametrize("single", [False, True])
def test_draws_are_on_the_data_s_steps(single):
    r, n = rng(), 2000
    columns = r.lognormal(5, 1, n).round(2), r.integers(1000, 9000, n), r.integers(0, 48, n) / 2
    x = np.stack([*columns, r.standard_normal(n)], 1)
    law, draws = drawn(x.astype(np.float32) if single else x, kernel=LOCAL, frame=AFFINE)
    assert {j: kind.split(" with")[0] for j, kind in law.report.kinds.items()} == {
        0: "steps of 0.01",
        1: "steps of 1",
        2: "steps of 0.5",
    }
    off = draws[:, :3] / [0.01, 1, 0.5]
    assert np.abs(off - np.round(off)).max() < (0.2 if law.dtype == "float32" else 1e-3)
    assert len(np.unique(draws[:, 3])) > 19_900


@pytest.mark.once
@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("frame", [mcs.Affine(whiten=True), mcs.Gaussianize()])
def test_ties_buy_no_likelihood_in_any_frame(frame, d):
    """A Poisson count has an entropy; nothing held-out is above its negative."""
    x = rng().poisson(9, (4000, d)).astype(float)
    law = mcs.mixture(x, kernel=mcs.Auto(frames=(frame,), partitions=1, most_clusters=20))
    levels = np.arange(60.0)
    log_p = levels * np.log(9) - 9 - np.cumsum(np.log(np.maximum(levels, 1)))
    truth = d * np.sum(np.exp(log_p) * log_p)
    assert truth - 0.1 < law.report.log_likelihood < truth + 0.05
    assert abs(float(jnp.mean(law.log_prob(x))) - truth) < 0.15


@pytest.mark.once
def test_an_atom_s_density_is_its_probability():
    law = mcs.mixture(zeros_before_a_gap()[:, :1], kernel=AUTO)
    assert abs(float(jnp.exp(law.log_prob(np.zeros((1, 1))))[0]) - 0.37) < 0.04
    grid = np.linspace(1e-3, 12, 20_001)[:, None]
    mass = float(np.trapezoid(np.exp(np.asarray(law.log_prob(grid), float)), grid[:, 0]))
    assert abs(mass - 0.63) < 0.04


@pytest.mark.parametrize("make", [rain, zeros_among_integers, heaped, both_ends, dose, counts])
def test_opening_and_closing_are_inverse(make):
    x = make().astype(float)
    for way in placed(KEY, x, np.full(len(x), 1 / len(x))):
        frame = way.frame(mcs.Identity())
        for back in (frame.leave(way.x), frame.inverse(frame.forward(x))):  # wherever rows are
            np.testing.assert_allclose(frame.restore(back), x, rtol=1e-11, atol=1e-13)
            for j, column in enumerate(way.columns):
                often = np.isin(x[:, j], column.values[column.atoms]) if column else []
                np.testing.assert_array_equal(frame.restore(back)[often, j], x[often, j])
        assert np.isfinite(frame.log_det(x)).all() and np.isfinite(way.gain).all()
        gradient = jax.grad(lambda x, f=frame: f.log_det(x).sum() + f.forward(x).sum())
        assert np.isfinite(gradient(jnp.asarray(x))).all()
        assert all((np.diff(np.sort(s)) > 0).mean() > 0.99 for s in way.x.T)  # no ties are left


def test_a_saved_generator_draws_the_same(tmp_path, key):
    n = 2000
    table = np.stack([COLUMNS["integers"][:n], COLUMNS["atom"][:n], COLUMNS["normal"][:n]], 1)
    law = mcs.mixture(table, kernel=mcs.Local(0.9, clusters=3), frame=mcs.Gaussianize())
    net = mcs.MLP(width=4, depth=1)
    gen = mcs.Generator(net.init(key, 3, law.dtype), law.frame, net)
    gen.save(tmp_path / "g.safetensors")
    samples = gen.sample(key, 100)
    assert set(np.unique(samples[:, 0])) <= {0.0, 1.0, 2.0, 3.0}
    np.testing.assert_array_equal(mcs.load(tmp_path / "g.safetensors").sample(key, 100), samples)


@pytest.mark.once
def test_marginals_and_conditionals_keep_kinds():
    x = np.column_stack([dose(400), rng().standard_normal(400)])
    law = mcs.mixture(x, kernel=AUTO)
    drawn = np.asarray(law.marginal([0]).sample(KEY, 1000))
    assert set(np.unique(drawn)) == set(range(5))
    given = law.condition([0], [3.0])
    reading = np.asarray(given.sample(KEY, 4000))[:, 0]
    rows = x[x[:, 0] == 3, 1]
    assert abs(reading.mean() - rows.mean()) < 0.01 and abs(reading.std() / rows.std() - 1) < 0.3


@pytest.mark.once
def test_a_density_of_counts_sums_to_one():
    """Over all counts and along the other column, though each count's place goes with that column."""
    law = mcs.mixture(counts(1000), kernel=AUTO)
    assert law.frame.shares is not None
    levels, y = np.arange(0.0, 60), np.linspace(-10, 70, 1601)
    grid = np.stack(np.meshgrid(levels, y, indexing="ij"), -1).reshape(-1, 2)
    mass = np.exp(np.asarray(law.log_prob(grid), float)).sum() * (y[1] - y[0])
    assert abs(mass - 1) < 0.02
    fresh = counts(4000)
    likelihood = float(np.mean(np.asarray(law.log_prob(fresh), float)))
    assert law.report.log_likelihood < likelihood < law.report.log_likelihood + 1  # a lower bound


@pytest.mark.once
@pytest.mark.parametrize("level", [4.0, 7.0, 12.0])
def test_what_is_given_a_count_keeps_its_spread(level):
    """The condition is the count, not the middle of its interval, though places go with the reading."""
    x = counts(3000)
    law = mcs.mixture(x, kernel=AUTO)
    assert law.frame.shares is not None
    given = law.condition([0], [level])
    reading, rows = np.asarray(given.sample(KEY, 5000))[:, 0], x[x[:, 0] == level, 1]
    assert abs(reading.mean() - rows.mean()) < 0.1 and 0.8 < reading.std() / rows.std() < 1.4
    y = np.linspace(level - 1, level + 1, 9)[:, None]
    joint = law.log_prob(np.column_stack([np.full(9, level), y]))
    apart = law.marginal([0]).log_prob([[level]]) + given.log_prob(y)
    np.testing.assert_allclose(joint, apart, atol=1e-3)
    by_vmap = jax.vmap(lambda v: law.condition([0], v).log_prob(y))(jnp.full((2, 1), level))
    np.testing.assert_allclose(by_vmap[1], given.log_prob(y), atol=1e-3)


def test_many_columns_of_levels_end_in_few_strata():
    r = rng()
    x = np.column_stack([r.integers(0, 10, (60_000, 6)), r.standard_normal(60_000)]).astype(float)
    ways = placed(KEY, x, np.full(len(x), 1 / len(x)))
    assert len(ways) == 2 and 2 <= ways[1].strata.max() + 1 <= 40
    assert sum(ways[1].heaped) == 1


def test_a_frame_fitted_elsewhere_is_not_opened_twice():
    x = counts()
    first = mcs.mixture(x, kernel=mcs.Local(0.5, clusters=4), frame=mcs.Gaussianize())
    law = mcs.mixture(x, kernel=mcs.Local(0.5, clusters=4), frame=first.frame)
    assert law.frame is first.frame


def test_a_column_with_the_period_of_the_sample_is_no_constant():
    """Dependence is told by 20,000 rows, drawn at random: every third of these has the same hour."""
    x = with_noise(np.arange(60_000) % 3.0)
    for way in placed(KEY, x, np.full(len(x), 1 / len(x)), spread=True):
        assert np.isfinite(way.x).all() and np.isfinite(way.gain).all()
