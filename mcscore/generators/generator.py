r"""The generator: a plain network from noise to data, ``x = frame.inverse(net(z))``.

The network is the paper's fully connected one, optionally as a correction to the
identity, ``net(z) = z + f(z)``: in a standardized frame the flow is close to it. Sampling is one
forward pass. A generator is a pytree; its parameters are a plain nested dict.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float

from mcscore._arrays import is_traced, pytree, rounded_up, shapes, with_precision
from mcscore._numbers import points
from mcscore._optional import as_dataframe, needed
from mcscore._printing import Told
from mcscore._validation import as_key, at_least
from mcscore.frames import Identity
from mcscore.generators.files import read, write
from mcscore.generators.inversion import Density, pull_back, push_forward
from mcscore.generators.networks import MLP
from mcscore.jet.dense import product
from mcscore.mixtures.conditional import conditions_in
from mcscore.parallel import Places, joined_rows, over_queries, places_of
from mcscore.storage import replacing

SAMPLE_CHUNK = 8192
DENSITY_CHUNK = 2048


@pytree()
@dataclass(frozen=True, eq=False)
class Given:
    """What a conditional generator knows of its conditions ``c`` (b, k) beside the network.

    Labels, in the coordinates of the generator's frame, are ``net(z, c) @ root + c @ slope``: the network
    learns what linear regression leaves, where that leaves unit variance.

    Attributes:
        frame: Map between the user's conditions and their coordinates.
        slope: (k, d).
        root: (d, d).
        inverse: Its inverse.
    """

    frame: Any
    slope: Any
    root: Any
    inverse: Any
    __repr__ = shapes

    @property
    def dimension(self) -> int:
        """Number of columns of the condition."""
        return self.slope.shape[0]

    def put_back(self, left: Array, c: Array) -> Array:
        """Return coordinates (b, d) of what regression leaves."""
        return product(left, self.root) + product(c, self.slope)

    def told_apart(self, y: Array, c: Array) -> Array:
        """Return what regression leaves of coordinates ``y`` (b, d)."""
        return product(y - product(c, self.slope), self.inverse)


@pytree(static=["network"], dropped=["about", "law"])
@dataclass(frozen=True, eq=False)
class Generator(Told):
    """A trained one-step sampler and density. ``gen(z)`` maps noise (b, d) to data in the user's units.

    Attributes:
        params: Parameters, a nested dict of arrays.
        frame: Map from the user's units to the network's coordinates.
        network: The ``MLP`` that the parameters belong to.
        encoder: Parameters of the same network from data to noise, or None.
        given: What there is to know of conditions; None without any.
        law: The law of its labels, which is exact: ``gen.law.log_prob`` is the density to use for data, the
            generator's own that of its samples. None for one made by hand and for whatever a
            transformation returns.
        about: How it was made, in words and numbers of JSON; kept in its file. Generators of equal shapes
            share their programs whatever it says, and what a transformation returns has none.
    """

    params: Any
    frame: Any
    network: MLP
    encoder: Any = None
    given: Given | None = None
    law: Any = field(default=None, repr=False)
    about: Mapping[str, Any] = field(default_factory=dict, repr=False)
    __repr__ = shapes

    def told(self) -> dict[str, str]:
        """Return what ``print`` shows: the network, and what ``about`` says of its law and density."""
        if not self.about:
            return {}
        given = f" given {self.condition_dimension}" if self.given else ""
        lines = {
            "generator": f"{self.dimension} columns{given}, {self.network}",
            "trained on": f"{self.about.get('pairs', 'unknown')} pairs of a law of "
            f"{self.about.get('rows', 'unknown')} rows",
            "law": f"{self.about.get('kernel', 'unknown')}, {self.about.get('frame', 'no frame')}",
        }
        if (nats := self.about.get("log_likelihood")) is not None:
            lines["the law's held-out log-likelihood"] = f"{nats:.4g} nats"
        if density := self.about.get("density"):
            lines["the network's density"] = (
                f"{density['error']:.2g} nats from the law's, known at {density['certified']:.1%} of draws"
            )
        return lines

    @property
    def dimension(self) -> int:
        """Number of columns ``d``."""
        return self.params[f"Dense_{self.network.depth}"]["bias"].shape[-1]

    @property
    def dtype(self) -> Any:
        """Precision of the parameters; an error where it is double and JAX has been set to single since."""
        return with_precision("generator", self.params["Dense_0"]["bias"].dtype)

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The names of the columns, if the table had any."""
        names = self.about.get("columns")
        return None if names is None else tuple(names)

    @property
    def condition_columns(self) -> tuple[str, ...] | None:
        """The names of the condition's columns, if the table had any."""
        names = self.about.get("condition")
        return None if names is None else tuple(names)

    @property
    def condition_dimension(self) -> int:
        """Number of columns of the condition; 0 without any."""
        return 0 if self.given is None else self.given.dimension

    def __call__(self, z: Float[ArrayLike, "b d"], condition: Any = None) -> Float[Array, "b d"]:
        """Return the data points of noise ``z``: a smooth map, ties not restored (see ``sample``).

        In the generator's own precision, whatever the columns ask for.

        Raises:
            ValueError: If ``z`` has another number of columns, or the condition does not fit.
        """
        z = self._points(z, "z")
        return over_queries(_generate, (z, self._each(condition, len(z))), (self,))

    def coordinates(
        self, z: Float[Array, "b d"], c: Float[Array, "b k"] | None, params: Any = None
    ) -> Float[Array, "b d"]:
        """Return the points of noise and conditions (in their coordinates) in those of the frame."""
        y = self.network.apply(self.params if params is None else params, z, c)
        return y if self.given is None or c is None else self.given.put_back(y, c)

    def conditions(self, condition: Any, n: int | None = None) -> Float[Array, "b k"] | None:
        """Return conditions (k,) or (n, k) in their own coordinates, one for each of ``n``, if there are any.

        Raises:
            ValueError: If there is a condition and the generator has none, or the other way round; if its
                shape or columns do not fit, or it is not finite.
        """
        frame, k = self.given and self.given.frame, self.condition_dimension
        return conditions_in(frame, k, self.condition_columns, condition, n, self.dtype)

    def _each(self, condition: Any, n: int) -> Float[Array, "n k"] | None:
        c = self.conditions(condition, n)
        return None if c is None else jnp.broadcast_to(c, (n, c.shape[1]))

    @cached_property
    def is_coarse(self) -> bool:
        """Whether the precision is too coarse for the frame's columns, see ``Frame.is_coarse``."""
        if isinstance(self.frame, Identity) or any(map(is_traced, jax.tree.leaves(self))):
            return False
        return self.frame.is_coarse(np.zeros((1, self.dimension)), self.dtype)

    def _inside(self) -> Generator:
        """Return the generator in its frame's coordinates."""
        return replace(self, frame=Identity())

    def _on_host(self, x: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return data points, and their coordinates, in float64."""
        x = np.asarray(points(x, self.dimension, self.columns), np.float64)
        return x, self.frame.forward(x)

    def _points(self, given: Any, name: str) -> Float[Array, "b d"]:
        columns = self.columns if name == "x" else None
        return jnp.asarray(points(given, self.dimension, columns, name), self.dtype)

    def encode(self, x: Any, condition: Any = None) -> Float[Array, "b d"]:
        """Return the noise of data points ``x`` in one forward pass of the encoder.

        As exact as the encoder's fit; ``density(x).z`` solves ``gen(z) = x`` to rounding.

        Raises:
            ValueError: If ``x`` has another number of columns, or the generator has no encoder.
        """
        if self.encoder is None:
            raise ValueError(
                "encode: this generator has no encoder; train it with train(..., encoder=True)"
            )
        if self.is_coarse:
            return self._inside().encode(self._on_host(x)[1], condition)
        x = self._points(x, "x")
        return over_queries(_encode, (x, self._each(condition, len(x))), (self,))

    def density(self, x: Any, condition: Any = None) -> Density:
        """Return the log density at ``x`` (b, d) in the user's units, each value with its certificate.

        Newton's method on ``gen(z) = x`` from the encoder's guess (from ``x`` itself without one), in
        chunks of 2,048 points; O(d) passes of the network per step. Errors are those of ``encode``.
        """
        if self.is_coarse:
            x, y = self._on_host(x)
            found = self._inside().density(y, condition)
            return found._replace(
                log_prob=found.log_prob + jnp.asarray(self.frame.log_det(x), self.dtype)
            )
        x, parts = self._points(x, "x"), []
        given = self.conditions(condition, len(x))
        if (places := places_of((x, given))) is not None:
            given = self._each(condition, len(x))
            return over_queries(_density, (x, given), (self,), places=places)
        size = min(len(x), DENSITY_CHUNK)
        if size and not is_traced(x):
            size = rounded_up(size)  # few compiled programs
        for k in range(0, max(len(x), 1), DENSITY_CHUNK):
            part = slice(k, k + DENSITY_CHUNK)
            rows, c = (_filled(a, part, size) for a in (x, given))
            found, m = _density(rows, c, self), len(x[part])
            parts.append(jax.tree.map(lambda a, m=m: a[:m], found))
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

    def log_prob(self, x: Any, condition: Any = None) -> Float[Array, "b"]:
        """Return ``density(x).log_prob``: nats, NaN where it is not certified."""
        return self.density(x, condition).log_prob

    def sample_and_log_prob(
        self, key: Array, n: int, condition: Any = None
    ) -> tuple[Float[Array, "n d"], Float[Array, "n"]]:
        """Return ``n`` samples, ties not restored, and their log density; no inversion is needed.

        Samples are NumPy's, in float64, where the generator's precision is too coarse for the columns. The
        log density is NaN where the network folds, see ``Agreement.folded``.
        """
        at_least(0, n=n)
        n = int(n)
        if self.is_coarse:
            y, log_prob = self._inside().sample_and_log_prob(key, n, condition)
            x = self.frame.inverse(np.asarray(y, np.float64))
            return x, log_prob + jnp.asarray(self.frame.log_det(x), self.dtype)
        key, given = as_key(key), self.conditions(condition, n)
        size = DENSITY_CHUNK
        parts = [
            _sample_density(self, key, k, _filled(given, slice(k * size, (k + 1) * size), size))
            for k in range(max(1, -(-n // size)))
        ]
        x, log_prob = (jnp.concatenate(part)[:n] for part in zip(*parts, strict=True))
        return x, log_prob

    def sample(
        self,
        key: Array,
        n: int,
        *,
        condition: Any = None,
        as_frame: bool = False,
        mesh: Mesh | None = None,
    ) -> Any:
        """Return ``n`` independent samples in the user's units, back on integers and other ties.

        JAX's, or NumPy's in float64 where the generator's precision is too coarse for the columns.

        Drawn in chunks, chunk k from ``fold_in(key, k)``: the first rows do not depend on ``n``, one
        compiled program serves every ``n``, and memory is the output's plus one chunk's.

        Args:
            key: Random key.
            n: How many.
            condition: For a conditional generator: one for all (k,), or one per sample (n, k).
            as_frame: Return a pandas DataFrame, columns named as in training, instead of an array (n, d).
            mesh: Over whose devices the samples go; by default the context's (``jax.set_mesh``).
        """
        at_least(0, n=n)
        n = int(n)
        key, size, places = as_key(key), SAMPLE_CHUNK, places_of((), mesh=mesh)
        given = self.conditions(condition, n)
        if given is not None and self.law is not None:
            self.law.warn_of(given)
        coarse = self.is_coarse
        of = self._inside() if coarse else self
        parts = [
            _sample_chunk(of, key, k, _filled(given, slice(k * size, (k + 1) * size), size), places)
            for k in range(-(-n // size))
        ]
        nothing = jnp.zeros((0, self.dimension), self.dtype)
        rows = joined_rows(parts, n, places) if parts else nothing
        if coarse:
            rows = self.frame.restore(self.frame.inverse(np.asarray(rows, np.float64)))
        return as_dataframe(rows, self.columns) if as_frame else rows

    def export(self, path: str | os.PathLike) -> None:
        """Write the sampler as a StableHLO program that runs without mcscore, on CPU, GPU and TPU.

        ``jax.export.deserialize(bytes).call(jax.random.key_data(key), k)`` gives the ``k``-th 8,192 rows
        of ``sample(key, n)``; ``k`` is an int32. A conditional generator's takes the 8,192 rows' conditions
        (8192, k) too, in the user's units.

        Raises:
            ImportError: If flatbuffers is missing (the extra ``[export]``).
        """
        from jax import export

        @jax.jit
        def sampler(key_data, index, *conditions):
            c = self.given.frame.forward(conditions[0]) if self.given else None
            return _sample_chunk(self, jax.random.wrap_key_data(key_data), index, c)

        arguments = [((2,), "uint32"), ((), "int32")]
        if self.given:
            arguments.append(((SAMPLE_CHUNK, self.condition_dimension), self.dtype))
        shapes = (jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in arguments)
        program = export.export(sampler, platforms=("cpu", "cuda", "tpu"))(*shapes)
        with needed("export", "flatbuffers", "export"):
            binary = program.serialize()
        with replacing(path) as aside:
            aside.write_bytes(binary)

    def save(self, path: str | os.PathLike, *, law: bool = True) -> None:
        """Write everything to one safetensors file, moved into place when complete. No pickle.

        Args:
            path: Where the file goes.
            law: Whether with the law, which holds rows of the data: without it the file is smaller, and keeps
                them private.
        """
        write(self, path, law)


def _filled(rows: Array | None, part: slice, size: int) -> Array | None:
    """Return a part of the rows, lengthened to a ``size``; one row that stands for all is broadcast."""
    if rows is None:
        return None
    if len(rows) > 1:
        rows = rows[part]
    return jnp.concatenate([rows, jnp.broadcast_to(rows[:1], (size - len(rows), rows.shape[1]))])


@jax.jit
def _generate(z: Array, c: Array | None, generator: Generator) -> Array:
    return generator.frame.inverse(generator.coordinates(z, c))


@jax.jit
def _encode(x: Array, c: Array | None, generator: Generator) -> Array:
    return _encoded(generator, generator.frame.forward(x), c)


def _encoded(generator: Generator, y: Array, c: Array | None) -> Array:
    left = y if generator.given is None or c is None else generator.given.told_apart(y, c)
    return (
        left if generator.encoder is None else generator.network.apply(generator.encoder, left, c)
    )


@jax.jit
def _density(x: Array, c: Array | None, generator: Generator) -> Density:
    y = generator.frame.forward(x)
    found = pull_back(partial(generator.coordinates, c=c), y, _encoded(generator, y, c))
    return found._replace(log_prob=found.log_prob + generator.frame.log_det(x))


@jax.jit
def _sample_density(
    generator: Generator, key: Array, index: Array, c: Array | None
) -> tuple[Array, Array]:
    shape = DENSITY_CHUNK, generator.dimension
    z = jax.random.normal(jax.random.fold_in(key, index), shape, generator.dtype)
    y, log_prob, sign = push_forward(partial(generator.coordinates, c=c), z)
    x = generator.frame.inverse(y)
    return x, jnp.where(sign > 0, log_prob, jnp.nan) + generator.frame.log_det(x)


@partial(jax.jit, static_argnums=4)
def _sample_chunk(
    generator: Generator, key: Array, index: Array, c: Array | None, places: Places | None = None
) -> Array:
    shape = SAMPLE_CHUNK, generator.dimension
    z = jax.random.normal(jax.random.fold_in(key, index), shape, generator.dtype)
    return over_queries(_restored, (z, c), (generator,), places=places)


def _restored(z: Array, c: Array | None, generator: Generator) -> Array:
    return generator.frame.restore(_generate(z, c, generator))


def load(path: str | os.PathLike) -> Any:
    """Return the `Generator`, or the law, saved at ``path``. Nothing in the file is ever executed.

    Raises:
        FileNotFoundError: If there is no such file.
        PermissionError: If it may not be read.
        ValueError: If the file is damaged, neither a generator nor a law, or of a newer format.
    """
    found = read(path)
    if not isinstance(found, dict):
        return found
    given = found.pop("given")
    return Generator(**found, given=None if given is None else Given(**given))
