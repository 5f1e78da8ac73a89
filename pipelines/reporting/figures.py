"""The figures of a report, each a function from findings to a matplotlib Figure.

    figures.history(findings("quickstart"))

They are made to be read on a phone and in grey: narrow, with markers, line styles and labels that
tell apart what colour alone would not. Nothing here touches pyplot's global state.
"""

import logging
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from pipelines.console.text import format_value
from pipelines.reporting.findings import INACTIVE, Findings
from pipelines.reporting.judgement import (
    Importance,
    budgets,
    comparable,
    importance,
    over_seeds,
    ranking,
)
from pipelines.reporting.mixing import OUT, Mixing

WIDTH = 5.0
"""Inches: what a phone shows of it can be read."""
INK, GREY, LIGHT = "#111111", "#6b6b6b", "#bdbdbd"
SHADES = "cividis"
"""Dark is better, light is worse: its lightness rises evenly, so that it survives in grey."""
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "text.parse_math": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
MARKERS: dict[str, dict[str, Any]] = {
    "complete": {"marker": "o", "facecolors": INK, "edgecolors": INK, "s": 26},
    "pruned": {"marker": "v", "facecolors": "white", "edgecolors": GREY, "s": 24},
    "unfinished": {"marker": "s", "facecolors": "white", "edgecolors": GREY, "s": 22},
}
MOST_CONFIGURATIONS = 12
"""In the leaderboard's figure."""
MOST_NUMBERED = 150
"""Cells of a heat map up to which each has its number written in it."""
P = ParamSpec("P")
logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of the fonts it looks for


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """The style of the report, for the time of a drawing."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


@_styled
def leaderboard(found: Findings) -> Figure:
    """The best trials, and the interval of their configuration where seeds were repeated."""
    table = ranking(found)
    table = table[table["bits_per_byte"].notna()].head(MOST_CONFIGURATIONS)[::-1]
    figure, (axes,) = _axes(0.9 + 0.28 * max(len(table), 1))
    places = np.arange(len(table))
    for state, marker in MARKERS.items():
        here = (table["state"] == state).to_numpy()
        if here.any():
            axes.scatter(table["bits_per_byte"][here], places[here], label=state, **marker)
    repeated = (table["n"] > 1).fillna(False).to_numpy(dtype=bool)
    if repeated.any():
        rows = table[repeated]
        errors = [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]
        means, below, name = rows["mean"], places[repeated] - 0.22, "mean over seeds, 95 %"
        axes.errorbar(means, below, xerr=errors, fmt="|", color=GREY, capsize=3, label=name)
    axes.set_yticks(places, [f"trial {number}" for number in table.index])
    axes.set_xlabel("bits per byte, less is better")
    if len(table):
        axes.legend(loc="best")
    return figure


@_styled
def history(found: Findings) -> Figure:
    """What each trial reached, in the order they began, and the best so far."""
    figure, (axes,) = _axes(3.2)
    table = found.trials
    for state, marker in MARKERS.items():
        some = table[(table["state"] == state) & table["bits_per_byte"].notna()]
        if len(some):
            axes.scatter(some.index, some["bits_per_byte"], label=state, **marker)
    complete = table[table["state"] == "complete"]["bits_per_byte"].cummin()
    if len(complete):
        ends = [*complete.index, table.index.max() + 0.5]
        values = [*complete, complete.iloc[-1]]
        axes.step(ends, values, where="post", color=INK, linewidth=1.2, label="best complete")
    failed = table.index[table["state"] == "failed"]
    if len(failed):
        top, name = np.full(len(failed), 0.98), "failed: no number"
        place = axes.get_xaxis_transform()
        axes.scatter(failed, top, marker="x", color=INK, s=26, label=name, transform=place)
    axes.set_xlabel("trial")
    axes.set_ylabel("bits per byte")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(table):
        axes.legend(loc="best")
    return figure


@_styled
def importances(found: Findings, known: Importance | None = None) -> Figure:
    """The share of the trials' differences that each searched key explains."""
    shares = (known or importance(found)).shares.dropna()[::-1]
    figure, (axes,) = _axes(0.8 + 0.32 * max(len(shares), 1))
    bars = axes.barh(shares.index, shares["share"], color="#4d4d4d", height=0.6)
    axes.bar_label(bars, [f"{100 * share:.0f} %" for share in shares["share"]], padding=3)
    axes.set_xlim(0, 1.12)
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %" if share <= 1 else "")
    axes.set_xlabel("share of the variance between trials")
    axes.grid(axis="y", visible=False)
    return figure


