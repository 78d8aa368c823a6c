"""Transport and encode: inverses, the density along the flow, the paper's sampler, failure."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcscore as mcs
from mcscore.flows.flow import _solve
from tests import reference
from tests.conftest import X64
from tests.flows.test_fields import table

LAW = lambda: mcs.mixture(table(400, 3), kernel=mcs.Isotropic(0.4))  # noqa: E731
SCHEDULES = {
    "linear": mcs.Linear(),
    "vp": mcs.VP(),
    "cosine": mcs.Cosine(),
    "ve": mcs.VE(),
    "rectified": mcs.Rectified(),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_there_and_back(name, key):
    law, schedule = LAW(), SCHEDULES[name]
    z = jax.random.normal(key, (50, 3), law.dtype)
    tight = dict(solver=diffrax.Dopri5(), steps=60)
    x = mcs.transport(z, law, schedule, **tight)
    back = mcs.encode(x, law, schedule, **tight)
    np.testing.assert_allclose(back, z, atol=1e-6 if X64 else 1e-3)
    assert float(jnp.sqrt(jnp.mean((mcs.transport(z, law, schedule) - x) ** 2))) < 2e-3


@pytest.mark.parametrize("name", ["linear", "vp", "cosine"])
def test_clocks_agree(name, key):
    """The canonical flow and the schedule's own clock are the same ODE."""
    law, schedule = LAW(), SCHEDULES[name]
    z = jax.random.normal(key, (30, 3), law.dtype)
    canonical = mcs.transport(z, law, schedule, solver=diffrax.Dopri5(), steps=60)
    in_time = mcs.transport(
        z, law, schedule, clock=mcs.TimeClock(), solver=diffrax.Dopri5(), steps=400
    )
    np.testing.assert_allclose(in_time, canonical, atol=1e-5 if X64 else 2e-3)


def test_density_along_the_flow_is_the_closed_form(key):
    """d log p_t / dt = -div v along a trajectory, from closed-form log p_1 to closed-form log p_0."""
    law, schedule = LAW(), mcs.VP()
    z = jax.random.normal(key, (20, 3), law.dtype)
    start_of_the_paper = mcs.CanonicalClock(matched=False)

    def rates(t, state, _):
        x, _ = state
        drift, diffusion = schedule.drift(t), schedule.diffusion(t)
        jet = mcs.flows.evaluate(x, t, law, schedule)
        return drift * x - diffusion / 2 * jet.field, -(3 * drift - diffusion / 2 * jet.laplacian)

    sigma = schedule(1.0)[1].astype(law.dtype)
    start = (sigma * z, mcs.log_density(sigma * z, 1.0, law, schedule))
    zero, one = jnp.zeros((), law.dtype), jnp.ones((), law.dtype)
    controller = diffrax.PIDController(rtol=1e-9 if X64 else 1e-5, atol=1e-9 if X64 else 1e-5)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(rates),
        diffrax.Dopri5(),
        one,
        zero,
        -0.01,
        start,
        stepsize_controller=controller,
    )
    x, log_p = (part[0] for part in solution.ys)
    np.testing.assert_allclose(log_p, law.log_prob(x), atol=1e-7 if X64 else 5e-3)
    np.testing.assert_allclose(
        x,
        mcs.transport(
            z, law, schedule, clock=start_of_the_paper, solver=diffrax.Dopri5(), steps=80
        ),
        atol=1e-5 if X64 else 2e-3,
    )


def test_standard_gaussian_does_not_move(key):
    """One component N(0, 1): du/dp = 0, so even one Euler step is exact."""
    law = mcs.mixture(np.zeros((1, 4)), kernel=mcs.Isotropic(1.0))
    z = jax.random.normal(key, (9, 4), law.dtype)
    x = mcs.transport(z, law, mcs.Cosine(), solver=diffrax.Euler(), steps=1)
    np.testing.assert_allclose(x, z, rtol=1e-5)


