"""Sizes, colours, markers and matplotlib settings that the figures share."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 5.0
"""Inches: readable on a phone."""
INK, GREY, LIGHT, BAR = "#111111", "#6b6b6b", "#bdbdbd", "#4d4d4d"
SHADES = "cividis"
"""Dark is better, light is worse: its lightness rises evenly, so that it is readable in grey."""
SETTINGS: Any = {
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
"""Of a trial's point, by state."""
ARM_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Of the arms of a study but the baseline, which is black: those of Okabe and Ito, which people who
are colour-blind can tell apart."""
ARM_LINES, ARM_MARKERS = ("--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2))), "osD^vPX"
"""Of the same arms: with the colours they repeat after thirty."""
P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """A drawing function that uses the report's settings."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(SETTINGS):
            return draw(*args, **kwargs)

    return drawn


def new_figure(
    height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, Sequence[Axes]]:
    """A figure of this height in inches, and its panels row by row."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options).flatten()


def arm_styles(names: Sequence[str], baseline: str) -> dict[str, dict[str, Any]]:
    """Colour, line style and marker of each arm of a study, the same in all of its figures."""
    others = [name for name in names if name != baseline]
    styles = {
        name: {
            "color": ARM_COLORS[place % len(ARM_COLORS)],
            "linestyle": ARM_LINES[place % len(ARM_LINES)],
            "marker": ARM_MARKERS[place % len(ARM_MARKERS)],
        }
        for place, name in enumerate(others)
    }
    return {baseline: {"color": INK, "linestyle": "-", "marker": "*"}, **styles}


def zoom(axes: Axes, values: pd.Series, share: float = 0.9) -> None:
    """Show this share of the values, the best ones: a bad start would flatten all else."""
    if len(values) > 1 and values.max() > values.min():
        low, high = values.min(), values.quantile(share)
        high = high if high > low else values.max()
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
