"""The probability flow between noise and data, integrated by diffrax in the variable of a clock."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jaxtyping import Array, Float

from mcscore._arrays import is_zero
from mcscore._numbers import points
from mcscore._validation import at_least, of_type
from mcscore.flows.clocks import CanonicalClock, Clock, TimeClock
from mcscore.flows.fields import Law, Points, at_times
from mcscore.flows.solvers import AdamsBashforth
from mcscore.jet import Velocity
from mcscore.mixtures.conditional import ConditionalMixture
from mcscore.mixtures.value import Mixture
from mcscore.parallel import Places, over_queries, places_of, without_context
from mcscore.schedules import Schedule, check_schedule

TOLERANCES = ("rtol", "atol")
DEFAULT_STEPS = 9  # of Bosh3: 28 velocity evaluations


class Flow(NamedTuple):
    """A solved flow.

    Attributes:
        points: End points (b, d), or (saves, b, d); NaN where the solver failed or the start is not finite.
        result: diffrax's ``RESULTS``, ``diffrax.RESULTS.successful`` or the reason of failure.
        steps: Number of steps tried.
    """

    points: Float[Array, "*saves b d"]
    result: diffrax.RESULTS
    steps: Array


def solve_flow(
    start: Points,
    mixture: Law,
    schedule: Schedule,
    *,
    condition: Any = None,
    to_data: bool = True,
    clock: Clock = CanonicalClock(),
    solver: diffrax.AbstractSolver = diffrax.Bosh3(),
    steps: int | None = None,
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    saves: int | None = None,
) -> Flow:
    """Integrate the flow and say how it went; ``transport`` and ``encode`` return its end points.

    Args:
        start: Noise ``z`` (b, d) if ``to_data``, else data, in the coordinates of ``mixture``.
        mixture: The data law.
        schedule: How it is diffused; its noise at ``t = 0`` is what the data keeps.
        condition: For a conditional law, in the user's units: one for all (k,), or one per start (b, k).
        to_data: Direction.
        clock: In which variable steps are equal.
        solver: Any of diffrax's ODE solvers.
        steps: Number of equal steps (default 9), unless a controller is given.
        stepsize_controller: Any of diffrax's, for adaptive steps; its tolerances are traced. The times of
            a ``StepTo`` count as shares of the way.
        saves: Return so many points of each trajectory, ends included, instead of the end only.

    Raises:
        ValueError: If the law at ``t = 0`` is a sum of point masses, or both ``steps`` and
            ``stepsize_controller`` are given, or shapes do not fit.
    """
    starts, *options = _arguments(
        start, mixture, schedule, clock, solver, steps, stepsize_controller
    )
    conditions = mixture.conditions(condition, len(starts))
    return _over_devices(starts, conditions, mixture, schedule, *options, to_data, saves)


def compiled_flow(
    start: Array,
    mixture: Law,
    schedule: Schedule,
    conditions: Array | None,
    *,
    clock: Clock,
    solver: diffrax.AbstractSolver,
    steps: int | None,
    stepsize_controller: diffrax.AbstractStepSizeController | None,
    places: Places | None = None,
) -> Callable[[Array, Law, Array | None], Flow]:
    """Return ``solve_flow`` to data, compiled for starts, mixtures and conditions of these shapes.

    Conditions are in the law's own coordinates; ``places`` are the devices for starts.

    For any thread: JAX's settings belong to a thread, and the program has those of the caller's.
    """
    start, numbers, *options = _arguments(
        start, mixture, schedule, clock, solver, steps, stepsize_controller
    )
    choices = (*options, True, None)
    with without_context():
        lowered = _solve_whole.lower(start, conditions, mixture, schedule, numbers, choices, places)
        program = lowered.compile()
    return lambda start, mixture, conditions: program(start, conditions, mixture, schedule, numbers)


@partial(jax.jit, static_argnums=(5, 6))
def _solve_whole(start, conditions, mixture, schedule, numbers, choices, places) -> Flow:
    return _over_devices(start, conditions, mixture, schedule, numbers, *choices, places=places)


def _over_devices(
    start, conditions, mixture, schedule, numbers, *options: Any, places: Places | None = None
) -> Flow:
    """Return ``_solve``, each device solving its own starts; ``result``, ``steps`` are the first's."""
    row_axes: Any = (0 if options[-1] is None else 1, -1, -1)
    over, out_axes = mixture.evaluation.over, Flow(*row_axes)
    places = places_of((start, conditions), over) if places is None else places
    if places is not None and over is None and isinstance(places[0], AbstractMesh):
        # Under jit with a mesh in the context diffrax (0.7.2) refuses shard_map: right, but on all devices.
        return _solve(start, conditions, mixture, schedule, numbers, *options)
    return over_queries(
        _solve, (start, conditions), (mixture, schedule, numbers), *options,
        over=over, places=places, out_axes=out_axes,
    )  # fmt: skip


