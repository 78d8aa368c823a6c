"""Does anything crash, hang, lose work or answer nonsense: hostile calls, damaged files, killed runs?

    python benchmarks/faults.py --calls 10000 --files 10000 --kills 50 --out benchmarks/results/faults.jsonl

A call takes one hostile argument beside good ones, at every public function in turn. It is right if it ends
in an error of one sentence that names the argument or column, or in finite numbers that are those of the same
values in plain float64; rows whose squares are not finite in float32 may be so in the answer.

A file is a saved law or generator with bytes changed, cut, inserted, moved, or numbers of its header
replaced. It is right if it is refused by name, or gives the same draws, within ten seconds. ``grown_mb`` is
by how much the process grew at most.

A killed run is ``mcscore.fit`` with ``checkpoint=``, ended at a random moment and started again until it
is through. It is right if its numbers are to the bit those of a run that was left alone, and no part that
was kept is lost.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clock import Results, parser
from hostile import ALSO, GEN, GIVEN, KEY, Call, X, calls

import mcscore as mcs

COUNT = dict(type=int, default=0, help="how many, 0 for none")


def judged(name: str, argument: str, value: Any, call: Call) -> str:
    """Return how a call with one hostile argument ended."""
    function, good, _ = call
    try:
        found = jax.tree.leaves(function(**good | {argument: value}))
        leaves = [np.asarray(a) for a in found if hasattr(a, "shape")]
        leaves = [a for a in leaves if a.dtype.kind in "fiub"]
    except (ValueError, TypeError, ImportError) as error:
        text = str(error)
        names = rf"\b({argument}|{ALSO.get(argument, argument)})"
        told = re.search(names, text, re.IGNORECASE) and len(text) < 400 and "\n" not in text
        return (
            "refused by name"
            if told
            else f"REFUSED WITHOUT NAME: {type(error).__name__} {text[:150]}"
        )
    except Exception as error:  # which ones is the question
        return f"CRASHED: {type(error).__name__} {str(error)[:150]}"
    floats = [leaf for leaf in leaves if leaf.dtype.kind == "f" and leaf.size]
    if any(np.isnan(leaf).any() for leaf in floats):
        try:
            finite = (np.abs(np.asarray(value, np.float64)) < 1e18).all()  # and squares in float32
        except (TypeError, ValueError):
            finite = True
        if finite:
            return "NONSENSE: not a number"
        return "answered, rows that are not finite are NaN"
    try:
        plain = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return "answered"
    if (
        plain.ndim == 2
        and isinstance(value, np.ndarray)
        and not isinstance(value, np.ma.MaskedArray)
    ):
        again = jax.tree.leaves(function(**good | {argument: plain}))
        for one, other in zip(leaves, again, strict=False):
            other = np.asarray(other)
            if one.shape != other.shape or not np.allclose(
                one, other, rtol=1e-3, atol=1e-4, equal_nan=True
            ):
                return "NONSENSE: other than for the same numbers in float64"
        return "answered as for the same numbers in float64"
    return "answered"


def hostile_calls(count: int, results: Results, seed: int) -> None:
    """Call functions in turn, each with a hostile argument, and print how these calls ended."""
    choice, ends, every = random.Random(seed), Counter[str](), calls()
    start, slowest = time.perf_counter(), 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for k in range(count):
            name = list(every)[k % len(every)]
            argument = choice.choice(list(every[name][2]))
            index = choice.randrange(len(every[name][2][argument]))
            began = time.perf_counter()
            end = judged(name, argument, every[name][2][argument][index], every[name])
            slowest = max(slowest, time.perf_counter() - began)
            ends[end.split(":")[0]] += 1
            if end[0].isupper():
                print(f"{name}({argument}=...[{index}]): {end}", flush=True)
            if k % len(every) == len(every) - 1:
                every = calls() if k % 2000 < len(every) else every
    for end, times in ends.most_common():
        results.add(data="calls", end=end, count=times)
    results.add(
        data="calls", end="all", count=count, slowest=slowest, seconds=time.perf_counter() - start
    )


# --- files -----------------------------------------------------------------------------------------


def damaged(whole: bytes, choice: random.Random) -> bytes:
    """Return a file's bytes with something wrong."""
    data, at = bytearray(whole), choice.randrange(len(whole))
    size = int.from_bytes(whole[:8], "little")
    kind = choice.randrange(8)
    if kind == 0:
        data[at] ^= 1 << choice.randrange(8)
    elif kind == 1:
        data[at] = choice.randrange(256)
    elif kind == 2:
        del data[at:]
    elif kind == 3:
        data[at:at] = choice.randbytes(choice.randrange(1, 40))
    elif kind == 4:
        del data[at : at + choice.randrange(1, 40)]
    elif kind == 5:  # another length of the header
        data[:8] = choice.choice([0, 1, size - 1, size + 1, 2**31, 2**62, 2**64 - 1]).to_bytes(
            8, "little"
        )
    elif kind == 6:  # another number in the header
        found = [*re.finditer(rb"\d+", whole[8 : 8 + size])]
        match = choice.choice(found)
        other = str(choice.choice([0, 1, 10**9, 10**18, 7])).encode()
        header = whole[8 : 8 + match.start()] + other + whole[8 + match.end() : 8 + size]
        data = bytearray(len(header).to_bytes(8, "little") + header + whole[8 + size :])
    else:  # two parts change places
        other, length = choice.randrange(len(whole)), choice.randrange(1, 200)
        data[at : at + length], data[other : other + length] = (
            data[other : other + length], data[at : at + length],
        )  # fmt: skip
    return bytes(data)


