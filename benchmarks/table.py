"""Write the tables of benchmarks/README.md and of docs/ from the committed results.

python benchmarks/table.py
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

from mcscore.experiments import comparison, systems

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"
OURS = "mcscore.score"
REFERENCE = "training rows"  # no rival: what rows of the same law score


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
            cells.append(f"{text} ({row[law]['seconds']:.0f}&nbsp;s)")
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
    """Gpair/s at noise 0.5 and 0.1 (of the H100 at the one that its older run had)."""
    columns = (2, 6, 21, 43)
    table = ["| | d = 2 | 6 | 21 | 43 |", "|---|---|---|---|---|"]
    for device, file in (("2 CPU cores", "score_cpu.jsonl"), ("H100", "score_h100.jsonl")):
        entries = [e for e in read(file) if e.get("rows") == 16384 and e["kind"] == "score"]
        for name in dict.fromkeys(entry["name"] for entry in entries):
            cells = [
                ", ".join(f"{e['gpairs']:.2f}" for e in entries if (e["name"], e["d"]) == (name, d))
                for d in columns
            ]
            table.append(f"| {name}, {device} | " + " | ".join(cells) + " |")
    ours = [e for e in read("score_cpu.jsonl") if (e.get("name"), e.get("rows")) == (OURS, 16384)]
    cells = [
        ", ".join(f"{e['of_loop']:.0%}" for e in ours if e["d"] == d and "of_loop" in e)
        for d in columns
    ]
    table.append(f"| {OURS}, share of its innermost loop alone | " + " | ".join(cells) + " |")
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
        for at, name in ((1, "deviation"), (2, "spectrum")):
            cells[at] = f"{entry[name]:.1%}"
        label = f"{entry['data'].replace('_', ' ')} ({entry['rows']:,}, {entry['d']})"
        if entry["variant"] != "default":
            label = f"- {entry['variant']}"
        table.append(f"| {label} | " + " | ".join(cells) + " |")
    return table


def networks() -> list[str]:
    """Error of the density, folds, effective sample size and seconds, after refining where there is any."""
    name = lambda entry: entry["variant"].removesuffix(", refined")
    entries = {(e["data"], name(e)): e for e in read("networks.jsonl")}  # refined: the last
    tables = list(dict.fromkeys(data for data, _ in entries))
    page = ["| network | " + " | ".join(tables).replace("_", " ") + " |"]
    page.append("|---" * (len(tables) + 1) + "|")
    for network in dict.fromkeys(network for _, network in entries):
        cells = []
        for data in tables:
            e = entries[data, network]
            shares = f"{e['folded']:.2%}, {e['effective_sample_size']:.2f}"
            cells.append(f"{e['density_error']:.2f}, {shares}, {e['seconds']:.0f} s")
        page.append(f"| {network} | " + " | ".join(cells) + " |")
    return page


def pipeline() -> list[str]:
    stages = ("mixture", "labels", "training", "refining", "total", "peak_mib")
    table = ["| | " + " | ".join([*(f"{s}, s" for s in stages[:-1]), "memory, MiB"]) + " |"]
    table.append("|---" * (len(stages) + 1) + "|")
    for entry in read("pipeline.jsonl"):
        if entry["kind"] == "growth":
            digits, label = 2, f"*growth over {entry['over']}*"
        elif entry["kind"] == "pipeline":
            digits, size = 0, f"{entry['rows']:,} rows, d = {entry['columns']}"
            label = f"{size}, {entry['pairs']:,} pairs, width {entry['width']}"
        else:
            continue
        cells = [f"{entry[stage]:.{digits}f}" if stage in entry else "" for stage in stages]
        table.append(f"| {label} | " + " | ".join(cells) + " |")
    return table


RANKS = {  # how far from the best: the least is the best
    "sliced_wasserstein": lambda v: v,
    "classifier": lambda v: max(v, 0.5),
    "column_kl": lambda v: v,
    "memorization": lambda v: max(v, 0.5),
    "log_likelihood": lambda v: -v,
}


def best_of(rows: list[dict], name: str) -> set[str]:
    """Return the rival whose figure is the best, and those that scatter or chance explains."""
    paper = lambda row: name == "log_likelihood" and "paper" in row["rival"]
    rows, rank = [row for row in rows if name in row and not paper(row)], RANKS[name]
    first = min(rows, key=lambda row: rank(row[name]))
    chance = rank(first[f"{name}_threshold"]) if f"{name}_threshold" in first else -math.inf
    ranks = {row["rival"]: rank(row[name]) for row in rows}
    return comparison.as_good_as_best(ranks, own_error(rows, first, name), chance)


def own_error(rows: list[dict], row: dict, name: str) -> float:
    """Return the standard error of one rival's figure, over splits or sets of draws.

    Over splits of what is left when each split's median over all rivals is subtracted: which rows are held
    out makes a table easy or hard for everybody.
    """
    if "splits" not in row:
        return row.get(f"{name}_error", 0.0)
    values = zip(*(other["splits"][name] for other in rows), strict=True)
    easy = [statistics.median(split) for split in values]
    left = [value - median for value, median in zip(row["splits"][name], easy, strict=True)]
    return statistics.stdev(left) / math.sqrt(len(left))


def rivals() -> list[str]:
    columns = {
        "sliced_wasserstein": "SW",
        "classifier": "classifier",
        "column_kl": "KL",
        "memorization": "nearer",
        "log_likelihood": "log p, nats",
        "unknown": "log p unknown",
        "training_seconds": "training, s",
        "sampling_seconds": "100,000 draws, s",
        "wild": "wild draws",
        "full_size_hours": "full size, h",
    }
    entries = read("rivals.jsonl")
    for entry in entries:
        entry["wild"] = entry.get("nonfinite", 0) + entry.get("beyond_100_deviations", 0)
    page = []
    for data in dict.fromkeys(entry["data"] for entry in entries):
        table = ["| | " + " | ".join(columns.values()) + " |"]
        table.append("|---" * (len(columns) + 1) + "|")
        rows = [entry for entry in entries if entry["data"] == data]
        rows.sort(key=lambda entry: not entry["rival"].startswith("mcscore"))
        fair = [row for row in rows if "failed" not in row and row["rival"] != REFERENCE]
        best = {name: best_of(fair, name) for name in RANKS}
        for row in rows:
            if "failed" in row:
                why = f"failed: {row['failed']}".replace("failed: TimeoutError", "not run")
                table.append(f"| {row['rival']} | {why} |" + " |" * (len(columns) - 1))
                continue
            cells = []
            for name in columns:
                hidden = row["rival"] == REFERENCE and name not in RANKS
                text = "" if hidden or name not in row else figure(row[name])
                if text and name == "log_likelihood" and "paper" in row["rival"]:
                    text = f"({text})"  # of its law: the network has none
                elif row["rival"] in best.get(name, ()):
                    text = f"**{text}**"
                cells.append(text)
            table.append(f"| {row['rival']} | " + " | ".join(cells) + " |")
        about = f"{data.replace('_', ' ')}: {rows[0]['rows']:,} rows, {rows[0]['d']} columns"
        page += folded(about, table)
    return page


def folded(title: str, table: list[str]) -> list[str]:
    """Return a table that opens at a click, on a page of GitHub's and on one of mkdocs."""
    return [f'<details markdown="1"><summary>{title}</summary>', "", *table, "", "</details>", ""]


