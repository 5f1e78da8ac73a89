"""What every command shares: arguments, exit codes, errors, text for people, progress and JSON
events.

Used by the commands, and by every package that raises an error for the user or reports progress.
"""

import os
import signal
from types import FrameType

INTERRUPTED = 130
"""Exit code of a command that was interrupted."""


def end_on_interrupt() -> None:
    """Let Ctrl-C end this process with one line outside of `run_command` too, unless ignored.

    The first statement of a command's file when it is executed: the imports that follow take a
    tenth of a second, in which Python would print a traceback. So would the end of the process.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> None:
    try:
        os.write(2, b"interrupted\n")
    finally:
        os._exit(INTERRUPTED)
