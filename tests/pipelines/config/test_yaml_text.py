"""YAML text that is read and written: its limits, and what is written on one line."""

import pytest

from pipelines.config import overrides
from pipelines.config.overrides import read_changes
from pipelines.config.schema import reference
from pipelines.config.yaml_text import MAX_CHARACTERS, dump, flatten, parse
from pipelines.console.errors import ConfigError


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as error:
        parse(text, source="a.yaml")
    return str(error.value)


def test_short_mappings_and_lists_of_values_are_written_on_one_line():
    three, four = dict.fromkeys("abc", 1), dict.fromkeys("abcd", 1)
    text = dump({"three": three, "four": four, "list": [1, "xy", None], "deep": {"of": three}})
    assert text == (
        "three: {a: 1, b: 1, c: 1}\n"
        "four:\n  a: 1\n  b: 1\n  c: 1\n  d: 1\n"
        "list: [1, xy, null]\n"
        "deep:\n  of: {a: 1, b: 1, c: 1}\n"
    )
    assert dump({"again": three, "more": [three, three]}).count("&") == 0
    assert dump({"long": ["word"] * 5000}).count("\n") == 1


@pytest.mark.parametrize("text", ["word", "a.b/c-d", "1a"])
def test_plain_words_have_no_quotes(text):
    assert dump({"a": text, "b": [1]}) == f"a: {text}\nb: [1]\n"


@pytest.mark.parametrize("text", ["two words", "1", "true", "null", "-a", "", "é", "a:b"])
def test_other_text_is_quoted(text):
    assert dump({"a": text, "b": [1]})[3] in "\"'"
    assert parse(dump({"a": text}), source="") == {"a": text}


def test_a_text_has_at_most_so_many_characters():
    assert parse("x" * 32_768, source="") == "x" * MAX_CHARACTERS
    assert refused("x" * 32_769) == "a.yaml: expected at most 32,768 characters of YAML"


def test_values_are_counted_with_their_aliases_written_out():
    ten = "a: &a [1, 2, 3, 4, 5, 6, 7, 8]\n"  # 9 values
    aliases = ", ".join(["*a"] * 3639)
    assert len(parse(f"{ten}b: [{aliases}]", source="")["b"]) == 3639  # 32,765 with keys and all
    assert "expected at most 32,768 values, aliases written out" in refused(
        f"{ten}b: [{aliases}, *a]"
    )


def test_values_may_be_fifty_levels_deep():
    assert parse("[" * 50 + "]" * 50, source="")
    assert refused("[" * 51 + "]" * 51) == "a.yaml: not valid YAML: expected at most 50 levels"


def test_a_problem_names_the_line_of_a_text_of_several():
    assert refused("a: 1\nb: [").startswith("a.yaml:")
    assert refused("a: 1\na: 2\n").startswith("a.yaml:2: not valid YAML: found duplicate key")
    assert refused("{a: 1, a: 2}").startswith("a.yaml: not valid YAML: found duplicate key")


def test_what_no_json_can_hold_shows_the_start_of_the_value():
    shown = refused(f"a: !!int {'x' * 100}")
    expected = "expected an integer of at most 4,300 digits"
    assert shown == f'a.yaml: not valid YAML: {expected}, got "{"x" * 56}...'


def test_nested_mappings_are_flattened_to_dotted_keys():
    data = {"a": {"b": 1, "c": {}}, "d": [{"e": 1}], "f": {"g": {"h": None}}}
    assert dict(flatten(data)) == {"a.b": 1, "a.c": {}, "d": [{"e": 1}], "f.g.h": None}


@pytest.mark.parametrize(
    "text", ["/tmp/a #1", "C #1.txt", "#1", "a,b # both", "'a # b' # c # d", "a #'b # c'"]
)
def test_a_value_of_the_command_line_loses_nothing_to_a_comment(text):
    with pytest.raises(ConfigError, match=r"# begins a comment; expected quotes"):
        read_changes([f"data.path={text}"])


