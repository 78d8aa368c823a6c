"""Write the tables of README.md and benchmarks/README.md from the committed results.

python benchmarks/table.py
"""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (RESULTS / name).read_text().splitlines()[1:]]


def laws() -> list[str]:
    entries = read("laws.jsonl")
    names = list(dict.fromkeys(entry["law"] for entry in entries))
    table = ["| data (rows, d) | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for data in dict.fromkeys(entry["data"] for entry in entries):
        row = {entry["law"]: entry for entry in entries if entry["data"] == data}
        first, best = next(iter(row.values())), max(e["log_likelihood"] for e in row.values())
        cells = []
        for law in names:
            value = row[law]["log_likelihood"]
            text = f"**{value:.2f}**" if value == best else f"{value:.2f}"
            cells.append(f"{text} ({row[law]['seconds']:.0f} s)")
        label = data.replace("_", " ")
        table.append(f"| {label} ({first['rows']:,}, {first['d']}) | " + " | ".join(cells) + " |")
    return table


def samples() -> list[str]:
    """Accuracy of a classifier, and the share of draws nearer to training rows."""
    entries = read("laws.jsonl")
    names = [n for n in dict.fromkeys(e["law"] for e in entries) if "best" not in n]
    table = ["| data | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for data in dict.fromkeys(entry["data"] for entry in entries):
        row = {entry["law"]: entry for entry in entries if entry["data"] == data}
        cells = [f"{row[n]['classifier']:.3f}, {row[n]['nearer_to_training']:.2f}" for n in names]
        table.append(f"| {data.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return table


def score() -> list[str]:
    table = ["| | d = 2 | 6 | 21 | 43 |", "|---|---|---|---|---|"]
    for device, file in (("2 CPU cores", "score_cpu.jsonl"), ("H100", "score_h100.jsonl")):
        entries = [e for e in read(file) if e.get("rows") == 16384 and e["kind"] == "score"]
        for name in dict.fromkeys(entry["name"] for entry in entries):
            values = {entry["d"]: entry["gpairs"] for entry in entries if entry["name"] == name}
            cells = [f"{values[d]:.2f}" if d in values else "" for d in (2, 6, 21, 43)]
            table.append(f"| {name}, {device} | " + " | ".join(cells) + " |")
    return table


def labels() -> list[str]:
    entries = [e for e in read("labels_cpu.jsonl") if e["kind"] == "precision"]
    problems = list(dict.fromkeys(entry["problem"] for entry in entries))
    table = ["| | evaluations | " + " | ".join(problems) + " |"]
    table.append("|---" * (len(problems) + 2) + "|")
    for key in dict.fromkeys((entry["name"], entry["evaluations"]) for entry in entries):
        row = {e["problem"]: e for e in entries if (e["name"], e["evaluations"]) == key}
        cells = [f"{row[p]['rms']:.1e} ({row[p]['median']:.0e})" for p in problems]
        table.append(f"| {key[0]} | {key[1]} | " + " | ".join(cells) + " |")
    return table


def generator() -> list[str]:
    columns = {
        "classifier": "classifier",
        "deviation": "std",
        "spectrum": "spectrum",
        "density_error": "log p, nats",
        "certified": "certified",
        "mass": "mass",
        "fit_seconds": "fit, s",
        "sample_seconds": "100,000 samples, s",
        "log_prob_seconds": "10,000 log p, s",
    }
    table = ["| data (rows, d) | " + " | ".join(columns.values()) + " |"]
    table.append("|---" * (len(columns) + 1) + "|")
    for entry in read("generator.jsonl"):
        cells = ["" if entry[name] is None else f"{entry[name]:.3g}" for name in columns]
        label = f"{entry['data'].replace('_', ' ')} ({entry['rows']:,}, {entry['d']})"
        if entry["variant"] != "default":
            label = f"- {entry['variant']}"
        table.append(f"| {label} | " + " | ".join(cells) + " |")
    return table


def write(path: Path, mark: str, table: list[str]) -> None:
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    text = path.read_text()
    before, after = text.split(begin)[0], text.split(begin)[1].split(end)[-1]
    path.write_text(before + "\n".join([begin, *table, end]) + after)


if __name__ == "__main__":
    write(ROOT / "README.md", "laws", laws())
    write(ROOT / "benchmarks/README.md", "samples", samples())
    write(ROOT / "benchmarks/README.md", "score", score())
    write(ROOT / "benchmarks/README.md", "labels", labels())
    write(ROOT / "benchmarks/README.md", "generator", generator())
