"""A scikit-learn estimator: the data law in pipelines, grid searches and cross-validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from mcscore._validation import Table
from mcscore.frames import Affine, Gaussianize
from mcscore.mixtures import Auto, Kernel, Local, mixture

FRAMES = {"affine": Affine(whiten=True), "gaussianize": Gaussianize()}


class ScoreDensity(DensityMixin, BaseEstimator):
    """Density estimation by the law that ``mcscore.mixture`` builds: closed form, no training.

    Args:
        bandwidth: Share of each cluster's spread that is kernel, in (0, 1], or ``"scott"`` for Scott's rule;
            None chooses it by held-out likelihood, with frame and clusters (``mcscore.Auto``).
        clusters: How many, where a bandwidth is given; None for as many as each has rows per column.
        partitions: Independent clusterings whose laws are averaged, where a bandwidth is given.
        frame: ``"affine"`` or ``"gaussianize"``, where a bandwidth is given.
        bounds: Ends of columns, by name or number: ``{0: (0, 1), "age": (0, None)}``.
        periodic: Periods of columns, by name or number: ``{"phi": 2 * np.pi}``.
        random_state: scikit-learn's: of clusters and splits.

    Attributes:
        mixture_: The law, a ``mcscore.Mixture``.
        n_features_in_: Number of columns.

    >>> x = np.random.default_rng(0).normal(size=(200, 2))
    >>> model = ScoreDensity(bandwidth=0.7, clusters=2).fit(x)
    >>> model.score_samples(x[:3]).shape, model.sample(5).shape
    ((3,), (5, 2))
    """

    def __init__(
        self,
        bandwidth: float | str | None = None,
        *,
        clusters: int | None = 1,
        partitions: int = 1,
        frame: str = "affine",
        bounds: Mapping[Any, Any] | None = None,
        periodic: Mapping[Any, Any] | None = None,
        random_state: Any = None,
    ):
        self.bandwidth = bandwidth
        self.clusters = clusters
        self.partitions = partitions
        self.frame = frame
        self.bounds = bounds
        self.periodic = periodic
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> ScoreDensity:
        """Build the law of the rows of ``X`` (n, d), weighted by ``sample_weight`` (n,).

        Raises:
            ValueError: If ``X`` is no table of at least two finite rows, or a parameter is out of range.
        """
        X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        kernel, frame = self._law()
        key = _key(self.random_state)
        names = getattr(self, "feature_names_in_", None)
        table = Table.of(X, sample_weight, columns=names, name="X")
        ends: dict[str, Any] = dict(bounds=self.bounds, periodic=self.periodic)
        self.mixture_ = mixture(table, kernel=kernel, frame=frame, key=key, **ends)
        return self

    def _law(self) -> tuple[Kernel, Any]:
        """Return the kernel and frame that the parameters ask for."""
        if self.bandwidth is None:
            return Auto(), None
        if self.frame not in FRAMES:
            raise ValueError(f"frame: expected one of {sorted(FRAMES)}, got {self.frame!r}")
        if isinstance(self.bandwidth, str) and self.bandwidth != "scott":
            raise ValueError(f"bandwidth: expected a number or 'scott', got {self.bandwidth!r}")
        h = None if self.bandwidth == "scott" else self.bandwidth
        return Local(h, self.clusters, self.partitions), FRAMES[self.frame]

    def score_samples(self, X: Any) -> np.ndarray:
        """Return the log density, nats in the units of the training data, at the rows of ``X``, (b,)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return np.asarray(self.mixture_.log_prob(X), np.float64)

    def score(self, X: Any, y: Any = None) -> float:
        """Return the total log density of ``X``, as scikit-learn's ``KernelDensity`` does."""
        return float(self.score_samples(X).sum())

    def sample(self, n_samples: int = 1, random_state: Any = None) -> np.ndarray:
        """Return ``n_samples`` exact draws from the law, (n_samples, d)."""
        check_is_fitted(self)
        return np.asarray(self.mixture_.sample(_key(random_state), n_samples), np.float64)


def _key(random_state: Any) -> Any:
    """Return the key that one of scikit-learn's random states draws."""
    return jax.random.key(int(check_random_state(random_state).randint(2**31 - 1)))
