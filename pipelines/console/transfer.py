"""Progress of a download: a bar on a terminal, lines elsewhere; used by pipelines.data.download."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import progress

from pipelines.console.progress import Progress
from pipelines.console.updates import OutputMode, ProgressUpdate


@contextmanager
def download_progress(
    name: str, done: int, size: int, mode: OutputMode
) -> Iterator[Callable[[int], None]]:
    """Show a download for the time of a block; yields a function to call with the bytes so far.

    On standard error, since standard output may be JSON.

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
        progress.TimeRemainingColumn(),
    )
    shown = mode is not OutputMode.QUIET and lines.console.is_interactive
    with progress.Progress(*columns, console=lines.console, disable=not shown) as bar:
        task = bar.add_task(f"downloading {name}", total=size, completed=done)

        def show(done: int) -> None:
            bar.update(task, completed=done)
            if bar.disable:
                text = f"downloading {name}: {done / 1e6:,.1f} of {size / 1e6:,.1f} MB"
                lines.update(
                    ProgressUpdate(text, {"download": name, "bytes": done, "of_bytes": size})
                )

        show(done)
        yield show
