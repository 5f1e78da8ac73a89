"""Figures of the trials and the fit: ranks, history, curves, pruning, seeds, objectives."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from pipelines.reporting.figures.style import (
    BAR,
    GREY,
    INK,
    LIGHT,
    MARKERS,
    new_figure,
    styled,
    zoom,
)
from pipelines.reporting.results import Results
from pipelines.reporting.statistics import ranking, seed_statistics, trial_budgets

MAX_CONFIGURATIONS = 12
"""Rows of the leaderboard and of the seeds' figure."""
MAX_NAMED_CURVES = 3
"""Trials whose learning curves have names."""
CURVE_AXES = {"step": "steps", "tokens": "bytes read", "seconds": "seconds of training"}
"""Panels of the learning curves: columns and labels."""


@styled
def leaderboard(results: Results) -> Figure:
    """The best trials, and the interval of their configuration if seeds were repeated."""
    table = ranking(results)
    table = table[table["bits_per_byte"].notna()].head(MAX_CONFIGURATIONS)[::-1]
    figure, (axes,) = new_figure(0.9 + 0.28 * max(len(table), 1))
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
    axes.set_xlabel(f"{results.split} bits per byte, less is better")
    if len(table):
        axes.legend(loc="best")
    return figure


@styled
def history(results: Results) -> Figure:
    """The trials' results in the order in which they began, and the best so far."""
    figure, (axes,) = new_figure(3.2)
    table = results.trials
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
    axes.set_ylabel(f"{results.split} bits per byte")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if axes.get_legend_handles_labels()[0]:  # no trial may have been evaluated yet
        axes.legend(loc="best")
    return figure


@styled
def curves(results: Results) -> Figure:
    """Validation against steps, bytes and seconds of training; the best trials are named."""
    figure, panels = new_figure(8.2, len(CURVE_AXES))
    best = [f"trial {number}" for number in ranking(results).index[:MAX_NAMED_CURVES]]
    lines = dict(zip(best, ("-", "--", ":"), strict=False)) | {"fit": "-.", "train": "-."}
    for axes, (column, label) in zip(panels, CURVE_AXES.items(), strict=True):
        _draw_curves(axes, results.curves, column, lines)
        axes.set_xlabel(label)
        axes.set_ylabel("validation bits per byte")  # whatever the search minimised
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        zoom(axes, results.curves["bits_per_byte"])
    shown = dict(zip(*panels[0].get_legend_handles_labels()[::-1], strict=True))
    if shown:
        order = [name for name in lines if name in shown]
        panels[0].legend([shown[name] for name in order], order, loc="upper right")
    return figure


def _draw_curves(axes: Axes, curves: pd.DataFrame, column: str, lines: dict[str, str]) -> None:
    """Draw the curves over a column: those of `lines` in their styles, the others in grey."""
    grey = []
    for name, rows in curves.groupby("name", sort=False):
        points = rows[[column, "bits_per_byte"]].to_numpy()
        if name in lines:
            style = lines[str(name)]
            axes.plot(*points.T, style, color=INK, linewidth=1.5, label=name, zorder=3)
        else:
            grey.append(points)
    axes.add_collection(LineCollection(grey, colors=LIGHT, linewidths=0.8, zorder=2))
    axes.autoscale_view()


@styled
def pruning(results: Results) -> Figure:
    """Bytes that each trial was trained on, longest first, and what early stopping saved."""
    figure, (axes,) = new_figure(2.8)
    table = results.trials.assign(budget=trial_budgets(results))
    table = table.sort_values("tokens", ascending=False, kind="stable")
    places = np.arange(len(table))
    axes.bar(places, table["tokens"], width=1.0, color=BAR, label="trained")
    pruned = (table["state"] == "pruned").to_numpy()
    if pruned.any():
        done = table["tokens"][pruned]
        rest = (table["budget"][pruned] - done).clip(lower=0)
        look: dict[str, Any] = {"facecolor": "white", "edgecolor": LIGHT, "linewidth": 0}
        label = "not spent: pruned"
        axes.bar(places[pruned], rest, 1.0, done, label=label, hatch="////", **look)
    axes.set_xlabel("trials, longest first")
    axes.set_ylabel("bytes read")
    axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="x", visible=False)
    if len(table):
        figure.legend(loc="outside upper right", ncols=2)
    return figure


@styled
def seeds(results: Results) -> Figure:
    """Configurations that were trained with several seeds: each result, mean and interval."""
    table = seed_statistics(results)
    table = table[table["n"] > 1].sort_values("mean", kind="stable").head(MAX_CONFIGURATIONS)
    figure, (axes,) = new_figure(0.9 + 0.45 * max(len(table), 1))
    by = results.completed_runs.groupby("configuration")["bits_per_byte"]
    for place, (name, row) in enumerate(table[::-1].iterrows()):
        values = by.get_group(name)
        axes.scatter(values, [place] * len(values), **MARKERS["pruned"])
        ends = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
        axes.errorbar(row["mean"], place, xerr=ends, fmt="D", color=INK, capsize=4, markersize=5)
    names = [chr(ord("A") + place) for place in range(len(table))]
    axes.set_yticks(range(len(table)), names[::-1])
    axes.set_ylim(-0.6, max(len(table), 1) - 0.4)
    axes.set_xlabel(f"{results.split} bits per byte: each seed, mean and 95 % interval")
    return figure


@styled
def pareto_front(results: Results) -> Figure:
    """Both objectives of the complete trials; a line joins the Pareto front."""
    figure, (axes,) = new_figure(3.2)
    table = results.trials[results.trials["state"] == "complete"]
    front = table[table["pareto"]].sort_values("second")
    axes.scatter(table["second"], table["bits_per_byte"], **MARKERS["pruned"])
    axes.plot(front["second"], front["bits_per_byte"], color=INK, marker="o", linewidth=1)
    for number, row in front.iterrows():
        point = row["second"], row["bits_per_byte"]
        axes.annotate(f"trial {number}", point, (4, 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel(str(results.config.search.second_objective).replace("_", " "))
    axes.set_ylabel(f"{results.split} bits per byte")
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    return figure
