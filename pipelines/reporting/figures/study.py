"""Figures of a study: paired differences, learning curves, quality against time, learning rates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, NullLocator

from pipelines.comparison.table import Arm, Row
from pipelines.comparison.values import Interval
from pipelines.reporting.figures.style import (
    GREY,
    INK,
    LIGHT,
    arm_styles,
    new_figure,
    styled,
    zoom,
)
from pipelines.reporting.studies.study import Study

MAX_NAME, MAX_LEGEND = 18, 26
"""Characters of an arm's name before it is broken, beside an axis and in a legend."""
FOREST = ("a pair of seeds", "mean and 95 %", "95 % for all arms together")
"""The legend of the forest plot."""
SHOWN_SHARE = 0.75
"""Of the values of the curves, the best: the ends are what is compared."""


@styled
def forest(study: Study) -> Figure:
    """The paired difference of each arm from the baseline: all pairs, mean and intervals."""
    rows = {row.arm: row for row in study.comparison.rows}
    figure, (axes,) = new_figure(1.5 + 0.5 * max(len(study.others), 1))
    smallest = study.comparison.smallest_difference
    within = f"within {smallest:g}"
    axes.axvspan(-smallest, smallest, color="#efefef", zorder=0, label=within)
    axes.axvline(0, color=INK, linewidth=1)
    names = []
    for place, arm in enumerate(study.others[::-1]):
        row = rows[arm.name]
        verdict = row.difference.verdict if row.difference else ""
        names.append(f"{_broken(arm.name)}\n{verdict}")
        _draw_pairs(axes, study.differences(arm), row, place)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, max(len(names), 1) - 0.4)
    axes.set_xlabel(f"test bits per byte minus {study.comparison.baseline}'s: left is better")
    axes.grid(axis="y", visible=False)
    handles = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    order = [name for name in FOREST if name in handles] + [within]
    figure.legend([handles[name] for name in order], order, loc="outside lower center", ncols=2)
    return figure


def _draw_pairs(axes: Axes, differences: Sequence[float], row: Row, place: int) -> None:
    """Draw one arm of the forest plot."""
    mean = row.difference.paired.mean if row.difference else None
    look: dict[str, Any] = {"facecolors": "white", "edgecolors": GREY, "s": 16, "zorder": 3}
    axes.scatter(differences, [place - 0.24] * len(differences), label=FOREST[0], **look)
    if mean is None:
        return
    for interval, width, cap, label in (
        (row.simultaneous, 1.0, 4, FOREST[2]),
        (row.interval, 2.6, 0, FOREST[1]),
    ):
        if interval is not None:
            ends = _errors(mean, interval)
            look = {"elinewidth": width, "capsize": cap, "markersize": 5, "zorder": 4}
            axes.errorbar(mean, place, xerr=ends, fmt="D", color=INK, label=label, **look)


@dataclass(frozen=True)
class _MeanCurve:
    """The mean over an arm's replicates, and the lowest and the highest of them."""

    tokens: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def _mean_curve(arm: Arm) -> _MeanCurve:
    """Over the evaluations that all replicates have."""
    tables = [pd.Series(curve.bits, curve.tokens) for curve in arm.curves.values()]
    table = pd.concat(tables, axis=1, join="inner") if tables else pd.DataFrame([], columns=[0])
    found = table.sort_index()
    values = found.to_numpy(dtype=float)
    tokens = found.index.to_numpy(dtype=float)
    return _MeanCurve(tokens, values.mean(axis=1), values.min(axis=1), values.max(axis=1))


