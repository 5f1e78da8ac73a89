"""Progress of a download: a bar on a terminal, lines elsewhere; used by pipelines.data.download."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import progress

from pipelines.console.progress import Progress
from pipelines.console.text import format_duration
from pipelines.console.updates import OutputMode, ProgressUpdate


@contextmanager
def download_progress(
    name: str, done: int, size: int, mode: OutputMode
) -> Iterator[Callable[[int], None]]:
    """Show a download for the time of a block; yields a function to call with the bytes so far.

    On standard error, since standard output may be JSON. The time is shown also while no bytes
    come: a server that does not answer is waited for.

    Args:
        name: The file's.
        done: Bytes that are there already.
        size: Bytes of the whole file.
        mode: With QUIET nothing is shown.

    """
    lines = Progress(mode, stderr=True)
    columns = (
        *(progress.TextColumn("{task.description}"), progress.BarColumn()),
        *(progress.DownloadColumn(), progress.TransferSpeedColumn()),
        *(progress.TimeElapsedColumn(), progress.TimeRemainingColumn()),
    )
    shown = mode is not OutputMode.QUIET and lines.console.is_interactive
    start = time.monotonic()
    with progress.Progress(*columns, console=lines.console, disable=not shown) as bar:
        task = bar.add_task(f"downloading {name}", total=size, completed=done)

        def show(now: int) -> None:
            bar.update(task, completed=now)

        def look() -> ProgressUpdate:
            now, seconds = int(bar.tasks[task].completed), time.monotonic() - start
            text = f"downloading {name}: {now / 1e6:,.1f} of {size / 1e6:,.1f} MB"
            data = {"download": name, "bytes": now, "of_bytes": size}
            return ProgressUpdate(f"{text}, {format_duration(seconds)}", data)

        if shown:
            yield show
            return
        lines.update(look())
        with lines.repeating(look):
            yield show
