"""Figures of the search space: importance of its keys, parallel coordinates and slices."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipelines.console.text import format_value
from pipelines.reporting.figures.style import (
    BAR,
    GREY,
    INK,
    LIGHT,
    MARKERS,
    SHADES,
    new_figure,
    styled,
)
from pipelines.reporting.importance import Importance, importance
from pipelines.reporting.results import INACTIVE, Results
from pipelines.reporting.statistics import at_equal_tokens
from pipelines.search.config import Dimension

INACTIVE_HEIGHT = -0.15
"""Height in parallel coordinates of a key that did not apply; values lie between 0 and 1."""


@styled
def importances(results: Results, known: Importance | None = None) -> Figure:
    """The share of the variance between trials that each searched key explains, and of what
    distinguishes the best trials from all where that is known.

    `known` is the importance where it was computed already.
    """
    known = known or importance(results)
    shares = known.shares["share"]
    keys = [key for key in shares.index if not np.isnan(shares[key]) or key in known.best][::-1]
    figure, (axes,) = new_figure(0.8 + (0.5 if known.best else 0.32) * max(len(keys), 1))
    places = np.arange(len(keys))
    if known.best:
        best = [known.best.get(key, 0.0) for key in keys]
        _share_bars(axes, places + 0.2, [float(shares[key]) for key in keys], BAR, "of all trials")
        _share_bars(axes, places - 0.2, best, LIGHT, "of the best trials")
        axes.legend(loc="lower right")
    else:
        _share_bars(axes, places, [float(shares[key]) for key in keys], BAR, "", height=0.6)
    axes.set_yticks(places, keys)
    axes.set_xlim(0, 1.12)
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %" if share <= 1 else "")
    axes.set_xlabel("share of the variance between trials")
    axes.grid(axis="y", visible=False)
    return figure


def _share_bars(
    axes: Axes,
    places: Any,
    shares: Sequence[float],
    color: str,
    label: str,
    *,
    height: float = 0.36,
) -> None:
    bars = axes.barh(places, np.nan_to_num(shares), color=color, height=height, label=label)
    texts = ["n/a" if np.isnan(share) else f"{100 * share:.0f} %" for share in shares]
    axes.bar_label(bars, texts, padding=3)


@styled
def parallel(results: Results) -> Figure:
    """Parallel coordinates: a line per trial, darker if it is better; the winner's is dashed."""
    tokens, values = at_equal_tokens(results)
    keys = results.keys
    figure, (axes,) = new_figure(3.8)
    norm = Normalize(*(values.quantile([0, 0.9]) if len(values) else (0, 1)))
    shades = ScalarMappable(norm, SHADES)
    low, high = _ends(values)
    _draw_lines(axes, results, values, (low, high), shades)
    for place, key in enumerate(keys):
        _write_values(axes, results, key, place)
    _write(axes, len(keys), 0.0, f"{low:.3f}")
    _write(axes, len(keys), 1.0, f"{high:.3f}")
    labels = [key.rpartition(".")[2].replace("_", "_\n", 1) for key in keys]
    axes.set_xticks(range(len(keys) + 1), [*labels, "bits per\nbyte"])
    axes.set_xlim(-0.15, len(keys) + 0.35)
    axes.set_ylim(-0.22, 1.06)
    axes.set_yticks([])
    axes.spines[["left"]].set_visible(False)
    axes.grid(axis="x", color=GREY, linewidth=0.8)
    bar = figure.colorbar(shades, ax=axes, location="top", aspect=40, shrink=0.7, pad=0.02)
    bar.set_label(f"{results.split} bits per byte after {tokens:,} bytes: dark is better")
    return figure


def _draw_lines(
    axes: Axes,
    results: Results,
    values: pd.Series,
    ends: tuple[float, float],
    shades: ScalarMappable,
) -> None:
    """Draw a line per trial through its keys' values and its result, the best ones on top."""
    table, keys = results.trials.loc[values.index], results.keys
    scales = [_scale(results.config.search.space[key]) for key in keys]
    lines, ordered = [], values.sort_values(ascending=False)
    for number, value in ordered.items():
        heights = [scale(table.at[number, key]) for scale, key in zip(scales, keys, strict=True)]
        heights.append((value - ends[0]) / (ends[1] - ends[0]))
        lines.append([*enumerate(heights)])
        if number == results.winner:
            axes.plot(heights, color="black", linewidth=2.4, linestyle="--", zorder=5)
    look: dict[str, Any] = {"colors": shades.to_rgba(ordered), "linewidths": 1.2, "alpha": 0.85}
    axes.add_collection(LineCollection(lines, **look, zorder=2))


