"""The state of the process that a command changes, put back at its end.

Used by every command, so that the next one in the same process starts as in one of its own.
"""

import atexit
import errno
import gc
import logging
import os
import pwd
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from pipelines.compat import mlflow, ray
from pipelines.console import ENDING_SIGNALS
from pipelines.console.secrets import environment

LOGGERS = (mlflow.LOGGER, *ray.LOGGERS)
"""Whose levels the commands set."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ray and Tune install handlers of their own for these."""
NAME_VARIABLES = ("LOGNAME", "USER", "LNAME", "USERNAME")
"""Where Python looks for the user's name before it asks the system."""
NO_HOME = "/nonexistent"
"""The home that systems give to users without one."""
WARNINGS_VARIABLE = "PYTHONWARNINGS"
DEFAULTS = ray.THREADS | ray.USAGE | mlflow.TELEMETRY
"""Environment variables that libraries read as they are loaded."""
IMPORTS = "<frozen importlib._bootstrap>"
"""The file that Python names for the code that imports."""
HELD_SECONDS = 0.02
"""Until it is seen again whether an import has ended."""
LOST_SECONDS = 2.0
"""Until it is seen whether something handles an interrupt, or has dropped it."""
ENDING_SECONDS = 10.0
"""Between two lines about an interrupt on which a command takes long to end."""
AGAIN_SECONDS = 0.1
"""From a lost interrupt to the next: the destructor or callback that lost it has ended by then."""
DESCRIPTORS = range(3)
"""Of standard input, output and error."""
SILENT_SECONDS = 15.0
"""How long a command may write nothing at its start: it imports for a minute on a busy machine."""
GARBAGE_THRESHOLDS = (20_000, 20, 20)
"""How many new objects Python waits for before it searches them, and older ones, for garbage."""

_interrupted, _lines = 0.0, 0  # when Ctrl-C was pressed, and the lines about it since then


class GuardedStream:
    """An output stream whose first error is kept instead of raised; what follows is discarded.

    A closed terminal, a reader that has gone or a full disk behind standard output must not end the
    work of hours.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None
        self.written = False
        """Whether anything has been written by now."""
        self.since = time.monotonic()
        """When something was written last; at first, when the command began."""

    def write(self, text: str) -> int:
        """Write, unless it has failed before."""
        self.written, self.since = True, time.monotonic()
        if self.error is None:
            try:
                return self._stream.write(_encodable(text, self._stream))
            except (OSError, ValueError) as error:
                self._discard(error)
        return len(text)

    def flush(self) -> None:
        """Flush, unless it has failed before."""
        if self.error is None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._discard(error)

    def _discard(self, error: OSError | ValueError) -> None:
        """Keep the error; what is buffered goes nowhere, or Python writes it again at its exit."""
        closed = OSError(errno.EBADF, os.strerror(errno.EBADF))  # Python has a ValueError for it
        self.error = error if isinstance(error, OSError) else closed
        with suppress(OSError, ValueError):  # a stream without a descriptor
            descriptor = self._stream.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def output_guarded() -> Iterator[tuple[GuardedStream, GuardedStream]]:
    """Let no failing standard output or error end a block; yields their streams.

    Streams that are closed lead nowhere for the block. A closed descriptor does from now on: the
    next file that is opened, such as a database, would have its number, and get what other
    processes print.
    """
    for number in DESCRIPTORS:
        _open_descriptor(number)
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123  no path
        first, second = (nowhere if one is None or one.closed else one for one in before)
        sys.stdout, sys.stderr = guarded = GuardedStream(first), GuardedStream(second)
        try:
            yield guarded
        finally:
            for one in guarded:
                one.flush()
            sys.stdout, sys.stderr = before


@contextmanager
def silence_broken(output: GuardedStream, errors: GuardedStream) -> Iterator[None]:
    """Show in a terminal that a block works, from time to time until it writes anything."""
    if not errors.isatty():  # in a log each line counts
        yield
        return
    ended, start = threading.Event(), time.monotonic()

    def watch() -> None:
        while not ended.wait(SILENT_SECONDS) and not (output.written or errors.written):
            errors.write(f"  working, {time.monotonic() - start:.0f} s\n")
            errors.flush()
            errors.written = False

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def raise_output_error() -> None:
    """Raise the error of standard output, if it had one: for work of which nothing is stored."""
    if error := getattr(sys.stdout, "error", None):
        raise error


def _encodable(text: str, stream: TextIO) -> str:
    """The text with escapes for characters that the stream's encoding lacks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding, getattr(stream, "errors", None) or "strict")
    except UnicodeEncodeError:
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def _open_descriptor(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        nowhere = os.open(os.devnull, os.O_RDWR)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)


def lacks_temporary_folder() -> bool:
    """Whether no folder for temporary files, TMPDIR or another, can be written."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        return True
    return False


def lacks_working_folder() -> bool:
    """Whether the folder in which this process was started has been deleted."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


