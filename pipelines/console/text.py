"""Text for people: one line of foreign text, the nearest valid name, values and durations.

Used wherever a message, a table or a line of progress is written.
"""

import difflib
import json
import math
import os
import re
import shutil
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from signal import strsignal
from typing import Any, TextIO

from pipelines.console.secrets import redact

LONG_WORD = re.compile(r"[^\s/:]{256,}")
"""Longer than the name of a file can be: a number, or a text, that was given."""
WORD_CHARACTERS = 60
"""Of a long word that are shown, and of a value."""


def terminal_width() -> int | None:
    """The width of a `Console` where COLUMNS is 0, as in a container without a terminal: rich would
    print nothing. None elsewhere: rich finds it."""
    given = os.environ.get("COLUMNS", "")
    return shutil.get_terminal_size().columns if given.isdigit() and not int(given) else None


def one_line(text: object, *, limit: int = 500) -> str:
    """Foreign text in a message: without secrets, line breaks and terminal codes, at most `limit`
    long."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in redact(str(text))[:limit])
    return line if len(line) < limit else f"{line[: limit - 3]}..."


def short_words(text: str) -> str:
    """A message in which no word is longer than a file's name can be: of thousands of digits that
    were given the first are shown, and what is wrong with them can be read."""
    return LONG_WORD.sub(lambda word: shorten(word[0]), redact(text))


def shorten(text: str, limit: int = WORD_CHARACTERS) -> str:
    """The beginning of a text that is longer than `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def is_text(path: str) -> bool:
    """Whether a path is text: the bytes of a file's name need not be UTF-8, those of a URI and of
    what a database stores do."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def without_controls(text: str) -> str:
    """Text of any origin for a terminal: what would control it, or hide text, is shown as escapes.

    Line breaks, tabs and the joiners of scripts and emoji stay.
    """
    return "".join(c if _is_shown(c) else ascii(c)[1:-1] for c in text)


def _is_shown(character: str) -> bool:
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    return not hidden or character in "\n\t\u200c\u200d"


def for_stream(text: str, stream: TextIO | None) -> str:
    """The text as it is for a file or a pipe, `without_controls` for a terminal."""
    return without_controls(text) if stream is not None and stream.isatty() else text


def first_line(error: BaseException, *, limit: int = 200) -> str:
    """The first line of an error's text, without traces and SQL statements below it; the error's
    type if it has no text."""
    lines = str(error).strip().splitlines()
    return one_line(lines[0] if lines else type(error).__name__, limit=limit)


def reason_of(error: BaseException, *, with_file: bool = False) -> str:
    """An error's text in one line; of one of the system without its number, and without the file
    where the message names it."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    file = getattr(error, "filename", None) if with_file else None
    return one_line(f"{file}: {reason}" if file else reason)


def why_ended(errors: str, code: int) -> str:
    """Why a process that runs a packaged model's code ended without its result: by a signal, or by
    the last line of its errors; without one the code has ended it."""
    if code < 0:
        return f"its process was ended by signal {-code} ({strsignal(-code)})"
    last = one_line(errors.strip().rpartition("\n")[2])
    return last or f"its code ended the process, exit code {code}"


def nearest(name: str, valid: Iterable[str]) -> str:
    """The shortest valid name that begins with an unknown one, else the closest, else the shortest
    that contains it; empty if there is none."""
    names, part = sorted(valid, key=len), name.casefold()
    longer = [one for one in names if len(part) > 2 and part in one.casefold()]
    begun = [one for one in longer if one.casefold().startswith(part)]
    return next(iter([*begun, *difflib.get_close_matches(name, names, n=1), *longer]), "")


def counted(count: float, noun: str) -> str:
    """A number of things, as in `1 trial`, `1,200 trials` and `0.5 GPUs`."""
    number = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    return f"{number} {noun}" if count == 1 else f"{number} {noun}s"


def quote_value(value: Any) -> str:
    """A value in an error message, as in `got ...`: JSON of at most 60 characters.

    Letters of any script are shown as they are, and what does not show is escaped.
    """
    text = json.dumps(value, default=str, ensure_ascii=False)
    text = "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)
    return shorten(redact(text))  # half a password looks like any text


def json_text(value: Any, *, indent: int | None = None) -> str:
    """JSON for other programs: null for a number that is not finite, which JSON does not have."""
    return json.dumps(_finite(value), indent=indent, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def format_value(value: Any, *, digits: int | None = 4) -> str:
    """A value for people, in a table, a label or a line of progress.

    Text is shown as it is, a fraction with so many significant digits, a whole number in full and
    anything else as JSON. With `digits` None a fraction is exact, too.
    """
    if isinstance(value, str):
        return value
    value = value.item() if hasattr(value, "item") else value  # a number of NumPy or pandas
    if digits is None or not isinstance(value, float):
        return json.dumps(value, default=str)
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.{digits}g}"


def shown_path(path: Path) -> str:
    """A path as people would type it: relative to the current folder if it lies below it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def format_duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
