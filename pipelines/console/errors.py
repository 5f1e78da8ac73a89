"""The errors that are meant for the user, and the problems of an input as objects.

Raised by every package; pipelines.console.command prints them and returns their exit codes.
"""

import errno
import sys
import traceback
from dataclasses import dataclass, replace

from pipelines.console.secrets import redact
from pipelines.console.text import one_line, short_words

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO}
"""Error numbers of a disk that is full, over quota, read-only, not ours or broken, and of a file
that is too large for it."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the input; `str` writes it, once, where it is printed."""

    message: str
    """What was expected and what was given."""
    key: str = ""
    """The dotted configuration key, or the option, as in --prompt."""
    source: str = ""
    """The file that contains the key, `command line`, or the model or experiment it is about."""
    nearest: str = ""
    """The valid name closest to an unknown one."""

    def at(self, key: str) -> "Problem":
        """The same problem of another key, which names the one that is wrong: its own key and
        source become part of the message."""
        parts = [part for part in (self.source, self.key, self.message) if part]
        return replace(self, message=": ".join(parts), key=key, source="")

    def __str__(self) -> str:
        """`source: key: message; did you mean NEAREST?`, in one line."""
        hint = f"; did you mean {one_line(self.nearest)}?" if self.nearest else ""
        message = one_line(short_words(self.message), limit=1000)  # room for a path and the reason
        where = [one_line(short_words(part)) for part in (self.source, self.key) if part]
        return ": ".join([*where, message]) + hint


class ConfigError(Exception):
    """Bad input. Exit code 2."""

    def __init__(self, *problems: Problem | str) -> None:
        """Each of `problems` is an object, or the message of one without a key."""
        super().__init__(*problems)
        self.problems = [Problem(p) if isinstance(p, str) else p for p in problems]

    def __str__(self) -> str:
        """The problems, each on a line."""
        return "\n".join(map(str, self.problems))


class PipelineError(Exception):
    """Work that failed although the input is valid. Exit code 1."""


class BlockedError(PipelineError):
    """The gate cannot decide, in another attempt either, since the champion's files are gone or
    damaged. The message has the commands that replace it."""


class DivergedError(PipelineError):
    """A training whose gradient or validation loss is not finite."""


class DamagedError(PipelineError):
    """A checkpoint or a packaged model is not as it was written: reading it again does not help."""


class EditedError(DamagedError):
    """A tag in the tracking store that was edited or removed there: nothing writes it again."""


class GoneError(DamagedError):
    """What was deleted: a packaged model or files of it, or the run of a result."""


class DeterministicError(PipelineError):
    """A mistake in the code of a training, as it was raised in a worker."""


DETERMINISTIC = (
    *(ConfigError, DivergedError, DamagedError, DeterministicError),
    *(ArithmeticError, AssertionError, AttributeError),
    *(ImportError, LookupError, NameError, NotImplementedError, RecursionError, SyntaxError),
    *(TypeError, ValueError),
)
"""Errors that another attempt would meet again, those of mistakes in code among them: a training
that raises one is not retried. Others may be of the moment, such as MemoryError and what the
libraries raise as RuntimeError."""


class StorageError(PipelineError):
    """Storage that cannot be read or written: a full disk, a store that is away or refuses."""


class RefusedError(StorageError):
    """A tracking store, or its artifacts, that this user may not read or write."""


def print_traceback(error: BaseException) -> None:
    """Print an unexpected error on standard error as Python does, without secrets."""
    print(redact("".join(traceback.format_exception(error))), end="", file=sys.stderr)
