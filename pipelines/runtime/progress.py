"""What a person sees while a command works: lines that stay, and one that lives.

On a terminal the live line is redrawn in place; in a log file it is written now and then.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import progress
from rich.console import Console
from rich.status import Status

LOG_SECONDS = 30
"""Time between two live lines in a log file."""


class Progress:
    """The screen, or the log file, of one command."""

    def __init__(self, *, stderr: bool = False) -> None:
        self.console = Console(highlight=False, soft_wrap=True, stderr=stderr)
        self._status: Status | None = None
        self._last = 0.0

    def line(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False)

    def live(self, text: str) -> None:
        """What is going on now."""
        if self._status is not None:
            self._status.update(text)
        elif time.monotonic() - self._last > LOG_SECONDS:
            self._last = time.monotonic()
            self.line(f"  {text}")

    @contextmanager
    def working(self, text: str) -> Iterator[None]:
        """A live line for the time of a block."""
        self._last = time.monotonic()
        if not self.console.is_terminal:
            yield
            return
        with self.console.status(text) as self._status:
            try:
                yield
            finally:
                self._status = None


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
    with progress.Progress(
        *columns, console=lines.console, disable=not lines.console.is_terminal
    ) as bar:
        task = bar.add_task(f"downloading {name}", total=size, completed=done)

        def show(done: int) -> None:
            bar.update(task, completed=done)
            if bar.disable:
                lines.live(f"downloading {name}: {done / 1e6:,.1f} of {size / 1e6:,.1f} MB")

        show(done)
        yield show


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
