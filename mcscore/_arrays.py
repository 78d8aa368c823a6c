"""Arrays on either side of the border: NumPy's on the host, in float64, and JAX's on devices.

Functions of a table take both: for NumPy nothing is compiled and float64 is kept. Dataclasses of arrays are
registered by ``pytree``: what JAX's ``register_dataclass`` registers, jaxlib (0.10.2 at least) compares by
the values of static fields, not by class, and of two classes with as many fields ``jit`` at times runs the
program of the other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import MISSING, fields
from importlib import import_module
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey, register_pytree_with_keys
from jaxtyping import Array

# Below 0.8 in a module of its own.
enable_x64: Any = (
    jax if hasattr(jax, "enable_x64") else import_module("jax.experimental")
).enable_x64
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C", bound=type)
CHUNK = 20_000  # rows: their temporaries stay in the cache
STREAM = 0x6D637363  # keeps the library's random numbers apart from a user's ``default_rng(0)``


def on_host(a: Any) -> np.ndarray:
    """Return an array's values in NumPy, those of other processes' devices too."""
    if isinstance(a, jax.Array) and not (a.is_fully_addressable or a.is_fully_replicated):
        from jax.experimental.multihost_utils import process_allgather  # seldom needed

        return np.asarray(process_allgather(a, tiled=True))
    return np.asarray(a)


def library_of(x: Any) -> Any:
    """Return the array library of ``x``: NumPy, for which nothing is compiled, or ``jax.numpy``."""
    return np if isinstance(x, np.ndarray) else jnp


def like(parameter: Any, x: Any) -> Any:
    """Return ``parameter`` as an array of ``x``'s library and precision, of integers and half floats more."""
    return library_of(x).asarray(parameter, dtype=_precision(x))


def floating(x: Any) -> Any:
    """Return ``x`` in at least single precision: integers and half floats in the default one."""
    dtype = _precision(x)
    return x if x.dtype == dtype else library_of(x).asarray(x, dtype=dtype)


def _precision(x: Any) -> Any:
    full = np.issubdtype(x.dtype, np.floating) and x.dtype.itemsize >= 4
    if full:
        return x.dtype
    return np.dtype(float) if isinstance(x, np.ndarray) else jax.dtypes.canonicalize_dtype(float)


def with_precision(what: str, dtype: Any) -> Any:
    """Return the ``dtype`` of ``what``, unless JAX would take its double precision for single.

    Raises:
        ValueError: If it is double and x64 is not enabled.
    """
    if dtype == np.float64 and jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            f"{what}: made in float64, which JAX has disabled here; "
            'jax.config.update("jax_enable_x64", True) enables it'
        )
    return dtype


def on_device(arrays: Any, dtype: Any = None) -> Any:
    """Return a pytree of NumPy arrays as JAX's, cast on the host to ``dtype``, JAX's default float if None.

    No program is compiled for new shapes, as ``jnp.asarray`` does.
    """
    dtype = jax.dtypes.canonicalize_dtype(dtype or float)
    return jax.device_put(jax.tree.map(lambda a: np.asarray(a, dtype), arrays))


def settled(work: Callable[[A], B]) -> Callable[[A], B]:
    """Return ``work`` for other threads: JAX's settings belong to one, here the caller's hold in all.

    They are double precision and the default device.
    """
    config: Any = jax.config
    x64, device = config.jax_enable_x64, config.jax_default_device

    def within(job: A) -> B:
        with ExitStack() as settings:
            settings.enter_context(enable_x64(x64))
            if device is not None:
                settings.enter_context(jax.default_device(device))
            return work(job)

    return within


def side_by_side(work: Callable[[A], B], jobs: Iterable[A]) -> list[B]:
    """Return ``work(job)`` for every job, on a CPU several at once: XLA's loops leave cores idle."""
    threads = min(os.cpu_count() or 1, 4) if jax.default_backend() == "cpu" else 1
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(settled(work), jobs))