def against(own: dict, rival: dict) -> list[int]:
    """Return whether ours is behind (0), equal (1) or first (2), in distance and classifier."""
    best = [best_of([own, rival], name) for name in ("sliced_wasserstein", "classifier")]
    return [1 if len(names) == 2 else 2 * (own["rival"] in names) for names in best]


def in_time() -> list[str]:
    """A line per rival, a column per table of up to 12: the best of ours that trains no longer."""
    entries = [e for e in read("rivals.jsonl") if e["d"] <= 12 and "failed" not in e]
    ours = [e for e in entries if e["rival"].startswith("mcscore")]
    theirs = [e for e in entries if e not in ours and e["rival"] != REFERENCE]
    tables = list(dict.fromkeys(e["data"] for e in entries))
    titles = " | ".join(tables).replace("_", " ")
    out = [f"| | {titles} |", "|---" * (len(tables) + 1) + "|"]
    for name in dict.fromkeys(e["rival"] for e in theirs):
        cells, of = [], {e["data"]: e for e in theirs if e["rival"] == name}
        for rival in map(of.get, tables):
            if rival is None:  # it was not run
                cells.append("")
                continue
            found = {
                own["rival"].removeprefix("mcscore, "): against(own, rival)
                for own in ours
                if own["data"] == rival["data"]
                and own["training_seconds"] <= rival["training_seconds"]
            }
            best = max(found, key=lambda own: (min(found[own]), sum(found[own])), default=None)
            words = ", ".join(
                ("behind", "equal", "first")[verdict] for verdict in found.get(best, ())
            )
            cells.append(f"{best}: {words}" if found else "none")
        out.append(f"| {name} | " + " | ".join(cells) + " |")
    return out


