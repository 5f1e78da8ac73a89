"""Arguments, signals and exit codes of every command; used at the end of each command's file."""

import argparse
import errno
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn

from pipelines.console import BAD_INPUT, ENDING_SIGNALS, INTERRUPTED, missing_package
from pipelines.console.errors import (
    DISK_ERRORS,
    ConfigError,
    PipelineError,
    Problem,
    print_traceback,
)
from pipelines.console.process import (
    garbage_seldom_searched,
    handlers_restored,
    interrupt,
    interrupts_kept,
    is_interrupt,
    lacks_temporary_folder,
    lacks_working_folder,
    library_defaults,
    output_guarded,
    silence_broken,
    user_named,
    warnings_of_libraries,
)
from pipelines.console.secrets import redact
from pipelines.console.text import for_stream, is_text, nearest, one_line, quote_value

DONE, FAILURE = 0, 1
"""Exit codes of every command, beside BAD_INPUT and INTERRUPTED."""
PATH_ERRORS = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM)
"""Of a path that a user has given, wherever it is used first; the last two of one that is another
user's."""
LITTLE = 16 << 20
"""Free bytes of a disk that is likely to be the one that is full."""
WRONG_CHOICE = re.compile(
    r"(?s)(?P<key>[^:]+): invalid choice: '(?P<given>.*)' \(choose from (?P<choices>.*)\)"
)
UNKNOWN_OPTION = re.compile(r"(?s)unrecognized arguments: (?P<option>--[\w-]+).*")
"""How argparse writes these; with another text the message is its own."""


class Parser(argparse.ArgumentParser):
    """A parser of arguments that raises ConfigError, so that a mistake is one line."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError; for a wrong name among a few with those, and the nearest."""
        message = message.removeprefix("argument ")
        if wrong := WRONG_CHOICE.fullmatch(message):
            choices = re.findall(r"[\w-]+", wrong["choices"])
            raise ConfigError(wrong_choice(wrong["given"], choices, wrong["key"]))
        if unknown := UNKNOWN_OPTION.fullmatch(message):
            options = re.findall(r"--[\w-]+", self.format_usage())
            raise ConfigError(Problem(message, nearest=nearest(unknown["option"], options)))
        raise ConfigError(message)


def wrong_choice(given: str, choices: Sequence[str], key: str) -> Problem:
    """The problem of a name that is none of a few."""
    message = f"expected one of {', '.join(choices)}, got {quote_value(given)}"
    return Problem(message, key, nearest=nearest(given, choices))


def run_command(
    main: Callable[[Sequence[str]], int], argv: Sequence[str], *, resumes: bool = False
) -> int:
    """Run a command's `main` with the arguments behind `argv[0]`; returns the exit code.

    Of an error for the user only the message is printed; any other error keeps its traceback.
    In the main thread SIGTERM and SIGHUP interrupt as Ctrl-C does; their former handlers are
    restored at the end. A standard output that fails does not end the command: its work is done and
    stored first. The exit code is then 1, but 0 if whoever read it has only stopped reading.

    Args:
        main: Takes the arguments without the command's own name and returns an exit code.
        argv: As in sys.argv.
        resumes: Whether running the same command again resumes an interrupted one, which is then
            printed with the message.

    """
    with (
        output_guarded() as (output, errors),
        nullcontext() if "--quiet" in argv else silence_broken(output, errors),
        user_named(),
        garbage_seldom_searched(),
        library_defaults(),
        warnings_of_libraries(),
    ):
        code = _exit_code(main, argv, resumes=resumes)
        output.flush()
        lost = output.error
        if lost is None or isinstance(lost, BrokenPipeError) or code != DONE:
            return code
        return _fail(f"standard output: {lost.strerror}", FAILURE)


def _exit_code(main: Callable[[Sequence[str]], int], argv: Sequence[str], *, resumes: bool) -> int:
    """Run a command's `main`; of an error for the user print the message."""
    if reason := _unusable(argv[1:]):
        return _fail(reason, BAD_INPUT)
    try:
        with interrupts_kept(), handlers_restored(*ENDING_SIGNALS) as settable:
            for number in ENDING_SIGNALS if settable else ():
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, interrupt)
            return main(argv[1:])
    except SystemExit as end:  # of argparse, behind --help
        return int(end.code or DONE)
    except (Exception, KeyboardInterrupt) as error:
        if is_interrupt(error):
            again = f"; run the same command again to go on:\n  {shlex.join(['python', *argv])}"
            return _fail(f"interrupted{again if resumes else ''}", INTERRUPTED)
        if isinstance(error, ConfigError | PipelineError):
            return _fail(error, BAD_INPUT if isinstance(error, ConfigError) else FAILURE)
        if error is getattr(sys.stdout, "error", None):
            return FAILURE if isinstance(error, BrokenPipeError) else DONE
        if line := missing_package(error):
            return _fail(line, BAD_INPUT)
        if isinstance(error, FileNotFoundError) and lacks_temporary_folder():
            return _fail(Problem(f"{error.strerror}; expected one", "TMPDIR"), BAD_INPUT)
        if isinstance(error, OSError) and error.errno in PATH_ERRORS and error.filename is not None:
            return _fail(Problem(str(error.strerror), source=str(error.filename)), BAD_INPUT)
        if file := _file_as_folder(error):
            return _fail(Problem("expected a folder, got a file", source=str(file)), BAD_INPUT)
        if not isinstance(error, OSError) or error.errno not in DISK_ERRORS:
            print_traceback(error)
            return FAILURE
        return _fail(f"{_full_place(error)}: {error.strerror}", FAILURE)


def _unusable(arguments: Sequence[str]) -> str | None:
    """What keeps any command from running here; None if nothing does.

    Paths and arguments become parts of URIs and of a database, which take no bytes but text.
    """
    if sys.flags.optimize > 1:
        return "PYTHONOPTIMIZE=2, or python -OO: expected at most 1: Ray needs its docstrings"
    if lacks_working_folder():
        return "the folder in which the command was started is gone"
    if not is_text(folder := str(Path.cwd())):
        return f"the working folder, {one_line(folder)}: expected a path in UTF-8"
    for argument in arguments:
        if not is_text(argument):
            return f"command line: {one_line(argument)}: expected text in UTF-8"
    return None


def _file_as_folder(error: BaseException) -> Path | None:
    """The file that lies where a folder would be made or read, as in the storage; None for an error
    of another kind."""
    if not isinstance(error, FileExistsError | NotADirectoryError) or error.filename is None:
        return None
    path = Path(os.fsdecode(error.filename))
    there = (one for one in (path, *path.parents) if os.path.lexists(one))
    return next((one for one in there if not one.is_dir()), None)


def _full_place(error: OSError) -> str:
    """The path of a disk's error: of a copy, which has two, the one that is written.

    The error of a write has none: then the folders whose disk has no room.
    """
    if found := error.filename2 or error.filename:
        return str(found)
    folders = [
        Path.cwd(),
        Path(os.environ.get("TMPDIR", "/tmp")),
        Path(os.environ.get("HOME", "/")),
    ]
    full = [str(one) for one in dict.fromkeys(folders) if one.is_dir() and _free(one) < LITTLE]
    return ", ".join(full if error.errno == errno.ENOSPC else []) or "disk"


def _free(folder: Path) -> int:
    """Bytes that may still be written to the disk of a folder."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _fail(message: object, code: int) -> int:
    print(for_stream(redact(str(message)), sys.stderr), file=sys.stderr)
    return code
