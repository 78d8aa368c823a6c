r"""One fused kernel for a block's posterior moments: attention that never leaves the chip.

``moments`` needs, for every query, a softmax over rows and the average of the rows under it. XLA
writes the (rows x queries) weights to memory between its two matrix products; here a tile of them
stays in registers and a running maximum rescales what was summed before (online softmax).

Written in Pallas for GPUs through its Triton backend, the one whose products are exact in float32
(Mosaic's know no more than TF32), Ampere or later; JAX deprecates that backend from 0.11 on. It is
off unless ``ENABLED``, until a benchmark on a GPU says that it is faster: ``python
benchmarks/score.py`` prints both side by side.
On a CPU it runs in Pallas' interpreter, for tests.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

ENABLED = False  # set before anything is compiled
ROWS, QUERIES = 64, 64  # a tile of weights, in registers
NOWHERE = -1e30  # the maximum before any row: finite, so that rows without weight do not give NaN


def attend(
    queries: Float[Array, "f b"], keys: Float[Array, "r f"], bias: Float[Array, "r"]
) -> tuple[Float[Array, "f b"], Float[Array, "b"]]:
    """Return ``sum_r w keys`` with ``w = exp(logits - top)``, and ``top``, the largest logit.

    The logits are ``keys @ queries + bias``. Nothing of size (rows x queries) is written to memory.

    Args:
        queries: One per column.
        keys: One per row; they are the values too.
        bias: Added to every query's logits; ``-inf`` takes a row out.

    >>> keys = jnp.array([[0.0, 1.0], [2.0, 1.0]])
    >>> total, top = attend(jnp.zeros((2, 1)), keys, jnp.zeros(2))
    >>> total[:, 0].tolist()  # both rows weigh 1
    [2.0, 2.0]
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    (features, b), r = queries.shape, len(keys)
    # Triton's tiles are powers of two, its products at least 16 wide.
    width = max(16, pl.next_power_of_2(features))
    queries = jnp.pad(queries, ((0, width - features), (0, -b % QUERIES)))
    keys = jnp.pad(keys, ((0, -r % ROWS), (0, width - features)))
    bias = jnp.pad(bias, (0, -r % ROWS), constant_values=-jnp.inf)
    columns = queries.shape[1]

    total, top = pl.pallas_call(
        partial(_kernel, tiles=len(keys) // ROWS),
        out_shape=(
            jax.ShapeDtypeStruct((width, columns), queries.dtype),
            jax.ShapeDtypeStruct((columns,), queries.dtype),
        ),
        grid=(columns // QUERIES,),
        in_specs=[
            pl.BlockSpec((width, QUERIES), lambda i: (0, i)),
            pl.BlockSpec(keys.shape, lambda i: (0, 0)),
            pl.BlockSpec(bias.shape, lambda i: (0,)),
        ],
        out_specs=(
            pl.BlockSpec((width, QUERIES), lambda i: (0, i)),
            pl.BlockSpec((QUERIES,), lambda i: (i,)),
        ),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=jax.default_backend() == "cpu",
    )(queries, keys, bias)
    return total[:features, :b], top[:b]


def _kernel(queries, keys, bias, total, top, *, tiles: int) -> None:
    from jax.experimental import pallas as pl

    product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    query = queries[...]

    def step(tile, state):
        summed, largest = state
        rows = pl.ds(tile * ROWS, ROWS)
        key = keys[rows, :]
        logits = product(key, query) + bias[rows][:, None]
        larger = jnp.maximum(largest, jnp.max(logits, 0))
        weights = jnp.exp(logits - larger[None])
        return summed * jnp.exp(largest - larger)[None] + product(key.T, weights), larger

    nothing = jnp.zeros_like(query), jnp.full((QUERIES,), NOWHERE, query.dtype)
    total[...], top[...] = jax.lax.fori_loop(0, tiles, step, nothing)
