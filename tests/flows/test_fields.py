"""The jet and its readings against the float64 loop, autodiff, and known laws."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mcscore as mcs
from mcscore.flows import fields
from tests import reference
from tests.conftest import X64

SCHEDULE = mcs.Rectified()  # s = t / (1 - t) takes every value


def table(n, d, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    x[:, 0] = np.sign(x[:, 0]) + 0.2 * x[:, 0]
    x = (x - x.mean(0)) / x.std(0)
    return x.astype(np.float32).astype(np.float64)


def queries(x, s, n, seed=1, far=0.0):
    rng = np.random.default_rng(seed)
    y = x[rng.integers(0, len(x), n)] + s * rng.standard_normal((n, x.shape[1]))
    return (y + far * rng.standard_normal(y.shape)).astype(np.float32).astype(np.float64)


def at(law, x_t, t, schedule=SCHEDULE):
    return jax.tree.map(np.asarray, mcs.flows.evaluate(jnp.asarray(x_t), t, law, schedule))


def relative(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


KERNELS = {"dirac": (mcs.Dirac(), 0.0), "isotropic": (mcs.Isotropic(0.3), 0.3)}


@pytest.mark.parametrize("far", [0.0, 3.0, 100.0])
@pytest.mark.parametrize("s", [0.03, 0.3, 3.0])
@pytest.mark.parametrize("d", [2, 6, 20])
@pytest.mark.parametrize("kernel", KERNELS)
def test_jet_matches_the_loop(kernel, d, s, far, tol):
    kernel, h = KERNELS[kernel]
    x = table(600, d)
    weights = np.random.default_rng(2).random(600)
    weights[:5] = 0
    t = s / (1 + s)
    alpha, sigma = 1 - t, t
    x_t = (alpha * queries(x, s, 40, far=far)).astype(np.float32).astype(np.float64)
    law = mcs.mixture(
        x if X64 else x.astype(np.float32), kernel=kernel, weights=weights, block_rows=100
    )
    found = at(law, x_t, t)
    keep = weights > 0
    expected = reference.isotropic_jet(x_t, alpha, sigma, x[keep], weights[keep] / weights.sum(), h)
    bound = tol(1e-10, 1e-4)
    np.testing.assert_allclose(found.log_p, expected[0], rtol=bound, atol=bound)
    assert relative(found.field, expected[1]) < bound
    assert relative(found.laplacian, expected[2]) < bound


@pytest.mark.parametrize("kernel", KERNELS)
def test_score_and_divergence_are_derivatives(kernel):
    law = mcs.mixture(table(50, 3), kernel=KERNELS[kernel][0], block_rows=16)
    x = jnp.asarray(queries(table(50, 3), 0.5, 6))
    density = lambda row: mcs.log_density(row[None], 0.4, law, SCHEDULE)[0]  # noqa: E731
    tolerance = dict(rtol=1e-9 if X64 else 1e-3, atol=1e-9 if X64 else 1e-3)
    np.testing.assert_allclose(
        mcs.score(x, 0.4, law, SCHEDULE), jax.vmap(jax.grad(density))(x), **tolerance
    )
    score = lambda row: mcs.score(row[None], 0.4, law, SCHEDULE)[0]  # noqa: E731
    traces = jax.vmap(lambda row: jnp.trace(jax.jacfwd(score)(row)))(x)
    np.testing.assert_allclose(mcs.divergence(x, 0.4, law, SCHEDULE), traces, **tolerance)


def test_readings_agree(tol):
    """Tweedie, and velocity = b x - g^2/2 score, at times one per query."""
    law = mcs.mixture(table(80, 3), kernel=mcs.Isotropic(0.2))
    x = jnp.asarray(queries(table(80, 3), 0.5, 9))
    t = jnp.linspace(0.1, 0.9, 9)
    for schedule in (mcs.Linear(), mcs.VP(), mcs.Cosine()):
        alpha, sigma = (v[:, None] for v in schedule(t))
        score = mcs.score(x, t, law, schedule)
        bound = dict(rtol=tol(1e-9, 2e-3), atol=tol(1e-9, 2e-3))
        np.testing.assert_allclose(
            mcs.denoise(x, t, law, schedule), (x + sigma**2 * score) / alpha, **bound
        )
        b, g2 = schedule.drift(t)[:, None], schedule.diffusion(t)[:, None]
        np.testing.assert_allclose(
            mcs.velocity(x, t, law, schedule), b * x - g2 / 2 * score, **bound
        )
        singly = [mcs.score(x[i : i + 1], t[i], law, schedule)[0] for i in range(9)]
        np.testing.assert_allclose(score, jnp.stack(singly), **bound)


def test_regular_where_the_signal_vanishes():
    law = mcs.mixture(table(80, 3), kernel=mcs.Dirac())
    x = jnp.ones((4, 3))
    np.testing.assert_allclose(mcs.score(x, 1.0, law, mcs.Cosine()), -x, atol=1e-6)
    np.testing.assert_allclose(mcs.denoise(x, 1.0, law, mcs.Cosine()), 0 * x, atol=1e-6)
    assert jnp.isfinite(mcs.velocity(x, 1.0, law, mcs.Cosine())).all()


def test_gaussian_mixture_is_known_at_every_time(key):
    """Independent road: a mixture of few isotropic Gaussians is exactly its own data law."""
    truth = mcs.datasets.EIGHT_GAUSSIANS
    law = mcs.mixture(truth.means, kernel=mcs.Isotropic(0.15))
    for t in (0.1, 0.5, 0.9):
        alpha, sigma = mcs.Linear()(t)
        diffused = truth.diffused(alpha, sigma)
        x = diffused.sample(key, 50)
        bound = dict(rtol=1e-4, atol=1e-3) if not X64 else dict(rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(
            mcs.log_density(x, t, law, mcs.Linear()), diffused.log_prob(x), **bound
        )
        np.testing.assert_allclose(mcs.score(x, t, law, mcs.Linear()), diffused.score(x), **bound)


HOSTILE = {
    "one row": lambda rng: rng.standard_normal((1, 3)),
    "all equal": lambda rng: np.ones((40, 3)),
    "wide": lambda rng: rng.standard_normal((300, 250)),
    "offset": lambda rng: 1000 + rng.standard_normal((500, 3)),
    "one column": lambda rng: rng.standard_normal((30, 1)),
}


@pytest.mark.parametrize("far", [0.0, 1e3])
@pytest.mark.parametrize("case", HOSTILE)
def test_never_nan(case, far):
    x = HOSTILE[case](np.random.default_rng(0)).astype(np.float32)
    law = mcs.mixture(x, kernel=mcs.Dirac(), block_rows=64)
    y = jnp.asarray(x[:20].astype(law.dtype)) + far
    for t in (0.0, 0.03, 0.5, 1.0):
        for part in at(law, y, t, mcs.Linear()):
            assert np.isfinite(part).all()


def test_offset_costs_no_more_than_rounding_of_the_inputs():
    x = (1000 + table(500, 3)).astype(np.float32)
    y = (1000 + queries(table(500, 3), 0.3, 50)).astype(np.float32)
    law = mcs.mixture(x, kernel=mcs.Isotropic(0.3))
    expected = reference.isotropic_jet(y, 1.0, 0.0, x.astype(float), np.full(500, 1 / 500), 0.3)
    found = at(law, y.astype(law.dtype), 0.0)
    assert relative(found.field, expected[1]) < 1e-5
    np.testing.assert_allclose(found.log_p, expected[0], rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(0, 99),
    st.floats(0.05, 0.95),
)
def test_any_shape_and_block_size(n, d, block, seed, t):
    rng = np.random.default_rng(seed)
    x, weights = rng.standard_normal((n, d)), rng.random(n) + 0.01
    y = rng.standard_normal((3, d))
    law = mcs.mixture(x, kernel=mcs.Isotropic(0.4), weights=weights, block_rows=block)
    expected = reference.isotropic_jet(y, 1 - t, t, x, weights / weights.sum(), 0.4)
    for found, value in zip(at(law, jnp.asarray(y), t), expected, strict=True):
        bound = 1e-9 if X64 else 2e-4
        np.testing.assert_allclose(found, value, rtol=bound, atol=bound * (1 + np.abs(value).max()))


def test_equal_arguments_never_recompile():
    x = jnp.asarray(table(20, 2))
    law = mcs.mixture(table(20, 2), kernel=mcs.Isotropic(0.1))
    mcs.score(x, 0.1, law, mcs.Linear())
    before = fields.at_times._cache_size()
    for t, eps, h in ((0.2, 0.01, 0.1), (0.3, 0.02, 0.1), (0.4, 0.01, 0.2)):
        law = mcs.mixture(table(20, 2), kernel=mcs.Isotropic(h))
        mcs.score(x, t, law, mcs.Linear(eps=eps))
    assert fields.at_times._cache_size() == before


def test_bad_shapes_are_named():
    law = mcs.mixture(table(20, 2))
    with pytest.raises(ValueError, match=r"x_t: expected shape \(b, 2\)"):
        mcs.score(jnp.zeros((3, 5)), 0.5, law, SCHEDULE)
    with pytest.raises(ValueError, match="t: expected a scalar"):
        mcs.score(jnp.zeros((3, 2)), jnp.zeros(2), law, SCHEDULE)


def test_vmap_over_times_and_mixtures():
    law = mcs.mixture(table(20, 2), kernel=mcs.Isotropic(0.3))
    x = jnp.ones((5, 2))
    times = jnp.array([0.2, 0.6])
    many = jax.vmap(lambda t: mcs.score(x, t, law, SCHEDULE))(times)
    np.testing.assert_allclose(many[1], mcs.score(x, 0.6, law, SCHEDULE), rtol=1e-5)
    keys = jax.random.split(jax.random.key(0), 3)
    subsets = jax.vmap(lambda k: law.subsample(k, 10))(keys)
    assert jax.vmap(lambda m: mcs.score(x, 0.5, m, SCHEDULE))(subsets).shape == (3, 5, 2)


# --- mini-batches -----------------------------------------------------------------------------------


def test_minibatch_error_falls_like_root_j_and_is_covered(key):
    x = table(4000, 3)
    law = mcs.mixture(x, kernel=mcs.Dirac())
    y = jnp.asarray(0.55 * queries(x, 0.8, 30))
    exact = mcs.score(y, 0.45, law, SCHEDULE)
    keys = jax.random.split(key, 64)
    errors = []
    for size in (200, 3200):
        run = lambda k: mcs.minibatch_score(k, y, 0.45, law, SCHEDULE, batch_size=size)  # noqa: B023, E731
        estimate = jax.lax.map(run, keys)
        error = estimate.score - exact[None]
        errors.append(float(jnp.sqrt(jnp.mean(error**2))))
        inside = jnp.mean(jnp.abs(error) < 2 * estimate.standard_error)
        assert 0.90 < float(inside) < 0.99  # 0.954 for a normal error
    assert 3 < errors[0] / errors[1] < 5.5  # sqrt(16) = 4


def test_minibatches_average(key):
    law = mcs.mixture(table(500, 2), kernel=mcs.Isotropic(0.2))
    y = jnp.zeros((4, 2))
    one = mcs.minibatch_score(key, y, 0.5, law, SCHEDULE, batch_size=50)
    many = mcs.minibatch_score(key, y, 0.5, law, SCHEDULE, batch_size=50, batches=16)
    assert (many.standard_error < one.standard_error).all()
    assert (many.effective_sample_size < 2 * one.effective_sample_size).all()  # of one of them
    with pytest.warns(UserWarning, match="effective sample size below 5"):
        mcs.minibatch_score(key, 30 + y, 0.05, law, SCHEDULE, batch_size=50, batches=16)
    score, error = one
    assert score.shape == error.shape == (4, 2)


def test_a_minibatch_keeps_the_digits_of_far_rows(key):
    """Of pairs of point masses, a tenth apart and a thousand from the others, at a noise of 0.1."""
    r = np.random.default_rng(3)
    x = np.repeat(1000 * r.standard_normal((20, 2)), 2, 0) + 0.1 * r.standard_normal((40, 2))
    law, schedule = mcs.mixture(x, kernel=mcs.Dirac()), mcs.Linear()
    query = np.asarray(law.points()[0])[::2]
    expected = mcs.score(query, 0.0, law, schedule)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # few rows decide
        found = mcs.minibatch_score(key, query, 0.0, law, schedule, batch_size=40_000)
    np.testing.assert_allclose(found.score, expected, atol=0.1 * np.abs(expected).max())


def test_the_laplacian_goes_with_the_score_alone():
    law = mcs.mixture(table(50, 2), kernel=mcs.Local(0.5, clusters=3), frame=mcs.Affine())
    ask = dict(t=0.5, mixture=law, schedule=SCHEDULE, reading=mcs.jet.Denoiser())
    assert mcs.flows.evaluate(jnp.zeros((3, 2)), **ask).laplacian is None
    with pytest.raises(ValueError, match="laplacian: expected False"):
        mcs.flows.evaluate(jnp.zeros((3, 2)), **ask, laplacian=True)


def test_point_masses_have_no_score_at_time_zero():
    law = mcs.mixture(table(50, 2), kernel=mcs.Dirac())
    with pytest.raises(ValueError, match="t = 0: the empirical measure"):
        mcs.score(jnp.zeros((1, 2)), 0.0, law, mcs.Cosine())
    with pytest.raises(ValueError, match="t = 0: the empirical measure"):
        mcs.denoise(jnp.zeros((2, 2)), np.array([0.5, 0.0]), law, mcs.Cosine())


def test_whole_data_as_minibatch_is_the_score(key):
    """With one repeated row there is nothing to draw: estimate exact, no error, ESS = J."""
    law = mcs.mixture(np.ones((7, 2)), kernel=mcs.Isotropic(0.2))
    estimate = mcs.minibatch_score(key, jnp.zeros((1, 2)), 0.5, law, SCHEDULE, batch_size=20)
    np.testing.assert_allclose(
        estimate.score, mcs.score(jnp.zeros((1, 2)), 0.5, law, SCHEDULE), rtol=1e-5
    )
    np.testing.assert_allclose(estimate.standard_error, 0, atol=1e-5)
    np.testing.assert_allclose(estimate.effective_sample_size, 20, rtol=1e-5)
