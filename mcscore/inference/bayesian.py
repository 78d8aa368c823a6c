"""Laws where Bayesian work is done: as distributions of NumPyro, and draws as ArviZ's data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mcscore._arrays import is_traced
from mcscore._numbers import names_of
from mcscore._optional import needed
from mcscore._validation import Table, of_type
from mcscore.inference.posteriors import Posterior, has_ties
from mcscore.mixtures.conditional import ConditionalMixture, condition_values
from mcscore.mixtures.value import Mixture

GROUPS = ("posterior", "prior", "posterior_predictive", "prior_predictive", "predictions")


def to_numpyro(law: Mixture | ConditionalMixture, condition: Any = None) -> Any:
    """Return a law as a NumPyro distribution over rows (d,), in the user's units.

    As a prior it is sampled in the law's own coordinates, where it is close to normal and columns have
    no ends; where a column is rounded to its end, a normal tail keeps these coordinates proper. A
    conditional law is a likelihood learned from simulations. Its gradient reaches the condition, and
    conditions outside the bounds of their columns have the likelihood zero. A column with a period has
    the density of one turn.

    Args:
        law: Without tied columns.
        condition: For a conditional law, (k,), or (..., k) for a batch of distributions; may be traced. By
            name in a dict or a DataFrame, if the columns have names.

    Raises:
        ValueError: If columns of the law are tied (integers, atoms, levels), which no gradient sees, or
            float32 cannot hold them; if the kernel is ``Dirac()``; if the condition does not fit.
        ImportError: Without NumPyro.

    >>> import jax, mcscore as mcs
    >>> law = mcs.mixture(jax.random.normal(jax.random.key(0), (500, 2)), kernel=mcs.Whitened(0.3))
    >>> prior = to_numpyro(law)
    >>> x = prior.sample(jax.random.key(1), (10,))
    >>> x.shape, prior.log_prob(x).shape, prior.event_shape
    ((10, 2), (10,), (2,))
    """
    of_type((Mixture, ConditionalMixture), "mcs.mixture(x, kernel=mcs.Auto())", law=law)
    law.require_width("to_numpyro")
    if has_ties(law.joint.frame):
        raise ValueError("law: expected one without tied columns (integers, atoms, levels)")
    traced = any(map(is_traced, jax.tree.leaves(law)))
    if not traced and law.joint.is_coarse:
        raise ValueError(
            f"law: {law.dtype} cannot hold its columns; subtract their offset, or enable x64"
        )
    return _classes()[0](law, _batch(law, condition))


def _batch(law: Mixture | ConditionalMixture, condition: Any) -> Any:
    """Return conditions (..., k) in the user's units."""
    k, c = law.condition_dimension, condition
    if k == 0 or c is None:
        law.conditions(condition)  # says what is wrong, if anything is
        return None
    if isinstance(c, dict) or names_of(c) is not None:
        one = isinstance(c, dict) and all(np.ndim(value) == 0 for value in c.values())
        c = condition_values(c, k, law.condition_columns)
        c = c[0] if one else c
    c = jnp.asarray(c, law.dtype)
    if k == 1 and c.shape[-1:] != (1,):
        c = c[..., None]
    if c.shape[-1:] != (k,):
        raise ValueError(f"condition: expected shape (..., {k}), got {c.shape}")
    if not is_traced(c) and not np.isfinite(c).all():
        raise ValueError("condition: expected finite numbers")
    return c


def to_arviz(draws: Any, columns: Sequence[str] | None = None, *, group: str = "posterior") -> Any:
    """Return draws as ArviZ's data (one chain), a variable per column.

    Args:
        draws: Rows (n, d), a DataFrame, or what ``posterior`` returns.
        columns: Names of the columns; by default a DataFrame's, else ``x0``, ``x1``, ...
        group: Which of ArviZ's groups they are, such as ``"prior"``.

    Raises:
        ValueError: If there are not as many different names as columns, ArviZ has no such group, or numbers
            are not finite.
        ImportError: Without ArviZ.

    >>> data = to_arviz(np.eye(2), ["mass", "spin"])
    >>> data.posterior["spin"].values.tolist()
    [[0.0, 1.0]]
    """
    with needed("to_arviz", "arviz", "bayes"):
        arviz = import_module("arviz")
    table = Table.of(draws.draws if isinstance(draws, Posterior) else draws, name="draws")
    d = table.values.shape[1]
    given = (columns,) if isinstance(columns, str) else columns
    given = (table.columns or [f"x{j}" for j in range(d)]) if given is None else given
    names = tuple(map(str, given))
    if len(names) != d or len({*names} - {"chain", "draw"}) != d:
        raise ValueError(f"columns: expected {d} different names, not chain or draw, got {names}")
    if group not in GROUPS:
        raise ValueError(f"group: expected one of {GROUPS}, got {group!r}")
    variables = {name: table.values[None, :, j] for j, name in enumerate(names)}
    if hasattr(arviz, "InferenceData"):
        return arviz.from_dict(**{group: variables})
    return arviz.from_dict({group: variables})  # since 1.0


