r"""Diagnostics: is a conditional law calibrated, and does an observation belong to the data?

Expected coverage (Hermans et al. 2022): of pairs ``(x, c)`` from the joint law, the share of draws ``x'``
from ``p(x' | c)`` with ``p(x' | c) > p(x | c)`` is uniform if the conditional law is right. Simulation-based
calibration (Talts et al. 2018) asks the same of each column's rank.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mcscore._arrays import shapes
from mcscore._numbers import points
from mcscore._validation import as_key, at_least


class Coverage(NamedTuple):
    """Ranks of true values among draws, which are uniform if a conditional law is calibrated.

    Attributes:
        levels: Levels of highest-density regions, (m,): those at which each true value is just covered, where
            its density is known (a generator's is NaN at folds).
        ranks: Share of draws below the true value, by column, (n, d).
        distance: Largest distance of the levels' distribution function from the diagonal.
        band: Beyond which that distance is by chance in one of a hundred cases.
    """

    levels: Float[np.ndarray, "m"]
    ranks: Float[np.ndarray, "n d"]
    distance: float
    band: float
    __repr__ = shapes

    @property
    def calibrated(self) -> bool:
        """Whether the distance lies within the band."""
        return bool(self.distance <= self.band)


def coverage(key: Array, law: Any, x: Any, condition: Any, *, draws: int = 200) -> Coverage:
    """Return expected coverage and calibration ranks of a conditional law or generator at fresh pairs.

    Args:
        key: Random key.
        law: ``ConditionalMixture`` or conditional ``Generator``.
        x: True values (n, d), which the law has not seen.
        condition: Their conditions (n, k).
        draws: For each condition.

    Raises:
        ValueError: If shapes do not fit.

    >>> import jax, mcscore as mcs
    >>> c = jax.random.normal(jax.random.key(0), (1200, 1))
    >>> x = c + jax.random.normal(jax.random.key(1), (1200, 1))
    >>> law = mcs.mixture(x[:1000], condition=c[:1000], kernel=mcs.Local(1.0, clusters=1))
    >>> coverage(jax.random.key(2), law, x[1000:], c[1000:], draws=50).calibrated
    True
    """
    at_least(10, draws=draws)
    if not law.condition_dimension:
        raise ValueError("law: expected one with conditions, see rank() for others")
    draw_key, level_key, rank_key = jax.random.split(as_key(key), 3)
    x = _finite(points(x, law.dimension, law.columns), "x")
    c = _finite(
        points(condition, law.condition_dimension, law.condition_columns, "condition"), "condition"
    )
    if len(x) != len(c) or not len(x):
        raise ValueError(f"condition: expected a row for each of {len(x)}, got {len(c)}")
    n, d = x.shape
    each = np.repeat(c, draws, 0)
    drawn = law.sample(draw_key, n * draws, condition=each)
    own = np.asarray(law.log_prob(x, condition=c))
    if (unknown := np.isnan(own).mean()) == 1:
        raise ValueError("law: its density is unknown (NaN) at all of x")
    theirs = np.asarray(law.log_prob(drawn, condition=each)).reshape(n, draws)
    levels = _share_below(level_key, -theirs[..., None], -own[:, None])[:, 0]
    levels = levels[~np.isnan(levels)]
    of_draws = np.isnan(theirs).mean()
    if max(unknown, of_draws) > 0.01:
        text = f"the density is unknown (NaN) at {unknown:.0%} of x and {of_draws:.0%} of the draws"
        warnings.warn(f"law: {text}, which are left out of the levels", stacklevel=2)
    ranks = _share_below(rank_key, np.asarray(drawn).reshape(n, draws, d), x)
    grid = np.sort(levels)
    m = len(grid)
    distance = float(np.max(np.abs(grid - (np.arange(m) + 0.5) / m)))
    return Coverage(levels, ranks, distance, 1.63 / np.sqrt(m) + 1 / draws)


def _share_below(key: Array, draws: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the share of draws (n, m, d) below values (n, d); of those that equal them, a random share.

    NaN are no draws; of a value that is NaN, or without draws, the share is NaN.
    """
    values = values.astype(draws.dtype)[:, None]
    equal = np.asarray(jax.random.uniform(key, values[:, 0].shape)) * (draws == values).sum(1)
    known = (~np.isnan(draws)).sum(1)
    share = ((draws < values).sum(1) + equal) / np.maximum(known, 1)
    return np.where(np.isnan(values[:, 0]) | (known == 0), np.nan, share)


def _finite(rows: Any, name: str) -> np.ndarray:
    rows = np.asarray(rows)
    for row in np.flatnonzero(~np.isfinite(rows).all(1))[:1]:
        raise ValueError(f"{name}: expected finite numbers, got {rows[row]} in row {row}")
    return rows


def rank(key: Array, law: Any, rows: Any, *, draws: int = 2000) -> Float[Array, "n"]:
    """Return of each row the share of the law's own draws that are less likely: near 0 it is no datum.

    >>> import jax, mcscore as mcs
    >>> law = mcs.mixture(jax.random.normal(jax.random.key(0), (500, 2)), kernel=mcs.Whitened(0.4))
    >>> [round(float(r), 1) for r in rank(jax.random.key(1), law, [[9.0, 9.0], [0.0, 0.0]])]
    [0.0, 1.0]
    """
    at_least(1, draws=draws)
    if law.condition_dimension:
        raise ValueError("law: expected one without conditions, such as law.joint or law.at(c)")
    own = law.log_prob(_finite(points(rows, law.dimension, law.columns, "rows"), "rows"))
    theirs = jnp.sort(law.log_prob(law.sample(as_key(key), draws)))
    return jnp.searchsorted(theirs, own).astype(own.dtype) / draws
