"""Small real tables that come with scikit-learn (the extra ``[data]``), and parts of any table."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Array, Float

from mcscore._arrays import host_generator
from mcscore._numbers import numbers
from mcscore._optional import needed
from mcscore._validation import as_key


def breast_cancer() -> Float[np.ndarray, "569 30"]:
    """Return the breast cancer Wisconsin table: 569 tumors, 30 measurements."""
    return _sklearn("load_breast_cancer")


def wine() -> Float[np.ndarray, "178 13"]:
    """Return the wine table: 178 wines, 13 chemical measurements."""
    return _sklearn("load_wine")


def digits() -> Float[np.ndarray, "1797 64"]:
    """Return the optical digits: 1797 images of 8 x 8 gray levels (some pixels are constant)."""
    return _sklearn("load_digits")


def iris() -> Float[np.ndarray, "150 4"]:
    """Return the iris table: 150 flowers, 4 lengths."""
    return _sklearn("load_iris")


TABLES: dict[str, Callable[[], np.ndarray]] = {
    function.__name__: function for function in (breast_cancer, wine, digits, iris)
}


def _sklearn(loader: str) -> np.ndarray:
    with needed("this table", "scikit-learn", "data"):
        from sklearn import datasets
    return np.asarray(getattr(datasets, loader)().data, dtype=np.float64)


def split(key: Array, x: np.ndarray, *shares: float) -> list[np.ndarray]:
    """Return disjoint random parts of the rows, one per share; the last share takes the rest.

    Raises:
        ValueError: If a share is no positive number.

    >>> import jax
    >>> [len(part) for part in split(jax.random.key(0), np.zeros((10, 1)), 0.5, 0.5)]
    [5, 5]
    """
    if not shares or not all(isinstance(s, int | float) and 0 < s < np.inf for s in shares):
        raise ValueError(f"shares: expected positive numbers, got {shares}")
    x = x if hasattr(x, "shape") else numbers(x, "x", None)
    if not np.shape(x):
        raise ValueError(f"x: expected rows, got {x!r:.60}")
    order = host_generator(as_key(key)).permutation(len(x))
    bounds = (np.cumsum(shares[:-1]) / sum(shares) * len(x)).round().astype(int)
    return [np.asarray(x)[part] for part in np.split(order, bounds)]
