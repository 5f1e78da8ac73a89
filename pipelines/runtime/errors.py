"""What a command may fail with, and the exit code of each."""

import argparse
import difflib
import errno
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO}
"""Full, over quota, read-only, not ours, too large, broken."""


class ConfigError(Exception):
    """Bad input: the message says where, what, and what was expected. Exit code 2."""


class PipelineError(Exception):
    """Work that failed although the input was good. Exit code 1."""


class StorageError(PipelineError):
    """The disk did not take a file: trying again would not help, making room does."""


def one_line(text: object) -> str:
    """Foreign text in a message: no line break or terminal code, and cut where nobody reads on."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text)[:500])
    return line if len(line) < 500 else f"{line[:497]}..."


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of a message about an unknown name: the valid one closest to it, if any is close."""
    found = difflib.get_close_matches(name, list(valid), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def show(value: Any) -> str:
    """A value in a message, as JSON, cut where nobody reads on."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


class Parser(argparse.ArgumentParser):
    """Arguments whose mistakes are bad input like any other: one line."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        raise ConfigError(message.removeprefix("argument "))


def run_command(main: Callable[[], None], *, resumes: bool) -> None:
    """Run a command's main and exit: 0 done, 1 failure, 2 bad input, 130 Ctrl-C or SIGTERM.

    A failure that was foreseen is its message and nothing else; an unforeseen one keeps its
    traceback. `resumes` tells whether the same command, run again, goes on where it stopped.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
        sys.stdout.flush()  # here, where a disk that is full is one line
    except ConfigError as error:
        sys.exit(_say(error, 2))
    except PipelineError as error:
        sys.exit(_say(error, 1))
    except KeyboardInterrupt:
        again = f"; run the same command again to go on:\n  {shlex.join(['python', *sys.argv])}"
        sys.exit(_say(f"interrupted{again if resumes else ''}", 130))
    except BrokenPipeError:
        _drop_output()
        sys.exit(1)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        _drop_output()
        sys.exit(_say(f"{error.filename or 'disk'}: {error.strerror}", 1))


def _drop_output() -> None:
    """What nobody takes would be tried, and told, once more at the exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(message: object, code: int) -> int:
    print(message, file=sys.stderr)
    return code
