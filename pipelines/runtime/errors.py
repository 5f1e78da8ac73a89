"""What a command may fail with, and the exit code of each."""

import argparse
import shlex
import signal
import sys
from collections.abc import Callable
from typing import NoReturn


class ConfigError(Exception):
    """Bad input: the message says where, what, and what was expected. Exit code 2."""


class PipelineError(Exception):
    """Work that failed although the input was good. Exit code 1."""


class StorageError(PipelineError):
    """The disk did not take a file: trying again would not help, making room does."""


class Parser(argparse.ArgumentParser):
    """Arguments whose mistakes are bad input like any other: one line."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        raise ConfigError(message.removeprefix("argument "))


class Terminated(KeyboardInterrupt):
    """SIGTERM, which stops a command in the order in which Ctrl-C does."""


def run_command(main: Callable[[], None], *, resumes: bool) -> None:
    """Run a command's main and exit: 0 done, 1 failure, 2 bad input, 130 Ctrl-C, 143 SIGTERM.

    A failure that was foreseen is its message and nothing else; an unforeseen one keeps its
    traceback. `resumes` tells whether the same command, run again, goes on where it stopped.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        main()
    except ConfigError as error:
        sys.exit(_say(error, 2))
    except PipelineError as error:
        sys.exit(_say(error, 1))
    except KeyboardInterrupt as error:
        again = f"run the same command again to go on:\n  {shlex.join(['python', *sys.argv])}"
        message = f"interrupted; {again if resumes else 'nothing is left behind'}"
        sys.exit(_say(message, 143 if isinstance(error, Terminated) else 130))
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


def _terminate(number: int, frame: object) -> NoReturn:
    raise Terminated


def _say(message: object, code: int) -> int:
    print(message, file=sys.stderr)
    return code