def solved(
    start: Array,
    mixture: Law,
    schedule: Schedule,
    conditions: Array | None,
    *,
    clock: Clock,
    solver: diffrax.AbstractSolver,
    steps: int | None,
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
) -> Flow:
    """Return ``solve_flow`` to data, conditions in the law's own coordinates."""
    start, *options = _arguments(
        start, mixture, schedule, clock, solver, steps, stepsize_controller
    )
    return _over_devices(start, conditions, mixture, schedule, *options, True, None)


def _arguments(start, mixture, schedule, clock, solver, steps, stepsize_controller) -> tuple:
    """Return the start and the choices of ``_solve``, checked."""
    of_type((Mixture, ConditionalMixture), "mcs.mixture(x, ...)", mixture=mixture)
    check_schedule(schedule)
    of_type((CanonicalClock, TimeClock), "mcs.CanonicalClock()", clock=clock)
    of_type(diffrax.AbstractSolver, "diffrax.Bosh3()", solver=solver)
    start = jnp.asarray(points(start, mixture.dimension, None, "start"), mixture.dtype)
    if steps is not None and stepsize_controller is not None:
        raise ValueError("steps: expected None beside a stepsize_controller, which chooses them")
    if steps is not None:
        at_least(1, steps=steps)
    end_variance = schedule.variance(jnp.zeros((), start.dtype))
    if is_zero(end_variance):
        mixture.require_width("flow")
    steps = steps or (None if stepsize_controller is not None else DEFAULT_STEPS)
    numbers, choices = eqx.partition(stepsize_controller, _is_tolerance(stepsize_controller))
    return start, numbers, clock, solver, steps, choices


def _is_tolerance(controller: Any) -> Any:
    """Mark the leaves of a controller to trace: arrays, tolerances; other numbers decide structure."""

    def traced(path, leaf):
        return eqx.is_array(leaf) or (bool(path) and getattr(path[-1], "name", "") in TOLERANCES)

    return jax.tree_util.tree_map_with_path(traced, controller)


@partial(jax.jit, static_argnums=(5, 6, 7, 8, 9, 10))
def _solve(
    start, conditions, mixture, schedule, numbers, clock, solver, steps, choices, to_data, saves
) -> Flow:
    inner, times = clock(mixture, schedule, start.dtype)
    # From x_1 = m + v z, the law's own mean and deviation there, in the clock's own scale at either end.
    outer = schedule.rates(jnp.asarray([1, 0], start.dtype))[:2]
    within = inner.rates(times)[:2]
    reference = jnp.where(mixture.variance > 0, mixture.variance, 1).astype(start.dtype)
    scale = jnp.sqrt(_total(within, reference) / _total(outer, reference))
    own, conditional = mixture.mean(conditions), conditions is not None
    mean, remaining = jnp.zeros_like(own), jnp.zeros_like(reference)
    if clock.matched:  # the paper's start knows nothing of the law
        mean, remaining = own, reference
    shift = jnp.stack([within[0][0] * mean, 0 * mean])
    scale = scale * jnp.sqrt(jnp.stack([_total(outer, remaining)[0], jnp.ones((), start.dtype)]))
    begin, end = (0, 1) if to_data else (1, 0)
    bad = ~jnp.isfinite(start).all(1, keepdims=True)  # one row must not stop the others' steps
    start = jnp.where(bad, 0, start)
    t0, t1 = times[begin], times[end]

    if steps is None:
        controller = eqx.combine(numbers, choices)
        if isinstance(controller, diffrax.StepTo):  # shares of the way
            shares = (controller.ts - controller.ts[0]) / (controller.ts[-1] - controller.ts[0])
            controller = diffrax.StepTo(ts=(t0 * (1 - shares) + t1 * shares).astype(start.dtype))
        dt0 = (t1 - t0) / 100 if isinstance(controller, diffrax.ConstantStepSize) else None
    else:
        controller, dt0 = diffrax.StepTo(ts=jnp.linspace(t0, t1, steps + 1)), None
    at = t1[None] if saves is None else jnp.linspace(t0, t1, saves)
    saveat = diffrax.SaveAt(t1=True) if saves is None else diffrax.SaveAt(ts=at)

    def middle(t: Any) -> Array | float:
        """Return the mean of ``x_t`` given its condition, to which trajectories are relative."""
        return inner.rates(t)[0] * own if conditional else 0.0

    def rate(t: Any, x: Array, law: Law) -> Array:
        field = at_times(x + middle(t), t, conditions, law, inner, Velocity(), 0).field
        return field - inner.rates(t)[2] * own if conditional else field

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(rate),
        solver,
        t0=t0,
        t1=t1,
        dt0=dt0,
        y0=scale[begin] * start + shift[begin] - middle(t0),
        args=mixture,
        stepsize_controller=controller,
        saveat=saveat,
        max_steps=max(4096, 0 if steps is None else steps),
        throw=False,
    )
    assert solution.ys is not None
    failed = solution.result != diffrax.RESULTS.successful
    middles = jax.vmap(middle)(at) if conditional else 0.0
    ends = (solution.ys + middles - shift[end][None]) / scale[end]
    ends = jnp.where(failed | bad[None], jnp.nan, ends)
    return Flow(ends[0] if saves is None else ends, solution.result, solution.stats["num_steps"])


