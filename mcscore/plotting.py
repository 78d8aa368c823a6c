"""Pictures: samples side by side, score fields, trajectories, pair plots, training curves.

Every function takes arrays and returns a matplotlib ``Figure``; matplotlib is imported when called.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np

from mcscore._optional import needed
from mcscore._validation import Table, at_least

INK, ACCENT, MUTED = "#1b3a57", "#d1495b", "#8d99a6"
OTHERS = ("#2e8b76", "#b8860b", "#6a4c93")
COLORS = (INK, OTHERS[0], ACCENT, OTHERS[1])
OVERLAID = (MUTED, ACCENT, INK, *OTHERS)


def _figure(rows: int, columns: int, *, panels: Any = None, **options: Any) -> tuple[Any, Any]:
    with needed("a picture", "matplotlib", "plot"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    class Picture(Figure):  # a Figure that notebooks show without pyplot
        def _repr_png_(self) -> bytes:
            from PIL import Image

            drawn, small = io.BytesIO(), io.BytesIO()
            self.savefig(drawn, format="png", dpi=66)
            Image.open(drawn).convert("RGB").quantize(128).save(
                small, "png"
            )  # notebooks stay small
            return small.getvalue()

    figure = Picture(layout="constrained", dpi=110, **options)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **(panels or {}))


def _bounds(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return limits that show all but the last few outliers of every column."""
    low, high = np.quantile(x, [0.002, 0.998], axis=0)
    margin = np.where(high > low, 0.08 * (high - low), 1)
    return low - margin, high + margin


def _thinned(points: Any, most: int) -> np.ndarray:
    """Return at most ``most`` rows, evenly from first to last: files are often sorted."""
    points = np.asarray(points)
    return points[np.linspace(0, len(points) - 1, min(most, len(points))).astype(int)]


def _planar(shape: str, points: Any, name: str) -> np.ndarray:
    """Return points in the plane; refuse what is none by its name."""
    points = np.asarray(points)
    fits = points.ndim == shape.count(",") + 1 and points.shape[-1] == 2 and points.size
    if not fits or points.dtype.kind not in "biuf" or not np.isfinite(points).all():
        raise ValueError(
            f"{name}: expected finite numbers {shape}, got {points.dtype} {points.shape}"
        )
    return points


def _named(kind: str, found: Any, name: str) -> None:
    """Refuse what is no mapping, or an empty one."""
    if not isinstance(found, Mapping) or not found:
        raise ValueError(
            f"{name}: expected {kind} by name, such as {{'data': x}}, got {found!r:.60}"
        )


def _columns(sets: Mapping[str, Any], columns: int, names: Any) -> tuple[dict, list, Any, Any]:
    """Return the first ``columns`` columns of every set, their names, and the first set's bounds."""
    _named("tables", sets, "sets")
    at_least(1, columns=columns)
    checked = {label: Table.of(table, name=str(label)) for label, table in sets.items()}
    known = next((table.columns for table in checked.values() if table.columns), None)
    tables = {}
    for label, table in checked.items():
        own, x = table.columns, table.values
        if own and known and set(own) == set(known):  # each in the same order
            x = x[:, [own.index(name) for name in known]]
        tables[_plain(label)] = x[:, :columns]
    first = next(iter(tables.values()))
    d = first.shape[1]
    for label, x in tables.items():
        if x.shape[1] != d:
            raise ValueError(f"sets: expected {d} columns in {label!r}, got {x.shape[1]}")
    known = known or [f"column {j}" for j in range(d)]
    shown = [_plain(name) for name in (known if names is None else names)]
    if len(shown) < d:
        raise ValueError(f"names: expected {d}, got {len(shown)}")
    return tables, shown[:d], *_bounds(first)


def _plain(text: Any) -> str:
    """Return text without formulas of matplotlib's."""
    return str(text).replace("$", r"\$")


def plot_samples(sets: Mapping[str, Any], *, title: str = "") -> Any:
    """Return point sets (n, 2) side by side on equal axes.

    Raises:
        ValueError: If there are no sets, or one is not of finite numbers (n, 2).
    """
    _named("point sets", sets, "sets")
    tables = {name: _planar("(n, 2)", x, str(name)) for name, x in sets.items()}
    figure, axes = _figure(1, len(sets), figsize=(3.4 * len(sets), 3.7))
    low, high = _bounds(next(iter(tables.values())))
    for axis, color, (name, points) in zip(axes[0], cycle(COLORS), tables.items(), strict=False):
        points = _thinned(points, 20_000)
        size = 0.6 + 4_000 / (len(points) + 1_000)
        axis.scatter(*points.T, s=size, c=color, alpha=0.55, linewidths=0, rasterized=True)
        axis.set(title=_plain(name), aspect="equal", xticks=[], yticks=[])
        axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    figure.suptitle(title, fontweight="bold")
    return figure


