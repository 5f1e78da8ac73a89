"""Console, log-file and JSON progress of one command.

On a terminal a panel is redrawn in place; in a log file its text is written now and then. A machine
(`--json`) reads an object a line. With `--quiet` nothing is written but the result.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live

from pipelines.console.panel import Panel
from pipelines.console.updates import OutputMode, ProgressUpdate


class Progress:
    """Where one command reports what it does: the screen, a log file or a machine."""

    def __init__(self, mode: OutputMode = OutputMode.TEXT, *, stderr: bool = False) -> None:
        self.console = Console(highlight=False, stderr=stderr)
        self.mode = mode
        self._panel: Panel | None = None
        self._last = 0.0

    def log(self, text: str, event: str = "note", /, **data: Any) -> None:
        """A line that stays; for a machine an event with its data, or a note with the text."""
        if self.mode is OutputMode.TEXT:
            self._print(text)
        else:
            self.emit_event(event, **(data or {"text": text.strip()}))

    def emit_event(self, event: str, **data: Any) -> None:
        """Write an event, an object a line, for a machine; nothing in other modes."""
        if self.mode is OutputMode.JSON:
            row = {"event": event, "time": round(time.time(), 3), **data}
            print(json.dumps(row, default=str), flush=True)

    def result(self, text: str, outputs: Mapping[str, Any]) -> None:
        """What the command was run for; printed even with --quiet."""
        self.emit_event("result", text=text, outputs=outputs)
        if self.mode is OutputMode.TEXT:
            self._print("")
        if self.mode is not OutputMode.JSON:
            self._print(text)

    def _print(self, text: str) -> None:
        """Uncut: long lines are copied from a screen, too; rich counts the rows of a panel."""
        self.console.print(text, markup=False, soft_wrap=self._panel is None)

    def update(self, now: ProgressUpdate) -> None:
        """What is going on now."""
        if self._panel is not None:
            self._panel.now = now
        elif time.monotonic() - self._last > self.mode.value:
            self._last = time.monotonic()
            self.log(f"  {now.text}", "progress", **now.data)

    @contextmanager
    def working(self, text: str) -> Iterator[None]:
        """A live panel for the time of a block, with a text until there is more to show."""
        self._last = time.monotonic() if self.mode is OutputMode.TEXT else 0.0
        if not (self.mode is OutputMode.TEXT and self.console.is_interactive):
            yield
            return
        self._panel = Panel(ProgressUpdate(text), self.console)
        with Live(self._panel, console=self.console, transient=True):
            try:
                yield
            finally:
                self._panel = None
