r"""The generator: a plain network from noise to data, ``x = frame.inverse(net(z))``.

The network is the paper's fully connected one, optionally as a correction to the
identity, ``net(z) = z + f(z)``: in a standardized frame the flow is close to it. Sampling is one
forward pass. A generator is a pytree; its parameters are a plain nested dict.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from mcscore._arrays import is_traced, rounded_up, shapes, with_precision
from mcscore._numbers import points
from mcscore._optional import as_dataframe, needed
from mcscore._validation import as_key, at_least
from mcscore.generators.files import read, write
from mcscore.generators.inversion import Density, pull_back, push_forward
from mcscore.generators.networks import MLP
from mcscore.storage import replacing

SAMPLE_CHUNK = 8192
DENSITY_CHUNK = 2048


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "frame", "encoder"],
    meta_fields=["network"],
    drop_fields=["about"],
)
@dataclass(frozen=True, eq=False)
class Generator:
    """A trained one-step sampler and density. ``gen(z)`` maps noise (b, d) to data in the user's units.

    Attributes:
        params: Parameters, a nested dict of arrays.
        frame: Map from the user's units to the network's coordinates.
        network: The ``MLP`` that the parameters belong to.
        encoder: Parameters of the same network from data to noise, or None.
        about: How it was made, in words and numbers of JSON; kept in its file. Generators of equal shapes
            share their programs whatever it says, and what a transformation returns has none.
    """

    params: Any
    frame: Any
    network: MLP
    encoder: Any = None
    about: Mapping[str, Any] = field(default_factory=dict, repr=False)
    __repr__ = shapes

    @property
    def dimension(self) -> int:
        """Number of columns ``d``."""
        return self.params[f"Dense_{self.network.depth}"]["bias"].shape[-1]

    @property
    def dtype(self) -> Any:
        """Precision of the parameters; an error where it is double and JAX has been set to single since."""
        return with_precision("generator", self.params["Dense_0"]["bias"].dtype)

    def __call__(self, z: Float[ArrayLike, "b d"]) -> Float[Array, "b d"]:
        """Return the data points of noise ``z``: a smooth map, ties not restored (see ``sample``).

        Raises:
            ValueError: If ``z`` has another number of columns.
        """
        return _generate(self, self._points(z, "z"))

    def _points(self, given: Any, name: str) -> Float[Array, "b d"]:
        columns = self.about.get("columns") if name == "x" else None
        return jnp.asarray(points(given, self.dimension, columns, name), self.dtype)

    def encode(self, x: Any) -> Float[Array, "b d"]:
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

    def density(self, x: Any) -> Density:
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

    def log_prob(self, x: Any) -> Float[Array, "b"]:
        """Return ``density(x).log_prob``: nats, NaN where it is not certified."""
        return self.density(x).log_prob

    def sample_and_log_prob(
        self, key: Array, n: int
    ) -> tuple[Float[Array, "n d"], Float[Array, "n"]]:
        """Return ``n`` samples, ties not restored, and their log density; no inversion is needed.

        The log density is NaN where the network folds, see ``Agreement.folded``.
        """
        at_least(0, n=n)
        key = as_key(key)
        size = DENSITY_CHUNK
        parts = [_sample_density(self, key, k) for k in range(max(1, -(-n // size)))]
        x, log_prob = (jnp.concatenate(part)[:n] for part in zip(*parts, strict=True))
        return x, log_prob

    def sample(self, key: Array, n: int, *, as_frame: bool = False) -> Any:
        """Return ``n`` independent samples in the user's units, back on integers and other ties.

        Drawn in chunks, chunk k from ``fold_in(key, k)``: the first rows do not depend on ``n``, one
        compiled program serves every ``n``, and memory is the output's plus one chunk's.

        Args:
            key: Random key.
            n: How many.
            as_frame: Return a pandas DataFrame, columns named as in training, instead of an array (n, d).
        """
        at_least(0, n=n)
        key = as_key(key)
        parts = [_sample_chunk(self, key, k) for k in range(-(-n // SAMPLE_CHUNK))]
        nothing = jnp.zeros((0, self.dimension), self.dtype)
        rows = jnp.concatenate(parts)[:n] if parts else nothing
        return as_dataframe(rows, self.about.get("columns")) if as_frame else rows

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
        with replacing(path) as aside:
            aside.write_bytes(binary)

    def save(self, path: str | os.PathLike) -> None:
        """Write everything to one safetensors file, moved into place when complete. No pickle."""
        write(self, path)


@jax.jit
def _generate(generator: Generator, z: Array) -> Array:
    return generator.frame.inverse(generator.network.apply(generator.params, z))


@jax.jit
def _encode(generator: Generator, x: Array) -> Array:
    return generator.network.apply(generator.encoder, generator.frame.forward(x))


@jax.jit
def _density(generator: Generator, x: Array) -> Density:
    network, y = generator.network, generator.frame.forward(x)
    start = y if generator.encoder is None else network.apply(generator.encoder, y)
    found = pull_back(partial(network.apply, generator.params), y, start)
    return found._replace(log_prob=found.log_prob + generator.frame.log_det(x))


@jax.jit
def _sample_density(generator: Generator, key: Array, index: Array) -> tuple[Array, Array]:
    shape = DENSITY_CHUNK, generator.dimension
    z = jax.random.normal(jax.random.fold_in(key, index), shape, generator.dtype)
    y, log_prob, sign = push_forward(partial(generator.network.apply, generator.params), z)
    x = generator.frame.inverse(y)
    return x, jnp.where(sign > 0, log_prob, jnp.nan) + generator.frame.log_det(x)


@jax.jit
def _sample_chunk(generator: Generator, key: Array, index: Array) -> Array:
    shape = SAMPLE_CHUNK, generator.dimension
    z = jax.random.normal(jax.random.fold_in(key, index), shape, generator.dtype)
    return generator.frame.restore(_generate(generator, z))


def load(path: str | os.PathLike) -> Generator:
    """Return the generator saved at ``path``. Nothing in the file is ever executed.

    Raises:
        FileNotFoundError: If there is no such file.
        PermissionError: If it may not be read.
        ValueError: If the file is damaged, not a generator, or of a newer format.
    """
    return Generator(**read(path))