@cache
def _classes() -> Any:
    """Return the classes of distributions, supports and coordinates; NumPyro is imported only now."""
    with needed("to_numpyro", "numpyro", "bayes"):
        constraints, transforms, distributions = (
            import_module(f"numpyro.distributions.{name}")
            for name in ("constraints", "transforms", "distribution")
        )

    class Columns(constraints.Constraint):
        """Where a frame has coordinates."""

        event_dim = 1

        def __init__(self, frame: Any):
            self.frame = frame

        def __call__(self, x: Any) -> Any:
            x = jnp.asarray(x)
            return jnp.isfinite(x).all(-1) & jnp.isfinite(_by_row(self.frame.log_det, x))

        def feasible_like(self, prototype: Any) -> Any:
            return _by_row(self.frame.inverse, jnp.zeros_like(prototype))

        def tree_flatten(self) -> Any:
            return (self.frame,), (("frame",), {})

        def __repr__(self) -> str:
            return "Columns()"

        def __reduce__(self) -> Any:
            return _again, ("columns", self.frame)

    class Coordinates(transforms.Transform):
        """From a frame's coordinates to the user's columns."""

        domain, codomain = constraints.real_vector, property(lambda self: Columns(self.frame))

        def __init__(self, frame: Any):
            self.frame = frame

        def __call__(self, y: Any) -> Any:
            return _by_row(self.frame.inverse, y)

        def _inverse(self, x: Any) -> Any:
            return _by_row(self.frame.forward, x)

        def log_abs_det_jacobian(self, y: Any, x: Any, intermediates: Any = None) -> Any:
            back = self._inverse(x)  # y, but where x is rounded to an end: there a normal tail
            tail = (y**2 - back**2).sum(-1) / 2
            return -_by_row(self.frame.log_det, x) - tail

        def tree_flatten(self) -> Any:
            return (self.frame,), (("frame",), {})

        def __reduce__(self) -> Any:
            return _again, ("coordinates", self.frame)

    transforms.biject_to.register(Columns, lambda columns: Coordinates(columns.frame))

    class Law(distributions.Distribution):
        """A law's rows."""

        pytree_data_fields = ("law", "condition")
        support = property(lambda self: Columns(self.law.frame))

        def __init__(self, law: Any, condition: Any):
            self.law, self.condition = law, condition
            batch = () if condition is None else condition.shape[:-1]
            super().__init__(batch, (law.dimension,))

        def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
            shape = self.shape(sample_shape)
            c = self._conditions(shape[:-1])
            return self.law.sample(key, math.prod(shape[:-1]), condition=c).reshape(shape)

        def log_prob(self, value: Any) -> Any:
            value, d = jnp.asarray(value), self.law.dimension
            if value.shape[-1:] != (d,):
                raise ValueError(f"value: expected shape (..., {d}), got {value.shape}")
            shape = np.broadcast_shapes(value.shape[:-1], self.batch_shape)
            x = jnp.broadcast_to(value, (*shape, d)).reshape(-1, d)
            c = self._conditions(shape)
            log_p = self.law.log_prob(x) if c is None else _likelihood(self.law, x, c)
            return log_p.reshape(shape)

        def __reduce__(self) -> Any:
            return to_numpyro, (self.law, self.condition)

        def _conditions(self, shape: tuple[int, ...]) -> Any:
            c = self.condition  # one for all stays one
            if c is None or c.ndim == 1:
                return c
            return jnp.broadcast_to(c, (*shape, c.shape[-1])).reshape(-1, c.shape[-1])

    return Law, Columns, Coordinates


def _again(kind: str, frame: Any) -> Any:
    """Return what a pickle names."""
    return _classes()[1 if kind == "columns" else 2](frame)


@jax.jit
def _likelihood(law: ConditionalMixture, x: Array, c: Array) -> Array:
    """Return ``log p(x | c)``; ``-inf`` for conditions without coordinates, where a chain may step."""
    c, frame = jnp.atleast_2d(c), law.condition_frame
    known = jnp.isfinite(frame.log_det(c) + (frame.forward(c) ** 2).sum(1))
    somewhere = frame.inverse(jnp.zeros_like(c))
    log_p = law.log_prob(x, condition=jnp.where(known[:, None], c, somewhere))
    return jnp.where(known, log_p, -jnp.inf)


def _by_row(function: Any, x: Any) -> Any:
    """Return what a function of rows (b, d) says of rows of any shape (..., d)."""
    found = function(x.reshape(-1, x.shape[-1]))
    return found.reshape(*x.shape[:-1], *found.shape[1:])
