"""The live panel of a terminal: bars, a note and a small curve."""

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from pipelines.console.updates import Bar, ProgressUpdate

WIDEST = 100
"""Columns of the panel: longer bars say no more."""
SPARKS = "▁▂▃▄▅▆▇█"
SPARKLINE = 16
"""Columns of a curve."""
NOTE_ROWS = 4
"""Of the panel, kept free of bars."""


class Panel:
    """What is going on, as a terminal shows it: as wide as it is now, and no higher."""

    def __init__(self, now: ProgressUpdate, console: Console) -> None:
        self.now = now
        self._spinner = Spinner("line" if console.options.ascii_only else "dots")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        now, width = self.now, min(options.max_width, WIDEST)
        if now.bars:
            yield _bar_table(now.bars[: max(1, console.height - NOTE_ROWS)], width)
        curve = "" if options.ascii_only else sparkline(now.curve)
        self._spinner.update(text=Text(f"{now.note or now.text} {curve}".rstrip()))
        yield self._spinner


def _bar_table(bars: Sequence[Bar], width: int) -> Table:
    """Bars one below the other; where it is narrow, it is they that become shorter."""
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.width = width
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True)
    for bar in bars:
        grid.add_row(Text(bar.name), ProgressBar(total=1.0, completed=bar.share), Text(bar.note))
    return grid


def sparkline(curve: Sequence[float]) -> str:
    """A curve in a few characters, the last point among them; nothing of less than two."""
    if len(curve) < 2:
        return ""
    step = max(1.0, (len(curve) - 1) / (SPARKLINE - 1))
    points = [curve[round(i * step)] for i in range(min(len(curve), SPARKLINE))]
    low, high = min(points), max(points)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((point - low) * scale)] for point in points)
