r"""Labelling: noise is carried to data by the reverse ODE, and each trajectory is a labeled pair.

Pairs come in chunks of fixed size; chunk k depends on ``fold_in(key, k)`` alone, so that results depend
neither on how many chunks follow nor on whether a run was interrupted: with ``checkpoint=`` every
finished chunk is a file, and the same call takes up where the last one stopped.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array
from tqdm import tqdm, trange

from mcscore._arrays import on_host
from mcscore._validation import as_key, at_least, of_type
from mcscore.flows.clocks import CanonicalClock, Clock, TimeClock
from mcscore.flows.fields import Law
from mcscore.flows.flow import DEFAULT_STEPS, compiled_flow, evaluations, solved
from mcscore.flows.solvers import Bosh3, Controller, Dopri5, Solver
from mcscore.generators.noise import Normal, Sobol
from mcscore.generators.pairs import Pairs, PairsReport
from mcscore.mixtures.conditional import ConditionalMixture
from mcscore.mixtures.value import Mixture
from mcscore.parallel import places_of
from mcscore.schedules import Schedule, check_schedule
from mcscore.storage import Checkpoint

MISMATCH = 0.1  # deviations: beyond, and beyond chance, it is worth a warning
STEPS = (5, 7, 9, 12, 16, 22, 30, 42, 60, 84, 120)  # tried for ``tolerance``


@dataclass(frozen=True)
class Labelling:
    """How pairs are made: the options of ``generate_pairs``, checked."""

    noise: Normal | Sobol = Normal()
    minibatch: int | None = None
    clock: Clock = CanonicalClock()
    solver: Solver = Bosh3()
    steps: int | None = None
    stepsize_controller: Controller | None = None
    tolerance: float | None = None
    chunk_size: int = 5000
    error_sample: int = 250

    def __post_init__(self) -> None:
        of_type((Normal, Sobol), "Normal()", noise=self.noise)
        of_type((CanonicalClock, TimeClock), "CanonicalClock()", clock=self.clock)
        of_type(Solver, "diffrax.Bosh3()", solver=self.solver)
        if self.tolerance is not None:
            of_type((int, float), "1e-3", tolerance=self.tolerance)
        at_least(1, chunk_size=self.chunk_size)
        at_least(0, error_sample=self.error_sample)
        optional = dict(minibatch=self.minibatch, steps=self.steps)
        at_least(1, **{name: value for name, value in optional.items() if value is not None})
        for name in ("minibatch", "steps", "chunk_size", "error_sample"):
            if getattr(self, name) is not None:  # NumPy's integers overflow
                object.__setattr__(self, name, int(getattr(self, name)))
        if self.steps is not None and self.stepsize_controller is not None:
            raise ValueError(
                "steps: expected None beside a stepsize_controller, which chooses them"
            )
        tolerance = self.tolerance
        free = self.steps is None and self.stepsize_controller is None and self.error_sample > 0
        if tolerance is not None and not (tolerance > 0 and free):
            raise ValueError(
                "tolerance: expected a positive number, without steps or stepsize_controller and "
                f"with error_sample > 0, got {tolerance}"
            )

    @property
    def integration(self) -> dict[str, Any]:
        """Options of ``solve_flow``."""
        names = ("clock", "solver", "steps", "stepsize_controller")
        return {name: getattr(self, name) for name in names}

    def noise_of(self, key: Array, index: int, law: Law) -> Array:
        """Return the noise of a chunk."""
        return self.noise.chunk(key, index, self.chunk_size, law.dimension, law.dtype)

    def law_of(self, key: Array, index: int, law: Law) -> Law:
        """Return the law of a chunk: all rows, or the mini-batch of its own."""
        if self.minibatch is None or not isinstance(law, Mixture):
            return law
        return _subsample(law, jax.random.fold_in(key, index), self.minibatch)


_subsample = jax.jit(Mixture.subsample, static_argnums=2)


class _Chunk(NamedTuple):
    z: np.ndarray
    c: np.ndarray | None
    x: np.ndarray
    steps: int  # 0 if read from a checkpoint


def generate_pairs(
    key: Array,
    mixture: Law,
    schedule: Schedule,
    n: int,
    *,
    conditions: Any = None,
    noise: Normal | Sobol = Normal(),
    minibatch: int | None = None,
    clock: Clock = CanonicalClock(),
    solver: Solver = Bosh3(),
    steps: int | None = None,
    stepsize_controller: Controller | None = None,
    tolerance: float | None = None,
    chunk_size: int = 5000,
    error_sample: int = 250,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = False,
    mesh: Mesh | None = None,
) -> Pairs:
    """Return ``n`` labeled pairs: noise and the points to which the reverse ODE carries it.

    O(n rows d) per velocity evaluation; one compiled program serves every chunk, and on CPUs
    several chunks are solved side by side.

    Args:
        key: Random key.
        mixture: The data law.
        schedule: How it is diffused; the labels keep its noise at ``t = 0``.
        n: Number of pairs.
        conditions: For a conditional law: rows (m, k), in the user's units, from which each pair's condition
            is drawn; by default from the law's own conditions, smoothed by its kernel.
        noise: ``Normal()`` or ``Sobol()`` of ``mcscore.generators``.
        minibatch: Rows drawn with replacement once per chunk and used for its whole trajectory, as
            the paper does; all rows by default. Each mini-batch gives its own map ``z -> x``.
        clock: See ``transport``.
        solver: See ``transport``.
        steps: See ``transport``.
        stepsize_controller: See ``transport``.
        tolerance: Choose ``steps``: the fewest whose RMS error, on ``error_sample`` trajectories, is at
            most this share of the law's standard deviation.
        chunk_size: Pairs solved together.
        error_sample: Trajectories, at most, solved tightly to measure the labels' error; 0 for none.
        checkpoint: Folder for finished chunks, to resume from.
        progress: Show a bar.
        mesh: Over whose devices each chunk's trajectories go; by default the context's (``jax.set_mesh``).

    Raises:
        ValueError: If an argument is out of range, or ``checkpoint`` holds chunks of another run.
        RuntimeError: If no trajectory stayed finite. Where some did not they are left out, counted in
            the report, and warned about.

    >>> from mcscore import Isotropic, Linear, mixture
    >>> law = mixture(jnp.eye(2), kernel=Isotropic(0.5))
    >>> z, x = generate_pairs(jax.random.key(0), law, Linear(), n=100)
    >>> z.shape, x.shape
    ((100, 2), (100, 2))
    """
    at_least(1, n=n)
    n = int(n)
    of_type((Mixture, ConditionalMixture), "mcs.mixture(x, ...)", mixture=mixture)
    how = Labelling(
        noise,
        minibatch,
        clock,
        solver,
        steps,
        stepsize_controller,
        tolerance,
        chunk_size,
        error_sample,
    )
    how = replace(how, chunk_size=min(chunk_size, n))
    check_schedule(schedule)
    if mixture.condition_dimension and minibatch is not None:
        raise ValueError("minibatch: expected None with a conditional law, which takes all rows")
    if minibatch is not None and mixture.blocks.bases is not None:
        raise ValueError("minibatch: expected None but with an isotropic kernel")
    proposal = None if conditions is None else mixture.conditions(conditions)
    places = places_of((), mixture.evaluation.over, mesh)
    key = as_key(key)
    noise_key, batch_key = jax.random.split(key)

    def conditions_of(index: int) -> Array | None:
        return mixture.draw_conditions(
            jax.random.fold_in(batch_key, index), how.chunk_size, proposal
        )

    store = None
    if checkpoint is not None:
        parts = (mixture.blocks, mixture.width, mixture.variance, mixture.frame)
        settings = {field.name: getattr(how, field.name) for field in fields(how)}
        settings |= dict(schedule=schedule, conditions=proposal, key=key)
        settings["law"] = (*parts, replace(mixture.evaluation, over=None))
        store = Checkpoint(checkpoint, settings)

    sample = min(how.error_sample, how.chunk_size)
    deviation, tight = float(np.sqrt(mixture.variance)), np.zeros((0, mixture.dimension))
    if sample:
        z, c = how.noise_of(noise_key, 0, mixture)[:sample], conditions_of(0)
        c = None if c is None else c[:sample]
        first = how.law_of(batch_key, 0, mixture)
        options: Any = dict(clock=CanonicalClock(), solver=Dopri5(), steps=4 * DEFAULT_STEPS)
        tight = np.asarray(solved(z, first, schedule, c, **options).points)
        if how.tolerance is not None:
            bound = how.tolerance * deviation
            found = _fewest_steps(z, first, schedule, c, tight, bound, how)
            how = replace(how, steps=found, tolerance=None)

    program = None

    def job(index: int) -> Callable[[], _Chunk]:
        """Return what makes a chunk, in any thread; what depends on JAX's settings is done here."""
        nonlocal program
        part = f"chunk-{index:06d}"
        found = store.read(part) if store else None
        if found is not None:
            return lambda: _Chunk(
                found["z"], found.get("c"), found["x"], int(found.get("steps", [0])[0])
            )
        law, z = how.law_of(batch_key, index, mixture), how.noise_of(noise_key, index, mixture)
        c = conditions_of(index)
        program = solve = program or compiled_flow(
            z, law, schedule, c, **how.integration, places=places
        )

        def make() -> _Chunk:
            flow = solve(z, law, c)
            given = None if c is None else np.asarray(c)
            chunk = _Chunk(np.asarray(z), given, on_host(flow.points), int(flow.steps))
            if store:
                arrays = {"z": chunk.z, "c": given, "x": chunk.x, "steps": [chunk.steps]}
                store.write(part, {name: a for name, a in arrays.items() if a is not None})
            return chunk

        return make

    chunks = _made(job, -(-n // how.chunk_size), progress, places is not None)
    taken = max(chunk.steps for chunk in chunks)
    z, x = (np.concatenate([getattr(chunk, name) for chunk in chunks])[:n] for name in ("z", "x"))
    finite = np.isfinite(x).all(1)
    c = None
    if mixture.condition_dimension:
        c = jnp.asarray(np.concatenate([np.asarray(chunk.c) for chunk in chunks])[:n][finite])
    if not finite.any():
        raise RuntimeError(
            "generate_pairs: no trajectory stayed finite; see solve_flow for the reason"
        )
    if not finite.all():
        text = f"{n - finite.sum()} of {n} trajectories did not stay finite and were left out"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    mismatch = _mismatch(x[finite], mixture, c)
    if mismatch > MISMATCH + 4 / np.sqrt(finite.sum()):
        warnings.warn(
            f"mean and deviation of the labels differ from the law's by {mismatch:.2f} deviations: the "
            "schedule leaves too much of the law at t = 1; raise its noise there, or use a frame that "
            "standardizes",
            stacklevel=2,
        )
    error = _distance(x[:sample], tight) if sample else np.full(1, np.nan)
    taken = taken or how.steps
    report = PairsReport(
        pairs=int(finite.sum()),
        nonfinite=int((~finite).sum()),
        evaluations=evaluations(solver, taken) if taken else None,
        error_sample=sample,
        error_rms=float(np.sqrt(np.mean(error**2))),
        error_median=float(np.median(error)),
        switched=float(np.mean(error > deviation / 2)) if sample else float("nan"),
        mismatch=mismatch,
    )
    z, x = jnp.asarray(z[finite]), jnp.asarray(x[finite])
    return Pairs(z, x, mixture.frame, c, mixture.condition_frame, report)


def _mismatch(x: np.ndarray, mixture: Law, c: Array | None) -> float:
    """Return by how much mean and deviation of labels differ from the law's, in its deviations."""
    some = slice(None) if c is None else slice(10_000)  # a pass over the law for each
    deviation = max(float(np.sqrt(np.asarray(mixture.variance, np.float64))), 1e-300)
    x = x[some] - np.asarray(mixture.mean(c if c is None else c[some]), np.float64)
    shift, spread = x.mean(0), np.sqrt(x.var(0).mean()) / deviation
    return float(max(np.sqrt(np.mean(shift**2)) / deviation, abs(spread - 1)))


def _made(
    job: Callable[[int], Callable[[], _Chunk]], count: int, progress: bool, devices: bool
) -> list[_Chunk]:
    """Return all chunks, on one CPU device several at once: XLA's element-wise code keeps one core busy."""
    if devices:  # of several processes, too, which send and receive in one order
        return [job(k)() for k in trange(count, desc="labels", disable=not progress, leave=False)]
    side_by_side = 1 if jax.default_backend() != "cpu" else min(os.cpu_count() or 1, 8)
    with ThreadPoolExecutor(side_by_side) as pool:
        try:
            made = pool.map(lambda make: make(), map(job, range(count)))
            return list(tqdm(made, "labels", count, disable=not progress, leave=False))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # failed or interrupted: no more


def _distance(x: Array | np.ndarray, tight: np.ndarray) -> np.ndarray:
    """Return each label's distance per coordinate from the tight solve, where both are finite."""
    error = np.sqrt(np.mean((tight - np.asarray(x)) ** 2, axis=1))
    return error[np.isfinite(error)]


def _fewest_steps(
    z: Array,
    law: Law,
    schedule: Schedule,
    c: Array | None,
    tight: np.ndarray,
    bound: float,
    how: Labelling,
) -> int:
    """Return the fewest steps whose RMS error is within ``bound``; warn where the most do not do."""
    rms = np.inf
    for steps in STEPS:
        options: Any = how.integration | {"steps": steps}
        x = solved(z, law, schedule, c, **options).points
        rms = np.sqrt(np.mean(_distance(x, tight) ** 2))
        if rms <= bound:
            return steps
    warnings.warn(
        f"tolerance: RMS error {rms:.2g} after {STEPS[-1]} steps, more than {bound:.2g}",
        RuntimeWarning,
        stacklevel=3,
    )
    return STEPS[-1]
