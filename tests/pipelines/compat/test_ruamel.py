"""What the code relies on in ruamel.yaml and its documentation does not promise."""

import io
import warnings

import pytest
from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError
from ruamel.yaml.nodes import Node

from pipelines.compat.ruamel import (
    KINDS,
    TAG,
    UNREADABLE,
    YAML_1_1_KINDS,
    PlainConstructor,
    PlainRepresenter,
    TooDeepError,
    make_dumper,
    make_loader,
    refusal,
)


def load(text: str, constructor: type[SafeConstructor] = PlainConstructor) -> object:
    return make_loader(constructor, max_depth=5).load(text)


def test_every_plain_kind_has_a_constructor_by_its_name():
    assert set(PlainConstructor.yaml_constructors) == {
        *(TAG + kind for kind in KINDS | YAML_1_1_KINDS),
        None,
    }
    assert load("[~, true, 1, 1.5, a, [b], {c: 1}]") == [None, True, 1, 1.5, "a", ["b"], {"c": 1}]


def test_a_date_and_an_equals_sign_still_need_a_constructor_to_be_text():
    plain = YAML(typ="safe", pure=True)
    assert not isinstance(plain.load("2001-01-01"), str)
    with pytest.raises(ConstructorError, match="value"):
        plain.load("=")
    assert load("[2001-01-01, =]") == ["2001-01-01", "="]


def test_any_other_tag_goes_to_the_constructor_without_a_name():
    with pytest.raises(ConstructorError, match="expected a plain value, got the tag !x"):
        load("!x y")


def test_a_scalar_may_still_be_a_mapping_to_the_safe_constructor():
    mapping = "!!str {=: e}"
    assert YAML(typ="safe", pure=True).load(mapping) == "e"
    with pytest.raises(ConstructorError, match="expected a scalar node"):
        load(mapping)


def test_the_methods_of_a_subclass_are_called_for_the_document_and_for_each_of_its_nodes():
    seen: list[object] = []

    class Constructor(PlainConstructor):
        def check_document(self, node: Node) -> None:
            seen.append(node.id)

        def construct_value(self, node: Node, tag: str | None) -> object:
            value = super().construct_value(node, tag)
            seen.append(value)
            return value

    assert load("{a: [1, b]}", Constructor) == {"a": [1, "b"]}
    assert seen[0] == "mapping"
    assert {1, "a", "b"} <= {value for value in seen if not isinstance(value, list | dict)}


def test_text_that_is_nested_too_deep_is_one_of_the_marked_errors():
    assert load("[[[[1]]]]") == [[[[1]]]]
    with pytest.raises(TooDeepError) as error:
        load("[[[[[[1]]]]]]")
    assert isinstance(error.value, MarkedYAMLError)
    assert error.value.problem_mark.line == 0


def test_an_anchor_is_defined_again_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load("[&a 1, &a 2, *a]") == [1, 2, 2]
    with pytest.warns(ReusedAnchorWarning, match="anchor"):
        YAML(typ="safe", pure=True).load("[&a 1, &a 2, *a]")


@pytest.mark.parametrize(
    "text", ['"\\UFFFFFFFF"', '"\\U00110000"', "!!int x", "!!int ''", "!!bool x"]
)
def test_errors_of_python_escape_the_loader(text):
    with pytest.raises(UNREADABLE) as error:
        load(text)
    assert not isinstance(error.value, YAMLError)


def test_a_refusal_names_the_line_and_the_problem():
    class Constructor(PlainConstructor):
        def check_document(self, node: Node) -> None:
            raise refusal("no", node.value[1])

    with pytest.raises(ConstructorError) as error:
        load("- a\n- b\n", Constructor)
    assert (error.value.problem, error.value.problem_mark.line) == ("no", 1)


def test_a_representer_keeps_the_order_and_writes_aliases_out():
    part = [1]
    file = io.StringIO()
    make_dumper(PlainRepresenter, width=1000).dump({"b": part, "a": part}, file)
    assert file.getvalue() == "b: [1]\na: [1]\n"


class Representer(PlainRepresenter):
    """Writes mappings over lines and quotes `? a`."""

    def is_inline(self, mapping: dict) -> bool:
        return len(mapping) < 2

    def is_quoted(self, text: str) -> bool:
        return text == "? a"


def test_a_subclass_chooses_what_is_on_one_line_and_quoted():
    file = io.StringIO()
    data = {"long": {"a": 1, "b": "? a"}, "short": {"c": "d"}}
    make_dumper(Representer, width=1000).dump(data, file)
    assert file.getvalue() == 'long:\n  a: 1\n  b: "? a"\nshort: {c: d}\n'


def test_without_pairs_a_mapping_is_sorted():
    file = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.dump({"b": 1, "a": 2}, file)
    assert file.getvalue() == "{a: 2, b: 1}\n"
