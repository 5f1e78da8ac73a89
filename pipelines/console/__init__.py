"""What every command shares: arguments, exit codes, errors, text for people, progress and JSON
events.

Used by the commands, and by every package that raises an error for the user or reports progress.
"""

import os
import signal
import sys
from types import FrameType, TracebackType

BAD_INPUT, INTERRUPTED = 2, 130
"""Exit codes of a command for input, or an environment, that it cannot work with, and of one that
was interrupted."""
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""They interrupt a command, as Ctrl-C does; those that are ignored stay so, as under nohup."""
EXPECTED = (
    "expected the project's environment, as after `make install` and `source .venv/bin/activate`"
)


def end_on_interrupt() -> None:
    """Let a signal that interrupts end this process with one line outside of `run_command` too,
    unless ignored, and an import of a package that is not installed.

    The first statement of a command's file when it is executed: the imports that follow take a
    tenth of a second, in which Python would print a traceback. So would the end of the process.

    A command of another copy of the project than the one that is installed ends: it would run with
    the code of that one.
    """
    if other := _other_copy():
        _end_on_bad_input(other)
    for number in ENDING_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    sys.excepthook = _end_on_missing_package


def end_not_installed() -> None:
    """End a command whose Python does not find this project, with one line."""
    _end_on_bad_input(f"{sys.executable} has no package pipelines: {EXPECTED}")


def _other_copy() -> str:
    """A line about a command that lies beside another copy of this package; empty for its own."""
    command, package = os.path.realpath(sys.argv[0]), os.path.realpath(f"{__file__}/../..")
    if not command.endswith(".py") or os.path.dirname(command) == package:  # noqa: PTH120
        return ""
    return f"{sys.executable} has {package}, not the package of {command}: {EXPECTED} there"


def _end_on_bad_input(line: str) -> None:
    print(line, file=sys.stderr)
    sys.stderr.flush()
    os._exit(BAD_INPUT)


def _end(number: int, frame: FrameType | None) -> None:
    try:
        os.write(2, b"interrupted\n")
    finally:
        os._exit(INTERRUPTED)


def missing_package(error: BaseException | None) -> str:
    """A line about a package that this Python lacks; empty for any other error."""
    name = error.name if isinstance(error, ModuleNotFoundError) and error.name else ""
    package = name.partition(".")[0]
    if not package or package in ("dca", "pipelines"):
        return ""
    return f"{sys.executable} has no package {package}: {EXPECTED}"


def _end_on_missing_package(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if not (line := missing_package(error)):
        sys.__excepthook__(kind, error, traceback)
        return
    _end_on_bad_input(line)
