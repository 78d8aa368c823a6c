"""The door: a table is checked once, keys and numbers too, and every error names what is wrong."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mcscore._numbers import described, names_of, numbers

KINDS = {"b": "boolean", "i": "integer", "u": "integer"}
EXACT = 2.0**53  # beyond, float64 rounds integers


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of numbers that have been checked; made by ``Table.of``.

    Attributes:
        values: Rows of positive weight, float64 (n, d), finite.
        weights: Their weights (n,), positive, summing to one.
        columns: The columns' names, if they have any.
        kinds: "real", "integer" or "boolean": how each column came.
        dtype: Precision of what is computed from the table: its own, float32 unless x64 is enabled.
        name: What errors call the table: the argument, or the file that it came from.
        kept: Which of the rows given have a positive weight.
        given: How many of the columns, the last ones, are conditions of the others.
    """

    values: Float[np.ndarray, "n d"]
    weights: Float[np.ndarray, "n"]
    columns: tuple[str, ...] | None
    kinds: tuple[str, ...]
    dtype: Any
    name: str
    kept: np.ndarray
    given: int = 0

    @classmethod
    def of(
        cls,
        x: Any,
        weights: Any = None,
        *,
        columns: Sequence[Any] | None = None,
        name: str = "x",
    ) -> Table:
        """Return ``x``, anything that NumPy can view as numbers, as a table; a table as it is.

        Args:
            x: Rows (n, d).
            weights: Non-negative weights of the rows (n,), equal by default. Rows of weight 0 are left out.
            columns: Names of the columns; a DataFrame has its own.
            name: What errors call it.

        Raises:
            ValueError: If ``x`` is empty, not two-dimensional, not of finite real numbers or so large that
                squares overflow, naming row and column; or if ``weights`` do not fit.

        >>> Table.of([[1, 2], [3, 4], [5, 6]], weights=[1, 0, 1]).values.tolist()
        [[1.0, 2.0], [5.0, 6.0]]
        """
        if isinstance(x, Table):
            if weights is not None:
                raise ValueError(f"weights: {name} is a Table, which has weights of its own")
            return x
        names = names_of(x)
        if names is None and columns is not None:
            names = list(map(str, columns))
        names = None if names is None else tuple(names)
        array = numbers(x, name, names)
        if np.iscomplexobj(array):
            raise ValueError(f"{name}: expected real numbers, got {array.dtype}")
        values = array.astype(np.float64)
        if values.ndim != 2 or 0 in values.shape:
            raise ValueError(
                f"{name}: expected a non-empty table (rows, columns), got shape {values.shape}"
            )
        if names is not None and len(names) != values.shape[1]:
            raise ValueError(f"{name}: got {len(names)} names for {values.shape[1]} columns")
        dtypes = getattr(x, "dtypes", None)  # of a DataFrame, one per column
        dtypes = [array.dtype] * values.shape[1] if dtypes is None else dtypes
        kinds = tuple(KINDS.get(getattr(dtype, "kind", "f"), "real") for dtype in dtypes)
        floating = np.issubdtype(array.dtype, np.floating) and array.dtype.itemsize >= 4
        dtype = jax.dtypes.canonicalize_dtype(array.dtype if floating else np.float64)
        share = _checked_weights(weights, len(values))
        kept = share > 0
        if not kept.all():
            values, share = values[kept], share[kept]
        table = cls(values, share, names, kinds, dtype, name, kept)
        table._check_values()
        return table

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return the values."""
        return np.array(self.values, dtype, copy=copy)

    def __len__(self) -> int:
        return len(self.values)

    def of_columns(self, columns: Sequence[int]) -> Table:
        """Return the table of some columns, by their numbers."""
        names = self.columns and tuple(self.columns[j] for j in columns)
        kinds = tuple(self.kinds[j] for j in columns)
        return replace(self, values=self.values[:, columns], columns=names, kinds=kinds)

    def given_behind(self, columns: Sequence[int]) -> Table:
        """Return the table with some columns moved behind the others, whose conditions they are.

        Raises:
            ValueError: If no other is left.
        """
        rest = [j for j in range(self.values.shape[1]) if j not in columns]
        if not rest:
            raise ValueError("condition: expected fewer than all columns, to leave some")
        return replace(self.of_columns([*rest, *columns]), given=len(columns))

    def beside(self, other: Table) -> Table:
        """Return the table with the columns of another, of the same rows, behind its own: its conditions.

        Where only one of the two has names, the other's columns are called by the argument and their number.
        """
        names = None
        if self.columns is not None or other.columns is not None:
            names = tuple(
                name
                for part in (self, other)
                for name in part.columns
                or (f"{part.name}_{j}" for j in range(part.values.shape[1]))
            )
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{other.name}: {self.name} has a column {twice[0]!r} too")
        values = np.concatenate([self.values, other.values[self.kept]], 1)
        kinds = self.kinds + other.kinds
        return replace(self, values=values, columns=names, kinds=kinds, given=other.values.shape[1])

    def label(self, column: Any) -> str:
        """Return how errors name a column: by its name if it has one."""
        return f"column {column if self.columns is None else repr(self.columns[column])}"

    def place(self, row: Any) -> int:
        """Return the number that one of the kept rows had among all that were given."""
        return int(np.flatnonzero(self.kept)[row])

    def _check_values(self) -> None:
        bad = np.argwhere(~np.isfinite(self.values))
        if len(bad):
            row, column = bad[0]
            raise ValueError(
                f"{self.name}: expected finite numbers, got {self.values[row, column]} in "
                f"{self.label(column)}, row {self.place(row)} ({len(np.unique(bad[:, 0]))} rows affected)"
            )
        largest = np.abs(self.values).max(0)
        number = np.finfo(self.dtype)
        for j in np.flatnonzero((largest > 0) & (largest < number.tiny / number.eps)):
            raise ValueError(
                f"{self.name}: values of {self.label(j)} reach {largest[j]:.3g}, which {self.dtype} cannot "
                "resolve; rescale the column"
            )
        if (largest > np.sqrt(number.max)).any():
            raise ValueError(
                f"{self.name}: values of {self.label(int(np.argmax(largest)))} reach {largest.max():.3g}, "
                f"whose square overflows {self.dtype}; rescale the column"
            )

    def require_variation(self) -> None:
        """Raise ``ValueError`` if there is one row, or a column is constant."""
        if len(self.values) == 1:
            raise ValueError(f"{self.name}: expected at least two rows, got 1")
        for j in np.flatnonzero(np.ptp(self.values, axis=0) == 0):
            raise ValueError(
                f"{self.name}: {self.label(j)} is constant ({self.values[0, j]:g}); leave it out"
            )

    def require_spread(self) -> None:
        """Raise ``ValueError`` unless a law of full dimension can be learned from the rows.

        Warns of columns that depend on others.
        """
        x, n, d = self.values, *self.values.shape
        largest = np.abs(x).max(0)
        for j in np.flatnonzero((np.array(self.kinds) == "integer") & (largest > EXACT)):
            raise ValueError(
                f"{self.name}: integers of {self.label(j)} exceed 2^53 and would be rounded; "
                "convert them first"
            )
        if n <= d:
            raise ValueError(
                f"{self.name}: expected more rows than columns, got {n} rows and {d} columns"
            )
        centered = x - x.mean(0)
        scale = np.sqrt((centered**2).mean(0))
        for j in np.flatnonzero(scale <= 1e-13 * largest):
            raise ValueError(
                f"{self.name}: {self.label(j)} is constant ({x[0, j]:g}); leave it out"
            )
        for j in np.flatnonzero(scale <= 4 * np.finfo(self.dtype).eps * largest):
            raise ValueError(
                f"{self.name}: {self.label(j)} varies by {scale[j]:.3g} around {x[0, j]:g}, less than "
                f"{self.dtype} resolves; subtract an offset or enable float64"
            )
        centered /= scale
        correlation = centered.T @ centered / n
        twins = np.argwhere(np.triu(np.abs(correlation) > 1 - 1e-12, 1))
        if len(twins):
            first, second = twins[0]
            raise ValueError(
                f"{self.name}: {self.label(second)} repeats {self.label(first)} "
                f"(correlation {correlation[first, second]:+.0f}); leave one out"
            )
        rank = np.linalg.matrix_rank(correlation, tol=1e-10 * d, hermitian=True)
        if rank < d:
            text = (
                f"columns are linearly dependent (rank {rank} of {d}); samples will be noisy there"
            )
            warnings.warn(f"{self.name}: {text}", stacklevel=4)

    def warn_of_units(self) -> None:
        """Warn where one column spreads a thousand times as far as another: no one kernel fits both."""
        x = self.values
        spreads = np.where(np.ptp(x, 0) > 0, x.std(0), 0)  # a constant's may be rounding
        wide, narrow = int(spreads.argmax()), int(np.where(spreads > 0, spreads, np.inf).argmin())
        if spreads[wide] > 1000 * spreads[narrow] > 0:
            warnings.warn(
                f"{self.name}: {self.label(wide)} spreads {spreads[wide] / spreads[narrow]:.1g} times as "
                f"far as {self.label(narrow)}, whose structure one kernel for both blurs; "
                "frame=mcs.Affine() standardizes them",
                stacklevel=4,
            )


def _checked_weights(weights: Any, n: int) -> np.ndarray:
    try:
        weights = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"weights: expected a number per row, got {described(weights)}") from error
    if weights.shape != (n,):
        raise ValueError(f"weights: expected shape ({n},), one per row, got {weights.shape}")
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise ValueError("weights: expected finite, non-negative numbers, not all zero")
    weights = weights / weights.max()  # whose sum is finite
    return weights / weights.sum()


def two_tables(
    x: Any,
    y: Any,
    names: tuple[str, str] = ("x", "y"),
    weights: tuple[Any, Any] = (None, None),
) -> tuple[Table, Table]:
    """Return two tables, checked to have the same number of columns."""
    first, second = (
        Table.of(a, own, name=name) for a, own, name in zip((x, y), weights, names, strict=True)
    )
    if first.values.shape[1] != second.values.shape[1]:
        shapes = f"{first.values.shape}, {second.values.shape}"
        raise ValueError(
            f"{', '.join(names)}: expected tables with equal columns, got shapes {shapes}"
        )
    return first, second


def as_key(key: Any, name: str = "key") -> Array:
    """Return a random key, checked to be one: an integer seed is no key.

    >>> as_key(7)
    Traceback (most recent call last):
        ...
    ValueError: key: expected a random key, got 7; write jax.random.key(7)
    """
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if key.shape:
            raise ValueError(f"{name}: expected one random key, got an array of shape {key.shape}")
        return key
    if dtype == np.uint32 and np.shape(key) == (2,):  # jax.random.PRNGKey
        return jax.random.wrap_key_data(key)
    is_seed = isinstance(key, int | np.integer)
    advice = f"; write jax.random.key({int(key)})" if is_seed else ""
    raise ValueError(f"{name}: expected a random key, got {described(key)}{advice}")


def at_least(least: int, **values: Any) -> None:
    """Raise ``ValueError`` naming the first of the ``values`` that is no integer of at least ``least``."""
    for name, value in values.items():
        try:
            fits = operator.index(value) >= least and not isinstance(value, bool)
        except TypeError:
            fits = False
        if not fits:
            raise ValueError(
                f"{name}: expected an integer of at least {least}, got {described(value)}"
            )
        if operator.index(value) >= 2**31:
            raise ValueError(f"{name}: expected an integer below 2^31, got {described(value)}")


def of_type(kind: type | tuple[type, ...], example: str, **values: Any) -> None:
    """Raise ``ValueError`` naming the first of the ``values`` that is no instance of ``kind``.

    >>> of_type(int, "3", steps="three")
    Traceback (most recent call last):
        ...
    ValueError: steps: expected a value such as 3, got 'three'
    """
    for name, value in values.items():
        if not isinstance(value, kind):
            raise ValueError(f"{name}: expected a value such as {example}, got {described(value)}")