def test_the_papers_sampler_step_by_step(key):
    rows = table(1000, 2)[:1000]
    law = mcs.mixture(rows, kernel=mcs.Dirac())
    z = np.asarray(jax.random.normal(key, (200, 2), law.dtype))
    options = dict(clock=mcs.TimeClock(matched=False), solver=diffrax.Euler(), steps=500)
    found = mcs.transport(jnp.asarray(z), law, mcs.Linear(eps=0.01), **options)
    np.testing.assert_allclose(
        found, reference.paper_transport(z, rows), atol=1e-8 if X64 else 1e-4
    )


@pytest.mark.slow
def test_any_solver_and_controller(key):
    law, schedule = LAW(), mcs.Linear()
    z = jax.random.normal(key, (10, 3), law.dtype)
    expected = mcs.transport(z, law, schedule, solver=diffrax.Dopri5(), steps=60)
    for solver in (diffrax.Tsit5(), diffrax.Heun(), diffrax.Kvaerno3()):
        controller = diffrax.PIDController(rtol=1e-4, atol=1e-5)
        flow = mcs.flows.solve_flow(z, law, schedule, solver=solver, stepsize_controller=controller)
        assert flow.result == diffrax.RESULTS.successful
        np.testing.assert_allclose(flow.points, expected, atol=5e-3)


def test_tolerances_and_numbers_are_traced(key):
    z = jax.random.normal(key, (10, 3), LAW().dtype)
    sweep = [(1e-3, 0.01, 0.4), (1e-4, 0.02, 0.5), (1e-4, 0.02, 0.6)]
    sizes = set()
    for rtol, eps, h in sweep:
        law = mcs.mixture(table(400, 3), kernel=mcs.Isotropic(h))
        mcs.transport(
            z, law, mcs.Linear(eps), stepsize_controller=diffrax.PIDController(rtol=rtol, atol=1e-5)
        )
        mcs.transport(z, law, mcs.Linear(eps))
        sizes.add(_solve._cache_size())
    assert len(sizes) == 1


def test_failure_is_a_result(key):
    law, schedule = LAW(), mcs.Linear()
    z = jax.random.normal(key, (5, 3), law.dtype)
    hopeless = diffrax.PIDController(rtol=1e-13, atol=1e-13)  # beyond the most steps allowed
    flow = mcs.flows.solve_flow(
        z, law, schedule, solver=diffrax.Heun(), stepsize_controller=hopeless
    )
    assert flow.result != diffrax.RESULTS.successful
    assert jnp.isnan(flow.points).all()


def test_bad_arguments_are_named():
    law, schedule = LAW(), mcs.Linear()
    z = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match=r"start: expected shape \(b, 3\)"):
        mcs.transport(jnp.zeros((2, 4)), law, schedule)
    with pytest.raises(ValueError, match="steps: expected None"):
        mcs.transport(
            z, law, schedule, steps=3, stepsize_controller=diffrax.PIDController(1e-3, 1e-3)
        )
    with pytest.raises(ValueError, match="steps: expected an integer of at least 1"):
        mcs.transport(z, law, schedule, steps=0)
    with pytest.raises(
        ValueError, match=r"use a kernel with a width.*or a schedule with sigma\(0\) > 0"
    ):
        mcs.transport(z, mcs.mixture(table(10, 3)), mcs.Cosine())


@pytest.mark.slow
def test_jit_vmap_and_grad(key):
    law, schedule = LAW(), mcs.Cosine()
    z = jax.random.normal(key, (4, 3), law.dtype)
    direct = mcs.transport(z, law, schedule)
    np.testing.assert_allclose(jax.jit(mcs.transport)(z, law, schedule), direct, atol=1e-5)
    stacked = jax.vmap(lambda row: mcs.transport(row[None], law, schedule)[0])(z)
    np.testing.assert_allclose(stacked, direct, atol=1e-5)
    gradient = jax.grad(lambda z: mcs.transport(z, law, schedule).sum())(z)
    h = 1e-4 if X64 else 1e-2
    numeric = (mcs.transport(z + h, law, schedule) - mcs.transport(z - h, law, schedule)).sum(1) / (
        2 * h
    )
    np.testing.assert_allclose(gradient.sum(1), numeric, rtol=1e-5 if X64 else 2e-2)


