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

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, ArrayLike, Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mcscore import frames
from mcscore.density import Density, pull_back, push_forward
from mcscore.extras import needed
from mcscore.files import moved_into_place
from mcscore.networks import MLP
from mcscore.shown import shapes
from mcscore.tables import is_traced, rounded_up

FORMAT = "mcscore.generator"
FORMAT_VERSION = "1"
SAMPLE_CHUNK = 8192
DENSITY_CHUNK = 2048


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "frame", "encoder"],
    meta_fields=["network", "settings"],
)
@dataclass(frozen=True)
class Generator:
    """A trained one-step sampler and density. ``gen(z)`` maps noise (b, d) to data in the user's units.

    Attributes:
        params: Parameters, a nested dict of arrays.
        frame: Map from the user's units to the network's coordinates, or None.
        network: The ``MLP`` that the parameters belong to.
        settings: JSON text about how it was made; kept in its file.
        encoder: Parameters of the same network from data to noise, or None.
    """

    params: Any
    frame: Any
    network: MLP
    settings: str = field(default="{}")
    encoder: Any = None
    __repr__ = shapes

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
        return _generate(self, self._points(z, "z"))

    def _points(self, points: ArrayLike, name: str) -> Float[Array, "b d"]:
        points = jnp.asarray(points, self.dtype)
        if points.ndim != 2 or points.shape[1] != self.dimension:
            raise ValueError(
                f"{name}: expected shape (points, {self.dimension}), got {points.shape}"
            )
        return points

    def encode(self, x: Float[ArrayLike, "b d"]) -> Float[Array, "b d"]:
        """Return the noise of data points ``x`` in one forward pass of the encoder.

        As exact as the encoder's fit; ``density(x).z`` solves ``gen(z) = x`` to rounding.

        Raises:
            ValueError: If ``x`` has another number of columns, or the generator has no encoder.
        """
        if self.encoder is None:
            raise ValueError(
                "encode: this generator has no encoder; train it with train(..., encoder=True)"
            )
        return _encode(self, self._points(x, "x"))

    def density(self, x: Float[ArrayLike, "b d"]) -> Density:
        """Return the log density at ``x`` (b, d) in the user's units, each value with its certificate.

        Newton's method on ``gen(z) = x`` from the encoder's guess (from ``x`` itself without one), in
        chunks of 2,048 points; O(d) passes of the network per step. Errors are those of ``encode``.
        """
        x, parts = self._points(x, "x"), []
        size = min(len(x), DENSITY_CHUNK)
        if size and not is_traced(x):
            size = rounded_up(size)  # few compiled programs
        for k in range(0, max(len(x), 1), DENSITY_CHUNK):
            part = x[k : k + DENSITY_CHUNK]
            padded = jnp.concatenate(
                [part, jnp.broadcast_to(x[:1], (size - len(part), x.shape[1]))]
            )
            parts.append(jax.tree.map(lambda a, m=len(part): a[:m], _density(self, padded)))
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

    def log_prob(self, x: Float[ArrayLike, "b d"]) -> Float[Array, "b"]:
        """Return ``density(x).log_prob``: nats, NaN where it is not certified."""
        return self.density(x).log_prob

    def sample_and_log_prob(
        self, key: Array, n: int
    ) -> tuple[Float[Array, "n d"], Float[Array, "n"]]:
        """Return ``n`` samples, ties not restored, and their log density; no inversion is needed."""
        if n < 0:
            raise ValueError(f"n: expected a number of samples, got {n}")
        size = DENSITY_CHUNK
        parts = [_sample_density(self, key, k) for k in range(max(1, -(-n // size)))]
        x, log_prob = (jnp.concatenate(part)[:n] for part in zip(*parts, strict=True))
        return x, log_prob

    def sample(self, key: Array, n: int) -> Float[Array, "n d"]:
        """Return ``n`` independent samples in the user's units, back on integers and other ties.

        Drawn in chunks, chunk k from ``fold_in(key, k)``: the first rows do not depend on ``n``, one
        compiled program serves every ``n``, and memory is the output's plus one chunk's.
        """
        if n < 0:
            raise ValueError(f"n: expected a number of samples, got {n}")
        parts = [_sample_chunk(self, key, k) for k in range(-(-n // SAMPLE_CHUNK))]
        return jnp.concatenate(parts)[:n] if parts else jnp.zeros((0, self.dimension), self.dtype)

    def export(self, path: str | os.PathLike) -> None:
        """Write the sampler as a StableHLO program that runs without mcscore, on CPU, GPU and TPU.

        ``jax.export.deserialize(bytes).call(jax.random.key_data(key), k)`` gives the ``k``-th 8,192 rows
        of ``sample(key, n)``; ``k`` is an int32.

        Raises:
            ImportError: If flatbuffers is missing: ``pip install mcscore[export]``.
        """
        from jax import export

        @jax.jit
        def sampler(key_data, index):
            return _sample_chunk(self, jax.random.wrap_key_data(key_data), index)

        shapes = (
            jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in (((2,), "uint32"), ((), "int32"))
        )
        program = export.export(sampler, platforms=("cpu", "cuda", "tpu"))(*shapes)
        with needed("export", "flatbuffers", "export"):
            binary = program.serialize()
        with moved_into_place(path) as aside:
            aside.write_bytes(binary)

    def save(self, path: str | os.PathLike) -> None:
        """Write everything to one safetensors file, moved into place when complete. No pickle."""
        tensors = {f"params/{k}": v for k, v in flatten_dict(self.params, sep="/").items()}
        tensors |= {f"encoder/{k}": v for k, v in flatten_dict(self.encoder or {}, sep="/").items()}
        tensors |= {f"frame/{k}": v for k, v in _fields(self.frame).items()}
        metadata = dict(
            format=FORMAT,
            format_version=FORMAT_VERSION,
            network=json.dumps(dataclasses.asdict(self.network)),
            frame=type(self.frame).__name__ if self.frame is not None else "",
            settings=self.settings,
            versions=json.dumps({name: _version(name) for name in ("mcscore", "jax", "flax")}),
        )
        with moved_into_place(path) as aside:
            save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, aside, metadata)


@jax.jit
def _generate(generator: Generator, z: Array) -> Array:
    x = generator.network.apply(generator.params, z)
    return x if generator.frame is None else generator.frame.inverse(x)


@jax.jit
def _encode(generator: Generator, x: Array) -> Array:
    y = x if generator.frame is None else generator.frame.forward(x)
    return generator.network.apply(generator.encoder, y)


@jax.jit
def _density(generator: Generator, x: Array) -> Density:
    frame, network = generator.frame, generator.network
    y = x if frame is None else frame.forward(x)
    start = y if generator.encoder is None else network.apply(generator.encoder, y)
    found = pull_back(partial(network.apply, generator.params), y, start)
    log_det = 0.0 if frame is None else frame.log_det(x)
    return found._replace(log_prob=found.log_prob + log_det)


@jax.jit
def _sample_density(generator: Generator, key: Array, index: Array) -> tuple[Array, Array]:
    shape = DENSITY_CHUNK, generator.dimension
    z = jax.random.normal(jax.random.fold_in(key, index), shape, generator.dtype)
    y, log_prob, _ = push_forward(partial(generator.network.apply, generator.params), z)
    if generator.frame is None:
        return y, log_prob
    x = generator.frame.inverse(y)
    return x, log_prob + generator.frame.log_det(x)


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
        encoder = unflatten_dict(_part(tensors, "encoder/"), sep="/") or None
        generator = Generator(params, frame, network, metadata["settings"], encoder)
        d = generator.dimension
        expected = jax.eval_shape(partial(network.init, d=d), jax.random.key(0))
        expected = jax.tree.map(jnp.shape, expected)
        for part in (params, encoder or params):
            if jax.tree.map(jnp.shape, part) != expected:
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