def _scale(dimension: Dimension) -> Callable[[Any], float]:
    """From a value of a searched key to its height in parallel coordinates."""
    if dimension.choice is not None:
        return _choice_scale(dimension.choice)
    low, high = dimension.log_uniform or dimension.uniform or dimension.int or (0, 1)

    def scale(value: Any) -> float:
        if value == INACTIVE:
            return INACTIVE_HEIGHT
        if dimension.log_uniform is not None or dimension.log:
            return float(np.log(value / low) / np.log(high / low))
        return float((value - low) / (high - low))

    return scale


def _choice_scale(choice: Sequence[Any]) -> Callable[[Any], float]:
    names = [repr(one) for one in choice]
    last = max(len(names) - 1, 1)

    def scale(value: Any) -> float:
        return INACTIVE_HEIGHT if value == INACTIVE else names.index(repr(value)) / last

    return scale


def _write_values(axes: Axes, results: Results, key: str, place: int) -> None:
    """Write a key's choices, or its bounds, beside its vertical axis of parallel coordinates."""
    dimension = results.config.search.space[key]
    scale = _scale(dimension)
    bounds = dimension.log_uniform or dimension.uniform or dimension.int
    for value in dimension.choice or bounds or ():
        _write(axes, place, scale(value), format_value(value, digits=3))
    if (results.trials[key] == INACTIVE).any():
        _write(axes, place, scale(INACTIVE), INACTIVE)


def _write(axes: Axes, x: float, y: float, text: str) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
    axes.text(x + 0.03, y, text, fontsize=8, va="center", bbox=box, zorder=6)


def _ends(values: pd.Series) -> tuple[float, float]:
    """Ends of the axis of bits per byte."""
    if values.empty:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, low + 0.5)


@styled
def slices(results: Results) -> Figure:
    """A panel per searched key: the trials' results at its values, at equal budget."""
    tokens, values = at_equal_tokens(results)
    keys, columns = results.keys, 2 if len(results.keys) > 1 else 1
    rows = -(-len(keys) // columns)
    figure, panels = new_figure(2.3 * max(rows, 1) + 0.3, max(rows, 1), columns)
    for axes, key in zip(panels, keys, strict=False):
        _draw_slice(axes, results, key, values)
        axes.set_xlabel(key)
    for axes in panels[len(keys) :]:
        axes.set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel(f"{results.split} bits per byte")
    if keys and len(values):
        panels[0].legend(loc="best")
    figure.suptitle(f"after {tokens:,} bytes, which all of these trials reached", fontsize=10)
    return figure


def _draw_slice(axes: Axes, results: Results, key: str, values: pd.Series) -> None:
    table, dimension = results.trials.loc[values.index], results.config.search.space[key]
    positions = _positions(dimension, table[key])
    for state, marker in MARKERS.items():
        here = (table["state"] == state).to_numpy()
        if here.any():
            axes.scatter(positions[here], values[here], label=state, **marker)
    if results.winner in values.index:
        at = [positions[table.index.get_loc(results.winner)]], [values[results.winner]]
        axes.scatter(*at, s=130, facecolors="none", edgecolors=INK, label="winner")
    _set_ticks(axes, dimension, table[key])


def _positions(dimension: Dimension, values: pd.Series) -> np.ndarray:
    """Positions of a key's values on its axis: choices in their order, INACTIVE left of them."""
    if dimension.choice is not None:
        names = [repr(one) for one in dimension.choice]
        return np.array([-1 if v == INACTIVE else names.index(repr(v)) for v in values], float)
    return np.array([np.nan if v == INACTIVE else float(v) for v in values])


def _set_ticks(axes: Axes, dimension: Dimension, values: pd.Series) -> None:
    if dimension.choice is not None:
        names = [str(choice) for choice in dimension.choice]
        places = list(range(len(names)))
        if (values == INACTIVE).any():
            names, places = [INACTIVE, *names], [-1, *places]
        axes.set_xticks(places, names)
        axes.set_xlim(places[0] - 0.5, places[-1] + 0.5)
    elif dimension.log_uniform is not None or dimension.log:
        axes.set_xscale("log")
    elif dimension.int is not None:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
