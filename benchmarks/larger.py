"""How much memory and time does a table larger than both allow take?

    python benchmarks/larger.py --rows 10000000 --out benchmarks/results/larger.jsonl

A table of eight dependent columns is written to a file, then learned by ``chunked.mixture`` in parts and
scored; ``resident_mib`` is the most that the process ever held, pages of files included. ``nats`` is the mean
log density of new rows, whose law is known: ``truth`` is its own.
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from clock import Results, parser

import mcscore as mcs

D, WRITTEN = 8, 250_000


def rows_of(r: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows (n, 8) and their log density, nats."""
    z = r.standard_normal((n, D))
    log_p = -np.sum(z**2, 1) / 2 - D / 2 * np.log(2 * np.pi) - z[:, 2] / 2 - np.log(0.5)
    x = z.copy()
    x[:, 1] += z[:, 0] ** 2
    x[:, 2] = np.exp(z[:, 2] / 2)
    x[:, 3] += np.sin(2 * z[:, 4])
    return x.astype(np.float32), log_p


def resident() -> float:
    """Return the most memory that the process has held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    """Learn and score, once."""
    options = parser(
        __doc__ or "",
        rows=dict(type=int, default=10_000_000),
        part=dict(type=int, default=250_000, help="rows per part"),
        queries=dict(type=int, default=2_000),
    ).parse_args()
    n, part, queries = options.rows, options.part, options.queries
    if options.quick:
        n, part, queries = 2_000, 500, 50
    results = Results(options.out, (__doc__ or "").splitlines()[0])
    r = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        with path.open("wb") as file:
            about = dict(descr="<f4", fortran_order=False, shape=(n, D))
            np.lib.format.write_array_header_2_0(file, about)
            for start in range(0, n, WRITTEN):
                rows_of(r, min(WRITTEN, n - start))[0].tofile(file)
        before, start = resident(), time.perf_counter()
        law = mcs.chunked.mixture(path, Path(folder) / "law", rows=part)
        made = time.perf_counter() - start
        x, truth = rows_of(np.random.default_rng(1), queries)
        start = time.perf_counter()
        nats = np.asarray(law.log_prob(x))
        density = time.perf_counter() - start
        start = time.perf_counter()
        y = law.part(0).frame.forward(x)
        jax.block_until_ready(law.score(y, 0.1, mcs.Cosine()))
        score = time.perf_counter() - start
        some = mcs.chunked.subsample(jax.random.key(0), path, min(part, n))
        one = np.asarray(mcs.mixture(some, kernel=mcs.Auto()).log_prob(x))
        kept = sum(int(np.isfinite(own.blocks.log_weights).sum()) for own in law.parts())
    for rival, found in {"all rows, in parts": nats, "one part's rows": one}.items():
        gain = found - one
        results.add(
            rival=rival, rows=n if found is nats else len(some), nats=float(found.mean()),
            gain=float(gain.mean()), error=float(gain.std() / np.sqrt(queries)),
            truth=float(truth.mean()),
        )  # fmt: skip
    results.add(
        rival="all rows, in parts", parts=len(law.sizes), stored_rows=kept, seconds=made,
        density_seconds=density, score_seconds=score, queries=queries,
        before_mib=before, resident_mib=resident(),
    )  # fmt: skip


if __name__ == "__main__":
    main()
