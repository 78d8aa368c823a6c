"""Gaussian mixtures whose every diffused density is known: the ground truth of tests."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


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
        return jnp.asarray(self.means)[component] + jnp.einsum(
            "nij,nj->ni", roots[component], noise
        )

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
_PARTS: Any = (  # NumPy's, so that nothing is put on a device at import
    np.full(8, 1 / 8),
    2 * np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1),
    np.tile(0.15**2 * np.eye(2), (8, 1, 1)),
)
EIGHT_GAUSSIANS = GaussianMixture(*_PARTS)


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