@contextmanager
def user_named() -> Iterator[None]:
    """Give a user whom the system does not know a name and a home, in the time of a block.

    A container may run as a number without an entry: Python then finds neither name nor home, and
    libraries ask for both where they are imported. The home does not exist: nothing is read there.
    """
    added = {}
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        if not any(map(os.environ.get, NAME_VARIABLES)):
            added["LOGNAME"] = str(os.getuid())
        if not os.environ.get("HOME"):
            added["HOME"] = NO_HOME
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def garbage_seldom_searched() -> Iterator[None]:
    """Search for garbage, objects that refer to one another, seldom in the time of a block, and not
    at the end of the process.

    A command imports a quarter of a million objects, which stay. To search them again and again, as
    Python does by default, takes a third of the time of a report.
    """
    before = gc.get_threshold()
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    atexit.unregister(gc.freeze)  # of an earlier command in this process
    atexit.register(gc.freeze)  # called last
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def library_defaults() -> Iterator[None]:
    """Set what libraries read as they are loaded, unless the user has, in the time of a block.

    Threads that wait for others of their process sleep soon: beside other work on this machine they
    would keep it from its cores. No library sends statistics of its use.
    """
    added = {name: value for name, value in DEFAULTS.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def warnings_of_libraries() -> Iterator[None]:
    """Let no warning be an error by PYTHONWARNINGS or -W in the time of a block.

    These are for programs that are being written. Libraries warn as they are imported, here and in
    the processes of Ray, which inherit the variable. Of Matplotlib only errors are shown: it
    warns of a home that cannot be written, and of each font that it looks up.
    """
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    removed = [one for one in warnings.filters if sys.warnoptions and one[0] == "error"]
    kept = [one for one in warnings.filters if one not in removed]
    given = os.environ.get(WARNINGS_VARIABLE)
    warnings.filters[:] = kept  # type: ignore[index]
    if given:
        others = [one for one in given.split(",") if not _makes_errors(one)]
        os.environ[WARNINGS_VARIABLE] = ",".join(others)
    try:
        yield
    finally:
        logger.setLevel(level)
        now = warnings.filters
        place = next((i for i, one in enumerate(now) if one in kept), len(now))
        now[place:place] = removed  # type: ignore[index]
        if given:
            os.environ[WARNINGS_VARIABLE] = given


def _makes_errors(option: str) -> bool:
    """Whether an option as in `error::UserWarning` does: its action may be shortened."""
    action = option.partition(":")[0].strip()
    return bool(action) and "error".startswith(action)


@contextmanager
def process_restored() -> Iterator[None]:
    """Put back after a block the environment, the handlers of signals, the levels of loggers and
    the filters of MLflow's warnings. Also a decorator of a command's `main`.

    Other filters stay: libraries add them only once, when they are first imported.
    """
    before = environment()
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    filters = list(warnings.filters)
    with handlers_restored(*SIGNALS):
        try:
            yield
        finally:
            _restore_environment(before)
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            warnings.filters[:] = [  # type: ignore[index]
                one for one in warnings.filters if one in filters or not mlflow.is_filter(one)
            ]


@contextmanager
def handlers_restored(*numbers: int) -> Iterator[bool]:
    """Put the handlers of signals back after a block; yields whether they may be set.

    Only the main thread may set any, and none can be put back that was not set from Python.
    """
    if threading.current_thread() is not threading.main_thread():
        yield False
        return
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield None not in handlers.values()
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)


def interrupt(number: int, frame: FrameType | None) -> None:
    """A handler of signals: raise KeyboardInterrupt, amid an import later, and again if it is lost.

    An interrupted import may keep the lock of all imports, for which another thread, as that in
    which Ray starts, then waits for ever. PyTorch's ends the process in C++, or leaves NumPy half
    imported. Some modules, and libraries that call Python, drop what is raised there.
    """
    global _interrupted, _lines
    if number != signal.SIGALRM:
        _interrupted, _lines = time.monotonic(), 0
        warnings.filterwarnings("ignore", module="pydantic")  # it warns of what it has dropped
    signal.signal(signal.SIGALRM, interrupt)
    is_on_its_way = number == signal.SIGALRM and is_interrupt(sys.exc_info()[1])
    seconds = time.monotonic() - _interrupted
    if is_on_its_way and seconds >= LOST_SECONDS + _lines * ENDING_SECONDS:
        _lines += 1
        with suppress(OSError):  # not by `print`, which may be what was interrupted
            os.write(2, f"interrupted: ending what runs, {seconds:.0f} s\n".encode())
    is_importing = False
    while frame is not None and not is_importing:
        is_importing = frame.f_code.co_filename == IMPORTS
        frame = frame.f_back
    signal.setitimer(signal.ITIMER_REAL, HELD_SECONDS if is_importing else LOST_SECONDS)
    if not (is_on_its_way or is_importing):
        raise KeyboardInterrupt


def is_interrupt(error: BaseException | None) -> bool:
    """Whether an error is an interrupt, or what became of one, as where a transaction of a database
    cannot be ended after it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


@contextmanager
def interrupts_kept() -> Iterator[None]:
    """Interrupt the main thread again where a KeyboardInterrupt was lost in a block.

    Python drops one that is raised in a destructor or in a callback of a C library, such as those
    of Ray while it starts, and goes on as if Ctrl-C had not been pressed.
    """
    before = sys.unraisablehook

    def again(lost: "sys.UnraisableHookArgs") -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            before(lost)
            return
        timer = threading.Timer(AGAIN_SECONDS, _interrupt_main_thread)
        timer.daemon = True
        timer.start()

    sys.unraisablehook = again
    with handlers_restored(signal.SIGALRM):
        try:
            yield
        finally:
            sys.unraisablehook = before
            if signal.getsignal(signal.SIGALRM) is interrupt:
                signal.setitimer(signal.ITIMER_REAL, 0)


def _interrupt_main_thread() -> None:
    """By a signal that interrupts: one that is ignored, or that a library handles, does not."""
    for number in ENDING_SIGNALS:
        if signal.getsignal(number) is interrupt:
            os.kill(os.getpid(), number)
            return


def _restore_environment(before: dict[str, str]) -> None:
    for name in set(environment()) - set(before):
        os.environ.pop(name, None)
    os.environ.update(before)
