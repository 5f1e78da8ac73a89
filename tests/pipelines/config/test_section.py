"""Sections of another configuration than an experiment's: the machinery defines none itself."""

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field, model_validator

from dca.errors import FieldError
from pipelines.config.compose import Layer
from pipelines.config.schema import choices, field_at, field_keys, reference
from pipelines.config.section import Fraction, Positive, Section, set_key
from pipelines.config.validation import validate
from pipelines.console.errors import ConfigError, Problem


class Oven(Section):
    """The oven."""

    degrees: Positive = 200
    """Celsius."""
    mode: Literal["fan", "grill"] | None = None
    """How it heats."""

    @model_validator(mode="after")
    def _is_not_too_hot(self) -> "Oven":
        if self.mode == "grill" and self.degrees > 250:
            raise FieldError("degrees", f"expected at most 250, got {self.degrees}", "mode")
        return self


class Recipe(Section):
    """A recipe."""

    dotted: ClassVar[tuple[str, ...]] = ("amounts",)

    name: str
    """Its name."""
    oven: Oven = Oven()
    amounts: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Grams of each ingredient."""
    steps: list[Literal["mix", "bake"]] = []
    """What to do."""


def problems_of(data: dict, **options: object) -> list[Problem]:
    with pytest.raises(ConfigError) as error:
        validate(Recipe, data, **options)
    return error.value.problems


def test_all_problems_are_found_together_each_with_its_source():
    layers = [
        Layer("a.yaml", {"name": 1, "oven": {"degres": 3}}),
        Layer("b.yaml", {"oven": {"mode": "fna"}, "steps": ["mix", "bakee"]}),
    ]
    data = {"name": 1, "oven": {"degres": 3, "mode": "fna"}, "steps": ["mix", "bakee"]}
    found = problems_of(data, source="b.yaml", layers=layers)
    assert [(one.key, one.source, one.nearest) for one in found] == [
        ("name", "a.yaml", ""),
        ("oven.mode", "b.yaml", "fan"),
        ("oven.degres", "a.yaml", "oven.degrees"),
        ("steps.1", "b.yaml", "bake"),
    ]


def test_a_validators_error_is_a_problem_of_the_field_it_names():
    (found,) = problems_of({"name": "a", "oven": {"mode": "grill", "degrees": 300}}, source="a")
    assert found == Problem("expected at most 250, got 300", "oven.degrees", "a", "mode")


def test_a_check_of_the_whole_runs_only_if_each_field_is_valid():
    def check(recipe: Recipe) -> list[Problem]:
        return [Problem("expected two steps", "steps")] if len(recipe.steps) < 2 else []

    assert problems_of({"name": "a"}, check=check) == [Problem("expected two steps", "steps")]
    assert [one.key for one in problems_of({"name": 1}, check=check)] == ["name"]
    assert validate(Recipe, {"name": "a", "steps": ["mix", "bake"]}, check=check).name == "a"


def test_what_json_cannot_hold_is_a_problem_of_the_whole():
    (found,) = problems_of({"name": {1, 2}}, source="a")
    assert (found.key, found.source) == ("", "a")
    assert found.message.startswith("expected text keys and plain values: ")


def test_values_are_replaced_by_dotted_keys_and_the_original_stays():
    recipe = Recipe(name="a", amounts={"flour.white": 500, "salt": 10})
    changed = recipe.replace(
        {"oven.degrees": 180, "amounts.flour.white": 400, "amounts.salt": None}
    )
    assert (changed.get("oven.degrees"), changed.amounts) == (180, {"flour.white": 400})
    assert (recipe.oven.degrees, recipe.amounts["salt"]) == (200, 10)
    with pytest.raises(ConfigError, match=r"oven\.degrees: input should be greater than or equal"):
        recipe.replace({"oven.degrees": 0})


def test_a_key_is_set_below_sections_that_do_not_exist_yet():
    data: dict = {"oven": "hot"}
    set_key(data, "oven.degrees", 1)
    set_key(data, "amounts.a.b", 2, dotted=("amounts",))
    assert data == {"oven": {"degrees": 1}, "amounts": {"a.b": 2}}


def test_a_schema_is_read_by_paths():
    schema = Recipe.model_json_schema()
    assert field_keys(schema) == ["name", "oven.degrees", "oven.mode", "amounts", "steps"]
    assert choices(schema, field_at(schema, ["oven", "mode"])) == ["fan", "grill"]
    assert choices(schema, field_at(schema, ["steps", "0"])) == ["mix", "bake"]
    assert field_at(schema, ["amounts", "a.b"])["type"] == "integer"
    assert field_at(schema, ["nothing", "here"]) == {}


def test_the_reference_has_a_row_for_each_key():
    defaults = {"oven.degrees": 200, "oven.mode": None, "amounts": {}, "steps": []}
    assert reference(Recipe.model_json_schema(), defaults).splitlines() == [
        "| key | default | meaning |",
        "|---|---|---|",
        "| `name` | `required` | Its name. |",
        "| `oven.degrees` | `200` | Celsius. |",
        "| `oven.mode` | `null` | How it heats. |",
        "| `amounts` | `{}` | Grams of each ingredient. |",
        "| `steps` | `[]` | What to do. |",
    ]


def test_the_machinery_imports_no_section():
    folder = Path(__file__).parents[3] / "pipelines" / "config"
    imported = {
        name
        for path in folder.glob("*.py")
        for name in re.findall(r"^from (pipelines\.\w+)", path.read_text(), re.M)
    }
    assert imported == {"pipelines.compat", "pipelines.config", "pipelines.console"}


def test_a_positive_number_may_be_one_and_a_fraction_nothing_or_all():
    class Numbers(Section):
        count: Positive = 1
        share: Fraction = 0.5

    for given in ({"count": 1}, {"share": 0.0}, {"share": 1.0}):
        assert validate(Numbers, given)
    for given in ({"count": 0}, {"share": -0.001}, {"share": 1.001}):
        with pytest.raises(ConfigError):
            validate(Numbers, given)