@_styled
def parallel(found: Findings) -> Figure:
    """A line a trial through the values of its keys, dark if it is good; the winner is dashed."""
    tokens, values = comparable(found)
    keys = found.keys
    table = found.trials.loc[values.index]
    figure, (axes,) = _axes(3.8)
    norm = Normalize(*(values.quantile([0, 0.9]) if len(values) else (0, 1)))
    shades = ScalarMappable(norm, SHADES)
    scales = [_scale(found, key) for key in keys]
    ends = _ends(values)
    lines, ordered = [], values.sort_values(ascending=False)  # the best are drawn over the others
    for number, value in ordered.items():
        heights = [scale(table.at[number, key]) for scale, key in zip(scales, keys, strict=True)]
        heights.append((value - ends[0]) / (ends[1] - ends[0]))
        lines.append([*enumerate(heights)])
        if number == found.winner:
            axes.plot(heights, color="black", linewidth=2.4, linestyle="--", zorder=5)
    look: dict[str, Any] = {"colors": shades.to_rgba(ordered), "linewidths": 1.2, "alpha": 0.85}
    axes.add_collection(LineCollection(lines, **look, zorder=2))
    for place, key in enumerate(keys):
        _ticks(axes, found, key, place)
    low, high = (f"{end:.3f}" for end in ends)
    _write(axes, len(keys), 0.0, low)
    _write(axes, len(keys), 1.0, high)
    labels = [key.partition(".")[2].replace("_", "_\n", 1) for key in keys]
    axes.set_xticks(range(len(keys) + 1), [*labels, "bits per\nbyte"])
    axes.set_xlim(-0.15, len(keys) + 0.35)
    axes.set_ylim(-0.22, 1.06)
    axes.set_yticks([])
    axes.spines[["left"]].set_visible(False)
    axes.grid(axis="x", color=GREY, linewidth=0.8)
    bar = figure.colorbar(shades, ax=axes, location="top", aspect=40, shrink=0.7, pad=0.02)
    bar.set_label(f"bits per byte after {tokens:,} bytes: dark is better")
    return figure


def _scale(found: Findings, key: str) -> Callable[[Any], float]:
    """From a value of a searched key to a height: 0 to 1, or below where it did not apply."""
    dimension = found.config.search.space[key]
    if dimension.choice is not None:
        names = [repr(choice) for choice in dimension.choice]
        last = max(len(names) - 1, 1)
        return lambda value: -0.15 if value == INACTIVE else names.index(repr(value)) / last
    logarithm = dimension.log_uniform is not None
    low, high = dimension.log_uniform or dimension.uniform or dimension.int or (0, 1)

    def scale(value: Any) -> float:
        if value == INACTIVE:
            return -0.15
        if logarithm:
            return float(np.log(value / low) / np.log(high / low))
        return float((value - low) / (high - low))

    return scale


def _ticks(axes: Axes, found: Findings, key: str, place: int) -> None:
    """Values beside a vertical axis of parallel coordinates."""
    dimension, scale = found.config.search.space[key], _scale(found, key)
    bounds = dimension.log_uniform or dimension.uniform or dimension.int
    for value in dimension.choice or bounds or ():
        _write(axes, place, scale(value), format_value(value))
    if (found.trials[key] == INACTIVE).any():
        _write(axes, place, scale(INACTIVE), INACTIVE)


def _write(axes: Axes, x: float, y: float, text: str) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
    axes.text(x + 0.03, y, text, fontsize=8, va="center", bbox=box, zorder=6)


def _ends(values: pd.Series) -> tuple[float, float]:
    if values.empty:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, low + 0.5)


