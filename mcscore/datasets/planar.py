"""Sets of points in the plane: pure functions ``name(key, n) -> (n, 2)``, of roughly unit scale."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mcscore.datasets.gaussians import EIGHT_GAUSSIANS

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
