"""The Gaussianized frame: closed forms, calibration, voids, tails, ties and outliers."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest, norm

import mcscore as mcs
from mcscore.frames import placed, splines
from mcscore.jet import conditioning
from mcscore.mixtures import layout
from tests.conftest import X64

RNG, KEY = np.random.default_rng(0), jax.random.key(0)


COLUMNS = {
    "normal": RNG.standard_normal(3000),
    "lognormal": np.exp(RNG.standard_normal(3000)),
    "cauchy": RNG.standard_cauchy(3000),
    "uniform": RNG.random(3000),
    "bimodal": np.where(RNG.random(3000) < 0.5, -5, 5) + RNG.standard_normal(3000),
    "integers": RNG.integers(0, 4, 3000).astype(float),
    "binary": (RNG.random(3000) < 0.03).astype(float),
    "atom": np.where(RNG.random(3000) < 0.5, 0.0, RNG.standard_normal(3000)),
    "tiny": 1e-6 * RNG.standard_normal(3000) + 1e-3,
}


@pytest.mark.parametrize("name", COLUMNS)
def test_gaussianized_columns(name):
    x = np.stack([COLUMNS[name], RNG.standard_normal(3000)], 1)
    frame = mcs.Gaussianize().fit(placed(KEY, x, np.full(len(x), 1 / len(x)))[0].x)
    spread = x[:, 0].std() if name != "cauchy" else 3.0
    far = np.concatenate([x, x.mean(0) + spread * np.array([[50, 0], [-50, 0]])]).astype(np.float64)
    y = frame.forward(far)
    assert np.isfinite(y).all() and np.abs(y).max() < 60
    dtype = jnp.zeros(()).dtype
    back = np.asarray(frame.inverse(frame.forward(jnp.asarray(far, dtype))))
    np.testing.assert_allclose(
        back, far, rtol=1e-6 if X64 else 2e-3, atol=(1e-8 if X64 else 2e-3) * spread
    )
    grid = jnp.asarray(np.linspace(x[:, 0].min() - spread, x[:, 0].max() + spread, 400), dtype)
    rows = jnp.stack([grid, 0 * grid], 1)
    score = lambda row: frame.forward(row[None])[0]  # noqa: E731
    slopes = jnp.linalg.slogdet(jax.vmap(jax.jacfwd(score))(rows))
    assert (slopes[0] > 0).all()  # strictly monotone
    np.testing.assert_allclose(frame.log_det(rows), slopes[1], atol=1e-8 if X64 else 2e-2)


@pytest.mark.parametrize("unit", [1e6, 1e-28])
def test_squares_of_slopes_may_leave_float32(unit):
    """27 decades in large units (slopes down to 3e-18), or in the units of cross sections (1e26)."""
    x = unit * np.exp(np.random.default_rng(0).normal(0, 9, (3000, 1)))
    frame = mcs.Gaussianize().fit(x)
    single = jnp.asarray(x, jnp.float32)
    y = frame.forward(single)
    np.testing.assert_allclose(y, frame.forward(x), atol=1e-4)
    np.testing.assert_allclose(frame.log_det(single), frame.log_det(x), atol=1e-3)
    np.testing.assert_allclose(frame.forward(frame.inverse(y)), y, atol=1e-4)


def test_gaussianized_law_integrates_to_one():
    x = np.exp(RNG.standard_normal((2000, 1)))
    law = mcs.mixture(x, kernel=mcs.Whitened(0.3, preserve=True), frame=mcs.Gaussianize())
    grid = jnp.concatenate([-jnp.geomspace(1e-6, 1e4, 4000)[::-1], jnp.geomspace(1e-6, 1e4, 8000)])
    mass = jnp.trapezoid(
        jnp.exp(law.log_prob(grid[:, None].astype(law.dtype))), grid.astype(law.dtype)
    )
    np.testing.assert_allclose(mass, 1, atol=5e-3)


def skewed(n):
    rng = np.random.default_rng(3)
    return np.stack([np.exp(rng.normal(size=n)), rng.uniform(size=n) ** 2], 1)


def test_calibrated_frame_gives_the_law_the_marginals_of_the_data(key):
    x, kernel = skewed(4000), mcs.Isotropic(0.6)
    calibrated = mcs.mixture(x, kernel=kernel, frame=mcs.Gaussianize())
    plain = mcs.mixture(x, kernel=kernel, frame=mcs.Gaussianize().fit(x))  # given: left as it is
    levels = np.linspace(0.02, 0.98, 30)
    errors = []
    for law in (plain, calibrated):
        draws = np.asarray(law.sample(key, 50_000), np.float64)
        at = [np.quantile(draws[:, j], levels) for j in range(2)]
        found = [np.searchsorted(np.sort(x[:, j]), at[j]) / len(x) for j in range(2)]
        errors.append(np.abs(np.array(found) - levels).max())
    assert errors[1] < 0.02 < 0.04 < errors[0]
    back = calibrated.frame.inverse(calibrated.frame.forward(jnp.asarray(x)))
    np.testing.assert_allclose(back, x, rtol=1e-9 if X64 else 2e-3, atol=1e-9 if X64 else 1e-5)


def test_a_thinned_law_keeps_empty_blocks_empty(monkeypatch):
    """Shapes are powers of two, so that laws of many clusters end in blocks without rows."""
    monkeypatch.setattr(layout, "CALIBRATING_ROWS", 500)
    blocks = mcs.mixture(skewed(2000), kernel=mcs.Local(0.8, clusters=7)).blocks
    padded = jax.tree.map(lambda a: np.concatenate([a, np.zeros_like(a[:1])]), blocks)
    log_weights = np.concatenate(
        [blocks.log_weights, np.full_like(blocks.log_weights[:1], -np.inf)]
    )
    thinned = layout._thinned(replace(padded, log_weights=log_weights)).log_weights
    assert thinned.size < log_weights.size / 2 and np.isneginf(thinned[-1]).all()
    assert np.exp(thinned).sum() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("thinned", [False, True])
def test_calibration_is_exact_at_the_knots(thinned, monkeypatch):
    monkeypatch.setattr(layout, "CALIBRATING_ROWS", 10_000 if thinned else 100_000)
    x, kernel = skewed(20_000), mcs.Local(0.6, 3, 2)
    law = mcs.mixture(x, kernel=kernel, frame=mcs.Gaussianize())
    normal = mcs.Gaussianize().fit(x)
    exact = 0.03 if thinned else 1e-3
    for j in range(2):
        count = 1 + np.count_nonzero(np.diff(normal.knots[j]))
        at = np.asarray(law.frame.knots[j][:count]), np.asarray(normal.scores[j][:count])
        marginal = law.marginal([j])
        values = at[0][:, None].astype(np.float64)
        inside = np.asarray(marginal.frame.forward(values))
        mass = conditioning.tails(marginal.blocks, jnp.eye(1), jnp.asarray(inside, law.dtype))
        level = np.where(inside > 0, -1, 1) * norm.ppf(np.asarray(mass, np.float64))
        near = np.abs(at[1]) < (2 if thinned else np.inf)  # few rows lie further out
        np.testing.assert_allclose(level[near, 0], at[1][near], atol=exact)


def test_calibrated_law_integrates_to_one():
    law = mcs.mixture(skewed(2000)[:, 1:], kernel=mcs.Isotropic(0.5), frame=mcs.Gaussianize())
    grid = np.linspace(-20, 20, 400_001)[:, None]
    mass = np.exp(np.asarray(law.log_prob(grid), np.float64)).sum() * 1e-4
    assert mass == pytest.approx(1, abs=2e-3)  # the power law's tails reach beyond the grid


def test_scores_keep_both_signs_however_far_the_law_is_off():
    frame = mcs.Gaussianize().fit(skewed(2000))
    law = mcs.mixture(np.full((2, 2), 5.0), kernel=mcs.Isotropic(1.0))
    tails = partial(conditioning.tails, law.blocks)
    off = frame.calibrated(lambda _, at: tails(np.eye(2), at), skewed(2000), np.ones(2000))
    assert (off.scores[:, 0] <= -0.5).all() and (off.scores[:, -1] >= 0.5).all()
    assert (np.diff(off.scores) >= 0).all() and (off.slopes > 0).all()


@pytest.mark.parametrize("kernel", [mcs.Isotropic(0.5), mcs.Dirac()], ids=["isotropic", "dirac"])
def test_atoms_survive_calibration(kernel, key):
    rng = np.random.default_rng(0)
    atom = np.where(rng.random(3000) < 0.8, 0.0, rng.exponential(size=3000))  # most rows at one end
    x = np.stack([atom, rng.integers(0, 3, 3000), rng.normal(size=3000)], 1)
    law = mcs.mixture(x, kernel=kernel, frame=mcs.Gaussianize(dequantize=False))
    assert (np.asarray(law.frame.scores)[:, 0] <= -0.5).all()
    assert (np.asarray(law.frame.scores)[:, -1] >= 0.5).all()
    y = law.frame.forward(jnp.asarray(x))
    assert np.isfinite(np.asarray(y)).all() and np.isfinite(np.asarray(law.sample(key, 1000))).all()
    np.testing.assert_allclose(law.frame.inverse(y), x, atol=1e-8 if X64 else 2e-3)


def test_knots_grow_with_the_rows(monkeypatch):
    monkeypatch.setattr(splines, "VOID", 0.0)
    rng = np.random.default_rng(0)
    x = (rng.integers(0, 20, 20_000) + 0.1 * rng.standard_normal(20_000))[:, None]  # 20 modes
    distance = [kstest(mcs.Gaussianize().fit(a).forward(a)[:, 0], "norm")[0] for a in (x[::8], x)]
    assert distance[1] < 0.02 < distance[0]
    assert 200 < mcs.Gaussianize().fit(rng.standard_normal((60_000, 1))).knots.shape[1] <= 250


def test_voids_between_modes_are_opened():
    rng = np.random.default_rng(1)
    x = np.where(rng.random(20_000) < 0.04, 30, 0) + rng.uniform(-1, 1, 20_000)
    below, above = mcs.Gaussianize().fit(x[:, None]).column_scores(np.array([[1.0], [29.0]]))[0]
    assert 1 < (above - below)[0] < 1.2  # 28 units are more than a deviation, the most it grows
    edge = norm.ppf(np.mean(x < 15))
    np.testing.assert_allclose(below, edge, atol=0.08)  # away from the median


@pytest.mark.parametrize("rows", [400, 5000, 40_000])
@pytest.mark.parametrize("name", ["normal", "cauchy", "exponential", "lognormal", "shoulder"])
def test_tails_and_shoulders_are_no_voids(name, rows):
    rng = np.random.default_rng(rows)
    x = dict(
        normal=rng.standard_normal(rows),
        cauchy=rng.standard_cauchy(rows),
        exponential=rng.exponential(size=rows),
        lognormal=np.exp(3 * rng.standard_normal(rows)),
        shoulder=rng.standard_normal(rows) + 3 * (rng.random(rows) < 0.1),
    )[name]
    share, count = np.full(rows, 1 / rows), min(rows // 20, 250)
    knots, scores, _ = splines.fit_spline(x, share, count, float(rows))
    levels = np.interp(knots, *splines.distribution(x, share))
    np.testing.assert_allclose(scores, norm.ppf(levels), atol=1e-6)


@pytest.mark.once
def test_kernels_do_not_reach_across_a_void(key, monkeypatch):
    """A rare mode of one column goes with large values of another: blurred where the void is closed."""
    rng = np.random.default_rng(2)
    rare = rng.random(20_000) < 0.03
    x = np.stack([30.0 * rare, 2.0 * rare], 1) + rng.standard_normal((20_000, 2))
    off = []
    for void in (splines.VOID, 0.0):
        monkeypatch.setattr(splines, "VOID", void)
        law = mcs.mixture(x, kernel=mcs.Local(0.7, 20), frame=mcs.Gaussianize())
        draws = np.asarray(law.sample(key, 200_000), np.float64)
        upper = draws[:, 0] > 15
        assert abs(upper.mean() - rare.mean()) < 0.003  # marginals are right in both
        off.append(abs(draws[upper, 1].mean() - x[rare, 1].mean()))  # sampling error 0.013
    assert off[0] < 0.06 < 0.12 < off[1]


def test_few_rows_are_not_calibrated():
    x = skewed(1000)
    law = mcs.mixture(x, kernel=mcs.Isotropic(0.6), frame=mcs.Gaussianize())
    np.testing.assert_allclose(law.frame.scores, mcs.Gaussianize().fit(x).scores, rtol=1e-5)


def test_draws_end_though_the_power_law_does_not(key):
    x = np.random.default_rng(0).standard_cauchy((2000, 2))
    law = mcs.mixture(x, kernel=mcs.Isotropic(0.3), frame=mcs.Gaussianize())
    y = mcs.jet.draw(key, law.blocks, 200_000)
    free = np.asarray(law.frame.inverse(y))
    drawn = np.asarray(law.frame.restore(free))
    least, most = limits = np.asarray(law.frame.limits, drawn.dtype)
    np.testing.assert_allclose(limits, [x.min(0), x.max(0)], rtol=1e-6)
    inside = (free >= least) & (free <= most)
    np.testing.assert_array_equal(drawn[inside], free[inside])
    assert 0.9 < inside.mean() < 1 and np.abs(free).max() > 1.2 * np.abs(x).max()
    room = 0.11 * np.abs(limits - np.asarray(law.frame.knots)[:, [0, -1]].T)
    for draws in (drawn, np.asarray(law.sample(key, 200_000))):
        assert (draws >= least - room[0]).all() and (draws <= most + room[1]).all()
    for j in range(2):  # no heap at the ends, and nobody overtakes
        beyond = np.sort(drawn[(free[:, j] > most[j]) & (free[:, j] < 2 * most[j]), j])
        assert len(beyond) > 10 and len(np.unique(beyond)) > 0.9 * len(beyond)
        order = np.argsort(free[:, j])
        assert (np.diff(drawn[order, j]) >= 0).all()


def test_numpy_draws_are_restored_as_jax_arrays_are_and_nothing_is_compiled(compiled):
    x = np.stack([RNG.integers(0, 5, 2000), RNG.standard_cauchy(2000)], 1).astype(float)
    frame = mcs.mixture(x, kernel=mcs.Isotropic(0.3), frame=mcs.Gaussianize()).frame
    y = np.concatenate([3 * RNG.standard_normal((500, 2)), np.full((1, 2), 30.0)])
    compiled.clear()
    restored = frame.restore(frame.inverse(y))
    assert not compiled and isinstance(restored, np.ndarray) and restored.dtype == np.float64
    assert set(restored[:, 0]) <= set(x[:, 0]) and np.isfinite(restored).all()
    other = jax.jit(lambda y: frame.restore(frame.inverse(y)))(y)
    np.testing.assert_allclose(restored[:-1], other[:-1], rtol=1e-8 if X64 else 2e-3, atol=1e-5)


@pytest.mark.once
@pytest.mark.parametrize("frame", [mcs.Affine(), mcs.Gaussianize()])
def test_one_outlier_ruins_nothing(frame):
    rng = np.random.default_rng(5)
    x, test = rng.standard_normal((3000, 3)), rng.standard_normal((5000, 3))
    kernel = mcs.Local(0.7, clusters=5)
    law = mcs.mixture(x, kernel=kernel, frame=frame)
    plain = np.asarray(law.log_prob(test))
    outlier = np.array([[50.0, 0.0, 0.0]])
    with_outlier = np.append(plain, np.asarray(law.log_prob(outlier)))
    assert np.isfinite(with_outlier).all()
    if isinstance(frame, mcs.Gaussianize):  # a Gaussian frame has Gaussian tails
        assert abs(with_outlier.mean() - plain.mean()) < 0.1
    spoiled = mcs.mixture(np.concatenate([x, outlier]), kernel=kernel, frame=frame)
    assert abs(np.mean(np.asarray(spoiled.log_prob(test))) - plain.mean()) < 0.1


# --- the automatic choice ---------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [mcs.Affine(whiten=True), mcs.Gaussianize()])
def test_recalibrated_frame_has_the_wanted_moments(frame):
    x = np.exp(RNG.standard_normal((2000, 3)) @ RNG.standard_normal((3, 3)))
    fitted = frame.fit(x)
    wanted = fitted.forward(x)
    y = 0.9 * wanted @ RNG.standard_normal((3, 3)) + 0.1  # what a network might give
    moved = fitted.recalibrated(y, wanted)
    # The same x, through the coordinates of old and new frame: y -> y A + b.
    seen = fitted.forward(moved.inverse(y))
    np.testing.assert_allclose(seen.mean(0), wanted.mean(0), atol=1e-6)
    np.testing.assert_allclose(np.cov(seen.T), np.cov(wanted.T), atol=1e-6)
    np.testing.assert_allclose(moved.forward(moved.inverse(y)), y, atol=1e-6)
    slopes = jax.vmap(jax.jacfwd(lambda row: moved.forward(row[None])[0]))(jnp.asarray(x[:20]))
    np.testing.assert_allclose(
        moved.log_det(x[:20]), jnp.linalg.slogdet(slopes)[1], rtol=1e-5 if X64 else 1e-3, atol=1e-3
    )
    same = fitted.recalibrated(y * [1, 0, 1], wanted)  # nothing to scale up
    np.testing.assert_array_equal(same.matrix, fitted.matrix)