def test_trajectory_begins_with_noise_and_ends_with_data(key):
    law, schedule = LAW(), mcs.Cosine()
    z = jax.random.normal(key, (4, 3), law.dtype)
    paths = mcs.trajectory(z, law, schedule, points=20)
    assert paths.shape == (20, 4, 3)
    np.testing.assert_allclose(paths[-1], mcs.transport(z, law, schedule), atol=1e-5)


@pytest.mark.parametrize("unequal", [False, True])
def test_adams_bashforth_is_of_third_order(unequal):
    def error(steps):
        grid = jnp.linspace(0.0, 1.0, steps + 1)
        times = 2 * grid**1.5 if unequal else 2 * grid
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, _: jnp.cos(t) * y),
            mcs.flows.AdamsBashforth(),
            t0=0.0,
            t1=2.0,
            dt0=None,
            y0=jnp.ones(2),
            stepsize_controller=diffrax.StepTo(ts=times),
        )
        return float(jnp.abs(solution.ys[0] - jnp.exp(jnp.sin(2.0))).max())

    coarse, fine = error(20), error(40)
    assert coarse / fine == pytest.approx(8, rel=0.35) if X64 else fine < 1e-3


def test_adams_bashforth_carries_noise_to_data(key):
    law = mcs.mixture(jax.random.normal(key, (50, 2)), kernel=mcs.Isotropic(0.5))
    z = jax.random.normal(key, (20, 2))
    solver = mcs.flows.AdamsBashforth()
    points = mcs.transport(z, law, mcs.Cosine(), solver=solver, steps=26)
    exact = mcs.transport(z, law, mcs.Cosine(), solver=diffrax.Dopri5(), steps=100)
    np.testing.assert_allclose(points, exact, atol=2e-3)
    back = mcs.encode(points, law, mcs.Cosine(), solver=solver, steps=26)
    np.testing.assert_allclose(back, z, atol=5e-3)
    assert mcs.flows.evaluations(solver, 26) == 28


@pytest.mark.once
@pytest.mark.parametrize("clock", [mcs.CanonicalClock(), mcs.TimeClock()])
@pytest.mark.parametrize(
    "schedule", [mcs.VE(sigma_max=1.0), mcs.VP(beta_max=1.0), mcs.Linear(), mcs.VE()]
)
def test_labels_have_the_law_s_moments_whatever_the_schedule_leaves(clock, schedule, key):
    """Noise starts with the law's own mean and variance at t = 1; the paper's start has neither."""
    law = mcs.mixture(10 + table(300, 2), kernel=mcs.Isotropic(0.3))
    z = jax.random.normal(key, (1000, 2), law.dtype)
    options = dict(solver=diffrax.Dopri5(), steps=100)
    x = np.asarray(mcs.transport(z, law, schedule, clock=clock, **options), float)
    draws = np.asarray(law.sample(key, 20_000), float)
    np.testing.assert_allclose(x.mean(0), draws.mean(0), atol=0.15)
    np.testing.assert_allclose(x.std(0).mean() / draws.std(0).mean(), 1, atol=0.06)
    back = mcs.encode(x, law, schedule, clock=clock, **options)
    np.testing.assert_allclose(back, z, atol=1e-2)


@pytest.mark.once
def test_the_paper_s_start_is_a_choice_and_its_mismatch_is_told(key):
    law, schedule = (
        mcs.mixture(10 + table(300, 2), kernel=mcs.Isotropic(0.3)),
        mcs.VE(sigma_max=1.0),
    )
    z = jnp.zeros((1, 2), law.dtype)
    options = dict(solver=diffrax.Dopri5(), steps=200)
    start, mean = (
        np.asarray(mcs.encode(10 + z, law, schedule, clock=mcs.TimeClock(matched=m), **options))
        for m in (False, True)
    )
    assert np.abs(start).max() > 5 and np.abs(mean).max() < 2
    with pytest.warns(UserWarning, match="differ from the law's by"):
        pairs = mcs.generate_pairs(key, law, schedule, 500, clock=mcs.TimeClock(matched=False))
    assert pairs.report.mismatch > 0.5
    assert mcs.generate_pairs(key, law, schedule, 500).report.mismatch < 0.2
