"""Draw docs/rivals.png from the committed results: how well every rival samples, and how long it trains.

python benchmarks/picture.py
"""

from __future__ import annotations

import math

from matplotlib.figure import Figure
from table import ROOT, read

from mcscore.plotting import ACCENT, INK

NEAR = 0.4, 0.03  # decades of seconds and accuracy within which labels would touch
WIDE = 0.45  # decades of seconds that a label takes: with a mark so near on its right it goes to the left
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


def main() -> None:
    figure = Figure(layout="constrained", dpi=110, figsize=(11, 3.9))
    axes = figure.subplots(1, len(TABLES), sharey=True)
    for axis, (data, title) in zip(axes, TABLES.items(), strict=True):
        found = {row["rival"]: row for row in read("rivals.jsonl") if row["data"] == data}
        for rival in (name for name in SHOWN if "training_seconds" in found.get(name, {})):
            label = SHOWN[rival]
            ours = rival.startswith("mcscore")
            color, marker = (ACCENT, "o") if ours else (INK, "s")
            x, y = found[rival]["training_seconds"], found[rival]["classifier"]
            name = "mcscore" if ours else "rivals"
            axis.scatter(x, y, s=50, color=color, marker=marker, zorder=3, label=name)
            crowd = [
                y - other["classifier"]
                for name, other in found.items()
                if name in SHOWN and name != rival and "training_seconds" in other
                and abs(math.log10(x / other["training_seconds"])) < NEAR[0]
                and abs(y - other["classifier"]) < NEAR[1]
            ]  # fmt: skip
            level = [
                math.log10(other["training_seconds"] / x)
                for name, other in found.items()
                if name in SHOWN and name != rival and "training_seconds" in other
                and abs(y - other["classifier"]) < NEAR[1]
            ]  # fmt: skip
            to_left = any(0 < r < WIDE for r in level) and not any(-WIDE < r <= 0 for r in level)
            aside = 6 * ((max(crowd, default=0) > 0) - (min(crowd, default=0) < 0))
            axis.annotate(
                label, (x, y), (-8 if to_left else 8, 0 if to_left else aside - 1), va="center",
                textcoords="offset points", color=color, ha="right" if to_left else "left",
            )  # fmt: skip
        rows, d = found["mcscore, law"]["rows"], found["mcscore, law"]["d"]
        axis.set_title(f"{title}: {rows:,} rows, {d} columns", loc="left", fontweight="bold")
        axis.set(xscale="log", ylim=(0.485, 1.02), xlabel="seconds to train (2 CPU cores)")
        low, high = axis.get_xlim()
        axis.set_xlim(low, high * (high / low) ** 0.28)  # room for the last label
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.25)
    axes[0].set_ylabel("accuracy of a classifier that tells\ndraws from test rows (0.5: it cannot)")
    kinds = dict(zip(*axes[0].get_legend_handles_labels()[::-1], strict=True))
    axes[0].legend(kinds.values(), kinds, loc="upper left", labelcolor="linecolor", frameon=False)
    figure.savefig(ROOT / "docs/rivals.png")


if __name__ == "__main__":
    main()
