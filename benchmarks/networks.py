"""Which network follows a sharp law best, at about equal seconds?

    python benchmarks/networks.py --data FOLDER --out benchmarks/results/networks.jsonl

Every network learns the same 50,000 pairs of a law that ``Auto()`` chose, the default's 2,100 steps or
about as many as take the same seconds; up to 12 columns its density is then refined, the default's
1,000 steps. At 4,000 points of fresh noise: mean and median absolute difference, in nats, of the
network's log density and the law's where it does not fold; share of noise where it folds; effective
sample size of the samples weighted to the law, as a share; mean squared error per coordinate to labels
that training has not seen.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import count
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from clock import FOLDER, NAMES, Results, parser
from generator import problems
from jax import Array

import mcscore as mcs

FRESH = 4000


class _Module(nn.Module):
    """Residual blocks of two layers, or stages that each move the point on."""

    width: int
    depth: int
    stages: int

    @nn.compact
    def __call__(self, z: Array, c: Array | None = None) -> Array:
        numbers = count(1)  # the first and the last layer have the names of a plain network's

        def dense(name: str | None = None) -> nn.Dense:
            return nn.Dense(self.width, param_dtype=z.dtype, name=name or f"Inner_{next(numbers)}")

        def last(name: str) -> nn.Dense:
            zeros = nn.initializers.zeros
            return nn.Dense(z.shape[-1], kernel_init=zeros, param_dtype=z.dtype, name=name)

        if not self.stages:
            hidden = nn.silu(dense("Dense_0")(z))
            for _ in range(self.depth):
                hidden = hidden + dense()(nn.silu(dense()(hidden)))
            return z + last(f"Dense_{self.depth}")(nn.silu(hidden))
        for stage in range(self.stages):
            hidden = nn.silu(dense(None if stage else "Dense_0")(z))
            for _ in range(self.depth - 1):
                hidden = nn.silu(dense()(hidden))
            end = stage + 1 == self.stages
            z = z + last(f"Dense_{self.depth}" if end else f"Stage_{stage}")(hidden)
        return z


@dataclass(frozen=True)
class Other(mcs.MLP):
    """A network that is no fully connected one: residual blocks, or ``stages`` of ``depth`` layers."""

    stages: int = 0

    def module(self) -> nn.Module:
        """Return the Flax module."""
        return _Module(self.width, self.depth, self.stages)


NETWORKS = {  # and their steps, as a share of the default's
    "default": (mcs.MLP(), 1.0),
    "no skips": (mcs.MLP(skip=False), 1.0),
    "six layers": (mcs.MLP(depth=6), 1.4),
    "six layers, no skips (0.1)": (mcs.MLP(depth=6, skip=False), 1.4),
    "three wider layers, no skips": (mcs.MLP(width=192, depth=3, skip=False), 1.0),
    "twelve layers": (mcs.MLP(depth=12), 0.75),
    "three residual blocks": (Other(depth=3), 1.4),
    "three stages of two layers": (Other(depth=2, stages=3), 1.4),
}


def judge(gen: mcs.Generator, law: Any, fresh: mcs.Pairs) -> dict:
    """Return how the generator's density, and its points, compare with the law's."""
    y, log_q = gen.sample_and_log_prob(jax.random.key(8), FRESH)
    log_q, log_p = np.asarray(log_q, float), np.asarray(law.log_prob(y), float)
    ok = np.isfinite(log_q)
    error = np.abs(log_q - log_p)[ok]
    weights = jnp.where(ok, log_p - np.where(ok, log_q, 0), -jnp.inf)
    squares = (gen.frame.forward(gen(fresh.z)) - gen.frame.forward(fresh.labels())) ** 2
    return dict(
        density_error=float(error.mean()),
        density_error_median=float(np.median(error)),
        folded=float(1 - ok.mean()),
        effective_sample_size=float(mcs.metrics.effective_sample_size(weights)) / FRESH,
        squares=float(jnp.mean(squares)),
    )


def main() -> None:
    options = parser(__doc__, data=FOLDER, only=NAMES).parse_args()
    results = Results(options.out, __doc__.splitlines()[0], data=options.only)
    law_key, pair_key, train_key, refine_key, fresh_key = jax.random.split(jax.random.key(1), 5)
    for name, x in problems(options.data, options.quick):
        if options.only and name not in options.only:
            continue
        kernel = mcs.Local(0.7, 2) if options.quick else mcs.Auto(most_rows=12_000)
        size = 500 if options.quick else 50_000
        law = mcs.mixture(x, kernel=kernel, key=law_key)
        pairs = mcs.generate_pairs(pair_key, law, mcs.Cosine(), size, steps=5)
        fresh = mcs.generate_pairs(fresh_key, law, mcs.Cosine(), min(size, FRESH), steps=9)
        step = len(NETWORKS) - 1 if options.quick else 1  # the first and the last, or all
        for variant, (network, share) in list(NETWORKS.items())[::step]:
            if not options.quick:
                jax.clear_caches()  # every network compiles for itself; and memory maps are finite
            steps = 20 if options.quick else 2100 * share
            epochs = max(1, round(steps / (0.9 * size // 512 or 1)))
            start = time.perf_counter()
            gen, _ = mcs.train(train_key, pairs, network=network, epochs=epochs)
            seconds = time.perf_counter() - start
            about = dict(data=name, rows=len(x), d=law.dimension, variant=variant)
            results.add(**about, **judge(gen, law, fresh), seconds=seconds)
            if law.dimension > 12:
                continue
            steps = 100 if options.quick else round(1000 * share)
            gen, _ = mcs.refine(refine_key, gen, law, pairs, steps=steps)
            seconds = time.perf_counter() - start
            about["variant"] += ", refined"
            results.add(**about, **judge(gen, law, fresh), seconds=seconds)


if __name__ == "__main__":
    main()
