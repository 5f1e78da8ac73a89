import json
from dataclasses import dataclass

import pytest
from pydantic import ValidationError

from pipelines.engine.results import StageResults, from_json, json_digest, to_json


@dataclass(frozen=True)
class Fit:
    bits: float
    front: tuple[tuple[int, float], ...]
    values: dict[str, int | str | None]
    model: str | None = None


@dataclass(frozen=True)
class Other:
    name: str | None


FIT = Fit(0.1 + 0.2, ((1, 2.5), (2, 3.0)), {"a": None, "b": "c"})


@pytest.mark.parametrize("result", [FIT, Fit(1.0, (), {}, "m"), Other(None)])
def test_a_result_is_read_back_from_json_as_it_was(result):
    text = json.dumps(to_json(result))
    assert from_json(type(result), text) == result
    assert json_digest(json.loads(text)) == json_digest(to_json(result))


def test_the_digest_of_data_is_that_by_which_stored_results_are_found():
    digest = "d9160b84375e7c2f8cc1227d14dfac3d"
    assert json_digest({"b": [2.5, None], "a": "é"}) == digest
    assert json_digest({"a": "é", "b": [2.5, None]}) == digest


def test_a_result_has_the_same_digest_before_and_after_it_is_stored():
    whole = Fit(1, ((1, 2),), {})  # integers where floats are expected
    read = from_json(Fit, json.dumps(to_json(whole)))
    assert json_digest(to_json(read)) == json_digest(to_json(whole))


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_a_result_with_a_field_of_another_type_is_not_stored():
    with pytest.raises(ValidationError, match="name"):
        to_json(Other(1))


def test_a_field_with_its_default_is_left_out_and_unknown_fields_are_ignored():
    assert to_json(FIT).keys() == {"bits", "front", "values"}
    assert to_json(Other(None)) == {"name": None}
    assert from_json(Other, '{"name": "a", "later": 1}') == Other("a")


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", "{}", '{"name": 1}', '{"name": "a"', '{"nam": "a"}']
)
def test_a_damaged_result_is_none(text):
    assert from_json(Other, text) is None


def test_results_are_found_by_their_type():
    results = StageResults({"fit": FIT, "other": Other("a")})
    assert (results[Fit], results[Other]) == (FIT, Other("a"))
    assert results.to_json() == {"fit": to_json(FIT), "other": {"name": "a"}}
    with pytest.raises(LookupError, match="0 results of type Fit, expected one"):
        StageResults({"other": Other("a")})[Fit]
    with pytest.raises(LookupError, match="2 stages have results of type Other, expected one"):
        StageResults({"other": Other("a"), "third": Other("b")})[Other]


def test_results_of_instances_are_found_by_their_values():
    several = {"arm": {("a", 1): Other("x"), ("b", 1): Other("y")}}
    results = StageResults({"fit": FIT}, several)
    assert results.all(Other) == {("a", 1): Other("x"), ("b", 1): Other("y")}
    assert results.all(Fit) == {(): FIT}
    assert results.to_json().keys() == {"fit", "arm[a, 1]", "arm[b, 1]"}
    with pytest.raises(LookupError, match="2 results of type Other, expected one"):
        results[Other]
    one = StageResults({}, {"arm": {("a",): Other("x")}})
    assert one[Other] == Other("x")
    assert one.all(Fit) == {}
