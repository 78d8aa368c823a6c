"""Data to try the method on: 2-D sets, Gaussian mixtures with known density, real tables.

2-D sets are pure functions ``name(key, n) -> (n, 2)``, of roughly unit scale. Small real tables come
with scikit-learn (``pip install mcscore[data]``) and are functions of nothing: ``wine() -> (178, 13)``.
The large ones of the literature are read by ``uci(name, root)`` and downloaded by ``fetch(name, root)``.
"""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mcscore.download import fetch as fetch
from mcscore.extras import needed
from mcscore.uci import Splits as Splits
from mcscore.uci import uci as uci

Points = Float[Array, "n 2"]


def _polar(radius: Array, angle: Array) -> Points:
    return jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle)], 1)


def checkerboard(key: Array, n: int) -> Points:
    """Return points uniform on the dark fields of a 4 x 4 checkerboard on ``[-2, 2]^2``."""
    first, second = jax.random.split(key)
    cell = jax.random.randint(first, (n,), 0, 8)
    row = cell // 2
    corner = jnp.stack([2 * (cell % 2) + row % 2, row], 1)
    return corner.astype(float) + jax.random.uniform(second, (n, 2)) - 2


def moons(key: Array, n: int, noise: float = 0.08) -> Points:
    """Return two interleaved half circles with Gaussian noise."""
    first, second, third = jax.random.split(key, 3)
    angle = jnp.pi * jax.random.uniform(first, (n,))
    upper = jax.random.bernoulli(second, 0.5, (n,))
    arc = _polar(jnp.ones(n), angle)
    arc = jnp.where(upper[:, None], arc, jnp.array([[1.0, 0.5]]) - arc)
    return arc - jnp.array([[0.5, 0.25]]) + noise * jax.random.normal(third, (n, 2))


def two_spirals(key: Array, n: int, noise: float = 0.04) -> Points:
    """Return two arms of a spiral with Gaussian noise."""
    first, second, third = jax.random.split(key, 3)
    turn = jnp.sqrt(jax.random.uniform(first, (n,))) * 3 * jnp.pi
    arm = jnp.where(jax.random.bernoulli(second, 0.5, (n,)), 1.0, -1.0)
    spiral = _polar(turn, turn) * arm[:, None] / 5
    return spiral + noise * jax.random.normal(third, (n, 2))


def pinwheel(key: Array, n: int, arms: int = 5) -> Points:
    """Return twisted arms, each a stretched Gaussian."""
    first, second = jax.random.split(key)
    arm = jax.random.randint(first, (n,), 0, arms)
    points = jax.random.normal(second, (n, 2)) * jnp.array([[0.3, 0.05]]) + jnp.array([[1.0, 0.0]])
    angle = 2 * jnp.pi * arm.astype(float) / arms + 0.25 * jnp.exp(points[:, 0])
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = points[:, 0], points[:, 1]
    return jnp.stack([cos * x - sin * y, sin * x + cos * y], 1)


def eight_gaussians(key: Array, n: int) -> Points:
    """Return draws from eight narrow Gaussians on a circle; their density is ``EIGHT_GAUSSIANS``."""
    return EIGHT_GAUSSIANS.sample(key, n)


def rings(key: Array, n: int) -> Points:
    """Return four concentric rings, equally likely per length, with Gaussian noise."""
    first, second, third = jax.random.split(key, 3)
    radius = jax.random.choice(first, jnp.arange(1.0, 5.0), (n,), p=jnp.arange(1.0, 5.0) / 10)
    angle = 2 * jnp.pi * jax.random.uniform(second, (n,))
    return (_polar(radius, angle) + 0.08 * jax.random.normal(third, (n, 2))) / 2


def circles(key: Array, n: int, noise: float = 0.06) -> Points:
    """Return two concentric circles, equally likely, with Gaussian noise."""
    first, second, third = jax.random.split(key, 3)
    radius = jnp.where(jax.random.bernoulli(first, 0.5, (n,)), 1.5, 0.75)
    angle = 2 * jnp.pi * jax.random.uniform(second, (n,))
    return _polar(radius, angle) + noise * jax.random.normal(third, (n, 2))


def swiss_roll(key: Array, n: int, noise: float = 0.05) -> Points:
    """Return one spiral arm with Gaussian noise."""
    first, second = jax.random.split(key)
    turn = 1.5 * jnp.pi * (1 + 2 * jax.random.uniform(first, (n,)))
    return _polar(turn, turn) / 7 + noise * jax.random.normal(second, (n, 2))


TWO_DIMENSIONAL: dict[str, Callable[..., Points]] = {
    function.__name__: function
    for function in (
        checkerboard, moons, two_spirals, pinwheel, eight_gaussians, rings, circles, swiss_roll,
    )
}  # fmt: skip


