"""What pydantic 2 calls its errors, and where it puts more into an error's path than keys.

pydantic documents the types of its errors; their `ctx`, their wording and the parts that a union
adds to a path it does not promise.
"""

from collections.abc import Mapping
from typing import Any, Final

from pydantic_core import PydanticKnownError

UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")
"""Types of the error of a key that is no field: of a model, and of a dataclass."""
NOT_A_SECTION = ("model_type", "dataclass_type")
"""Types of the error of a value that is no mapping, in the place of a model or a dataclass."""
NO_TEXT = "string_type"
"""Type of the error of a value that is no text, in the place of one."""
MISSING = "missing"
"""Type of the error of a required key that is not given."""
INVALID_JSON = "json_invalid"
"""Type of the error of text that is no JSON, as it is with half a surrogate pair inside."""
FROM_VALIDATOR = "value_error"
"""Type of the error of a ValueError that one of our validators raised."""
LITERAL: Final = "literal_error"
"""Type of the error of a value that is none of the listed ones."""
UNION_TAGS = ("(one)", "(two)")
"""Tags of a union's members. A path contains the tag of the member that failed, which is no key."""


def key_path(detail: Mapping[str, Any]) -> list[str]:
    """The keys that lead to an error: `loc` mixes them with list indices and union tags.

    The last part is a tag unless it is an unknown key, which may be anything.
    """
    place = detail["loc"]
    unknown = place[-1:] if detail["type"] in UNKNOWN_KEY else ()
    keys = [part for part in place[: len(place) - len(unknown)] if part not in UNION_TAGS]
    return [str(part) for part in (*keys, *unknown)]


def cause(detail: Mapping[str, Any]) -> Any:
    """The exception behind a FROM_VALIDATOR error, the text behind an INVALID_JSON one."""
    return detail["ctx"]["error"]


def expectation(detail: Mapping[str, Any]) -> str:
    """What was expected, to follow a key and a colon: a message is a sentence without a full stop,
    whose first letter is a capital."""
    message: str = detail["msg"]
    return f"{message[0].lower()}{message[1:]}"


def literal_error(expected: str) -> PydanticKnownError:
    """The error of a Literal, for a validator to raise whose choices are known at run time only."""
    return PydanticKnownError(LITERAL, {"expected": expected})
