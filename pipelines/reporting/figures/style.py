"""Sizes, colours, markers and matplotlib settings that the figures share."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec

import matplotlib
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
P = ParamSpec("P")


@contextmanager
def without_font_log() -> Iterator[None]:
    """Errors only from matplotlib in the time of a block: it logs each font that it looks up, as a
    figure is drawn or saved."""
    logger = logging.getLogger("matplotlib")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """A drawing function that uses the report's settings."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(SETTINGS), without_font_log():
            return draw(*args, **kwargs)

    return drawn


def new_figure(
    height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, Sequence[Axes]]:
    """A figure of this height in inches, and its panels row by row."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options).flatten()
