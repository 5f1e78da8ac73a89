"""What a command may fail with; `pipelines.console.command` turns each into its exit code."""

import errno
from dataclasses import dataclass

from pipelines.console.text import one_line

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO}
"""Full, over quota, read-only, not ours, too large, broken."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the input. Rendered by `str`, once, where it is shown."""

    message: str
    """What is expected and what was given."""
    key: str = ""
    """The dotted configuration key, or the option, as in --prompt."""
    source: str = ""
    """The file it stands in, or `command line`."""
    nearest: str = ""
    """The valid name closest to an unknown one."""

    def __str__(self) -> str:
        """`source: key: message; did you mean NEAREST?`, in one line."""
        hint = f"; did you mean {self.nearest}?" if self.nearest else ""
        what = one_line(": ".join(filter(None, [self.key, self.message])) + hint)
        return f"{one_line(self.source)}: {what}" if self.source else what


class ConfigError(Exception):
    """Bad input. Exit code 2."""

    def __init__(self, *problems: Problem | str) -> None:
        """A text is a problem of which nothing else is known."""
        super().__init__(*problems)
        self.problems = [Problem(p) if isinstance(p, str) else p for p in problems]

    def __str__(self) -> str:
        """The problems, a line each."""
        return "\n".join(map(str, self.problems))


class PipelineError(Exception):
    """Work that failed although the input was good. Exit code 1."""


class DamagedError(PipelineError):
    """A checkpoint or a packaged model is not as it was written: reading it again does not help."""


class StorageError(PipelineError):
    """The disk did not take a file: trying again would not help, making room does."""
