"""scikit-learn estimators: laws of tables, and of targets given columns, in pipelines and grid searches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from scipy.special import ndtri
from scipy.stats import qmc
from sklearn.base import BaseEstimator, DensityMixin, MultiOutputMixin, RegressorMixin
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from mcscore._arrays import rounded_up
from mcscore._validation import Table
from mcscore.flows import transport
from mcscore.frames import Affine, AffineFrame, Gaussianize, Identity
from mcscore.mixtures import Auto, Local, mixture
from mcscore.schedules import Cosine

FRAMES = {"affine": Affine(whiten=True), "gaussianize": Gaussianize()}
FLOATS = (np.float64, np.float32)
ROWS = 1024  # for which quantiles are computed together


class _LawEstimator(BaseEstimator):
    """Parameters that say how a law is made of tables."""

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

    def _law(self, table: Table, condition: Table | None = None) -> Any:
        """Return the law of a table, given another one if there is one.

        Raises:
            ValueError: If a parameter is out of range.
        """
        kernel, frame = Auto(), None
        if self.bandwidth is not None:
            if self.frame not in FRAMES:
                raise ValueError(f"frame: expected one of {sorted(FRAMES)}, got {self.frame!r}")
            if isinstance(self.bandwidth, str) and self.bandwidth != "scott":
                raise ValueError(f"bandwidth: expected a number or 'scott', got {self.bandwidth!r}")
            h = None if self.bandwidth == "scott" else self.bandwidth
            kernel, frame = Local(h, self.clusters, self.partitions), FRAMES[self.frame]
        made: dict[str, Any] = dict(kernel=kernel, frame=frame, key=_key(self.random_state))
        ends: dict[str, Any] = dict(bounds=self.bounds, periodic=self.periodic)
        return mixture(table, condition=condition, **made, **ends)


class ScoreDensity(DensityMixin, _LawEstimator):
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

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> ScoreDensity:
        """Build the law of the rows of ``X`` (n, d), weighted by ``sample_weight`` (n,).

        Raises:
            ValueError: If ``X`` is no table of at least two finite rows, or a parameter is out of range.
        """
        X = validate_data(self, X, dtype=FLOATS, ensure_min_samples=2)
        names = getattr(self, "feature_names_in_", None)
        self.mixture_ = self._law(Table.of(X, sample_weight, columns=names, name="X"))
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Return the log density, nats in the units of the training data, at the rows of ``X``, (b,)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=FLOATS, reset=False)
        return np.asarray(self.mixture_.log_prob(X), np.float64)

    def score(self, X: Any, y: Any = None) -> float:
        """Return the total log density of ``X``, as scikit-learn's ``KernelDensity`` does."""
        return float(self.score_samples(X).sum())

    def sample(self, n_samples: int = 1, random_state: Any = None) -> np.ndarray:
        """Return ``n_samples`` exact draws from the law, (n_samples, d)."""
        check_is_fitted(self)
        return np.asarray(self.mixture_.sample(_key(random_state), n_samples), np.float64)


