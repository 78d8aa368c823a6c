"""Posteriors: a law as the prior, any likelihood; exact draws weighted, then moved by a library's sampler."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mcscore._arrays import shapes
from mcscore._numbers import described
from mcscore._optional import needed
from mcscore._validation import as_key, at_least, of_type
from mcscore.frames import OpenedFrame
from mcscore.mixtures.value import Mixture


class Posterior(NamedTuple):
    """Draws from a posterior, and how well the prior's draws knew it.

    Attributes:
        draws: (n, d), in the user's units.
        effective_sample_size: What the prior's weighted draws are worth: below a hundred, a few are repeated
            many times.
        log_evidence: Log of the mean likelihood over the prior.
        moved: Steps of the Markov chain that each was moved by.
    """

    draws: Any
    effective_sample_size: float
    log_evidence: float
    moved: int
    __repr__ = shapes


def posterior(
    key: Array,
    law: Mixture,
    log_likelihood: Callable[[Array], Array],
    *,
    n: int = 2000,
    proposals: int = 20_000,
    moves: int = 0,
) -> Posterior:
    """Return draws from the posterior ``p(x) L(x)`` of a law and a likelihood.

    Exact draws of the law are weighted by the likelihood, resampled systematically, and moved by ``moves``
    steps of random-walk Metropolis (BlackJAX), their step the posterior's covariance times ``2.38^2 / d``:
    what resampling repeats is told apart again.

    Args:
        key: Random key.
        law: The prior.
        log_likelihood: From rows (b, d), in the user's units, to log likelihoods (b,); rows are NumPy's where
            float32 cannot hold them.
        n: Draws returned.
        proposals: Draws of the law that are weighted.
        moves: Steps of the chain; 0 needs no BlackJAX.

    Raises:
        ValueError: If the likelihood returns another shape, NaN, or zero everywhere; if ``moves`` are asked
            for of a law with ties, whose values a walk would leave, or of one that float32 cannot resolve.
        ImportError: If ``moves`` are asked for without BlackJAX.

    >>> import mcscore as mcs
    >>> law = mcs.mixture(jax.random.normal(jax.random.key(0), (500, 1)), kernel=mcs.Whitened(0.3))
    >>> found = posterior(jax.random.key(1), law, lambda x: -((x[:, 0] - 1.0) ** 2) / 0.02)
    >>> bool(abs(found.draws.mean() - 1) < 0.05)
    True
    """
    of_type(Mixture, "mcs.mixture(x, kernel=mcs.Auto())", law=law)
    if not callable(log_likelihood):
        raise ValueError(f"log_likelihood: expected a function, got {described(log_likelihood)}")
    at_least(1, n=n)
    at_least(2, proposals=proposals)
    at_least(0, moves=moves)
    if moves and has_ties(law.frame):
        raise ValueError("moves: expected 0 for a law with tied columns (integers, atoms)")
    if moves and law.is_coarse:
        raise ValueError(
            f"moves: expected 0 for a law with columns that {law.dtype} cannot resolve"
        )
    draw_key, pick_key, move_key = jax.random.split(as_key(key), 3)
    x = law.sample(draw_key, proposals)  # NumPy's, in float64, where float32 cannot hold them
    log_weights = np.asarray(log_likelihood(x), np.float64)
    if log_weights.shape != (proposals,):
        raise ValueError(
            f"log_likelihood: expected a number for each of {proposals} rows, got shape {log_weights.shape}"
        )
    if np.isnan(log_weights).any() or not np.isfinite(log_weights.max()):
        raise ValueError(
            "log_likelihood: expected numbers, at least one of them not -inf, got NaN or none"
        )
    weights = np.exp(log_weights - log_weights.max())
    size = float(weights.sum() ** 2 / (weights**2).sum())
    evidence = float(np.log(weights.mean()) + log_weights.max())
    known = np.flatnonzero(weights)
    shares = np.cumsum(weights[known])  # systematic resampling
    level = (np.arange(n) + float(jax.random.uniform(pick_key))) / n
    draws = x[known[np.minimum(np.searchsorted(shares, level * shares[-1]), len(known) - 1)]]
    if moves:
        rows = np.asarray(x, np.float64).T
        # Where few count their spread is no guide: at least some of the law's.
        spread = np.cov(rows, aweights=weights, ddof=0) + np.cov(rows) / proposals
        draws = _moved(move_key, law, log_likelihood, draws, moves, spread)
    return Posterior(draws, size, evidence, moves)


def has_ties(frame: Any) -> bool:
    """Return whether a frame has opened tied values."""
    return isinstance(frame, OpenedFrame) or (hasattr(frame, "inner") and has_ties(frame.inner))


def _moved(
    key: Array,
    law: Mixture,
    log_likelihood: Callable[[Array], Array],
    draws: Array,
    moves: int,
    spread: np.ndarray,
) -> Array:
    with needed("moves", "blackjax", "bayes"):
        blackjax = import_module("blackjax")
    spread = spread.reshape(draws.shape[1], -1)
    root = np.linalg.cholesky(
        spread * 2.38**2 / len(spread) + 1e-12 * np.trace(spread) * np.eye(len(spread))
    )

    def log_p(x: Array) -> Array:
        return law.log_prob(x[None])[0] + log_likelihood(x[None])[0]

    kernel = blackjax.additive_step_random_walk(
        log_p, blackjax.mcmc.random_walk.normal(jnp.asarray(root, draws.dtype))
    )

    def step(states: Any, key: Array) -> tuple[Any, None]:
        return jax.vmap(kernel.step)(jax.random.split(key, len(draws)), states)[0], None

    start = jax.vmap(kernel.init)(draws)
    return jax.jit(lambda s, k: jax.lax.scan(step, s, k)[0])(
        start, jax.random.split(key, moves)
    ).position
