from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcscore as mcs


@mcs.pytree()
@dataclass(frozen=True)
class Power(mcs.Schedule):
    """A user's own schedule."""

    power: float = 2.0

    def alpha(self, t):
        return 1 - t**self.power

    def variance(self, t):
        return t


SCHEDULES = {
    "linear": mcs.Linear,
    "cosine": mcs.Cosine,
    "vp": mcs.VP,
    "ve": mcs.VE,
    "rectified": mcs.Rectified,
    "own": Power,
}
T = np.linspace(0.05, 0.95, 7)


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
def test_sde_coefficients_are_derivatives(make, tol):
    schedule, h = make(), tol(1e-6, 1e-2)
    t = jnp.asarray(T)
    alpha, sigma = schedule(t)
    up, down = schedule(t + h), schedule(t - h)
    b = (jnp.log(up[0]) - jnp.log(down[0])) / (2 * h)
    rate = (up[1] ** 2 - down[1] ** 2) / (2 * h)
    np.testing.assert_allclose(schedule.drift(t), b, rtol=tol(1e-7, 2e-2), atol=tol(1e-9, 1e-3))
    expected = rate - 2 * b * sigma**2
    np.testing.assert_allclose(
        schedule.diffusion(t), expected, rtol=tol(1e-7, 2e-2), atol=tol(1e-9, 1e-3)
    )
    assert alpha.shape == sigma.shape == t.shape


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
def test_time_inverts_noise_ratio_and_ratio_grows(make, tol):
    schedule = make()
    t = jnp.asarray(T)
    s = schedule.noise_ratio(t)
    assert (jnp.diff(s) > 0).all()
    np.testing.assert_allclose(schedule.time(s), t, atol=tol(1e-12, 1e-5))


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
def test_equal_values_are_equal_printable_and_share_a_program(make):
    assert make() == make() and hash(make()) == hash(make()) and repr(make()).endswith(")")
    traces = []

    @jax.jit
    def ratio(schedule, t):
        traces.append(None)
        return schedule.noise_ratio(t)

    for t in (0.1, 0.2):
        ratio(make(), t)
    assert len(traces) == 1


def test_paper_schedule():
    alpha, sigma = mcs.Linear(eps=0.01)(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(alpha, [1, 0.01], rtol=1e-6)
    np.testing.assert_allclose(sigma**2, [0.01, 1], rtol=1e-6)


def test_ends_are_exact():
    assert float(mcs.Cosine()(1.0)[0]) == 0 and float(mcs.Rectified()(1.0)[0]) == 0
    for schedule in (mcs.Cosine(), mcs.Rectified(), mcs.VP()):
        assert float(schedule(0.0)[1]) == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: mcs.Linear(-0.5),
        lambda: mcs.Linear(1.0),
        lambda: mcs.Linear(float("nan")),
        lambda: mcs.VE(1.0, 1.0),
        lambda: mcs.VE(100.0, 0.01),
        lambda: mcs.VE(0.0),
        lambda: mcs.VP(beta_max=0.01),
        lambda: mcs.VP(-1.0),
        lambda: mcs.VE(sigma_max=float("inf")),
    ],
)
def test_numbers_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match=r"(eps|sigma_min|beta_min).*: expected .*, got"):
        make()


def test_numbers_may_be_traced():
    last = jax.jit(lambda eps: mcs.Linear(eps)(1.0)[0])(0.02)
    assert abs(float(last) - 0.02) < 1e-6
    assert jax.tree.map(lambda a: a, mcs.VE(0.1, 3.0)) == mcs.VE(0.1, 3.0)
    jax.vmap(lambda sigma: mcs.VE(0.1, sigma)(0.5)[1])(jnp.asarray([1.0, 2.0]))


def test_a_schedule_that_was_not_registered():
    @dataclass(frozen=True)
    class Forgotten(mcs.Schedule):
        def alpha(self, t):
            return 1 - t

        def variance(self, t):
            return t

    law = mcs.mixture(np.eye(3), kernel=mcs.Isotropic(0.5))
    with pytest.raises(ValueError, match=r"schedule: decorate Forgotten by @mcs.pytree\(\)"):
        mcs.score(np.zeros((1, 3)), 0.5, law, Forgotten())


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
def test_integer_times_and_infinite_ratios(make):
    schedule = make()
    for found, expected in zip(
        schedule.rates(np.arange(2)), schedule.rates(np.array([0.0, 1.0])), strict=True
    ):
        np.testing.assert_allclose(found, expected)
    assert float(schedule.time(jnp.inf)) == 1
