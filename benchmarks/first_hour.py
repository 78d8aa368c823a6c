"""How long does a newcomer wait, from nothing but the README?

    python benchmarks/first_hour.py --out benchmarks/results/first_hour.jsonl

Makes a fresh environment, installs the checkout as the README says, and runs the README's code in it, block
by block and unchanged, in one process without any compiled program of before. ``--quick`` stops after the
picture and uses the present environment.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from clock import Results, parser

ROOT = Path(__file__).parent.parent
FIRST = 2  # blocks: the five lines, and the picture
RUN = """
import json, sys, time
namespace = {}
for block in json.load(sys.stdin):
    start = time.perf_counter()
    exec(block, namespace)
    print("seconds", time.perf_counter() - start)
"""


def main() -> None:
    """Install and run, once."""
    options = parser(__doc__ or "").parse_args()
    results = Results(options.out, (__doc__ or "").splitlines()[0])
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    with tempfile.TemporaryDirectory() as folder:
        python, environment = Path(sys.executable), dict(os.environ)
        if not options.quick:
            environment.pop("PYTHONPATH", None)
            python = Path(folder) / "venv/bin/python"
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "venv", Path(folder) / "venv"], check=True)
            install = [python, "-m", "pip", "install", "--quiet", f"{ROOT}[data,plot]"]
            subprocess.run(install, check=True)
            results.add(rival="install", seconds=time.perf_counter() - start)
        environment["MPLBACKEND"] = "Agg"
        done = subprocess.run(
            [python, "-c", RUN], input=json.dumps(blocks[: FIRST if options.quick else None]),
            cwd=folder, env=environment, check=True, capture_output=True, text=True,
        )  # fmt: skip
        told = re.findall(r"^seconds (.*)$", done.stdout, re.M)
        for block, seconds in zip(blocks, told, strict=False):
            lines = [line for line in block.splitlines() if not re.match(r"import|\s*$", line)]
            results.add(rival=lines[-1].split("#")[0].strip(), seconds=float(seconds))
        pictures = len(list(Path(folder).glob("*.png")))
        results.add(rival="all blocks", seconds=sum(map(float, told)), pictures=pictures)


if __name__ == "__main__":
    main()