@_styled
def slices(found: Findings) -> Figure:
    """A panel a searched key: what the trials reached at its values, at equal training."""
    tokens, values = comparable(found)
    keys, columns = found.keys, 2 if len(found.keys) > 1 else 1
    rows = -(-len(keys) // columns)
    figure, panels = _axes(2.3 * max(rows, 1) + 0.3, max(rows, 1), columns)
    table = found.trials.loc[values.index]
    for axes, key in zip(panels, keys, strict=False):
        heights = _positions(found, key, table[key])
        for state, marker in MARKERS.items():
            here = (table["state"] == state).to_numpy()
            if here.any():
                axes.scatter(heights[here], values[here], label=state, **marker)
        if found.winner in values.index:
            at = [heights[table.index.get_loc(found.winner)]], [values[found.winner]]
            axes.scatter(*at, s=130, facecolors="none", edgecolors=INK, label="winner")
        _name_values(axes, found, key, table[key])
        axes.set_xlabel(key)
    for axes in panels[len(keys) :]:
        axes.set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel("bits per byte")
    if keys and len(values):
        panels[0].legend(loc="best")
    figure.suptitle(f"after {tokens:,} bytes, which all of these trials reached", fontsize=10)
    return figure


def _positions(found: Findings, key: str, values: pd.Series) -> np.ndarray:
    """Where the values of a key lie on its axis: choices in their order, n/a left of them."""
    choice = found.config.search.space[key].choice
    if choice is not None:
        names = [repr(one) for one in choice]
        return np.array([-1 if v == INACTIVE else names.index(repr(v)) for v in values], float)
    return np.array([np.nan if v == INACTIVE else float(v) for v in values])


def _name_values(axes: Axes, found: Findings, key: str, values: pd.Series) -> None:
    dimension = found.config.search.space[key]
    if dimension.choice is not None:
        names = [str(choice) for choice in dimension.choice]
        places = list(range(len(names)))
        if (values == INACTIVE).any():
            names, places = [INACTIVE, *names], [-1, *places]
        axes.set_xticks(places, names)
        axes.set_xlim(places[0] - 0.5, places[-1] + 0.5)
    elif dimension.log_uniform is not None:
        axes.set_xscale("log")
    elif dimension.int is not None:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


@_styled
def curves(found: Findings) -> Figure:
    """Validation against steps, bytes and seconds of training: every trial, the best ones named."""
    figure, panels = _axes(8.2, 3)
    ranked = ranking(found)
    named = [f"trial {number}" for number in ranked.index[:3]]
    lines = dict(zip(named, ("-", "--", ":"), strict=False)) | {"fit": "-.", "train": "-."}
    grouped = list(found.curves.groupby("name", sort=False))
    for axes, column, label in zip(
        panels,
        ("step", "tokens", "seconds"),
        ("steps", "bytes read", "seconds of training"),
        strict=True,
    ):
        grey = []
        for name, rows in grouped:
            points = rows[[column, "bits_per_byte"]].to_numpy()
            if name in lines:
                axes.plot(*points.T, lines[name], color=INK, linewidth=1.5, label=name, zorder=3)
            else:
                grey.append(points)
        axes.add_collection(LineCollection(grey, colors=LIGHT, linewidths=0.8, zorder=2))
        axes.autoscale_view()
        axes.set_xlabel(label)
        axes.set_ylabel("bits per byte")
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        _zoom(axes, found.curves["bits_per_byte"])
    shown = dict(zip(*panels[0].get_legend_handles_labels()[::-1], strict=True))
    if shown:
        order = [name for name in lines if name in shown]
        panels[0].legend([shown[name] for name in order], order, loc="upper right")
    return figure


def _zoom(axes: Axes, values: pd.Series) -> None:
    """From the best value up to where nine in ten lie: a curve that starts badly hides the rest."""
    if len(values) > 1 and values.max() > values.min():
        low, high = values.min(), values.quantile(0.9)
        high = high if high > low else values.max()
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


@_styled
def pruning(found: Findings) -> Figure:
    """How far each trial was trained, longest first, and what stopping early has not spent."""
    figure, (axes,) = _axes(2.8)
    budget = budgets(found)
    table = found.trials.assign(budget=budget).sort_values("tokens", ascending=False, kind="stable")
    places = np.arange(len(table))
    axes.bar(places, table["tokens"], width=1.0, color="#4d4d4d", label="trained")
    pruned = (table["state"] == "pruned").to_numpy()
    if pruned.any():
        done = table["tokens"][pruned]
        rest = (table["budget"][pruned] - done).clip(lower=0)
        look: dict[str, Any] = {
            "facecolor": "white",
            "edgecolor": LIGHT,
            "hatch": "////",
            "linewidth": 0,
        }
        axes.bar(places[pruned], rest, 1.0, done, label="not spent: pruned", **look)
    axes.set_xlabel("trials, longest first")
    axes.set_ylabel("bytes read")
    axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="x", visible=False)
    if len(table):
        figure.legend(loc="outside upper right", ncols=2)
    return figure