def damaged_files(count: int, results: Results, seed: int) -> None:
    """Load files with something wrong, and print what came of it."""
    choice, ends = random.Random(seed), Counter[str]()
    start, slowest, grown = time.perf_counter(), 0.0, 0
    law = mcs.mixture(
        X, kernel=mcs.Local(0.6, 2, 1), frame=mcs.Gaussianize(), bounds={0: (-9, None)}
    )
    models = {"law": law, "generator": GEN, "conditional": GIVEN}
    given: dict[str, Any] = {"conditional": dict(condition=[0.3])}
    with tempfile.TemporaryDirectory() as folder:
        expected, files = {}, {}
        for name, model in models.items():
            path = Path(folder) / f"{name}.safetensors"
            model.save(path)
            files[name] = path.read_bytes()
            expected[name] = np.asarray(mcs.load(path).sample(KEY, 20, **given.get(name, {})))

        def late(*_: Any) -> None:
            raise TimeoutError

        signal.signal(signal.SIGALRM, late)
        for k in range(count):
            name = list(models)[k % len(models)]
            path = Path(folder) / f"{name}.safetensors"
            path.write_bytes(damaged(files[name], choice))
            memory, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
            signal.alarm(10)
            try:
                found = np.asarray(mcs.load(path).sample(KEY, 20, **given.get(name, {})))
                end = (
                    "the same draws"
                    if np.array_equal(found, expected[name])
                    else "NONSENSE: other draws"
                )
            except ValueError as error:
                end = (
                    "refused by name"
                    if str(path) in str(error)
                    else f"REFUSED WITHOUT NAME: {error}"
                )
            except Exception as error:  # which ones is the question
                end = f"CRASHED: {type(error).__name__} {error}"
            finally:
                signal.alarm(0)
            slowest = max(slowest, time.perf_counter() - began)
            grown = max(grown, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory)
            ends[end.split(":")[0]] += 1
            if end[0].isupper():
                kept = Path(tempfile.gettempdir()) / f"damaged-{k}.safetensors"
                kept.write_bytes(path.read_bytes())
                print(f"{name}: {end[:300]} ({kept})", flush=True)
    for end, times in ends.most_common():
        results.add(data="files", end=end, count=times)
    results.add(
        data="files", end="all", count=count, slowest=slowest, grown_mb=grown / 1024,
        seconds=time.perf_counter() - start,
    )  # fmt: skip