class GaussianMixture(NamedTuple):
    """A Gaussian mixture whose every diffused density is known: the ground truth of the tests.

    Attributes:
        weights: (k,), summing to one.
        means: (k, d).
        covariances: (k, d, d).
    """

    weights: Float[Array, "k"]
    means: Float[Array, "k d"]
    covariances: Float[Array, "k d d"]

    def sample(self, key: Array, n: int) -> Float[Array, "n d"]:
        """Return ``n`` independent draws."""
        first, second = jax.random.split(key)
        component = jax.random.choice(first, len(self.weights), (n,), p=self.weights)
        roots = jnp.linalg.cholesky(jnp.asarray(self.covariances))
        noise = jax.random.normal(second, (n, self.means.shape[1]))
        return self.means[component] + jnp.einsum("nij,nj->ni", roots[component], noise)

    def log_prob(self, x: Float[Array, "b d"]) -> Float[Array, "b"]:
        """Return the log density, in nats."""
        pdf = jax.scipy.stats.multivariate_normal.logpdf
        each_row = jax.vmap(pdf, (0, None, None))
        parts = jax.vmap(each_row, (None, 0, 0))(x, self.means, self.covariances)
        return jax.nn.logsumexp(parts + jnp.log(self.weights)[:, None], 0)

    def diffused(self, alpha: Array, sigma: Array) -> GaussianMixture:
        """Return the law of ``alpha x + sigma z``, again a Gaussian mixture."""
        noise = sigma**2 * jnp.eye(self.means.shape[1])
        return GaussianMixture(
            self.weights, alpha * self.means, alpha**2 * self.covariances + noise[None]
        )

    def score(self, x: Float[Array, "b d"]) -> Float[Array, "b d"]:
        """Return ``grad log p``."""
        return jax.vmap(jax.grad(lambda row: self.log_prob(row[None])[0]))(x)


_ANGLES = np.arange(8) * np.pi / 4
EIGHT_GAUSSIANS = GaussianMixture(
    np.full(8, 1 / 8),  # type: ignore[arg-type]
    2 * np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1),  # type: ignore[arg-type]
    np.tile(0.15**2 * np.eye(2), (8, 1, 1)),  # type: ignore[arg-type]
)


def random_gaussian_mixture(key: Array, d: int, components: int = 8) -> GaussianMixture:
    """Return a mixture of correlated Gaussians with random means and covariances in d dimensions.

    >>> random_gaussian_mixture(jax.random.key(0), 5).means.shape
    (8, 5)
    """
    first, second = jax.random.split(key)
    means = 2 * jax.random.normal(first, (components, d))
    roots = 0.5 * jax.random.normal(second, (components, d, d)) / jnp.sqrt(d)
    covariances = jnp.einsum("kij,klj->kil", roots, roots) + 0.05 * jnp.eye(d)[None]
    return GaussianMixture(jnp.full(components, 1 / components), means, covariances)


def breast_cancer() -> Float[np.ndarray, "569 30"]:
    """Return the breast cancer Wisconsin table: 569 tumours, 30 measurements."""
    return _sklearn("load_breast_cancer")


def wine() -> Float[np.ndarray, "178 13"]:
    """Return the wine table: 178 wines, 13 chemical measurements."""
    return _sklearn("load_wine")


def digits() -> Float[np.ndarray, "1797 64"]:
    """Return the optical digits: 1797 images of 8 x 8 grey levels (some pixels are constant)."""
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


def read(path: Path, array: str | None = None) -> tuple[np.ndarray, list[str] | None]:
    """Return the table (n, d) in a ``.npy``, ``.npz`` or ``.csv`` file, and its header if it has one.

    Args:
        path: The file. Pickles in it are never opened.
        array: Name of the array in an ``.npz`` file; by default its only one, or "train".

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is of another kind, damaged, without such an array, or not all numbers.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    readers = {".npy": _read_npy, ".npz": partial(_read_npz, array=array), ".csv": _read_csv}
    if path.suffix not in readers:
        raise ValueError(f"{path}: expected a .csv, .npy or .npz file")
    try:
        return readers[path.suffix](path)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a readable table ({error})") from error


def _read_npy(path: Path) -> tuple[np.ndarray, None]:
    return np.load(path, mmap_mode="r", allow_pickle=False), None


def _read_npz(path: Path, array: str | None) -> tuple[np.ndarray, None]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        names = list(arrays)
        name = array or (names[0] if len(names) == 1 else "train")
        if name not in names:
            raise ValueError(f"expected an array of {names}, got {name!r}")
        return arrays[name], None


def _read_csv(path: Path) -> tuple[np.ndarray, list[str] | None]:
    encoding = "utf-8-sig"  # without the mark of spreadsheets, no number to Python
    with path.open(encoding=encoding) as file:
        header = file.readline().strip().split(",")
    named = not any(_is_number(cell) for cell in header)  # "1,": a row with a gap, no header
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # no rows: whoever checks the table says so
        table = np.loadtxt(path, delimiter=",", skiprows=int(named), ndmin=2, encoding=encoding)
    return table, header if named else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def split(seed: int, x: np.ndarray, *shares: float) -> list[np.ndarray]:
    """Return disjoint random parts of the rows, one per share; the last share takes the rest.

    >>> [len(part) for part in split(0, np.zeros((10, 1)), 0.5, 0.5)]
    [5, 5]
    """
    order = np.random.default_rng(seed).permutation(len(x))
    bounds = (np.cumsum(shares[:-1]) / sum(shares) * len(x)).round().astype(int)
    return [np.asarray(x)[part] for part in np.split(order, bounds)]
