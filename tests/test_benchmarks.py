import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.slow
def test_score_benchmark_runs_and_writes_json_lines(tmp_path):
    out = tmp_path / "score.jsonl"
    run = [sys.executable, str(FOLDER / "score.py"), "--quick", "--out", str(out)]
    subprocess.run(run, check=True, capture_output=True)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert {"device", "versions", "question"} <= set(lines[0])
    assert any(line.get("name") == "mcscore.score" and line["gpairs"] > 0 for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["labels", "pipeline", "generator", "rivals"])
def test_other_benchmarks_run(name, tmp_path):
    out = tmp_path / "out.jsonl"
    run = [sys.executable, str(FOLDER / f"{name}.py"), "--quick", "--out", str(out)]
    subprocess.run(run, check=True, capture_output=True)
    assert len(out.read_text().splitlines()) >= 2


@pytest.mark.parametrize(
    "path", sorted((FOLDER / "results").glob("*.jsonl")), ids=lambda path: path.name
)
def test_committed_results_name_their_machine(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {"device", "versions", "question"} <= set(lines[0]) and len(lines) > 1