# --- runs that are killed --------------------------------------------------------------------------

RUN = """
import sys, json, numpy as np, jax, mcscore as mcs
x = np.random.default_rng(0).standard_normal((400, 3))
options = dict(kernel=mcs.Isotropic(0.5), pairs=2000, epochs=60, refine=400, network=mcs.MLP(16, 2))
options |= dict(labelling=dict(chunk_size=100, error_sample=0))
made = mcs.fit_stages(jax.random.key(0), x, checkpoint=sys.argv[1], **options)
parts = made.generator.params, made.generator.encoder, made.pairs.x
np.savez(sys.argv[2], *map(np.asarray, jax.tree.leaves(parts)))
"""


def killed_runs(count: int, results: Results, seed: int) -> None:
    """Kill a run ``count`` times at random moments, going on each time; compare each that gets through."""
    choice, ends = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(root / "programs")}
        env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

        def started(folder: Path) -> subprocess.Popen:
            command = [sys.executable, "-c", RUN, str(folder / "parts"), str(folder / "end.npz")]
            return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)

        def arrays(folder: Path) -> list[np.ndarray]:
            with np.load(folder / "end.npz") as file:
                return [file[name] for name in file.files]

        for name in ("first", "whole"):  # the second finds the first one's programs
            (root / name).mkdir()
            began = time.perf_counter()
            assert started(root / name).wait() == 0
        usual = time.perf_counter() - began
        whole, begun, through = arrays(root / "whole"), time.perf_counter(), 0
        folder = root / "0"
        folder.mkdir()
        while ends["killed"] < count:
            before = {path: path.stat().st_mtime_ns for path in folder.rglob("chunk-*")}
            run = started(folder)
            try:
                _, said = run.communicate(timeout=choice.uniform(0.3, 1) * usual)
            except subprocess.TimeoutExpired:
                run.kill()
                run.communicate()
                ends["killed"] += 1
                after = {path: path.stat().st_mtime_ns for path in folder.rglob("chunk-*")}
                ends["parts lost or made twice"] += any(
                    after.get(path) != at for path, at in before.items()
                )
                continue
            if run.returncode:
                ends["CRASHED"] += 1
                print(said[-2000:], flush=True)
            else:
                same = all(map(np.array_equal, arrays(folder), whole))
                ends["through, bit-equal" if same else "THROUGH, OTHER NUMBERS"] += 1
            through += 1
            folder = root / str(through)
            folder.mkdir()
        run = started(folder)
        ended = run.wait() == 0 and all(map(np.array_equal, arrays(folder), whole))
        ends["through, bit-equal" if ended else "THROUGH, OTHER NUMBERS"] += 1
        for end, times in ends.items():
            results.add(data="kills", end=end, count=times)
        results.add(data="kills", end="all", count=count, seconds=time.perf_counter() - begun)


def main() -> None:
    options = dict(calls=COUNT, files=COUNT, kills=COUNT, seed=dict(type=int, default=0))
    args = parser(__doc__ or "", **options).parse_args()
    if args.quick:
        args.calls, args.files, args.kills = 100, 300, 1
    chosen = [name for name in ("calls", "files", "kills") if getattr(args, name)]
    results = Results(
        args.out, "Does anything crash, hang, lose work or answer nonsense?", data=chosen
    )
    first, *others = results.lines  # of what is run again, nothing stays
    results.lines[:] = [first, *(line for line in others if line["data"] not in chosen)]
    results.old.clear()
    results.place = len(results.lines)
    if args.calls:
        hostile_calls(args.calls, results, args.seed)
    if args.files:
        damaged_files(args.files, results, args.seed)
    if args.kills:
        killed_runs(args.kills, results, args.seed)
    wrong = [line for line in results.lines[1:] if line["end"][0].isupper() and line["count"]]
    print(json.dumps(dict(wrong=wrong)))
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
