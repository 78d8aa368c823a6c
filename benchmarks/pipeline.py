"""How do seconds and peak memory of every stage grow with rows, columns, pairs and width?

    python benchmarks/pipeline.py --out benchmarks/results/pipeline.jsonl

Every setting runs in a process of its own (five Gaussians, default options but one), so that its peak
of resident memory is its own; memory is what comes on top of imports and data. Growth is the exponent
of a least-squares line through the logarithms, compilation included. Last, the memory that one
``score`` of 1,024 queries against 1,000,000 rows (d = 6) takes above the law itself. Up to 20,000 rows the
fit is done again with another key (``again``), and compiled programs are counted.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys

import numpy as np
from clock import Results, parser

DEFAULT = dict(rows=20_000, columns=8, pairs=50_000, width=96)
ROWS = (2_000, 20_000, 200_000, 2_000_000, 10_000_000)
SWEEPS = dict(
    rows=ROWS, columns=(2, 8, 20, 60), pairs=(12_500, 50_000, 100_000), width=(48, 96, 192)
)
QUICK = dict(rows=200, columns=8, pairs=200, width=8)


def peak() -> float:
    """Return the peak of resident memory so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one(rows: int, columns: int, pairs: int, width: int, quick: bool) -> dict:
    import jax

    import mcscore as mcs

    rng = np.random.default_rng(0)
    shapes = rng.standard_normal((5, columns, columns)) * 0.6
    means = rng.standard_normal((5, columns)) * 2
    x = rng.standard_normal((rows, columns), np.float32)
    for part, shape, mean in zip(np.array_split(x, 5), shapes, means, strict=True):
        part[:] = part @ shape.T + mean
    rng.shuffle(x)
    jax.block_until_ready(jax.numpy.ones(3) + 1)
    before = peak()
    options = dict(kernel=mcs.Local(0.7, 2), epochs=1, refine=0) if quick else {}
    network = mcs.MLP(width=width)
    programs = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: programs.append(seconds) if "backend_compile" in event else None
    )
    made = mcs.fit_stages(jax.random.key(0), x, pairs=pairs, network=network, **options)
    known, found = peak() - before, dict(made.seconds, total=sum(made.seconds.values()))
    first, compiling = len(programs), sum(programs)
    if rows <= 20_000:  # what another key's fit costs in the same process
        again = mcs.fit_stages(jax.random.key(1), x, pairs=pairs, network=network, **options)
        found |= dict(again=sum(again.seconds.values()), programs_again=len(programs) - first)
    return found | dict(programs=first, compiling=compiling, peak_mib=known)


def score_memory(rows: int) -> dict:
    import jax

    import mcscore as mcs

    x = np.random.default_rng(0).standard_normal((rows, 6)).astype(np.float32)
    law = mcs.mixture(x)
    queries = jax.random.normal(jax.random.key(0), (1024, 6))
    program = jax.jit(lambda y, law: mcs.score(y, 0.4, law, mcs.Cosine())).lower(queries, law)
    memory = program.compile().memory_analysis()
    return dict(rows=rows, queries=1024, temporary_mib=memory.temp_size_in_bytes / 2**20)


def main() -> None:
    options = parser(__doc__, one=dict(help=argparse.SUPPRESS)).parse_args()
    if options.one:
        print(json.dumps(one(**json.loads(options.one), quick=options.quick)))
        return
    results = Results(options.out, __doc__.splitlines()[0])
    sweeps = {"rows": (200,)} if options.quick else SWEEPS
    for name, values in sweeps.items():
        totals: dict[str, list[float]] = {}
        for value in values:
            setting = (QUICK if options.quick else DEFAULT) | {name: value}
            run = [sys.executable, __file__, "--one", json.dumps(setting)]
            run += ["--quick"] if options.quick else []
            text = subprocess.run(run, check=True, capture_output=True, text=True).stdout
            entry = json.loads(text.splitlines()[-1])
            results.add(kind="pipeline", **setting, **entry)
            for stage, seconds in entry.items():
                totals.setdefault(stage, []).append(seconds)
        if len(values) > 1:
            slopes = {
                stage: float(np.polyfit(np.log(values), np.log(np.maximum(seconds, 1e-3)), 1)[0])
                for stage, seconds in totals.items()
                if len(seconds) == len(values)
            }
            results.add(kind="growth", over=name, **slopes)
    results.add(kind="score memory", **score_memory(10_000 if options.quick else 1_000_000))


if __name__ == "__main__":
    main()
