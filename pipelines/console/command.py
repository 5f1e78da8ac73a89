"""Arguments, signals and exit codes of every command; used at the end of each command's file."""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from pipelines.console.errors import DISK_ERRORS, ConfigError, PipelineError, print_traceback
from pipelines.console.process import handlers_restored
from pipelines.console.secrets import redact
from pipelines.console.text import for_stream

DONE, FAILURE, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
"""Exit codes of every command."""


class Parser(argparse.ArgumentParser):
    """A parser of arguments that raises ConfigError, so that a mistake is one line."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        raise ConfigError(message.removeprefix("argument "))


def run_command(
    main: Callable[[Sequence[str]], int], argv: Sequence[str], *, resumes: bool = False
) -> int:
    """Run a command's `main` with the arguments behind `argv[0]`; returns the exit code.

    Of an error for the user only the message is printed; any other error keeps its traceback.
    In the main thread SIGTERM interrupts as Ctrl-C does; its former handler is restored at the end.

    Args:
        main: Takes the arguments without the command's own name and returns an exit code.
        argv: As in sys.argv.
        resumes: Whether running the same command again resumes an interrupted one, which is then
            printed with the message.

    """
    with handlers_restored(signal.SIGTERM) as settable:
        if settable:
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        return _exit_code(main, argv, resumes=resumes)


def _exit_code(main: Callable[[Sequence[str]], int], argv: Sequence[str], *, resumes: bool) -> int:
    """Run a command's `main`; of an error for the user print the message."""
    try:
        code = main(argv[1:])
        sys.stdout.flush()  # before the exit of Python, so that a full disk is one line
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
    except Exception as error:
        if not isinstance(error, OSError) or error.errno not in DISK_ERRORS:
            print_traceback(error)
            return FAILURE
        _drop_output()
        return _fail(f"{error.filename or 'disk'}: {error.strerror}", FAILURE)


def _drop_output() -> None:
    """Discard what could not be written: Python would try to write it again at its exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: object, code: int) -> int:
    print(for_stream(redact(str(message)), sys.stderr), file=sys.stderr)
    return code