class ScoreRegressor(MultiOutputMixin, RegressorMixin, _LawEstimator):
    """Regression by the whole law of the targets given the columns: means, quantiles, densities, draws.

    That is what ``mcscore.mixture(y, condition=X)`` builds: closed form, no training. Parameters are those of
    `ScoreDensity`; numbers in ``bounds`` and ``periodic`` count the columns of ``y``, then those of ``X``.

    Attributes:
        mixture_: The law, a ``mcscore.ConditionalMixture``.
        n_features_in_: Number of columns of ``X``.

    >>> X = np.random.default_rng(0).normal(size=(200, 2))
    >>> model = ScoreRegressor(bandwidth=0.7, clusters=2).fit(X, X[:, 0] ** 2)
    >>> model.predict(X[:3]).shape, model.predict_quantile(X[:3], [0.05, 0.95]).shape
    ((3,), (3, 2))
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> ScoreRegressor:
        """Build the law of ``y``, (n,) or (n, targets), given ``X`` (n, d).

        Raises:
            ValueError: If these are no tables of at least two finite rows, or a parameter is out of range.
        """
        X, y = validate_data(
            self, X, y, dtype=FLOATS, multi_output=True, y_numeric=True, ensure_min_samples=2
        )
        y = np.asarray(y, np.float64)
        names = getattr(self, "feature_names_in_", None)
        targets = y.reshape(len(y), -1)
        own = None if names is None else [f"target {j}" for j in range(targets.shape[1])]
        table = Table.of(targets, sample_weight, columns=own, name="y")
        self.mixture_ = self._law(
            table, Table.of(X, columns=None if names is None else list(names), name="X")
        )
        self._one = y.ndim == 1
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the mean of ``y`` given each row of ``X``, (b,) or (b, targets).

        Exact in affine frames without bounds or tied values; else of 128 equally likely values. Warns of
        rows far from those of ``fit``.
        """
        law, X = self._checked(X)
        law.warn_of(law.conditions(X))
        if isinstance(law.frame, Identity | AffineFrame):
            mean = np.asarray(law.mean(law.conditions(X)), np.float64)
            found = np.asarray(law.frame.inverse(mean))
        else:
            found = self._at(X, _equally_likely(law.dimension, 128)).mean(1)
        return found[:, 0] if self._one else found

    def predict_quantile(self, X: Any, quantile: Any = 0.5) -> np.ndarray:
        """Return quantiles of a single target given each row of ``X``: (b,), or (b, q) of several.

        The flow carries quantiles of the normal distribution to those of the law, as in one dimension it is
        monotone.

        Raises:
            ValueError: If there are several targets, or a quantile is not between 0 and 1.
        """
        law, X = self._checked(X)
        law.warn_of(law.conditions(X))
        levels = np.asarray(quantile, np.float64)
        if law.dimension > 1:
            raise ValueError(f"predict_quantile: expected one target, got {law.dimension}")
        if levels.ndim > 1 or not ((levels > 0) & (levels < 1)).all():
            raise ValueError(f"quantile: expected numbers between 0 and 1, got {quantile!r}")
        found = self._at(X, ndtri(levels).reshape(-1, 1))[..., 0]
        return found[:, 0] if levels.ndim == 0 else found

    def log_prob(self, X: Any, y: Any) -> np.ndarray:
        """Return the log density of each target given its row of ``X``, in nats, (b,).

        Raises:
            ValueError: If ``y`` has not a row for each of ``X``, or other targets than in ``fit``.
        """
        law, X = self._checked(X)
        check_consistent_length(X, y)
        targets = np.asarray(y, np.float64).reshape(len(X), -1)
        return np.asarray(law.log_prob(targets, condition=X), np.float64)

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = None) -> np.ndarray:
        """Return draws given each row of ``X``, (b, n_samples) or (b, targets, n_samples)."""
        law, X = self._checked(X)
        repeated = np.repeat(X, n_samples, 0)
        drawn = law.sample(_key(random_state), len(repeated), condition=repeated)
        drawn = np.asarray(drawn, np.float64).reshape(len(X), n_samples, -1)
        return drawn[..., 0] if self._one else drawn.transpose(0, 2, 1)

    def _checked(self, X: Any) -> tuple[Any, np.ndarray]:
        check_is_fitted(self)
        return self.mixture_, np.asarray(validate_data(self, X, dtype=FLOATS, reset=False))

    def _at(self, X: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Return where the flow carries every noise ``z`` (q, targets) given every row, (b, q, targets)."""
        law, found = self.mixture_, []
        for part in np.array_split(X, range(ROWS, len(X), ROWS)):
            filled = part[np.minimum(np.arange(min(rounded_up(len(part)), ROWS)), len(part) - 1)]
            noise, conditions = np.tile(z, (len(filled), 1)), np.repeat(filled, len(z), 0)
            y = transport(noise, law, Cosine(), condition=conditions)
            y = np.asarray(y, np.float64).reshape(len(filled), len(z), -1)[: len(part)]
            found.append(law.frame.restore(law.frame.inverse(y.reshape(-1, law.dimension))))
        return np.concatenate(found).reshape(len(X), len(z), law.dimension)


def _equally_likely(d: int, n: int) -> np.ndarray:
    """Return ``n`` points (n, d) of normal noise that are spread evenly: quantiles if ``d`` is 1."""
    if d == 1:
        return ndtri((np.arange(n) + 0.5) / n)[:, None]
    return ndtri(qmc.Sobol(d, rng=0).random(n))


def _key(random_state: Any) -> Any:
    """Return the key that one of scikit-learn's random states draws."""
    return jax.random.key(int(check_random_state(random_state).randint(2**31 - 1)))
