"""What every command shares: arguments, signals and exit codes."""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from pipelines.console.errors import DISK_ERRORS, ConfigError, PipelineError

DONE, FAILURE, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
"""Exit codes of every command."""


class Parser(argparse.ArgumentParser):
    """Arguments whose mistakes are bad input like any other: one line."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        raise ConfigError(message.removeprefix("argument "))


def run_command(
    main: Callable[[Sequence[str]], int], argv: Sequence[str], *, resumes: bool = False
) -> int:
    """Run a command's `main` with the arguments behind `argv[0]`; returns the exit code.

    A failure that was foreseen is its message and nothing else; an unforeseen one keeps its
    traceback. SIGTERM is handled as Ctrl-C. With `resumes` an interrupted command names the
    command that goes on where it stopped.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = main(argv[1:])
        sys.stdout.flush()  # here, where a disk that is full is one line
        return code
    except ConfigError as error:
        return _fail(error, BAD_INPUT)
    except PipelineError as error:
        return _fail(error, FAILURE)
    except KeyboardInterrupt:
        again = f"; run the same command again to go on:\n  {shlex.join(['python', *argv])}"
        return _fail(f"interrupted{again if resumes else ''}", INTERRUPTED)
    except BrokenPipeError:
        _drop_output()
        return FAILURE
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        _drop_output()
        return _fail(f"{error.filename or 'disk'}: {error.strerror}", FAILURE)
    finally:
        signal.signal(signal.SIGTERM, before)


def _drop_output() -> None:
    """Discard what could not be written: Python would try it once more at the exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: object, code: int) -> int:
    print(message, file=sys.stderr)
    return code
