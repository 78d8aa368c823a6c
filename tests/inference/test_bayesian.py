"""NumPyro distributions and ArviZ data: closed forms, NUTS against weighted draws, the errors."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import mcscore as mcs
from mcscore.inference import to_arviz, to_numpyro

numpyro = pytest.importorskip("numpyro", reason="needs the extra [bayes]")
dist = numpyro.distributions
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def numpyro_own_numbers():
    """NumPyro mixes types and ranks, which the tests of mcscore forbid."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def bounded():
    """A law of a positive column, one that follows it, and an angle."""
    mass = RNG.gamma(2.0, size=1500)
    rows = [mass, 0.5 * mass + RNG.normal(size=1500), RNG.uniform(0, 360, 1500)]
    how = dict(kernel=mcs.Local(0.6, clusters=3), frame=mcs.Gaussianize())
    return mcs.mixture(np.stack(rows, 1), bounds={0: (0, None)}, periodic={2: 360.0}, **how)


def nuts(key, model, n, **observed):
    run = numpyro.infer.MCMC(
        numpyro.infer.NUTS(model), num_warmup=300, num_samples=n, progress_bar=False
    )
    run.run(key, **observed)
    return {name: np.asarray(draws) for name, draws in run.get_samples().items()}


@pytest.mark.once
def test_a_law_is_a_distribution(bounded, key):
    prior = to_numpyro(bounded)
    x = prior.sample(key, (3, 4))
    assert x.shape == (3, 4, 3) and prior.event_shape == (3,) and prior.batch_shape == ()
    expected = bounded.log_prob(x.reshape(12, 3)).reshape(3, 4)
    np.testing.assert_allclose(prior.log_prob(x), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(prior.log_prob)(x), expected, rtol=1e-4, atol=1e-4)
    assert prior.support(x).all() and not prior.support(x.at[..., 0].set(-1.0)).any()
    leaves, tree = jax.tree.flatten(prior)
    np.testing.assert_array_equal(jax.tree.unflatten(tree, leaves).log_prob(x), prior.log_prob(x))


