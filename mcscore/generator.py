r"""The generator: a plain network from noise to data, ``x = frame.inverse(net(z))``.

The network is the paper's fully connected one, optionally as a correction to the
identity, ``net(z) = z + f(z)``: in a standardised frame the flow is close to it. Sampling is one
forward pass. A generator is a pytree; its parameters are a plain nested dict.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, ArrayLike, Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mcscore import frames

FORMAT = "mcscore.generator"
FORMAT_VERSION = "1"
SAMPLE_CHUNK = 8192


class _Network(nn.Module):
    """``d -> width -> ... -> width -> d``."""

    width: int
    depth: int
    activation: str
    residual: bool

    @nn.compact
    def __call__(self, z: Array) -> Array:
        hidden = z
        for _ in range(self.depth):
            hidden = nn.Dense(self.width, param_dtype=z.dtype)(hidden)
            hidden = getattr(nn, self.activation)(hidden)
        start = nn.initializers.zeros if self.residual else nn.initializers.lecun_normal()
        out = nn.Dense(z.shape[-1], kernel_init=start, param_dtype=z.dtype)(hidden)
        return z + out if self.residual else out


@dataclass(frozen=True)
class MLP:
    """A fully connected network ``z -> x``.

    Args:
        width: Neurons per hidden layer.
        depth: Hidden layers.
        activation: Name of a function of ``flax.linen`` (``"silu"``, ``"tanh"``, ``"gelu"``, ...).
        residual: Learn ``x - z`` instead of ``x``.

    >>> MLP.paper(width=256)
    MLP(width=256, depth=2, activation='tanh', residual=False)
    """

    width: int = 256
    depth: int = 3
    activation: str = "silu"
    residual: bool = True

    def __post_init__(self) -> None:
        for name in ("width", "depth"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected a positive integer, got {value!r}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation: expected one of {ACTIVATIONS}, got {self.activation!r}")

    @classmethod
    def paper(cls, width: int) -> MLP:
        """Return the paper's d-W-W-d network with tanh (W = 256 for POWER ... 1400 for MINIBOONE)."""
        return cls(width=width, depth=2, activation="tanh", residual=False)

    def module(self) -> nn.Module:
        """Return the Flax module."""
        return _Network(self.width, self.depth, self.activation, self.residual)

    def init(self, key: Array, d: int, dtype: Any = jnp.float32) -> Any:
        """Return fresh parameters for ``d`` columns."""
        return self.module().init(key, jnp.zeros((1, d), dtype))["params"]

    def apply(self, params: Any, z: Float[Array, "b d"]) -> Float[Array, "b d"]:
        """Return the network's output."""
        return self.module().apply({"params": params}, z)  # type: ignore[return-value]


