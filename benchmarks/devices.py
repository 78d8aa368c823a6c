"""What do several devices cost: seconds of every stage, messages and their bytes, on simulated devices?

    python benchmarks/devices.py --out benchmarks/results/devices.jsonl

Devices are threads of this machine, so that seconds say what dividing costs, not what it gains: with as many
devices as cores, or more, the same work should take about the same time. Messages are read from the compiled
programs, and so is what each carries per device; neither depends on the number of rows. 4,096 queries, 6
columns, 16,384 rows with a kernel of 8 local covariances; labels of 5 steps; training with batches of 512.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from clock import Results, measure, parser
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import mcscore as mcs
from mcscore.flows.flow import _solve_whole
from mcscore.flows.solvers import Bosh3
from mcscore.generators.training import Training, _posed
from mcscore.parallel import places_of

MESSAGE = r"= (\(?[^=]*?\)?) (?:all-\w+|collective-\w+|reduce-scatter)(?:-start)?\("
SIZES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1, "f64": 8}
S = mcs.Cosine()


def messages(text: str) -> dict[str, int]:
    """Return how many messages a compiled program has, and the bytes of one device in each of them."""
    total, found = 0, re.findall(MESSAGE, re.sub(r"/\*.*?\*/", "", text))
    for shapes in found:
        for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            total += SIZES[kind] * prod(map(int, filter(None, dims.split(","))))
    return dict(messages=len(found), bytes=total)


def run(count: int, quick: bool) -> None:
    """Print what every stage takes on ``count`` devices."""
    n, b = (1024, 256) if quick else (16_384, 4096)
    x = np.random.default_rng(0).standard_normal((n, 6))
    law = mcs.mixture(x, kernel=mcs.Local(0.5, clusters=8, partitions=1))
    q = jnp.asarray(np.random.default_rng(1).standard_normal((b, 6)), jnp.float32)
    mesh = jax.make_mesh((count,), ("q",), axis_types=(AxisType.Auto,))
    divided = jax.device_put(q, NamedSharding(mesh, PartitionSpec("q")))
    score = jax.jit(partial(mcs.score, t=0.3, schedule=S))

    def add(stage: str, seconds: dict[str, float], text: str) -> None:
        print(
            json.dumps(dict(stage=stage, devices=count, seconds=seconds["median"]) | messages(text))
        )

    with jax.set_mesh(mesh):  # under jit the queries' own places are not known
        text = score.lower(divided, mixture=law).compile().as_text()
    add("score, queries divided", measure(lambda: mcs.score(divided, 0.3, law, S)), text)
    over = mcs.jet.shard(law, mesh) if count > 1 else law
    text = score.lower(q, mixture=over).compile().as_text()
    add("score, rows divided", measure(lambda: score(q, mixture=over)), text)

    places = places_of((), mesh=mesh)
    choices = (mcs.CanonicalClock(), Bosh3(), 5, None, True, None)
    text = _solve_whole.lower(q, None, law, S, None, choices, places).compile().as_text()
    add("labels, queries divided", measure(lambda: mcs.transport(divided, law, S, steps=5)), text)

    pairs = (q, 2 * q)
    problem = _posed(
        jax.random.key(0), pairs, None, "training", Training(batch_size=min(b, 512)), places
    )
    text = problem.epoch.compile().as_text()
    whole = mcs.Pairs(*pairs)
    train = partial(mcs.train, jax.random.key(0), whole, epochs=2 if quick else 20, mesh=mesh)
    add("training, 20 epochs of 8 batches", measure(train), text)


def main() -> None:
    args = parser(
        __doc__ or "", devices=dict(type=int, help="run on so many, in this process")
    ).parse_args()
    if args.devices:
        jax.config.update("jax_num_cpu_devices", args.devices)
        return run(args.devices, args.quick)
    results = Results(args.out, "What do several devices cost: seconds, messages and their bytes?")
    for count in (1, 2) if args.quick else (1, 2, 4, 8):
        command = [sys.executable, __file__, "--devices", str(count), *["--quick"] * args.quick]
        done = subprocess.run(command, env=os.environ, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        for line in done.stdout.splitlines():
            results.add(**json.loads(line))
    return None


if __name__ == "__main__":
    main()
