r"""Labelled pairs ``(z, x)``: noise and the data point to which the reverse ODE carries it.

Pairs come in chunks of fixed size; chunk k depends on ``fold_in(key, k)`` alone, so that results depend
neither on how many chunks follow nor on whether a run was interrupted: with ``checkpoint=`` every
finished chunk is a file, and the same call takes up where the last one stopped.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from mcscore.files import moved_into_place
from mcscore.flow import (
    DEFAULT_STEPS,
    CanonicalClock,
    Clock,
    compiled_flow,
    evaluations,
    solve_flow,
)
from mcscore.mixtures import Mixture
from mcscore.schedules import Schedule
from mcscore.shown import shapes


class PairsReport(NamedTuple):
    """How the labels were made, and how exact they are.

    ``error_rms`` and ``error_median`` are distances per coordinate between the labels of
    ``error_sample`` trajectories and a tight solve of the same ODE, in the mixture's units; ``switched``
    is the share of them more than half a standard deviation of the law away: they went to another mode.
    """

    pairs: int
    nonfinite: int
    evaluations: int | None
    error_sample: int
    error_rms: float
    error_median: float
    switched: float


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pairs:
    """Noise ``z`` and labels ``x``, row by row; unpacks as ``z, x = pairs``.

    Attributes:
        z: Noise (n, d).
        x: Labels (n, d), in the coordinates of ``frame``.
        frame: Map between the user's units and those coordinates; None where they are the same.
        report: ``PairsReport``, or None for pairs made by hand.
    """

    z: Any
    x: Any
    frame: Any = None
    report: Any = None
    __repr__ = shapes

    def __iter__(self) -> Iterator[Any]:
        return iter((self.z, self.x))

    def labels(self) -> Any:
        """Return the labels (n, d) in the user's units, ties restored."""
        return self.x if self.frame is None else self.frame.restore(self.frame.inverse(self.x))


@dataclass(frozen=True)
class Normal:
    """Independent standard normal noise."""

    def chunk(self, key: Array, index: int, size: int, d: int, dtype: Any) -> Array:
        """Return the noise of chunk ``index``."""
        return jax.random.normal(jax.random.fold_in(key, index), (size, d), dtype)


@dataclass(frozen=True)
class Sobol:
    """Scrambled Sobol points through the normal quantile: more even than independent draws.

    Balanced when the number of pairs is a power of two.
    """

    def chunk(self, key: Array, index: int, size: int, d: int, dtype: Any) -> Array:
        """Return points ``index * size`` to ``(index + 1) * size`` of one scrambled sequence."""
        from scipy.stats import norm, qmc

        seed = int(jax.random.bits(key, dtype=jnp.uint32))
        sequence = qmc.Sobol(d, scramble=True, rng=seed)
        if index:
            sequence.fast_forward(index * size)
        with warnings.catch_warnings():  # chunks need not be powers of two
            warnings.simplefilter("ignore", UserWarning)
            uniform = sequence.random(size)
        half_bit = 2.0**-32
        return jnp.asarray(norm.ppf(np.clip(uniform, half_bit, 1 - half_bit)), dtype)