ACTIVATIONS = ("celu", "elu", "gelu", "relu", "selu", "silu", "softplus", "swish", "tanh")


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "frame"],
    meta_fields=["network", "settings"],
)
@dataclass(frozen=True)
class Generator:
    """A trained one-step sampler. ``gen(z)`` maps noise (b, d) to data (b, d) in the user's units.

    Attributes:
        params: Parameters, a nested dict of arrays.
        frame: Map from the user's units to the network's coordinates, or None.
        network: The ``MLP`` that the parameters belong to.
        settings: JSON text about how it was made; kept in its file.
    """

    params: Any
    frame: Any
    network: MLP
    settings: str = field(default="{}")

    @property
    def dimension(self) -> int:
        """Number of columns ``d``."""
        return self.params[f"Dense_{self.network.depth}"]["bias"].shape[-1]

    @property
    def dtype(self) -> Any:
        """Precision of the parameters."""
        return self.params["Dense_0"]["bias"].dtype

    def __call__(self, z: Float[ArrayLike, "b d"]) -> Float[Array, "b d"]:
        """Return the data points of noise ``z``: a smooth map, ties not restored (see ``sample``).

        Raises:
            ValueError: If ``z`` has another number of columns.
        """
        z = jnp.asarray(z, self.dtype)
        if z.ndim != 2 or z.shape[1] != self.dimension:
            raise ValueError(f"z: expected shape (points, {self.dimension}), got {z.shape}")
        return _generate(self, z)

    def sample(self, key: Array, n: int) -> Float[Array, "n d"]:
        """Return ``n`` independent samples in the user's units, back on integers and other ties.

        Drawn in chunks, chunk k from ``fold_in(key, k)``: the first rows do not depend on ``n``, one
        compiled program serves every ``n``, and memory is the output's plus one chunk's.
        """
        if n < 0:
            raise ValueError(f"n: expected a number of samples, got {n}")
        parts = [_sample_chunk(self, key, k) for k in range(-(-n // SAMPLE_CHUNK))]
        return jnp.concatenate(parts)[:n] if parts else jnp.zeros((0, self.dimension), self.dtype)

    def save(self, path: str | os.PathLike) -> None:
        """Write everything to one safetensors file, moved into place when complete. No pickle."""
        path = Path(path)
        tensors = {f"params/{k}": v for k, v in flatten_dict(self.params, sep="/").items()}
        tensors |= {f"frame/{k}": v for k, v in _fields(self.frame).items()}
        metadata = dict(
            format=FORMAT,
            format_version=FORMAT_VERSION,
            network=json.dumps(dataclasses.asdict(self.network)),
            frame=type(self.frame).__name__ if self.frame is not None else "",
            settings=self.settings,
            versions=json.dumps({name: _version(name) for name in ("mcscore", "jax", "flax")}),
        )
        aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, aside, metadata)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


@jax.jit
def _generate(generator: Generator, z: Array) -> Array:
    x = generator.network.apply(generator.params, z)
    return x if generator.frame is None else generator.frame.inverse(x)


@jax.jit
def _sample_chunk(generator: Generator, key: Array, index: Array) -> Array:
    shape = SAMPLE_CHUNK, generator.dimension
    z = jax.random.normal(jax.random.fold_in(key, index), shape, generator.dtype)
    x = _generate(generator, z)
    return x if generator.frame is None else generator.frame.restore(x)


def load(path: str | os.PathLike) -> Generator:
    """Return the generator saved at ``path``. Nothing in the file is ever executed.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, not a generator, or of a newer format.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"path: no file {path}")
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"path: {path} is damaged or no safetensors file ({error})") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"path: {path} is no generator saved by mcscore")
    if metadata.get("format_version") != FORMAT_VERSION:
        found = metadata.get("format_version")
        raise ValueError(f"path: {path} has format {found}, this mcscore reads {FORMAT_VERSION}")
    try:
        network = MLP(**json.loads(metadata["network"]))
        frame_type = frames.FITTED.get(metadata["frame"]) if metadata["frame"] else None
        if metadata["frame"] and frame_type is None:
            raise ValueError(f"unknown frame {metadata['frame']!r}")
        params = unflatten_dict(_part(tensors, "params/"), sep="/")
        frame = frame_type(**_part(tensors, "frame/")) if frame_type else None
        generator = Generator(params, frame, network, metadata["settings"])
        d = generator.dimension
        expected = jax.eval_shape(partial(network.init, d=d), jax.random.key(0))
        shapes = jax.tree.map(jnp.shape, params)
        if shapes != jax.tree.map(lambda leaf: leaf.shape, expected):
            raise ValueError(f"expected parameters of {network} for {d} columns")
        if frame is not None:
            jax.eval_shape(frame.inverse, jax.ShapeDtypeStruct((1, d), generator.dtype))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"path: {path} is damaged ({error})") from error
    return generator


def _part(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, Array]:
    return {
        k.removeprefix(prefix): jnp.asarray(v) for k, v in tensors.items() if k.startswith(prefix)
    }


def _fields(frame: Any) -> dict[str, Any]:
    if frame is None:
        return {}
    found = {f.name: getattr(frame, f.name) for f in dataclasses.fields(frame)}
    return {name: value for name, value in found.items() if value is not None}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