@styled
def study_curves(study: Study) -> Figure:
    """Validation against bytes read and, if it was probed, against the time of the steps."""
    curves = [(arm, _mean_curve(arm)) for arm in study.arms if arm.curves]
    styles = arm_styles([arm.name for arm in study.arms], study.comparison.baseline)
    panels = {"bytes read": {arm.name: 1.0 for arm, _ in curves}}
    seconds = {arm.name: one for arm, _ in curves if (one := study.seconds_of_token(arm))}
    if len(seconds) == len(curves):
        panels["seconds of training, with nothing else running"] = seconds
    figure, axes_of = new_figure(0.9 + 2.9 * len(panels), len(panels))
    for axes, (label, scales) in zip(axes_of, panels.items(), strict=True):
        for arm, curve in curves:
            scale = scales[arm.name]
            look = {"color": styles[arm.name]["color"]}
            line = styles[arm.name]["linestyle"]
            axes.plot(
                scale * curve.tokens,
                curve.mean,
                linestyle=line,
                label=_broken(arm.name, MAX_LEGEND),
                **look,
            )
            axes.fill_between(scale * curve.tokens, curve.low, curve.high, alpha=0.2, lw=0, **look)
        axes.set_xlabel(label)
        axes.set_ylabel("validation bits per byte")
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        zoom(
            axes, pd.Series(np.concatenate([[], *(curve.mean for _, curve in curves)])), SHOWN_SHARE
        )
    if curves:
        figure.legend(*axes_of[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


@styled
def quality_and_time(study: Study) -> Figure:
    """Each arm's difference from the baseline against its step time, with both intervals."""
    rows = {row.arm: row for row in study.comparison.rows}
    styles = arm_styles([arm.name for arm in study.arms], study.comparison.baseline)
    figure, (axes,) = new_figure(3.6)
    axes.axhline(0, color=LIGHT, linewidth=1)
    axes.axvline(1, color=LIGHT, linewidth=1)
    for arm in study.arms:
        row = rows[arm.name]
        mean = row.difference.paired.mean if row.difference else 0.0
        if arm.step_time is None or mean is None:
            continue
        time, style = arm.step_time, styles[arm.name]
        look: dict[str, Any] = {"color": style["color"], "fmt": style["marker"], "markersize": 8}
        look |= {"xerr": _errors(time.value, time.interval), "yerr": _errors(mean, row.interval)}
        axes.errorbar(time.value, mean, **look, label=_broken(arm.name, MAX_LEGEND), capsize=3)
    axes.set_xlabel(f"step time, relative to {study.comparison.baseline}: left is faster")
    axes.set_ylabel("test bits per byte minus\nbaseline's: below is better")
    axes.margins(0.12)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


@styled
def rate_curves(study: Study, split: str) -> Figure:
    """The best result of each arm's tuning against the learning rate; a cross diverged.

    `split` is the text on which the searches compare their trials.
    """
    styles = arm_styles([arm.name for arm in study.arms], study.comparison.baseline)
    figure, (axes,) = new_figure(3.6)
    values = []
    for arm in study.arms:
        if arm.rates is None:
            continue
        look = styles[arm.name]
        bits = [np.nan if one is None else one for one in arm.rates.bits]
        axes.plot(arm.rates.rates, bits, **look, label=_broken(arm.name, MAX_LEGEND), markersize=5)
        best = arm.rates.rates.index(arm.rates.best_rate)
        ring: dict[str, Any] = {"s": 110, "facecolors": "none", "edgecolors": look["color"]}
        axes.scatter([arm.rates.best_rate], [bits[best]], **ring)
        lost = [x for x, y in zip(arm.rates.rates, arm.rates.bits, strict=True) if y is None]
        place = axes.get_xaxis_transform()
        axes.scatter(lost, [0.98] * len(lost), marker="x", color=look["color"], transform=place)
        values += bits
    axes.set_xscale("log", base=2)
    rates = sorted({rate for arm in study.arms if arm.rates for rate in arm.rates.rates})
    if 0 < len(rates) <= 8:
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:.2g}"))
    axes.set_xlabel("learning rate")
    axes.set_ylabel(f"{split} bits per byte of the trials")
    if values:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def _errors(value: float, interval: Interval | None) -> list[list[float]] | None:
    """The distances to the ends of an interval, as matplotlib's error bars are given."""
    return [[value - interval.low], [interval.high - value]] if interval else None


def _broken(name: str, limit: int = MAX_NAME) -> str:
    """A long name on two lines."""
    if len(name) <= limit:
        return name
    places = [place for place, one in enumerate(name) if one in "-_. "]
    middle = min(places, key=lambda place: abs(place - len(name) / 2), default=len(name) // 2)
    return f"{name[: middle + 1]}\n{name[middle + 1 :]}"