@_styled
def seeds(found: Findings) -> Figure:
    """Configurations that were trained with several seeds: each result, mean and interval."""
    table = over_seeds(found)
    table = table[table["n"] > 1].sort_values("mean", kind="stable").head(MOST_CONFIGURATIONS)
    figure, (axes,) = _axes(0.9 + 0.45 * max(len(table), 1))
    by = found.results.groupby("configuration")["bits_per_byte"]
    for place, (name, row) in enumerate(table[::-1].iterrows()):
        values = by.get_group(name)
        axes.scatter(values, [place] * len(values), **MARKERS["pruned"])
        ends = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
        axes.errorbar(row["mean"], place, xerr=ends, fmt="D", color=INK, capsize=4, markersize=5)
    names = [chr(ord("A") + place) for place in range(len(table))]
    axes.set_yticks(range(len(table)), names[::-1])
    axes.set_ylim(-0.6, max(len(table), 1) - 0.4)
    axes.set_xlabel("bits per byte: each seed, mean and 95 % interval")
    return figure


@_styled
def front(found: Findings) -> Figure:
    """Both objectives of the complete trials; none is better in both than those on the line."""
    figure, (axes,) = _axes(3.2)
    table = found.trials[found.trials["state"] == "complete"]
    best = table[table["front"]].sort_values("second")
    axes.scatter(table["second"], table["bits_per_byte"], **MARKERS["pruned"])
    axes.plot(best["second"], best["bits_per_byte"], color=INK, marker="o", linewidth=1)
    for number, row in best.iterrows():
        point = row["second"], row["bits_per_byte"]
        axes.annotate(f"trial {number}", point, (4, 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel(str(found.config.search.second_objective).replace("_", " "))
    axes.set_ylabel("bits per byte")
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    return figure


@_styled
def mixed(weights: Mixing) -> Figure:
    """The weight of every stack entry, by layer: b, and b with the input-dependent part added."""
    table = weights.weights
    if table.empty:
        return _axes(1.0)[0]
    parts = {"b": table["b"]}
    if table["added"].notna().all():
        parts["b + input"] = table["b"] + table["added"]
    outputs = list(dict.fromkeys(table["output"]))
    layers = max(table["layer"].nunique(), 1)
    height = (0.26 if layers > 12 else 0.34) * layers + 1.0
    heads = [output for output in outputs if output != OUT] or outputs
    figure, panels = _axes(height * len(parts) + 0.6, len(parts), len(heads), sharey=True)
    norm = Normalize(min(p.min() for p in parts.values()), max(p.max() for p in parts.values()))
    for row, (part, values) in enumerate(parts.items()):
        for column, head in enumerate(heads):
            axes = panels[row * len(heads) + column]
            # the read-out has one output, which is shown below the first
            shown = table["output"].isin([head, *([OUT] if column == 0 else [])])
            _heat(axes, table[shown].assign(value=values[shown]), table, norm)
            axes.set_title(head, fontsize=9, loc="left")
        panels[row * len(heads)].set_ylabel(f"layer: {part}", fontsize=9)
    bar = figure.colorbar(
        ScalarMappable(norm, SHADES), ax=panels, location="bottom", aspect=40, shrink=0.8, pad=0.02
    )
    bar.set_label("weight; 1 is the plain residual sum")
    return figure


def _heat(axes: Axes, shown: pd.DataFrame, table: pd.DataFrame, norm: Normalize) -> None:
    """A heat map of layers by stack entries; what a layer's stack does not have is blank."""
    layers = list(dict.fromkeys(table["layer"]))
    layers.sort(key=lambda layer: (layer == OUT, int(layer) if layer != OUT else 0))
    places = table.drop_duplicates("place").sort_values("place").set_index("place")["entry"]
    grid = np.full((len(layers), len(places)), np.nan)
    for _, row in shown.iterrows():
        grid[layers.index(row["layer"]), places.index.get_loc(row["place"])] = row["value"]
    axes.imshow(grid, cmap=SHADES, norm=norm, aspect="auto", interpolation="nearest")
    if grid.size <= MOST_NUMBERED:
        for (y, x), value in np.ndenumerate(grid):
            if np.isfinite(value):
                color = "black" if norm(value) > 0.55 else "white"
                axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=6.5, color=color)
    step = max(1, len(places) // 8)
    axes.set_xticks(range(0, len(places), step), places.iloc[::step], rotation=60, fontsize=8)
    axes.set_yticks(range(len(layers)), layers, fontsize=8)
    axes.grid(visible=False)


def _axes(
    height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options).flatten()