def inference() -> list[str]:
    """A line per task and number of simulations; the rival's own run stands behind the published figure."""
    entries = read("inference.jsonl")
    table = [
        "| task | simulations | law | network | NPE, published | NPE, same run |",
        "|---" * 6 + "|",
    ]
    tasks = list(dict.fromkeys(e["data"] for e in entries))
    for task, size in sorted({(tasks.index(e["data"]), e["variant"]) for e in entries}):
        own = {e["rival"]: e for e in entries if (e["data"], e["variant"]) == (tasks[task], size)}
        told = [
            f"{e['c2st']:.3f}&nbsp;±&nbsp;{e['error']:.3f}, {e['seconds']:.0f}&nbsp;s" if e else ""
            for e in map(own.get, ("mcscore, law", "mcscore, network", "sbi, NPE"))
        ]
        published = f"{next(iter(own.values()))['published']:.3f}"
        cells = [tasks[task].replace("_", " "), f"{size:,}", *told[:2], published, told[2]]
        table.append(f"| {' | '.join(cells)} |")
    return table


def dynamics() -> list[str]:
    """Errors of mean, deviation and distribution of each system, after one step and at a path's end."""
    moments = ("one step", "last step")
    table = [f"| system | fit, s | {' | '.join(moments)} |", "|---" * 4 + "|"]
    for entry in read("dynamics.jsonl"):
        if entry["data"] == "labels":
            continue
        told = [
            ", ".join(f"{entry[f'{name}, {moment}']:.3f}" for name in systems.METRICS)
            for moment in moments
        ]
        steps = f" ({entry['steps']} steps)" if entry["steps"] > 1 else ""
        table.append(f"| {entry['data']} | {entry['fit']:.0f} | {told[0]} | {told[1]}{steps} |")
    return folded("Seven systems: errors and seconds", table)


def larger() -> list[str]:
    """One sentence: what the law of a large table took."""
    whole, part, cost = read("larger.jsonl")
    return [
        f"Measured (`benchmarks/larger.py`, two cores): {whole['rows']:,} rows of eight columns in "
        f"{cost['parts']} parts took {cost['seconds']:.0f} s",
        f"and {cost['resident_mib'] / 1024:.2f} GiB of memory at most;",
        f"{cost['queries']:,} densities took {cost['density_seconds']:.0f} s, as many scores "
        f"{cost['score_seconds']:.0f} s. One part alone ({part['rows']:,} rows) gave a log density",
        f"{whole['gain']:.3f} ± {whole['error']:.3f} nats per row lower than the law of all parts.",
    ]


def versions() -> list[str]:
    """Which commit each file of results is of, and on which machine."""
    table = ["| results | version | machine | JAX |", "|---|---|---|---|"]
    for path in sorted(RESULTS.glob("*.jsonl")):
        about = json.loads(path.read_text().splitlines()[0])
        machine = f"{about['device']}, {about['cores']} cores"
        commit, jax = about.get("commit") or "older", about["versions"]["jax"]
        table.append(f"| {path.stem} | {commit} | {machine} | {jax} |")
    return table


def figure(value: float) -> str:
    if abs(value) >= 1e5:
        return f"{value:.0e}"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"


def reproduced() -> list[str]:
    titles = (*comparison.COLUMNS.values(), comparison.FLOOR, comparison.CHANCE)
    page = []
    for name in ("power", "miniboone"):
        table = ["| | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
        results = json.loads((RESULTS / f"reproduce_{name}.json").read_text())
        for line in comparison.table(results):
            cells = []
            for column, value in line.cells.items():
                text = comparison.cell(value)
                cells.append(f"**{text}**" if column == line.best else text)
            cells += [
                "" if value is None else comparison.cell(value)
                for value in (line.floor, line.chance)
            ]
            table.append(f"| {line.name} | " + " | ".join(cells) + " |")
        page += folded(name.upper(), table)
    return page


def write(path: Path, mark: str, table: list[str]) -> None:
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    text = path.read_text()
    before, after = text.split(begin)[0], text.split(begin)[1].split(end)[-1]
    path.write_text(before + "\n".join([begin, *table, end]) + after)


if __name__ == "__main__":
    write(ROOT / "docs/which_model.md", "laws", laws())
    write(ROOT / "docs/conditions.md", "inference", inference())
    write(ROOT / "docs/conditions.md", "dynamics", dynamics())
    write(ROOT / "docs/scaling.md", "larger", larger())
    write(ROOT / "benchmarks/README.md", "versions", versions())
    write(ROOT / "benchmarks/README.md", "samples", samples())
    write(ROOT / "benchmarks/README.md", "score", score())
    write(ROOT / "benchmarks/README.md", "labels", labels())
    write(ROOT / "benchmarks/README.md", "generator", generator())
    write(ROOT / "benchmarks/README.md", "networks", networks())
    write(ROOT / "docs/experiments.md", "reproduce", reproduced())
    write(ROOT / "docs/experiments.md", "rivals", rivals())
    write(ROOT / "docs/experiments.md", "in time", in_time())
    write(ROOT / "docs/experiments.md", "pipeline", pipeline())
