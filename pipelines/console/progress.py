"""Console, log-file and JSON progress of one command.

A command makes one `Progress` and passes it to whatever takes minutes. On a terminal a panel is
redrawn in place; in a log file its text is written from time to time. With `--json` each line is an
object; with `--quiet` only the result is printed.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live

from pipelines.console.panel import Panel
from pipelines.console.secrets import redact, redact_all
from pipelines.console.text import format_duration, json_text, terminal_width, without_controls
from pipelines.console.updates import OutputMode, ProgressUpdate

WATCH_SECONDS = 1.0
"""Between two looks at what another process does."""


class Progress:
    """The progress of one command, printed in its output mode."""

    def __init__(self, mode: OutputMode = OutputMode.TEXT, *, stderr: bool = False) -> None:
        self.console = Console(
            highlight=False,
            emoji=False,  # or an arm's `a:x:b` would have a picture in it
            stderr=stderr,
            width=terminal_width(),
        )
        self.mode = mode
        self._panel: Panel | None = None
        # What was imported since the command began, or wrote a line, counts as silence too.
        self._last, self._printed = 0.0, getattr(sys.stdout, "since", time.monotonic())

    def log(self, text: str, event: str = "note", /, **data: Any) -> None:
        """Print a line; with --json an event with its data, or a note with the text."""
        if self.mode is OutputMode.TEXT:
            self._print(text)
        else:
            self.emit_event(event, **(data or {"text": text.strip()}))

    def emit_event(self, event: str, **data: Any) -> None:
        """Print an event as an object on a line; nothing in other modes."""
        if self.mode is OutputMode.JSON:
            row = {"event": event, "time": round(time.time(), 3), **data}
            print(json_text(redact_all(row)), flush=True)

    def result(self, text: str, outputs: Mapping[str, Any]) -> None:
        """Print the result of the command, in every mode."""
        self.emit_event("result", text=text, outputs=outputs)
        if self.mode is OutputMode.TEXT:
            self._print("")
        if self.mode is not OutputMode.JSON:
            self._print(text)

    def _print(self, text: str) -> None:
        """Print long lines whole, to be copied; above a panel they are wrapped, as rich counts the
        rows."""
        text = without_controls(redact(text)) if self.console.is_terminal else redact(text)
        self.console.print(text, markup=False, soft_wrap=self._panel is None)
        self._printed = time.monotonic()

    def update(self, update: ProgressUpdate) -> None:
        """Show how far the work is: in the panel, or as a line if the last one is long ago."""
        if self._panel is not None:
            self._panel.shown = update
        elif time.monotonic() - self._last > self.mode.value:
            self._last = time.monotonic()
            self.log(f"  {update.text}", "progress", **update.data)

    @contextmanager
    def watching(self, look: Callable[[], str], **data: Any) -> Iterator[None]:
        """Show what `look` returns, with the time, each second of a block: of another process."""
        start = time.monotonic()

        def timed() -> ProgressUpdate:
            elapsed = round(time.monotonic() - start)
            text = f"{look()}, {format_duration(elapsed)}"
            return ProgressUpdate(text, {**data, "text": text, "seconds": elapsed})

        with self.repeating(timed):
            yield

    @contextmanager
    def repeating(self, look: Callable[[], ProgressUpdate]) -> Iterator[None]:
        """Show what `look` returns each second of a block, in which it seldom changes."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(WATCH_SECONDS):
                self.update(look())

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    @contextmanager
    def waiting(self, text: str, **data: Any) -> Iterator[None]:
        """Show a text, with the time, during a block of work that reports nothing itself."""
        with self.working(text), self.watching(lambda: text, **data):
            yield

    @contextmanager
    def working(self, text: str) -> Iterator[None]:
        """Show a live panel for the time of a block, with a text until the first update."""
        # In a log since the last line, or short blocks one after the other would show nothing.
        self._last = max(self._last, self._printed) if self.mode is OutputMode.TEXT else 0.0
        if not (self.mode is OutputMode.TEXT and self.console.is_interactive):
            yield
            return
        self._panel = Panel(ProgressUpdate(text), self.console)
        with Live(self._panel, console=self.console, transient=True):
            try:
                yield
            finally:
                self._panel = None
