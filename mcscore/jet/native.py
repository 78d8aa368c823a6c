"""The native kernel: ``native.cpp``, for float32 on CPUs, behind ``jax.ffi``.

It is built on installation where a C++ compiler is found. Without it everything is computed in XLA.
"""

from __future__ import annotations

import ctypes
import re
import warnings
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@cache
def _library() -> ctypes.CDLL | None:
    files = [Path(__file__).with_name(f"_native{suffix}") for suffix in EXTENSION_SUFFIXES]
    found = next((file for file in files if file.exists()), None)
    try:
        return ctypes.CDLL(str(found)) if found else None
    except OSError as error:  # built for another machine
        warnings.warn(f"the native kernel cannot be loaded, XLA is used: {error}", stacklevel=2)
        return None


def _interface() -> int:
    """Return the version of XLA's interface that the installed jaxlib has, which it checks too late."""
    text = (Path(jax.ffi.include_dir()) / "xla/ffi/api/c_api.h").read_text()
    major, minor = (
        re.findall(rf"#define XLA_FFI_API_{part} (\d+)", text)[0] for part in ("MAJOR", "MINOR")
    )
    return 1000 * int(major) + int(minor)


@cache
def targets() -> tuple[str, ...]:
    """Return the instruction sets that the kernel can use here, best first; none where it was not built.

    >>> set(targets()) <= {"avx512", "avx2", "generic"}
    True
    """
    library = _library()
    if library is None:
        return ()
    try:
        if (built := library.mcscore_interface()) != (installed := _interface()):
            raise RuntimeError(
                f"it was built for another jaxlib (interface {built}, installed is {installed}); "
                "to build it for this one, install mcscore again with pip's --no-build-isolation"
            )
        handler = jax.ffi.pycapsule(library.mcscore_stream)
        jax.ffi.register_ffi_target("mcscore_stream", handler, platform="cpu")
    except Exception as error:  # built for another JAX
        warnings.warn(f"the native kernel cannot be loaded, XLA is used: {error}", stacklevel=2)
        return ()
    library.mcscore_targets.restype = ctypes.c_char_p
    return tuple(library.mcscore_targets().decode().split())


def loop(columns: int, repeats: int) -> float:
    """Run the innermost loop alone, on one thread; return its number of pairs of queries and rows."""
    library = _library()
    assert library is not None
    library.mcscore_loop.restype = ctypes.c_double
    return library.mcscore_loop(columns, repeats)


def names() -> tuple[str, ...]:
    """Return what ``Evaluation.kernel`` may be called here, apart from ``"xla"``."""
    return ("native", *targets()) if targets() else ()


def jet(
    x: Float[Array, "b d"],
    times: tuple[Array, ...],
    blocks: Any,
    *,
    order: int,
    target: str,
    negligible: float,
    careful: bool,
) -> tuple[Array, Array, Array]:
    """Return log densities (b,), the vector field (b, d) and Laplacians (b,), in float32 on a CPU.

    Args:
        x: Queries.
        times: ``alpha``, ``variance`` and the reading's coefficients, each (1, 1) or (b, 1).
        blocks: The law.
        order: 0 for log densities alone (others are empty), 1 for the field too, 2 for all.
        target: Instruction set, or ``"native"`` for the best.
        negligible: See ``Evaluation``.
        careful: Compute the jets of queries far from all rows in float64; otherwise only those of which
            float32 knows nothing.
    """
    b, d = x.shape
    bases = jnp.zeros((0, d, d), x.dtype) if blocks.bases is None else blocks.bases
    shapes = (b,), (b if order > 0 else 0, blocks.diffused), (b if order > 1 else 0,)
    columns = jnp.broadcast_arrays(*(jnp.reshape(time, -1) for time in times))
    kernel = jax.ffi.ffi_call(
        "mcscore_stream", [jax.ShapeDtypeStruct(shape, x.dtype) for shape in shapes]
    )
    log_p, field, laplacian = kernel(
        x,
        jnp.stack(columns),
        blocks.rows,
        blocks.log_weights,
        blocks.centers,
        bases,
        blocks.variances,
        order=np.int64(order),
        given=np.int64(blocks.given),
        share=np.float64(negligible),
        careful=careful,
        target=target,
    )
    return log_p, field, laplacian