@pytest.mark.slow
def test_its_coordinates_are_a_bijection_with_the_right_volume(bounded, key):
    map_ = dist.biject_to(to_numpyro(bounded).support)
    y = jax.random.normal(key, (50, 3))
    x = map_(y)
    np.testing.assert_allclose(map_.inv(x), y, atol=2e-3)
    slopes = jax.vmap(jax.jacobian(map_))(y)
    expected = jnp.linalg.slogdet(slopes)[1]
    np.testing.assert_allclose(map_.log_abs_det_jacobian(y, x), expected, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("bounds", [{0: (0, 1)}, {0: (0, None)}, {0: (None, 1)}, None], ids=str)
@pytest.mark.parametrize("frame", [mcs.Gaussianize(), mcs.Affine()], ids=["gaussianized", "affine"])
def test_what_a_sampler_sees_integrates_to_one(bounds, frame):
    """Also so far out that the column is rounded to its end."""
    x = RNG.uniform(size=(300, 1))
    periodic = None if bounds else {0: 1.0}
    law = mcs.mixture(x, kernel=mcs.Local(0.5), frame=frame, bounds=bounds, periodic=periodic)
    prior = to_numpyro(law)
    y = jnp.linspace(-15, 15, 30_001, dtype=law.dtype)[:, None]
    at = dist.biject_to(prior.support)
    x = at(y)
    log_p = np.asarray(prior.log_prob(x) + at.log_abs_det_jacobian(y, x), np.float64)
    assert np.exp(log_p).sum() * 1e-3 == pytest.approx(1, abs=5e-3)


@pytest.mark.slow
def test_nuts_stays_off_the_ends(key):
    """Thirty successes of thirty pull a share, known to be uniform, to its end, but not onto it."""
    share = RNG.uniform(size=(400, 1))
    how = dict(kernel=mcs.Local(0.5, clusters=2), frame=mcs.Gaussianize(), bounds={0: (0, 1)})
    prior = to_numpyro(mcs.mixture(share, **how))

    def model():
        p = numpyro.sample("p", prior)
        numpyro.sample("wins", dist.Binomial(30, jnp.clip(p[0], 1e-6, 1 - 1e-6)), obs=30)

    found = nuts(key, model, 1500)["p"]
    assert (found == 1).mean() < 0.04 and found.mean() == pytest.approx(31 / 32, abs=0.006)


@pytest.mark.slow
def test_nuts_under_a_law_finds_the_weighted_draws(bounded, key):
    def model(seen):
        x = numpyro.sample("x", to_numpyro(bounded))
        numpyro.sample("seen", dist.Normal(x[0] + x[1], 0.5), obs=seen)

    found = nuts(key, model, 1500, seen=3.0)["x"]
    assert found[:, 0].min() > 0 and found[:, 2].min() >= 0 and found[:, 2].max() <= 360
    wanted = mcs.inference.posterior(
        key, bounded, lambda x: -2 * (x[:, 0] + x[:, 1] - 3) ** 2, n=4000, proposals=50_000
    ).draws
    spread = np.std(wanted, 0)
    np.testing.assert_allclose((found.mean(0) - wanted.mean(0)) / spread, 0, atol=0.15)
    np.testing.assert_allclose(found.std(0) / spread, 1, atol=0.12)


@pytest.fixture(scope="module")
def simulator():
    """Simulations of ``y = theta + noise``, a linear Gaussian."""
    theta = RNG.normal(size=(3000, 2))
    y = theta + 0.5 * RNG.normal(size=(3000, 2))
    return mcs.mixture(y, condition=theta, kernel=mcs.Local(0.5, clusters=1))


@pytest.mark.slow
def test_nuts_with_a_learned_likelihood_finds_the_exact_posterior(simulator, key):
    def model(seen):
        theta = numpyro.sample("theta", dist.Normal(0, 1).expand([2]).to_event(1))
        numpyro.sample("y", to_numpyro(simulator, theta), obs=seen)

    found = nuts(key, model, 1500, seen=jnp.array([[1.0, 0.0], [1.4, -0.4]]))["theta"]
    precision = 1 + 2 / 0.25
    np.testing.assert_allclose(found.mean(0), np.array([2.4, -0.4]) / 0.25 / precision, atol=0.06)
    np.testing.assert_allclose(np.cov(found.T), np.eye(2) / precision, atol=0.025)


def test_conditions_are_batches(simulator, key):
    theta = jnp.asarray(RNG.normal(size=(4, 2)), simulator.dtype)
    many = to_numpyro(simulator, theta)
    y = many.sample(key, (5,))
    assert y.shape == (5, 4, 2) and many.log_prob(y).shape == (5, 4)
    for j in range(4):
        one = to_numpyro(simulator, theta[j])
        np.testing.assert_allclose(many.log_prob(y)[:, j], one.log_prob(y[:, j]), atol=1e-4)


def test_conditions_come_in_every_form(simulator, key):
    y, named = RNG.normal(size=(4, 2)), pd.DataFrame(RNG.normal(size=(300, 2)), columns=["a", "b"])
    law = mcs.mixture(RNG.normal(size=(300, 2)), condition=named, kernel=mcs.Local(0.5, clusters=1))
    expected = to_numpyro(law, np.array([0.5, -1.0])).log_prob(y)
    for c in ([0.5, -1.0], {"b": -1.0, "a": 0.5}, jnp.array([0.5, -1.0])):
        np.testing.assert_allclose(to_numpyro(law, c).log_prob(y), expected, rtol=1e-5)
    many = named[["b", "a"]][:4]
    assert to_numpyro(law, many).batch_shape == (4,)
    np.testing.assert_allclose(
        to_numpyro(law, many).log_prob(y), law.log_prob(y, condition=many), rtol=1e-4, atol=1e-5
    )
    nested = RNG.normal(size=(3, 1, 2))
    assert to_numpyro(simulator, nested).log_prob(y).shape == (3, 4)
    one = mcs.mixture(
        RNG.normal(size=(300, 1)), condition=RNG.normal(size=300), kernel=mcs.Local(0.5)
    )
    for c, shape in ((0.3, ()), (np.zeros(4), (4,)), (np.zeros((4, 1)), (4,))):
        assert to_numpyro(one, c).batch_shape == shape
    with pytest.raises(ValueError, match=r"condition: expected shape \(..., 2\), got \(3,\)"):
        to_numpyro(simulator, np.zeros(3))
    with pytest.raises(ValueError, match="condition: expected finite numbers"):
        to_numpyro(simulator, [np.nan, 0.0])


@pytest.mark.once
def test_a_condition_out_of_bounds_has_no_likelihood():
    spread = np.abs(RNG.normal(size=400)) + 0.1
    y = spread[:, None] * RNG.normal(size=(400, 1))
    how = dict(kernel=mcs.Local(0.5, clusters=2), bounds={1: (0, None)})
    law = mcs.mixture(y, condition=spread, **how)
    at = lambda c: to_numpyro(law, c).log_prob(jnp.zeros((2, 1), law.dtype)).sum()  # noqa: E731
    for c in (-1.0, -1e20):
        assert at(c) == -jnp.inf and jax.jit(jax.value_and_grad(at))(c) == (-jnp.inf, 0)
    value, slope = map(float, jax.value_and_grad(at)(1.0))
    assert np.isfinite(value) and slope == pytest.approx(
        float(at(1.01) - at(0.99)) / 0.02, rel=0.05
    )


def test_distributions_work_inside_of_programs(simulator, key):
    law = mcs.mixture(RNG.normal(size=(100, 2)), kernel=mcs.Local(0.5), frame=mcs.Gaussianize())
    x = jnp.ones((3, 2), law.dtype)
    inside = jax.jit(lambda x: to_numpyro(law).log_prob(x))(x)  # of a law not used before
    np.testing.assert_allclose(inside, law.log_prob(x), rtol=1e-4)
    np.testing.assert_allclose(jax.jit(lambda law, x: to_numpyro(law).log_prob(x))(law, x), inside)
    again = pickle.loads(pickle.dumps(to_numpyro(law)))
    np.testing.assert_allclose(again.log_prob(x), inside, rtol=1e-4)
    assert str(pickle.loads(pickle.dumps(again.support))) == "Columns()"
    for wrong in (jnp.ones((3, 1)), jnp.ones(())):
        with pytest.raises(ValueError, match=r"value: expected shape \(..., 2\)"):
            again.log_prob(wrong)
    assert not again.support(jnp.array([[np.nan, 0.0], [np.inf, 0.0]])).any()


def test_what_no_gradient_sees_is_refused(simulator):
    counts = mcs.mixture(RNG.poisson(3.0, (400, 1)), kernel=mcs.Local(0.5, clusters=1))
    with pytest.raises(ValueError, match="law: expected one without tied columns"):
        to_numpyro(counts)
    with pytest.raises(ValueError, match="condition: needed here, 2 values"):
        to_numpyro(simulator)
    with pytest.raises(ValueError, match="Dirac"):
        to_numpyro(mcs.mixture(RNG.normal(size=(50, 2)), kernel=mcs.Dirac()))
    with pytest.raises(ValueError, match="condition: this law has none"):
        to_numpyro(mcs.mixture(RNG.normal(size=(50, 2)), kernel=mcs.Isotropic(0.5)), [1.0])


@pytest.mark.once
def test_a_law_that_float32_cannot_hold_is_refused():
    far = mcs.mixture(1e8 + RNG.normal(size=(300, 1)), kernel=mcs.Local(0.5), frame=mcs.Affine())
    with pytest.raises(ValueError, match="float32 cannot hold its columns"):
        to_numpyro(far)


def test_draws_are_arviz_data():
    pytest.importorskip("arviz", reason="needs the extra [bayes]")
    x = RNG.normal(size=(20, 2))
    found = to_arviz(mcs.inference.Posterior(x, 20.0, 0.0, 0), ["mass", "spin"], group="prior")
    np.testing.assert_array_equal(found.prior["spin"].values, x[None, :, 1])
    assert list(to_arviz(x).posterior.data_vars) == ["x0", "x1"]
    named = to_arviz(pd.DataFrame(x, columns=["a", "b"]))
    assert list(named.posterior.data_vars) == ["a", "b"]
    for names in (["mass"], ["a", "a"], ["chain", "a"], "mass", []):
        with pytest.raises(ValueError, match="columns: expected 2 different names"):
            to_arviz(x, names)
    with pytest.raises(ValueError, match="group: expected one of"):
        to_arviz(x, group="nonsense")