def plot_score(
    score: Callable[[np.ndarray], Any], data: Any, *, points: int = 24, title: str = ""
) -> Any:
    """Return the score field as arrows of equal length, colored by magnitude, over the data (n, 2).

    Raises:
        ValueError: If the data are not finite numbers (n, 2).
    """
    data = _planar("(n, 2)", data, "data")
    figure, axes = _figure(1, 1, figsize=(5, 4.4))
    axis = axes[0, 0]
    low, high = _bounds(data)
    grid = np.stack(np.meshgrid(*np.linspace(low, high, points).T), -1).reshape(-1, 2)
    field = np.asarray(score(grid.astype(np.float32)))
    norm = np.linalg.norm(field, axis=1)
    unit = field / np.maximum(norm, 1e-12)[:, None]
    axis.scatter(*_thinned(data, 5000).T, s=4, c=ACCENT, alpha=0.35, linewidths=0)
    arrows = axis.quiver(
        *grid.T, *unit.T, norm, cmap="viridis", pivot="mid", scale=1.15 * points, width=0.004
    )
    figure.colorbar(arrows, label="|score|", shrink=0.85)
    axis.set(title=title, aspect="equal", xticks=[], yticks=[])
    return figure


def plot_densities(densities: Mapping[str, Any], *, extent: Sequence[Any], title: str = "") -> Any:
    """Return densities on a grid (rows along the second axis of the plane) side by side, on one scale.

    Raises:
        ValueError: If there are no densities, or one is no grid of numbers.
    """
    _named("densities", densities, "densities")
    for name, density in densities.items():
        if np.ndim(density) != 2 or 0 in np.shape(density):
            raise ValueError(f"{name}: expected a density on a grid, got shape {np.shape(density)}")
    figure, axes = _figure(1, len(densities), figsize=(3.4 * len(densities) + 0.6, 3.7))
    tables = {name: np.asarray(density) for name, density in densities.items()}
    # The square root shows tails; the top is cut where single kernels would outshine the rest.
    found = [values[np.isfinite(values)] for values in tables.values()]
    top = max((np.quantile(values, 0.995) for values in found if values.size), default=0.0)
    top = top or max((values.max() for values in found if values.size), default=0.0) or 1.0
    for axis, (name, values) in zip(axes[0], tables.items(), strict=True):
        drawn = axis.imshow(values, origin="lower", extent=extent, cmap="magma", norm=_root(top))
        axis.set(title=_plain(name), xticks=[], yticks=[])
    bar = figure.colorbar(drawn, ax=axes, label="density", shrink=0.85, extend="max")
    ticks = [float(f"{top * share:.1g}") for share in (0, 0.1, 0.3, 0.6)]  # evenly, by their roots
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(title, fontweight="bold")
    return figure