def generate_pairs(
    key: Array,
    mixture: Mixture,
    schedule: Schedule,
    n: int,
    *,
    noise: Normal | Sobol = Normal(),
    minibatch: int | None = None,
    clock: Clock = CanonicalClock(),
    solver: diffrax.AbstractSolver = diffrax.Bosh3(),
    steps: int | None = None,
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    tolerance: float | None = None,
    chunk_size: int = 5000,
    error_sample: int = 250,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = False,
) -> Pairs:
    """Return ``n`` labelled pairs: noise and the points to which the reverse ODE carries it.

    O(n rows d) per velocity evaluation; one compiled program serves every chunk, and on CPUs
    several chunks are solved side by side.

    Args:
        key: Random key.
        mixture: The data law.
        schedule: How it is diffused; the labels keep its noise at ``t = 0``.
        n: Number of pairs.
        noise: ``Normal()`` or ``Sobol()``.
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
    for name, value in (("n", n), ("chunk_size", chunk_size)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if tolerance is not None and not (tolerance > 0 and steps is None and error_sample > 0):
        raise ValueError(
            f"tolerance: expected a positive number, without steps and with error_sample > 0, got {tolerance}"
        )
    chunk_size = min(chunk_size, n)
    noise_key, batch_key = jax.random.split(key)
    options: Any = dict(
        clock=clock, solver=solver, steps=steps, stepsize_controller=stepsize_controller
    )

    sample = min(error_sample, chunk_size)
    deviation = float(np.sqrt(mixture.variance))
    tight = np.zeros((0, mixture.dimension))

    def chunk_law(index: int) -> Mixture:
        if minibatch is None:
            return mixture
        return _subsample(mixture, jax.random.fold_in(batch_key, index), minibatch)

    store = None
    if checkpoint is not None:
        identity = (key, mixture, schedule, (noise, minibatch, chunk_size, tolerance, options))
        store = _Store(Path(checkpoint), _fingerprint(identity))
    if sample:
        z = noise.chunk(noise_key, 0, chunk_size, mixture.dimension, mixture.dtype)[:sample]
        tight = _tight(z, chunk_law(0), schedule)
        if tolerance is not None:
            options["steps"] = _fewest_steps(
                z, chunk_law(0), schedule, tight, tolerance * deviation, options
            )

    program = None

    def job(index: int) -> Callable[[], _Chunk]:
        """Return what makes a chunk, in any thread; what depends on JAX's settings is done here."""
        nonlocal program
        found = store.read(index) if store else None
        if found is not None:
            return lambda: _Chunk(*found, 0)
        law = chunk_law(index)
        z = noise.chunk(noise_key, index, chunk_size, mixture.dimension, mixture.dtype)
        program = solve = program or compiled_flow(z, law, schedule, **options)

        def make() -> _Chunk:
            flow = solve(z, law)
            chunk = _Chunk(np.asarray(z), np.asarray(flow.points), int(flow.steps))
            if store:
                store.write(index, chunk.z, chunk.x)
            return chunk

        return make

    count = -(-n // chunk_size)
    with ThreadPoolExecutor(_side_by_side()) as pool:
        try:
            made = pool.map(lambda make: make(), map(job, range(count)))
            chunks = list(tqdm(made, "labels", count, disable=not progress, leave=False))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # failed or interrupted: no more
    z, x, steps_taken = zip(*chunks, strict=True)
    z, x, taken = np.concatenate(z)[:n], np.concatenate(x)[:n], max(steps_taken)

    finite = np.isfinite(x).all(1)
    if not finite.any():
        raise RuntimeError(
            "generate_pairs: no trajectory stayed finite; see solve_flow for the reason"
        )
    if not finite.all():
        text = f"{n - finite.sum()} of {n} trajectories did not stay finite and were left out"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    error = _distance(x[:sample], tight) if sample else np.zeros(0)
    report = PairsReport(
        pairs=int(finite.sum()),
        nonfinite=int((~finite).sum()),
        evaluations=evaluations(solver, taken) if taken else None,
        error_sample=sample,
        error_rms=float(np.sqrt(np.mean(error**2))) if sample else float("nan"),
        error_median=float(np.median(error)) if sample else float("nan"),
        switched=float(np.mean(error > deviation / 2)) if sample else float("nan"),
    )
    return Pairs(jnp.asarray(z[finite]), jnp.asarray(x[finite]), mixture.frame, report)


class _Chunk(NamedTuple):
    z: np.ndarray
    x: np.ndarray
    steps: int  # 0 if read from a checkpoint


def _side_by_side() -> int:
    """Return how many chunks are solved at once: XLA's element-wise code keeps one CPU core busy."""
    return min(os.cpu_count() or 1, 8) if jax.default_backend() == "cpu" else 1


_subsample = jax.jit(Mixture.subsample, static_argnums=2)


STEPS = (5, 7, 9, 12, 16, 22, 30, 42, 60, 84, 120)  # tried for ``tolerance``


def _tight(z: Array, law: Mixture, schedule: Schedule) -> np.ndarray:
    """Return end points of a tight solve (Dopri5, 217 evaluations)."""
    solver = diffrax.Dopri5()
    return np.asarray(solve_flow(z, law, schedule, solver=solver, steps=4 * DEFAULT_STEPS).points)


def _distance(x: Array | np.ndarray, tight: np.ndarray) -> np.ndarray:
    """Return each label's distance per coordinate from the tight solve, where both are finite."""
    error = np.sqrt(np.mean((tight - np.asarray(x)) ** 2, axis=1))
    return error[np.isfinite(error)]


def _fewest_steps(
    z: Array, law: Mixture, schedule: Schedule, tight: np.ndarray, bound: float, options: Any
) -> int:
    """Return the fewest steps whose RMS error is within ``bound``; warn where the most do not do."""
    rms = np.inf
    for steps in STEPS:
        x = solve_flow(z, law, schedule, **(options | {"steps": steps})).points
        rms = np.sqrt(np.mean(_distance(x, tight) ** 2))
        if rms <= bound:
            return steps
    warnings.warn(
        f"tolerance: RMS error {rms:.2g} after {STEPS[-1]} steps, more than {bound:.2g}",
        RuntimeWarning,
        stacklevel=3,
    )
    return STEPS[-1]


class _Store:
    """Finished chunks on disk: one safetensors file each, written aside and moved into place."""

    def __init__(self, folder: Path, fingerprint: str):
        self.folder, self.fingerprint = folder, fingerprint
        folder.mkdir(parents=True, exist_ok=True)

    def _path(self, index: int) -> Path:
        return self.folder / f"chunk-{index:06d}.safetensors"

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        path = self._path(index)
        if not path.exists():
            return None
        try:
            with safe_open(path, "numpy") as file:
                found = (file.metadata() or {}).get("fingerprint")
                z, x = file.get_tensor("z"), file.get_tensor("x")
        except (SafetensorError, OSError):
            return None  # a damaged chunk is made again: it depends on its index alone
        if found != self.fingerprint:
            raise ValueError(
                f"checkpoint: {path} belongs to a run with another key, data or settings; "
                "name another folder, or remove this one"
            )
        return z, x

    def write(self, index: int, z: np.ndarray, x: np.ndarray) -> None:
        with moved_into_place(self._path(index)) as aside:
            save_file({"z": z, "x": x}, aside, {"fingerprint": self.fingerprint})


def _fingerprint(identity: Any) -> str:
    """Return a digest of every number and setting on which a chunk depends."""
    key, *rest = identity
    digest = hashlib.sha256(np.asarray(jax.random.key_data(key)).tobytes())
    leaves, tree = jax.tree.flatten(rest[:-1])
    for leaf in leaves:
        array = np.asarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    digest.update(f"{tree}{rest[-1]}".encode())
    return digest.hexdigest()
