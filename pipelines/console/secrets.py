"""Redaction: passwords and tokens in text that is shown or stored are replaced by `***`.

Used by whatever prints, and by the tracking package for tags, parameters and descriptions. A URI
with its password is only for connecting.
"""

import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, quote_plus, unquote_plus

MASK = "***"
MIN_SECRET_CHARACTERS = 8
"""Shorter values of the environment are words that occur anywhere, not secrets."""
NAMES = (
    r"passw(?:or)?d|token|secret|signature|credential|access[_-]?key(?:[_-]?id)?"
    r"|(?:api|secret)[_-]?key"
)
"""How the names of parameters and variables that hold a secret end."""
SECRET_VARIABLE = re.compile(rf"(?i)(?:{NAMES})$")
PLACE_VARIABLE = re.compile(r"(?i)(?:uri|url|address|proxy|endpoint|dsn)$")
USER_INFORMATION = re.compile(
    r"(?<=://)"
    r"(?:[^\s/?#\"'<>@:]+:(?!\d+[/?#])[^\s\"'<>]{0,2000}"  # a password may contain /, a port not
    r"|[^\s/\"'<>]{1,2000})@"
)
PARAMETER = re.compile(
    rf"(?i)((?:(?:^|[?&;,\s\"'{{(])[\w.%-]*(?:{NAMES})|[?&](?:key|sig|pwd|auth))=)[^\s&;\"'<>]+"
)

QUOTED = re.compile(
    rf"""(?ix)((?P<escape>\\{{0,8}})["'][\w.-]*(?:{NAMES})(?P=escape)["']\s*[:,=]\s*)
    b?(?P<opening>(?P=escape)["']).*?(?<!\\)(?P=opening)"""
)
"""A secret with its name in JSON, in JSON within a text, or as Python writes a dictionary."""
HEADER = re.compile(
    r"""(?ix)(\b(?:(?:proxy-)?authorization|cookie|x-api-key)\b\\*["']?\s*[:,=]\s*(?:b(?=\\*["']))?\\*["']?
    (?:(?:basic|bearer|token|digest|negotiate)\s+)?|\bbearer\s+(?=[^\s"'\\]{16}))[^\s"'\\,}\])]+"""
)
"""What a request is signed with: a header of HTTP, or a token alone."""
OPTION = re.compile(rf"(?i)((?<![\w-])--?[\w-]*(?:{NAMES})[ \t]+['\"]?)(?![-'\"])[^\s'\"]+")
"""A secret as an option of a command: its name and the value are two words."""


def redact(text: str) -> str:
    """The text without the secrets of the environment, the user information of URIs, the values of
    parameters such as `token=`, of keys such as `"password":` and of options such as `--password`,
    and headers that authorize."""
    for secret in _secrets(tuple(_variables().items())):
        text = text.replace(secret, MASK)
    text = USER_INFORMATION.sub(f"{MASK}@", text)
    text = QUOTED.sub(rf"\g<1>\g<opening>{MASK}\g<opening>", text)
    text = HEADER.sub(rf"\g<1>{MASK}", text)
    text = OPTION.sub(rf"\g<1>{MASK}", text)
    return PARAMETER.sub(rf"\g<1>{MASK}", text)


def redact_all(value: Any) -> Any:
    """The same of all texts in JSON data."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact_all(key): redact_all(item) for key, item in value.items()}
    return [redact_all(item) for item in value] if isinstance(value, list | tuple) else value


def environment() -> dict[str, str]:
    """A copy of the environment, which other threads change meanwhile: MLflow's telemetry does."""
    return {os.fsdecode(name): os.fsdecode(value) for name, value in _variables().items()}


def _variables() -> dict[Any, Any]:
    """The same as Python keeps it: of thousands of texts each would have all of it decoded."""
    while True:
        try:
            return dict(getattr(os.environ, "_data", os.environ))
        except (KeyError, RuntimeError):  # a variable was removed, or one was added
            continue


@lru_cache(maxsize=4)  # a text is redacted for each of thousands of errors
def _secrets(variables: tuple[tuple[Any, Any], ...]) -> list[str]:
    """The environment's secrets as URIs and messages write them, the longest first."""
    found = {
        form
        for name, value in variables
        for secret in _secrets_of(os.fsdecode(name), os.fsdecode(value))
        for plain in (secret, unquote_plus(secret))
        for form in (plain, quote(plain), quote(plain, safe=""), quote_plus(plain))
    }
    return sorted((s for s in found if len(s) >= MIN_SECRET_CHARACTERS), key=len, reverse=True)


def _secrets_of(name: str, value: str) -> Iterator[str]:
    if SECRET_VARIABLE.search(name):
        yield value
    elif "@" in value and PLACE_VARIABLE.search(name):
        user = value.rpartition("@")[0].rpartition("://")[2]
        yield from (user, user.partition(":")[2])  # whatever characters the password has