def _total(moments: tuple[Array, Array], reference: Array) -> Array:
    """Return the variance of ``x_t`` under a law of variance ``reference``: the clocks' scales."""
    alpha, variance = moments
    return alpha**2 * reference + variance


def transport(
    z: Points,
    mixture: Law,
    schedule: Schedule,
    *,
    condition: Any = None,
    clock: Clock = CanonicalClock(),
    solver: diffrax.AbstractSolver = diffrax.Bosh3(),
    steps: int | None = None,
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
) -> Float[Array, "b d"]:
    """Return the data points to which the reverse ODE carries noise ``z``, (b, d).

    A solve that fails (see ``solve_flow``, which says why) gives NaN, never a guess.
    Arguments and errors are those of ``solve_flow``.

    >>> import diffrax
    >>> from mcscore import Isotropic, Linear, TimeClock, mixture
    >>> law = mixture(jnp.eye(2), kernel=Isotropic(0.1))
    >>> z = jax.random.normal(jax.random.key(0), (4, 2))
    >>> transport(z, law, Linear()).shape
    (4, 2)
    >>> transport(z, law, Linear(), clock=TimeClock(), solver=diffrax.Euler(), steps=500).shape
    (4, 2)
    """
    options: Any = dict(
        condition=condition,
        clock=clock,
        solver=solver,
        steps=steps,
        stepsize_controller=stepsize_controller,
    )
    return solve_flow(z, mixture, schedule, to_data=True, **options).points


def encode(
    x: Points,
    mixture: Law,
    schedule: Schedule,
    *,
    condition: Any = None,
    clock: Clock = CanonicalClock(),
    solver: diffrax.AbstractSolver = diffrax.Bosh3(),
    steps: int | None = None,
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
) -> Float[Array, "b d"]:
    """Return the noise from which ``transport`` reaches ``x``: its inverse, to the solver's tolerance.

    >>> from mcscore import Isotropic, Linear, mixture
    >>> law = mixture(jnp.eye(2), kernel=Isotropic(0.5))
    >>> z = jnp.array([[0.3, -0.2]])
    >>> bool(jnp.allclose(encode(transport(z, law, Linear()), law, Linear()), z, atol=1e-3))
    True
    """
    options: Any = dict(
        condition=condition,
        clock=clock,
        solver=solver,
        steps=steps,
        stepsize_controller=stepsize_controller,
    )
    return solve_flow(x, mixture, schedule, to_data=False, **options).points


def trajectory(
    z: Points,
    mixture: Law,
    schedule: Schedule,
    *,
    points: int = 50,
    **options: Any,
) -> Float[Array, "points b d"]:
    """Return ``points`` states of every trajectory, noise first, at equal intervals of the clock.

    With the canonical clock the states are ``u``: noise and data both of unit scale.

    >>> from mcscore import Isotropic, Linear, mixture
    >>> trajectory(jnp.ones((3, 2)), mixture(jnp.eye(2), kernel=Isotropic(0.5)), Linear()).shape
    (50, 3, 2)
    """
    at_least(2, points=points)
    return solve_flow(z, mixture, schedule, saves=int(points), **options).points


def evaluations(solver: diffrax.AbstractSolver, steps: int) -> int | None:
    """Return how many velocity evaluations ``steps`` steps take; None where it is not known.

    >>> evaluations(diffrax.Bosh3(), 9), evaluations(diffrax.Euler(), 500)
    (28, 500)
    """
    if isinstance(solver, diffrax.Euler):
        return steps
    if isinstance(solver, AdamsBashforth):
        return steps + 2
    if not isinstance(solver, diffrax.AbstractERK):
        return None
    tableau: Any = solver.tableau
    return steps * (tableau.num_stages - tableau.fsal) + tableau.fsal
