"""One clock for every benchmark: warm-up, blocking, medians with spread, device and versions."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Threads of PyTorch and KeOps that spin after their work would slow down whatever is timed next.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import jax
import numpy as np


def parser(doc: str, **extra: dict[str, Any]) -> argparse.ArgumentParser:
    """Return the parser all benchmarks share, ``extra`` options added by name."""
    shared = argparse.ArgumentParser(description=doc.splitlines()[0])
    shared.add_argument("--out", type=Path, help="file of JSON lines to write")
    shared.add_argument("--quick", action="store_true", help="to see that it runs")
    for name, settings in extra.items():
        shared.add_argument(f"--{name}", **settings)
    return shared


FOLDER = dict(type=Path, help="folder of .npz files with arrays 'train' and 'test'")
NAMES = dict(nargs="+", help="names of the tables to run")


def measure(function: Callable[[], Any], seconds: float = 1.0) -> dict[str, float]:
    """Return the median seconds of ``function``, their quartiles, and the first call's seconds."""
    return measure_in_turn({"": function}, rounds=1, seconds=seconds)[""]


def measure_in_turn(
    functions: dict[str, Callable[[], Any]], *, rounds: int = 5, seconds: float = 0.8
) -> dict[str, dict[str, float]]:
    """Call every function for ``seconds`` per round, so that all meet the machine's better and worse moments.

    A turn's first quarter is not counted: what ran before leaves other data in the caches, and the
    cores need their time to wake. Every turn has two calls at least, of which the last counts.
    """

    def once(function):
        start = time.perf_counter()
        jax.block_until_ready(function())
        return time.perf_counter() - start

    first = {name: once(function) for name, function in functions.items()}
    counted: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            turn = [once(function)]
            while len(turn) < 2 or sum(turn) < seconds:
                turn.append(once(function))
            cold = np.searchsorted(np.cumsum(turn), seconds / 4) + 1
            counted[name] += turn[min(cold, len(turn) - 1) :]
    out = {}
    for name, turn in counted.items():
        low, median, high = np.quantile(turn, [0.25, 0.5, 0.75])
        out[name] = {"first": first[name], "median": median, "low": low, "high": high}
        out[name]["calls"] = len(turn)
    return out


def machine() -> dict[str, Any]:
    """Return device and versions."""
    packages = (
        "jax",
        "jaxlib",
        "flax",
        "diffrax",
        "optax",
        "numpy",
        "torch",
        "flowjax",
        "scikit-learn",
        "sbi",
    )
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    name = platform.processor() or platform.machine()
    cpu = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), name
    )
    return {
        "device": device.device_kind if device.platform != "cpu" else cpu,
        "platform": device.platform,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Return what is measured: the commit, and whether code differs from it; None outside of a repository."""
    root = Path(__file__).parents[1]
    commands = ["rev-parse", "--short", "HEAD"], ["status", "--short", "*.py", "*.cpp"]
    commit, changed = (
        subprocess.run(["git", *command], cwd=root, capture_output=True, text=True).stdout.strip()
        for command in commands
    )
    return commit + "-dirty" * bool(changed) or None


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


class Results:
    """JSON lines, one per measurement, the machine on the first; printed as they come.

    With ``only``, a choice of values for some keys, lines of an existing file stay in their places until they
    are measured again: an interrupted run loses nothing.
    """

    def __init__(self, out: Path | None, question: str, **only: list[str] | None):
        self.out = out
        self.lines = [{"question": question, **machine()}]
        chosen = {key: values for key, values in only.items() if values}
        old = out.read_text().splitlines()[1:] if chosen and out and out.exists() else []
        self.lines += map(json.loads, old)
        self.old = {self._about(line): line for line in self.lines[1:]}
        self.place = len(self.lines)
        print(json.dumps(self.lines[0]))

    def add(self, **entry: Any) -> None:
        """Print and keep one measurement; the file is replaced whole.

        In its old place, else behind the last one of the same data, else at the end.
        """
        rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in entry.items()}
        old = self.old.pop(self._about(rounded), None)
        if old is not None:
            self.place = self.lines.index(old)
        elif self.lines[self.place - 1].get("data") != entry.get("data"):
            self.place = len(self.lines)
        self.lines[self.place : self.place + (old is not None)] = [rounded]
        self.place += 1
        print("  ".join(f"{k}={v}" for k, v in rounded.items()), flush=True)
        if self.out:
            aside = self.out.with_suffix(".tmp")
            aside.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
            os.replace(aside, self.out)

    @staticmethod
    def _about(line: dict[str, Any]) -> tuple[Any, ...]:
        return line.get("data"), line.get("rival"), line.get("variant")
