"""The live panel of a terminal: bars, a note and a small curve.

Used by pipelines.console.progress, which redraws it in place.
"""

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from pipelines.console.secrets import redact
from pipelines.console.updates import Bar, ProgressUpdate

MAX_WIDTH = 100
"""Columns of the panel: longer bars show no more."""
SPARKS = "▁▂▃▄▅▆▇█"
SPARKLINE = 16
"""Columns of a curve at most."""
NOTE_ROWS = 4
"""Rows of the terminal that bars leave free for the note."""


class Panel:
    """The latest update of a command's progress, no wider and no higher than the terminal is."""

    def __init__(self, shown: ProgressUpdate, console: Console) -> None:
        self.shown = shown
        self._spinner = Spinner("line" if console.options.ascii_only else "dots")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown, width = self.shown, min(options.max_width, MAX_WIDTH)
        if shown.bars:
            yield _bar_table(shown.bars[: max(1, console.height - NOTE_ROWS)], width)
        curve = "" if options.ascii_only else sparkline(shown.curve)
        self._spinner.update(text=Text(f"{redact(shown.note or shown.text)} {curve}".rstrip()))
        yield self._spinner


def _bar_table(bars: Sequence[Bar], width: int) -> Table:
    """Bars one below the other; on a narrow terminal the bars become shorter, not the texts."""
    grid = Table.grid(padding=(0, 1))
    grid.width = width
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True)
    for bar in bars:
        grid.add_row(Text(bar.name), ProgressBar(total=1.0, completed=bar.share), Text(bar.note))
    return grid


def sparkline(curve: Sequence[float]) -> str:
    """A curve in at most 16 characters, the last point included; empty for less than two points."""
    if len(curve) < 2:
        return ""
    step = max(1.0, (len(curve) - 1) / (SPARKLINE - 1))
    points = [curve[round(i * step)] for i in range(min(len(curve), SPARKLINE))]
    low, high = min(points), max(points)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((point - low) * scale)] for point in points)