def rung(size: int, digits: int = 4) -> int:
    """Return the least number of so many binary ``digits`` that is at least ``size``.

    With four digits it is at most an eighth more. Shapes on such a ladder let tables of about one size share
    compiled programs.

    >>> rung(7), rung(100), rung(39_221), rung(100, digits=1)
    (7, 104, 40960, 128)
    """
    step = 1 << max(0, (size - 1).bit_length() - digits)
    return -(-size // step) * step


def in_chunks(function: Callable[[Any], Any], x: Any) -> Any:
    """Return ``function(x)``, of a large NumPy table computed in chunks of its rows."""
    if library_of(x) is jnp or len(x) <= CHUNK:
        return function(x)
    return np.concatenate([function(part) for part in np.array_split(x, -(-len(x) // CHUNK))])


def by_column(function: Callable[..., Any], x: Any, *tables: Any) -> Any:
    """Return ``function(library, column, *rows)`` of every column of ``x`` (b, d), stacked to (b, d).

    Args:
        function: Returns an array (b,) or a tuple of them.
        x: Table.
        *tables: Parameters, (d, ...): a row for every column.
    """
    x = floating(x)
    rows = [like(table, x) for table in tables]
    if library_of(x) is jnp:
        axes = (1, *(0 for _ in rows))
        return jax.vmap(lambda *column: function(jnp, *column), axes, 1)(x, *rows)
    out = [function(np, *column) for column in zip(x.T, *rows, strict=True)]
    if isinstance(out[0], tuple):
        return tuple(np.stack(part, 1) for part in zip(*out, strict=True))
    return np.stack(out, 1)


def host_generator(key: Array) -> np.random.Generator:
    """Return NumPy's generator of a JAX key: the same key, the same numbers."""
    return np.random.default_rng([STREAM, *np.ravel(jax.random.key_data(key)).tolist()])


def rounded_up(size: int) -> int:
    """Return ``size`` rounded up to one of few: 4, 5, 6 or 7 times a power of two, at least 64.

    Arrays of these many rows share compiled programs, at the price of a quarter more work at most.

    >>> [rounded_up(n) for n in (1, 65, 81, 1000, 5000)]
    [64, 80, 96, 1024, 5120]
    """
    step = 1 << max(4, (size - 1).bit_length() - 3)
    return max(64, -(-size // step) * step)


def is_traced(value: Any) -> bool:
    """Return whether ``value`` is only known inside a transformation, so that it cannot be checked."""
    return isinstance(value, jax.core.Tracer)  # type: ignore[attr-defined]


def is_zero(value: Any) -> bool:
    """Return whether the number ``value`` is known to be zero; under ``jit``, ``==`` would be traced."""
    return not is_traced(value) and float(value) == 0


def shapes(self: Any) -> str:
    """Return a ``__repr__`` that shows the precision and shape of every array, not its numbers."""
    return eqx.tree_pformat(self)


def pytree(cls: Any = None, *, static: Sequence[str] = (), dropped: Sequence[str] = ()) -> Any:
    """Register a frozen dataclass whose fields are traced by ``jit``, so that sweeping them never recompiles.

    Args:
        cls: The class, where it is decorated without brackets.
        static: Fields that are compared instead of traced, beside those of ``metadata=dict(static=True)``.
        dropped: Fields, of a default, that transformations forget, beside those of ``init=False``.

    Raises:
        TypeError: If the class is no dataclass.
        ValueError: If it has no field of a name, or one to be dropped has no default.

    >>> from dataclasses import dataclass
    >>> import jax
    >>> @pytree()
    ... @dataclass(frozen=True)
    ... class Line:
    ...     slope: float = 1.0
    >>> jax.jit(lambda line, x: line.slope * x)(Line(2.0), 3.0)
    Array(6., dtype=float...)
    """

    def register(cls: C) -> C:
        known = {field.name: field for field in fields(cls)}
        if isinstance(static, str) or isinstance(dropped, str):
            raise ValueError("static, dropped: expected lists of names, got a text")
        if unknown := [name for name in (*static, *dropped) if name not in known]:
            raise ValueError(f"pytree: {cls.__name__} has no field {unknown[0]!r}")
        for name in dropped:
            if known[name].default is known[name].default_factory is MISSING:
                raise ValueError(f"dropped: {cls.__name__}.{name} has no default")
        kept = [name for name, field in known.items() if field.init and name not in dropped]
        fixed = [name for name in kept if name in static or known[name].metadata.get("static")]
        traced = [name for name in kept if name not in fixed]
        keys = [GetAttrKey(name) for name in traced]

        def flatten(x: Any) -> tuple[Any, Any]:
            return [getattr(x, name) for name in traced], tuple(getattr(x, name) for name in fixed)

        def flatten_with_keys(x: Any) -> tuple[Any, Any]:
            values, compared = flatten(x)
            return zip(keys, values, strict=True), compared

        def unflatten(compared: Any, values: Any) -> Any:
            return cls(
                **dict(zip(traced, values, strict=True)), **dict(zip(fixed, compared, strict=True))
            )

        register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
        return cls

    return register if cls is None else register(cls)
