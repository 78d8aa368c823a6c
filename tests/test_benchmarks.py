import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
NAMES = ["labels", "pipeline", "generator", "rivals", "kinds", "dynamics", "inference"]
NAMES += ["faults", "devices", "larger", "first_hour", "networks"]


@pytest.mark.slow
def test_score_benchmark_runs_and_writes_json_lines(tmp_path):
    out = tmp_path / "score.jsonl"
    run = [sys.executable, str(FOLDER / "score.py"), "--quick", "--out", str(out)]
    subprocess.run(run, check=True, capture_output=True)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert {"device", "versions", "question"} <= set(lines[0])
    assert any(line.get("name") == "mcscore.score" and line["gpairs"] > 0 for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_other_benchmarks_run(name, tmp_path):
    out = tmp_path / "out.jsonl"
    run = [sys.executable, str(FOLDER / f"{name}.py"), "--quick", "--out", str(out)]
    subprocess.run(run, check=True, capture_output=True)
    assert len(out.read_text().splitlines()) >= 2


def test_lines_not_run_again_stay_in_their_places(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    from clock import Results

    out, names = tmp_path / "out.jsonl", [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]

    def run(value, wanted, **only):
        results = Results(out, "?", **only)
        for data, rival in wanted:
            results.add(data=data, rival=rival, value=value)
        found = [json.loads(line) for line in out.read_text().splitlines()][1:]
        return [(e["data"], e["rival"], e["value"]) for e in found]

    assert run(1, names) == [(*name, 1) for name in names]
    found = run(2, [("a", "x"), ("c", "x")], data=["a", "c"], rival=["x"])
    assert found == [("a", "x", 2), ("a", "y", 1), ("b", "x", 1), ("b", "y", 1), ("c", "x", 2)]
    kept = run(3, [("b", "x")], data=["b"])  # interrupted before ("b", "y"): that line stays
    assert kept == [("a", "x", 2), ("a", "y", 1), ("b", "x", 3), ("b", "y", 1), ("c", "x", 2)]
    new = run(3, [("a", "x"), ("a", "z")], data=["a"])  # a new rival: behind the one before it
    assert new == [("a", "x", 3), ("a", "z", 3), ("a", "y", 1), *kept[2:]]
    assert run(4, names[:1], data=None) == [("a", "x", 4)]


def test_every_rival_is_in_every_table():
    lines = (FOLDER / "results/rivals.jsonl").read_text().splitlines()[1:]
    ours, found = "mcscore, law", {}
    for entry in map(json.loads, lines):
        found.setdefault(entry["data"], set()).add(entry["rival"])
    rivals = set.union(*found.values()) - {"training rows"}
    assert len(found) == 8 and ours in rivals and all(rivals <= names for names in found.values())


@pytest.mark.parametrize(
    "path", sorted((FOLDER / "results").glob("*.jsonl")), ids=lambda path: path.name
)
def test_committed_results_name_their_machine(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {"device", "versions", "question"} <= set(lines[0]) and len(lines) > 1
