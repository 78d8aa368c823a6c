"""Laws where Bayesian work is done: as distributions of NumPyro, and draws as ArviZ's data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

import jax.numpy as jnp
import numpy as np

from mcscore._optional import needed
from mcscore._validation import Table, of_type
from mcscore.inference.posteriors import Posterior, has_ties
from mcscore.mixtures.conditional import ConditionalMixture
from mcscore.mixtures.value import Mixture


def to_numpyro(law: Mixture | ConditionalMixture, condition: Any = None) -> Any:
    """Return a law as a NumPyro distribution over rows (d,), in the user's units.

    As a prior it is sampled in the law's own coordinates, where it is close to normal and columns have no
    ends. A conditional law is a likelihood learned from simulations: its gradient reaches the condition.

    Args:
        law: Without tied columns.
        condition: For a conditional law, (k,), or (b, k) for a batch of distributions; may be traced.

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
    if law.joint.is_coarse:
        raise ValueError(
            f"law: {law.dtype} cannot hold its columns; subtract their offset, or enable x64"
        )
    law.conditions(condition)
    return _distribution()(law, None if condition is None else jnp.atleast_1d(condition))


def to_arviz(draws: Any, columns: Sequence[str] | None = None, *, group: str = "posterior") -> Any:
    """Return draws as ArviZ's data (one chain), a variable per column.

    Args:
        draws: Rows (n, d), a DataFrame, or what ``posterior`` returns.
        columns: Names of the columns; by default a DataFrame's, else ``x0``, ``x1``, ...
        group: Which of ArviZ's groups they are.

    Raises:
        ValueError: If there are not as many names as columns, or numbers are not finite.
        ImportError: Without ArviZ.

    >>> data = to_arviz(np.eye(2), ["mass", "spin"])
    >>> data.posterior["spin"].values.tolist()
    [[0.0, 1.0]]
    """
    with needed("to_arviz", "ArviZ", "bayes"):
        arviz = import_module("arviz")
    table = Table.of(draws.draws if isinstance(draws, Posterior) else draws, name="draws")
    d = table.values.shape[1]
    names = tuple(columns or table.columns or (f"x{j}" for j in range(d)))
    if len(names) != d:
        raise ValueError(f"columns: expected {d} names, got {len(names)}")
    variables = {name: table.values[None, :, j] for j, name in enumerate(names)}
    if hasattr(arviz, "InferenceData"):
        return arviz.from_dict(**{group: variables})
    return arviz.from_dict({group: variables})  # since 1.0


@cache
def _distribution() -> Any:
    """Return the class of distributions; NumPyro is imported only now."""
    with needed("to_numpyro", "NumPyro", "bayes"):
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
            return jnp.isfinite(_by_row(self.frame.log_det, x))

        def feasible_like(self, prototype: Any) -> Any:
            return _by_row(self.frame.inverse, jnp.zeros_like(prototype))

        def tree_flatten(self) -> Any:
            return (self.frame,), (("frame",), {})

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
            return -_by_row(self.frame.log_det, x)

        def tree_flatten(self) -> Any:
            return (self.frame,), (("frame",), {})

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
            shape, d = np.broadcast_shapes(value.shape[:-1], self.batch_shape), self.law.dimension
            x = jnp.broadcast_to(value, (*shape, d)).reshape(-1, d)
            return self.law.log_prob(x, condition=self._conditions(shape)).reshape(shape)

        def _conditions(self, shape: tuple[int, ...]) -> Any:
            c = self.condition  # one for all stays one
            if c is None or c.ndim == 1:
                return c
            return jnp.broadcast_to(c, (*shape, c.shape[-1])).reshape(-1, c.shape[-1])

    return Law


def _by_row(function: Any, x: Any) -> Any:
    """Return what a function of rows (b, d) says of rows of any shape (..., d)."""
    found = function(x.reshape(-1, x.shape[-1]))
    return found.reshape(*x.shape[:-1], *found.shape[1:])
