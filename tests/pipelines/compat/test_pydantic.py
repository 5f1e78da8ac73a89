"""What the code relies on in pydantic and its documentation does not promise."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import pytest
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Tag,
    ValidationError,
    field_validator,
)
from pydantic_core.core_schema import ErrorType

from pipelines.compat.pydantic import (
    FROM_VALIDATOR,
    INVALID_JSON,
    LITERAL,
    MISSING,
    NO_TEXT,
    UNION_TAGS,
    UNKNOWN_KEY,
    cause,
    expectation,
    key_path,
    literal_error,
)


def refuse(value: str) -> str:
    raise literal_error("'a' or 'b'")


@dataclass(frozen=True)
class Inner:
    __pydantic_config__ = {"extra": "forbid"}

    size: int = 1


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    number: int
    inner: Inner = Inner()
    kind: Literal["one", "two"] = "one"
    name: Annotated[str, AfterValidator(refuse)] = "a"
    union: Annotated[
        Annotated[int, Tag(UNION_TAGS[0])] | Annotated[tuple[int, int], Tag(UNION_TAGS[1])],
        Discriminator(lambda value: UNION_TAGS[isinstance(value, list | tuple)]),
    ] = 1
    odd: int = 1

    @field_validator("odd")
    @classmethod
    def _is_odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("expected an odd number")
        return value


def detail_of(text: str) -> Mapping[str, Any]:
    with pytest.raises(ValidationError) as error:
        Model.model_validate_json(text)
    (detail,) = error.value.errors(include_url=False)
    return detail


def test_the_types_of_errors_are_those_of_pydantic():
    assert {*UNKNOWN_KEY, NO_TEXT, MISSING, INVALID_JSON, FROM_VALIDATOR, LITERAL} <= set(
        get_args(ErrorType)
    )


@pytest.mark.parametrize(
    ("text", "kind", "path"),
    [
        ('{"number": 1, "x": 1}', UNKNOWN_KEY[0], ["x"]),
        ('{"number": 1, "inner": {"x": 1}}', UNKNOWN_KEY[1], ["inner", "x"]),
        ("{}", MISSING, ["number"]),
        ('{"number": 1, "kind": "three"}', LITERAL, ["kind"]),
        ('{"number": 1, "name": "c"}', LITERAL, ["name"]),
        ('{"number": 1, "odd": 2}', FROM_VALIDATOR, ["odd"]),
        ('{"number": 1, "union": "x"}', "int_type", ["union"]),
        ('{"number": 1, "union": [1, "x"]}', "int_type", ["union", "1"]),
        ('{"number": "\\ud800"}', INVALID_JSON, []),
    ],
)
def test_an_error_has_a_type_and_the_path_of_its_key(text, kind, path):
    detail = detail_of(text)
    assert (detail["type"], key_path(detail)) == (kind, path)


def test_a_path_contains_the_tag_of_a_unions_member():
    assert detail_of('{"number": 1, "union": "x"}')["loc"] == ("union", UNION_TAGS[0])
    assert detail_of('{"number": 1, "union": [1, "x"]}')["loc"] == ("union", UNION_TAGS[1], 1)


def test_an_unknown_key_of_a_unions_member_has_a_path_without_the_tag():
    detail = {"type": UNKNOWN_KEY[0], "loc": ("union", UNION_TAGS[0], "x")}
    assert key_path(detail) == ["union", "x"]


@pytest.mark.parametrize("tag", UNION_TAGS)
def test_an_unknown_key_may_be_spelled_as_a_tag(tag):
    assert key_path(detail_of(f'{{"number": 1, "{tag}": 2}}')) == [tag]


def test_the_cause_of_an_error_is_in_its_context():
    assert str(cause(detail_of('{"number": 1, "odd": 2}'))) == "expected an odd number"
    assert isinstance(cause(detail_of('{"number": 1, "odd": 2}')), ValueError)
    assert "hex escape" in cause(detail_of('{"number": "\\ud800"}'))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"number": "x"}', "input should be a valid integer"),
        ('{"number": 1, "kind": "three"}', "input should be 'one' or 'two'"),
        ('{"number": 1, "name": "c"}', "input should be 'a' or 'b'"),
        ('{"number": 1, "union": [1]}', "field required"),
    ],
)
def test_a_message_is_a_sentence_with_a_capital_letter(text, message):
    detail = detail_of(text)
    assert detail["msg"][0].isupper()
    assert not detail["msg"].endswith(".")
    assert expectation(detail) == message
