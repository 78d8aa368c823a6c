"""Draw docs/rivals_*.png from the committed results: how well every rival samples, and how long it trains.

python benchmarks/picture.py
"""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from table import ROOT, read

from mcscore.plotting import ACCENT, INK

PLACES = {(9, 0): "left", (-9, 0): "right", (5, 11): "left", (5, -11): "left", (-5, 11): "right"}
TABLES = {"power": "POWER", "miniboone": "MINIBOONE"}
SHOWN = {
    "mcscore, law": "law",
    "mcscore, law by rule": "law by rule",
    "mcscore, one step": "one step",
    "scikit-learn KDE": "KDE",
    "scikit-learn Gaussian mixture": "Gaussian mixture",
    "flowjax MAF": "MAF",
    "flowjax spline": "spline flow",
    "flow matching": "flow matching",
    "vine copula": "vine copula",
    "the paper's method": "the paper's method",
}


def write(axis, labels: list[tuple[float, float, str, str]]) -> None:
    """Write every label at the first place where it touches neither a mark nor another label."""
    taken: list[Bbox] = []
    for x, y, _, _ in labels:
        at = axis.transData.transform((x, y))
        taken.append(Bbox([at - 7, at + 7]))
    for x, y, label, color in labels:
        for offset, side in PLACES.items():
            text = axis.annotate(
                label, (x, y), offset, textcoords="offset points", color=color, ha=side, va="center"
            )  # fmt: skip
            text.set_in_layout(False)
            box = text.get_window_extent()
            inside = axis.bbox.x0 <= box.x0 and box.x1 <= axis.bbox.x1
            if inside and not box.count_overlaps(taken):
                break
            text.remove()
        else:
            raise ValueError(f"no place for {label!r} is free")
        taken.append(box)


def draw(data: str, title: str) -> None:
    """Draw the picture of one table."""
    figure = Figure(layout="constrained", dpi=110, figsize=(5.4, 3.9))
    axis, labels = figure.subplots(), []
    found = {row["rival"]: row for row in read("rivals.jsonl") if row["data"] == data}
    for rival in (name for name in SHOWN if "training_seconds" in found.get(name, {})):
        ours = rival.startswith("mcscore")
        color, marker = (ACCENT, "o") if ours else (INK, "s")
        x, y = found[rival]["training_seconds"], found[rival]["classifier"]
        name = "mcscore" if ours else "rivals"
        axis.scatter(x, y, s=50, color=color, marker=marker, zorder=3, label=name)
        labels.append((x, y, SHOWN[rival], color))
    rows, d = found["mcscore, law"]["rows"], found["mcscore, law"]["d"]
    axis.set_title(f"{title}: {rows:,} rows, {d} columns", loc="left", fontweight="bold")
    axis.set(xscale="log", ylim=(0.485, 1.02), xlabel="seconds to train (2 CPU cores)")
    low, high = axis.get_xlim()
    axis.set_xlim(low, high * (high / low) ** 0.28)  # room for the last label
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.25)
    axis.set_ylabel("accuracy of a classifier that tells\ndraws from test rows (0.5: it cannot)")
    kinds = dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    place = dict(loc="outside lower center", ncols=2)
    figure.legend(kinds.values(), kinds, labelcolor="linecolor", frameon=False, **place)
    figure.draw_without_rendering()  # from here on places are known
    write(axis, labels)
    figure.savefig(ROOT / f"docs/rivals_{data}.png")


if __name__ == "__main__":
    for data, title in TABLES.items():
        draw(data, title)
