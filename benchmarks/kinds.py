"""What becomes of tables as they are: atoms, integers, levels, money, copies?

    python benchmarks/kinds.py --out benchmarks/results/kinds.jsonl

Prints for a dozen synthetic tables of these kinds, each from a known law: the share of rows and of draws on
the value that matters, in standard errors; the dependence on it; copies; the likelihood that the report
promises beside that of fresh rows; draws outside the ends. Another version of mcscore runs it too (what it
does not know, `bounds` and `periodic`, is left out), to compare.
"""

from __future__ import annotations

import inspect
import time
from typing import Any

import jax
import numpy as np
from clock import Results, parser

import mcscore as mcs


def tables() -> dict[str, Any]:
    """Return of every table how its columns are drawn and the value of column 0 that matters."""

    def rain(r, n):
        return np.where(r.random(n) < 0.93, 0, r.gamma(0.5, 10, n)), r.standard_normal(n)

    def zeros_among_integers(r, n):
        return np.where(r.random(n) < 0.41, 0, r.integers(0, 601, n)), r.standard_normal(n)

    def heaped(r, n):
        heaps = r.random(n) < 0.6
        return np.where(heaps, 30 * r.integers(1, 20, n), r.integers(1, 600, n)), r.random(n)

    def zeros_before_a_gap(r, n):
        return np.where(r.random(n) < 0.37, 0, 0.003 + r.gamma(1, 1, n)), r.standard_normal(n)

    def doses(r, n):
        level = r.integers(0, 5, n)
        return level, 0.168 * level + 0.015 * r.standard_normal(n)

    def counts(r, n):
        level = r.poisson(np.exp(0.5 * r.standard_normal(n) + 2))
        return level, level + 0.3 * r.standard_normal(n)

    def poisson(r, n):
        return r.poisson(3, n), r.standard_normal(n)

    def money(r, n):
        return r.lognormal(5, 1, n).round(2), r.integers(1000, 9000, n)

    def censored(r, n):
        return np.maximum(r.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], n) + 0.2, 0).T

    def flags(r, n):
        z = r.standard_normal((2, n))
        return (z[0] > 0.8) * 1, (z[0] + z[1] > 0) * 1, z[1]

    def chain(r, n):
        x = r.standard_normal((n, 2)) @ [[1, 0.5], [0, 2]]
        return np.repeat(x, r.geometric(0.3, n), 0)[:n].T

    def continuous(r, n):
        return (r.standard_normal((n, 2)) @ [[1, 0.5], [0, 2]]).T

    def ended(r, n):
        angle = (r.vonmises(0, 1, n) + 0.5) % (2 * np.pi)
        return r.exponential(1, n), r.beta(0.7, 2, n), angle

    kinds = {
        rain: 0, zeros_among_integers: 0, heaped: 300, zeros_before_a_gap: 0, doses: 2, counts: 7,
        poisson: 3, money: None, censored: 0, flags: 1, chain: None, continuous: None,
        ended: None,
    }  # fmt: skip
    return {kind.__name__: (kind, value) for kind, value in kinds.items()}


ENDS = {
    "ended": dict(bounds={0: (0, None), 1: (0, 1)}, periodic={2: 2 * np.pi}),
}  # fmt: skip


def fitted(name: str, x: np.ndarray, key: jax.Array) -> Any:
    """Return the law of a table, by what this version of mcscore knows."""
    known = inspect.signature(mcs.mixture).parameters
    options = {k: v for k, v in dict(key=key, **ENDS.get(name, {})).items() if k in known}
    return mcs.mixture(x, kernel=mcs.Auto(), **options)


def within(x: np.ndarray, value: float) -> float:
    """Return the last column's standard deviation at a value of column 0."""
    rows = x[x[:, 0] == value, -1]
    return float(rows.std()) if len(rows) > 5 else float("nan")


def judge(name: str, kind: Any, value: float | None, n: int, seed: int) -> dict[str, Any]:
    """Return what became of one table."""
    generator = np.random.default_rng([seed, len(name)])
    x, fresh = (np.stack(kind(generator, m), 1).astype(float) for m in (n, 20_000))
    start = time.perf_counter()
    law = fitted(name, x, jax.random.key(seed))
    seconds = time.perf_counter() - start
    draws = np.asarray(law.sample(jax.random.key(seed + 1), 20_000), np.float64)
    found = dict(kind="table", data=name, variant=seed, rows=n, seconds=round(seconds, 2))
    if value is not None:
        shares = [float(np.mean(a[:, 0] == value)) for a in (fresh, x, draws)]
        error = np.sqrt(shares[0] * (1 - shares[0]) / n)
        found |= dict(
            truth=shares[0], rows_share=shares[1], draws_share=shares[2],
            errors=round(float((shares[2] - shares[1]) / error), 2),
            spread=round(within(draws, value) / within(fresh, value), 3),
        )  # fmt: skip
    correlations = [float(np.corrcoef(a.T)[0, -1]) for a in (fresh, draws)]
    apart = draws[draws[:, 0] != value, 0]
    copied = float(np.isin(apart, x[x[:, 0] != value, 0]).mean())
    if name in ENDS:
        low, high = [0, 0, 0], [np.inf, 1, 2 * np.pi]
        found["outside"] = float(np.mean(np.any((draws < low) | (draws > high), 1)))
    return found | dict(
        correlation=round(correlations[0], 4), drawn=round(correlations[1], 4), copied=round(copied, 3),
        promised=law.report.log_likelihood,
        fresh=float(np.mean(np.asarray(law.log_prob(fresh), np.float64))),
    )  # fmt: skip


def main() -> None:
    """Run every table with several seeds."""
    seeds = dict(type=int, default=3, help="tables of each kind")
    arguments = parser(__doc__, seeds=seeds, rows=dict(type=int, default=3000)).parse_args()
    results = Results(arguments.out, "What becomes of tables as they are?")
    for name, (kind, value) in list(tables().items())[: 3 if arguments.quick else None]:
        for seed in range(1 if arguments.quick else arguments.seeds):
            rows = 300 if arguments.quick else arguments.rows
            results.add(**judge(name, kind, value, rows, seed))


if __name__ == "__main__":
    main()