def test_a_value_with_many_signs_of_a_comment_is_read_few_times(monkeypatch):
    """Each was tried, in a time that grew with their square."""
    read, texts = overrides.parse, []
    monkeypatch.setattr(overrides, "parse", lambda *a, **b: texts.append(a) or read(*a, **b))
    text = f"'{400 * ' #'}'"
    assert read_changes([f"data.path={text}"])[0].value == text[1:-1]
    lines = 400 * " #\n"
    read_changes([f"data.path='{lines}'"])
    assert len(texts) < 50


@pytest.mark.parametrize("text", ["'a #1'", '"a #1"', "a#1", "['a #', b]"])
def test_a_sign_that_begins_no_comment_is_kept(text):
    assert "#" in str(read_changes([f"data.path={text}"])[0].value)
    assert read_changes(["train.seed=1,2 # both"])[0].value == [1, 2]


def test_a_key_has_at_most_fifty_parts():
    assert read_changes([f"{'a.' * 49}a=1"])[0].value == 1
    with pytest.raises(ConfigError, match="expected a key such as"):
        read_changes([f"{'a.' * 50}a=1"])


@pytest.mark.parametrize(
    ("text", "value", "is_list"),
    [
        ("1", 1, False),
        ("1,2", [1, 2], True),
        ("[1,2]", [1, 2], False),
        ("[1],[2]", [[1], [2]], True),
        ("'a,b'", "a,b", False),
        ("{a: 1, b: 2}", {"a": 1, "b": 2}, False),
        ("1,", "1,", False),
        ("", None, False),
        ("a=b", "a=b", False),
    ],
)
def test_a_value_with_commas_outside_brackets_is_several(text, value, is_list):
    (change,) = read_changes([f"k={text}"])
    assert (change.key, change.value, change.is_list) == ("k", value, is_list)
    assert change.text == f"k={text}"


def test_a_row_of_the_reference_has_default_meaning_and_choices():
    schema = {
        "properties": {
            "a": {"default": 1, "description": "The\nfirst."},
            "b": {"description": "The second.", "enum": ["x", "y"]},
        }
    }
    assert reference(schema, {"a": 1, "b": None}).splitlines()[2:] == [
        "| `a` | `1` | The first. |",
        "| `b` | `required` | The second. One of `x`, `y`. |",
    ]


@pytest.mark.parametrize("before", ["", "data:\n  path: ", "- - a: "])
@pytest.mark.parametrize(
    "value",
    [
        *("*", "*.txt", "**/*.txt", "[ab].txt", "[a-z]*.txt", "{a,b}.txt", "&", "&a.txt", "%Y/a"),
        *("!a", "!(a)", "`a", "@a", "|a", ">a", ",a"),
    ],
)
def test_a_text_that_begins_with_what_means_something_in_yaml_needs_quotes(before, value):
    message = refused(f"{before}{value}")
    begin = value[0]
    assert message.endswith(
        f"; expected a text that begins with {begin} in quotes, as in \"'{begin}...'\""
    )
    assert parse(f"{before}'{value}'", source="") == parse(f'{before}"{value}"', source="")


@pytest.mark.parametrize(
    ("text", "begin"),
    [("[*.txt, a]", "*"), ("a:   *x", "*"), ("{a: 1, b: *x}", "*"), ("a-b: [c, @x]", "@")],
)
def test_of_a_list_the_text_inside_needs_quotes(text, begin):
    assert f"begins with {begin} in quotes" in refused(text)


@pytest.mark.parametrize(
    "text",
    [
        *("[1", "{a: 1", "{a: 1, a: 2}", "a: [1\nb: 2", "a:\n b: 1\n c", "a\t: b", "a: [1]]"),
        "{a: 1}}",
    ],
)
def test_what_is_no_text_needs_no_quotes(text):
    assert "quotes" not in refused(text)
    assert parse("a: &b\n  c: 1\nd: *b", source="") == {"a": {"c": 1}, "d": {"c": 1}}
    assert parse("[&a '', *a, &b 1]", source="") == ["", "", 1]