def _root(top: float) -> Any:
    """Return a scale of colors by the square root of numbers up to ``top``."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, vmin=0, vmax=top, clip=True)


def plot_trajectories(paths: Any, *, title: str = "noise to data") -> Any:
    """Return 2-D trajectories (times, n, 2): all ends as dots, and 150 paths from noise, circles.

    Raises:
        ValueError: If the paths are not finite numbers (times, n, 2).
    """
    paths = _planar("(times, n, 2)", paths, "paths")
    some = _thinned(paths.swapaxes(0, 1), 150).swapaxes(0, 1)
    figure, axes = _figure(1, 1, figsize=(4.6, 4.6))
    axis = axes[0, 0]
    axis.plot(some[:, :, 0], some[:, :, 1], color=INK, alpha=0.3, linewidth=0.6)
    axis.scatter(
        *some[0].T, s=9, facecolors="none", edgecolors=MUTED, linewidths=0.7, label="noise z"
    )
    ends = _thinned(paths[-1], 5000)
    size = 1.5 + 1500 / (len(ends) + 200)
    axis.scatter(*ends.T, s=size, color=ACCENT, linewidths=0, label="data x", zorder=3)
    axis.set(title=title, aspect="equal", xticks=[], yticks=[])
    axis.legend(loc="upper right", frameon=True, framealpha=0.9)
    return figure


def plot_paths(sets: Mapping[str, Any], *, step: float = 1.0, title: str = "") -> Any:
    """Return paths (times, n) of one coordinate: three of each set, its central 90 %, and where they end.

    Args:
        sets: Paths by name; the first, the truth, is filled.
        step: Time between two states.
        title: Above both.

    Raises:
        ValueError: If there are no paths, or a set is no array (times, n) of finite numbers.
    """
    _named("paths", sets, "sets")
    for name, x in sets.items():
        if np.ndim(x) != 2 or 0 in np.shape(x) or not np.isfinite(x).all():
            raise ValueError(
                f"sets: expected finite paths (times, n) for {name!r}, got shape {np.shape(x)}"
            )
    panels = dict(sharey=True, width_ratios=[3, 1])
    figure, axes = _figure(1, 2, panels=panels, figsize=(7.6, 3.4))
    paths, end = axes[0]
    ends = {name: np.asarray(x)[-1] for name, x in sets.items()}
    low, high = _bounds(np.concatenate(list(ends.values()))[:, None])
    edges = _bins(ends, low[0], high[0])
    for number, (color, (name, x)) in enumerate(
        zip(cycle((MUTED, ACCENT, *OTHERS)), sets.items(), strict=False)
    ):
        x = np.asarray(x)
        times = step * np.arange(len(x))
        band = np.quantile(x, [0.05, 0.95], axis=1)
        if number == 0:
            paths.fill_between(times, *band, color=color, alpha=0.3, linewidth=0)
        else:
            paths.plot(times, band.T, color=color, linewidth=1.4, linestyle="--")
        paths.plot(times, x[:, :3], color=color, linewidth=0.8)
        paths.plot([], [], color=color, linewidth=2.5, label=name)
        end.hist(
            x[-1], bins=edges, density=True, orientation="horizontal", color=color, linewidth=1.4,
            histtype="stepfilled" if number == 0 else "step", alpha=0.45 if number == 0 else 1,
        )  # fmt: skip
    paths.set(xlabel="time", ylabel="state")
    paths.set_title("three paths, central 90 %", fontsize=9, loc="left")
    end.set_title("at the end", fontsize=9, loc="left")
    end.set(xticks=[])
    paths.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontweight="bold")
    return figure


def plot_calibration(levels: Any, band: float, *, title: str = "") -> Any:
    """Return the distribution of credibility levels (n,), see ``inference.coverage``, beside the diagonal.

    Args:
        levels: At which true values are just covered; uniform if the law is right.
        band: Distance from the diagonal that chance allows.
        title: Above.

    Raises:
        ValueError: If the levels are no numbers from 0 to 1.
    """
    if (
        np.ndim(levels) != 1
        or not len(levels)
        or not ((np.asarray(levels) >= 0) & (np.asarray(levels) <= 1)).all()
    ):
        raise ValueError("levels: expected numbers (n,) from 0 to 1")
    figure, axes = _figure(1, 1, figsize=(3.8, 3.8))
    axis, ordered, diagonal = axes[0, 0], np.sort(levels), np.array([0.0, 1.0])
    axis.fill_between(
        diagonal, diagonal - band, diagonal + band, color=MUTED, alpha=0.3, lw=0, label="chance"
    )
    axis.plot(diagonal, diagonal, color=MUTED, linewidth=0.8)
    axis.step(
        [0, *ordered, 1],
        [0, *np.arange(1, len(ordered) + 1) / len(ordered), 1],
        where="post",
        color=INK,
    )
    axis.set(xlabel="credibility level", ylabel="share of true values inside", title=title)
    axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axis.legend(frameon=False, loc="upper left")
    return figure


def plot_pairs(
    sets: Mapping[str, Any], *, columns: int = 5, names: Any = None, title: str = ""
) -> Any:
    """Return a pair plot of the first ``columns`` columns: marginals and pairwise scatter, sets overlaid.

    Points of all sets are drawn in one random order, so that none hides another.
    """
    tables, names, low, high = _columns(sets, columns, names)
    d = len(names)
    figure, axes = _figure(d, d, figsize=(1.75 * d + 0.6, 1.75 * d + 0.8))
    colors = dict(zip(tables, cycle((INK, ACCENT, *OTHERS)), strict=False))
    few = [_thinned(table, 1500) for table in tables.values()]
    points = np.concatenate(few)
    paint = np.repeat(list(colors.values()), list(map(len, few)))
    mixed = np.random.default_rng(0).permutation(len(points))
    size = 1.2 + 2000 / (len(points) / len(few) + 200)
    for i in range(d):
        bins = _bins(tables, low[i], high[i])
        for j in range(d):
            axis = axes[i, j]
            if j > i:
                axis.set_axis_off()
                continue
            if i == j:
                for label, table in tables.items():
                    axis.hist(
                        table[:, i], bins, density=True, histtype="step", color=colors[label],
                        label=label, lw=1.4,
                    )  # fmt: skip
            else:
                x, y = points[mixed][:, [j, i]].T
                axis.scatter(x, y, s=size, c=paint[mixed], alpha=0.45, linewidths=0)
                axis.set_ylim(low[i], high[i])
            axis.set_xlim(low[j], high[j])
            axis.locator_params(nbins=3)
            axis.tick_params(labelsize=7, labelbottom=i == d - 1, labelleft=i > j == 0, left=i != j)
            if i == d - 1:
                axis.set_xlabel(names[j], fontsize=8)
            if j == 0 and i:
                axis.set_ylabel(names[i], fontsize=8)
    figure.suptitle(title, fontweight="bold")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", frameon=False, bbox_to_anchor=(0.98, 0.93))
    return figure


def plot_marginals(
    sets: Mapping[str, Any], *, columns: int = 12, names: Any = None, title: str = ""
) -> Any:
    """Return histograms of the first ``columns`` columns, the first set filled and the others as lines."""
    tables, names, low, high = _columns(sets, columns, names)
    d, first = len(names), next(iter(tables.values()))
    wide = min(d, 4)
    tall = -(-d // wide)
    figure, axes = _figure(tall, wide, figsize=(2.6 * wide + 0.4, 2.0 * tall + 0.8))
    for j, axis in enumerate(axes.flat):
        if j >= d:
            axis.set_axis_off()
            continue
        bins = _bins(tables, low[j], high[j])
        top = np.histogram(first[:, j], bins, density=True)[0].max()
        for i, (color, (label, table)) in enumerate(
            zip(cycle(OVERLAID), tables.items(), strict=False)
        ):
            fill: dict[str, Any] = dict(histtype="stepfilled", alpha=0.35) if i == 0 else {}
            line: dict[str, Any] = fill or dict(histtype="step", lw=1.3)
            axis.hist(table[:, j], bins, density=True, color=color, label=label, **line)
        axis.set(title=names[j], yticks=[], xlim=(low[j], high[j]), ylim=(0, 1.15 * top))
        axis.title.set_fontsize(9)
        axis.tick_params(labelsize=7)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(tables), frameon=False)
    figure.suptitle(title, fontweight="bold")
    return figure


def _bins(tables: Mapping[str, np.ndarray], low: float, high: float) -> np.ndarray:
    """Return the edges of bins, fewer for fewer rows, so that noise does not look like structure."""
    fewest = min(map(len, tables.values()))
    return np.linspace(low, high, 1 + int(np.clip(3 * fewest ** (1 / 3), 8, 60)))


def plot_columns(values: Mapping[str, Any], *, ylabel: str = "", title: str = "") -> Any:
    """Return one number per column and set as dots on a logarithmic axis.

    Raises:
        ValueError: If there are no sets.
    """
    _named("numbers", values, "values")
    figure, axes = _figure(1, 1, figsize=(6.4, 3.2))
    axis = axes[0, 0]
    d = 1
    for color, (name, numbers) in zip(cycle((ACCENT, INK, *OTHERS)), values.items(), strict=False):
        d = len(numbers)
        axis.semilogy(np.arange(d), numbers, "o-", color=color, label=name, ms=4, lw=0.8)
    step = max(1, d // 20)
    axis.set(xlabel="column", ylabel=ylabel, xticks=range(0, d, step))
    axis.set_title(title, loc="left")
    axis.grid(alpha=0.25, axis="y", linewidth=0.5)
    figure.legend(frameon=False, ncols=3, loc="outside lower center")
    return figure


def plot_history(histories: Mapping[str, Any], *, title: str = "training") -> Any:
    """Return losses per epoch (``train_loss``, ``validation_loss``) on a logarithmic axis.

    Raises:
        ValueError: If there are no histories.
    """
    _named("histories", histories, "histories")
    figure, axes = _figure(1, 1, figsize=(5.4, 3.6))
    axis = axes[0, 0]
    for color, (name, history) in zip(cycle(COLORS), histories.items(), strict=False):
        axis.semilogy(history.train_loss, color=color, alpha=0.35, lw=1)
        axis.semilogy(history.validation_loss, color=color, lw=1.6, label=name)
        best = history.best_epoch
        axis.plot(best, history.validation_loss[best], "o", color=color, ms=4)
    axis.set(title=title, xlabel="epoch", ylabel="mean squared error per coordinate")
    axis.grid(alpha=0.25, which="both", linewidth=0.5)
    axis.legend(title="validation (faint: training)", fontsize=8, title_fontsize=8, frameon=False)
    return figure
