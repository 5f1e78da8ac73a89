"""What is told while a command works: to a person, a log file or a machine.

On a terminal a panel is redrawn in place; in a log file its text is written now and then. A machine
(`--json`) reads an object a line. `--quiet`, nothing is told but the result.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from rich import progress
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from pipelines.runtime.errors import ConfigError

WIDEST = 100
"""Columns of the panel: longer bars say no more."""
SPARKS = "▁▂▃▄▅▆▇█"
SPARKLINE = 16
"""Columns of a curve."""
NOTE_ROWS = 4
"""Of the panel, kept free of bars."""


class Voice(Enum):
    """To whom a command speaks; the value is the seconds between two words on what goes on."""

    TEXT = 30.0
    QUIET = float("inf")
    JSON = 1.0


_voice = Voice.TEXT


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a command that works for minutes: to whom it speaks."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--quiet", action="store_true", help="print the result and nothing else")
    group.add_argument("--json", action="store_true", help="print an object a line, for machines")


def speak(arguments: argparse.Namespace) -> None:
    """From here on the command speaks as its options say. Raises ConfigError if it cannot."""
    global _voice
    plain = [name for name in ("print_config", "dry_run") if getattr(arguments, name, False)]
    if arguments.json and plain:
        raise ConfigError(f"--json: expected without --{plain[0].replace('_', '-')}")
    _voice = Voice.JSON if arguments.json else Voice.QUIET if arguments.quiet else Voice.TEXT


@dataclass(frozen=True)
class Bar:
    """How far something is, from 0 to 1."""

    name: str
    share: float
    note: str


@dataclass(frozen=True)
class Now:
    """What is going on."""

    text: str
    """All of it in a line, for a log file."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """All of it for a machine."""
    bars: Sequence[Bar] = ()
    note: str = ""
    """What the bars do not say, for a terminal; if empty, the text."""
    curve: Sequence[float] = ()
    """Drawn after the note."""


class Progress:
    """The screen, the log file or the machine that listens to one command."""

    def __init__(self, *, stderr: bool = False) -> None:
        self.console = Console(highlight=False, stderr=stderr)
        self.voice = _voice
        self._panel: _Panel | None = None
        self._last = 0.0

    def line(self, text: str, event: str = "note", /, **data: Any) -> None:
        """A line that stays; for a machine an event with its data, or a note with the text."""
        if self.voice is Voice.TEXT:
            self._print(text)
        else:
            self.tell(event, **(data or {"text": text.strip()}))

    def tell(self, event: str, **data: Any) -> None:
        """Tell a machine."""
        if self.voice is Voice.JSON:
            row = {"event": event, "time": round(time.time(), 3), **data}
            print(json.dumps(row, default=str), flush=True)

    def result(self, text: str, outputs: Mapping[str, Any]) -> None:
        """What the command was run for; told to people even when it is quiet."""
        self.tell("result", text=text, outputs=outputs)
        if self.voice is Voice.TEXT:
            self._print("")
        if self.voice is not Voice.JSON:
            self._print(text)

    def _print(self, text: str) -> None:
        """Uncut: long lines are copied from a screen, too; rich counts the rows of a panel."""
        self.console.print(text, markup=False, soft_wrap=self._panel is None)

    def live(self, now: Now) -> None:
        """What is going on now."""
        if self._panel is not None:
            self._panel.now = now
        elif time.monotonic() - self._last > self.voice.value:
            self._last = time.monotonic()
            self.line(f"  {now.text}", "progress", **now.data)

    @contextmanager
    def working(self, text: str) -> Iterator[None]:
        """A live panel for the time of a block, with a text until there is more to show."""
        self._last = time.monotonic() if self.voice is Voice.TEXT else 0.0
        if not (self.voice is Voice.TEXT and self.console.is_interactive):
            yield
            return
        self._panel = _Panel(Now(text), self.console)
        with Live(self._panel, console=self.console, transient=True):
            try:
                yield
            finally:
                self._panel = None


class _Panel:
    """What is going on, as a terminal shows it: as wide as it is now, and no higher."""

    def __init__(self, now: Now, console: Console) -> None:
        self.now = now
        self._spinner = Spinner("line" if console.options.ascii_only else "dots")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        now, width = self.now, min(options.max_width, WIDEST)
        if now.bars:
            yield _grid(now.bars[: max(1, console.height - NOTE_ROWS)], width)
        curve = "" if options.ascii_only else sparkline(now.curve)
        self._spinner.update(text=Text(f"{now.note or now.text} {curve}".rstrip()))
        yield self._spinner


def _grid(bars: Sequence[Bar], width: int) -> Table:
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


@contextmanager
def downloading(name: str, done: int, size: int) -> Iterator[Callable[[int], None]]:
    """Show a download for the time of a block, which tells how many bytes there are by now.

    On standard error: what a command prints may be JSON.
    """
    lines = Progress(stderr=True)
    columns = (
        *(progress.TextColumn("{task.description}"), progress.BarColumn()),
        *(progress.DownloadColumn(), progress.TransferSpeedColumn()),
        progress.TimeRemainingColumn(),
    )
    shown = lines.voice is not Voice.QUIET and lines.console.is_interactive
    with progress.Progress(*columns, console=lines.console, disable=not shown) as bar:
        task = bar.add_task(f"downloading {name}", total=size, completed=done)

        def show(done: int) -> None:
            bar.update(task, completed=done)
            if bar.disable:
                text = f"downloading {name}: {done / 1e6:,.1f} of {size / 1e6:,.1f} MB"
                lines.live(Now(text, {"download": name, "bytes": done, "of_bytes": size}))

        show(done)
        yield show


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
