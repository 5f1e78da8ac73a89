"""Options of residual kinds, as they are read from a file that is not imported."""

import pickle
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from dca import ModelConfig, registry
from dca.errors import FieldError
from dca.options import from_data, in_section, read_options

FILE = '''
import nothing

@options
class Options:
    """Of far."""

    reach: Annotated[int, Range(ge=1, le=9)] = 4
    """How far it reads,
    in blocks."""
    rate: Annotated[float, Range(gt=0, lt=2)] | None = None
    start: Literal["even", "odd"] = "even"
    """Where it starts."""

    def check(self, config):
        if config < self.reach:
            raise FieldError("reach", f"expected at most {config}")
'''


@pytest.fixture
def far(tmp_path: Path) -> type:
    file = tmp_path / "so_far.py"
    file.write_text(FILE)
    found = read_options(file)
    assert found is read_options(file)
    return found


def test_a_file_without_options_has_none(tmp_path):
    file = tmp_path / "none.py"
    file.write_text("class Other: ...\n")
    assert read_options(file) is None


def test_options_are_frozen_values_with_the_name_of_their_file(far):
    assert repr(far()) == "SoFarOptions(reach=4, rate=None, start='even')"
    assert far(reach=1) == far(reach=1) != far()
    assert hash(far()) == hash(far())
    with pytest.raises(FrozenInstanceError):
        far().reach = 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reach": 0}, "reach: expected at least 1 and at most 9, got 0"),
        ({"reach": 10}, "reach: expected at least 1 and at most 9, got 10"),
        ({"rate": 0.0}, "rate: expected more than 0 and less than 2 or null, got 0.0"),
        ({"rate": float("nan")}, "or null, got nan"),
        ({"rate": float("inf")}, "or null, got inf"),
        ({"start": "both"}, "start: expected one of even, odd, got 'both'"),
    ],
)
def test_a_value_outside_its_limits_is_refused(far, given, message):
    with pytest.raises(FieldError, match=message):
        far(**given)
    with pytest.raises(FieldError, match=f"^far.{message}" if ": " in message else message):
        from_data(far, given, "far")


def test_limits_are_included_where_they_say_so(far):
    assert (far(reach=1).reach, far(reach=9).reach, far(rate=1.99).rate) == (1, 9, 1.99)


def test_an_unknown_option_is_refused_with_the_known_ones(far):
    with pytest.raises(FieldError, match=r"^far.reech: expected one of reach, rate, start"):
        from_data(far, {"reech": 1}, "far")


def test_the_schema_has_limits_meanings_and_choices(far):
    schema = TypeAdapter(far).json_schema()
    assert schema["description"] == "Of far."
    reach = {"default": 4, "minimum": 1, "maximum": 9, "title": "Reach", "type": "integer"}
    fields = schema["properties"]
    assert fields["reach"] == {**reach, "description": "How far it reads, in blocks."}
    number = {"exclusiveMinimum": 0, "exclusiveMaximum": 2, "type": "number"}
    assert fields["rate"]["anyOf"] == [number, {"type": "null"}]
    assert fields["start"]["enum"] == ["even", "odd"]


@pytest.mark.parametrize("text", ['{"reach": "1"}', '{"reach": 0}', '{"start": "x"}', '{"a": 1}'])
def test_data_is_checked_strictly(far, text):
    with pytest.raises(ValidationError):
        TypeAdapter(far).validate_json(text)


def test_options_are_checked_against_the_model_in_their_section(far):
    with in_section("far"):
        far(reach=3).check(3)
    with pytest.raises(FieldError, match=r"^far.reach: expected at most 2"), in_section("far"):
        far(reach=3).check(2)


def test_every_kind_has_the_options_of_its_file():
    for kind in registry.residual.names:
        config = ModelConfig(residual=kind)
        section = registry.residual.section(kind)
        assert config.options == (getattr(config, section) if section else None)
        assert pickle.loads(pickle.dumps(config)) == config
