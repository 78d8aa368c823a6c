"""The network of the paper, fully connected; by default with its input at every layer and in its output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mcscore._validation import at_least, of_type


class _Network(nn.Module):
    """``d -> width -> ... -> width -> d``, and conditions beside the ``d``."""

    width: int
    depth: int
    activation: str
    residual: bool
    skip: bool
    products: str

    @nn.compact
    def __call__(self, z: Array, c: Array | None = None) -> Array:
        hidden = inputs = z if c is None else jnp.concatenate([z, c], -1)
        product = _bfloat16_product if self.products == "bfloat16" else jax.lax.dot_general
        for layer in range(self.depth):
            if self.skip and layer:
                hidden = jnp.concatenate([hidden, inputs], -1)
            hidden = nn.Dense(self.width, param_dtype=z.dtype, dot_general=product)(hidden)
            hidden = getattr(nn, self.activation)(hidden)
        start = nn.initializers.zeros if self.residual else nn.initializers.lecun_normal()
        out = nn.Dense(z.shape[-1], kernel_init=start, param_dtype=z.dtype)(hidden)
        return z + out if self.residual else out


def _bfloat16_product(a: Array, b: Array, *arguments: Any, **_: Any) -> Array:
    """Return the product of factors rounded to bfloat16, accumulated in the factors' own precision."""
    a, b = (jax.lax.reduce_precision(x, 8, 7) for x in (a, b))  # exponent and mantissa bits

    def by(precision: Any) -> Callable[[Array, Array], Array]:
        return lambda a, b: jax.lax.dot_general(a, b, *arguments, precision=precision)

    # A CPU has no units for it: the same numbers.
    fast = by(jax.lax.DotAlgorithmPreset.BF16_BF16_F32)
    return jax.lax.platform_dependent(a, b, cpu=by(None), default=fast)


@dataclass(frozen=True)
class MLP:
    """A fully connected network ``z -> x``.

    Args:
        width: Neurons per hidden layer.
        depth: Hidden layers.
        activation: Name of a function of ``flax.linen`` (``"silu"``, ``"tanh"``, ``"gelu"``, ...).
        residual: Learn ``x - z`` instead of ``x``.
        skip: Give the input to every hidden layer again: densities of many modes come out closer to the
            law's (``benchmarks/networks.py``).
        products: ``"float32"`` (the parameters' own precision), or ``"bfloat16"`` for factors rounded
            to 8 bits in the hidden layers: faster where a GPU or TPU has units for it. What it costs
            is in ``benchmarks/README.md``; for densities keep float32.

    >>> MLP.paper(width=256)
    MLP(width=256, depth=2, activation='tanh', residual=False, skip=False, products='float32')
    """

    width: int = 96
    depth: int = 9
    activation: str = "silu"
    residual: bool = True
    skip: bool = True
    products: str = "float32"

    def __post_init__(self) -> None:
        for name in ("width", "depth"):
            at_least(1, **{name: getattr(self, name)})
            object.__setattr__(self, name, int(getattr(self, name)))  # of NumPy's, too
        of_type(bool, "True", residual=self.residual, skip=self.skip)
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation: expected one of {ACTIVATIONS}, got {self.activation!r}")
        if self.products not in PRODUCTS:
            raise ValueError(f"products: expected one of {PRODUCTS}, got {self.products!r}")

    @classmethod
    def paper(cls, width: int) -> MLP:
        """Return the paper's d-W-W-d network with tanh (W = 256 for POWER ... 1400 for MINIBOONE)."""
        return cls(width=width, depth=2, activation="tanh", residual=False, skip=False)

    def module(self) -> nn.Module:
        """Return the Flax module."""
        return _Network(
            self.width, self.depth, self.activation, self.residual, self.skip, self.products
        )

    def init(self, key: Array, d: int, dtype: Any = jnp.float32, given: int = 0) -> Any:
        """Return fresh parameters for ``d`` columns and ``given`` conditions."""
        return _init(self.module(), key, d, jnp.dtype(dtype), given)

    def apply(
        self, params: Any, z: Float[Array, "b d"], c: Float[Array, "b k"] | None = None
    ) -> Float[Array, "b d"]:
        """Return the network's output, for noise and, if it has any, conditions."""
        return self.module().apply({"params": params}, z, c)  # type: ignore[return-value]


@partial(jax.jit, static_argnums=(0, 2, 3, 4))  # one program instead of one per operation
def _init(module: nn.Module, key: Array, d: int, dtype: Any, given: int) -> Any:
    c = jnp.zeros((1, given), dtype) if given else None
    return module.init(key, jnp.zeros((1, d), dtype), c)["params"]


PRODUCTS = ("float32", "bfloat16")
ACTIVATIONS = ("celu", "elu", "gelu", "relu", "selu", "silu", "softplus", "swish", "tanh")
