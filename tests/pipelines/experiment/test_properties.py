"""Thousands of odd configurations: each is an Experiment or one clear line, within seconds."""

import datetime
import json
import math
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dca import registry
from pipelines.config.overrides import read_changes
from pipelines.config.yaml_text import MAX_CHARACTERS, dump, parse
from pipelines.console.errors import ConfigError
from pipelines.console.text import one_line, short_words
from pipelines.experiment import FIELDS, Experiment, load, read_experiment

CPU_SECONDS = 30
"""For one configuration; the slowest here takes 2. More means work that is not linear."""

TEXT = """\
experiment: odd
data: {corpus: files, path: a.txt}
model: &model {dim: 128, depth: 4, heads: 4, attention_windows: [64, null]}
train:
  tokens: 400000
  learning_rate: 4e-3  # the peak
  compile: false
search:
  space:
    train.learning_rate: {log_uniform: [1.0e-3, 1e-2]}
    model.depth: {int: [2, 6]}
    model.dca.last_k: {choice: [1, 2, null], when: {model.residual: dca}}
  trials: 8
generate:
  prompts: ["def ", 'import "', class A]
"""


def outcome(call: Callable[[], Experiment], *sources: object) -> Experiment | str:
    """A frozen Experiment, or an error's message of which each line names one of the sources."""
    started = time.process_time()
    try:
        result: Experiment | str = call()
    except ConfigError as error:
        result = str(error)
    assert time.process_time() - started < CPU_SECONDS
    if isinstance(result, Experiment):
        with pytest.raises(ValidationError, match="frozen"):
            result.seed = 1
        return result
    assert isinstance(result, str)
    assert result
    for line in result.split("\n"):
        assert any(line.startswith(f"{short_words(str(source))}:") for source in sources), result
        assert line.partition(": ")[2].strip(), result
        assert line.isprintable(), result
    for noise in ("Traceback", " object at 0x", "<class ", "Error(", "sys.set_int"):
        assert noise not in result
    return result


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("odd") / "e.yaml"


def read(file: Path, text: str | bytes, *overrides: str) -> Experiment | str:
    content = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    file.write_bytes(content)
    return outcome(lambda: load([str(file), *overrides]), file, "command line")


@cache
def whole_json() -> str:
    """Every key of an experiment with a space."""
    space = {
        "train.learning_rate": {"log_uniform": [1e-3, 1e-2], "when": {"model.residual": "dca"}},
        "model.depth": {"int": [2, 6]},
        "model.dca.last_k": {"choice": [1, 2, None]},
    }
    data = {"experiment": "odd", "search": {"space": space}}
    return json.dumps(read_experiment(data, source="whole").model_dump(mode="json"))


def whole() -> dict[str, Any]:
    """The same as plain data to be damaged."""
    return json.loads(whole_json())


def places(data: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all sections and fields."""
    for key, value in data.items() if isinstance(data, dict) else []:
        yield (*path, key)
        yield from places(value, (*path, key))


def put(data: Any, path: tuple, value: Any) -> None:
    """Set what is still there: an earlier change may have taken it away."""
    for key in path[:-1]:
        data = data.get(key) if isinstance(data, dict) else None
    if isinstance(data, dict):
        data[path[-1]] = value


def deep() -> list:
    value: list = []
    for _ in range(10_000):
        value = [value]
    return value


def huge() -> int:
    return 10**5000


def cycle() -> list:
    value: list = []
    value.append({"again": value})
    return value


PLACES = list(places(whole()))
SECTIONS = [place[:-1] for place in PLACES]
WORDS = sorted({name for place in PLACES for part in place for name in (part, *part.split("."))})
TEXTS = [
    *("", " ", "no", "on", "1e-4", "null", "~", "=", "3", "nan", "a: b", "a\nb", "\t", "://"),
    *("\0", "\x1b[31m", "\ud800", "\udcff", "\u2028", "é", "😀", "%s{}", "x" * 20_000),
]
NUMBERS = [
    *(0, 1, -1, 2, 3, 2**31, 2**63, -(2**63), 10**400, True, False),
    *(0.0, -0.0, 0.5, 1e-4, 1.0, 5e-324, 1e308, math.inf, -math.inf, math.nan),
]
OBJECTS = [
    *(None, b"x", 1j, ..., object, (1, 2), {1}, frozenset(), Path("x"), range(10**9), int, len),
    *(datetime.date(2001, 1, 1), datetime.datetime(2001, 1, 1), datetime.timedelta(1)),
]
SCALARS = st.one_of(
    *(st.sampled_from(odd) for odd in (TEXTS, NUMBERS, OBJECTS)),
    *(st.text(max_size=5), st.integers(), st.floats(), st.sampled_from(WORDS)),
)
KEYS = st.one_of(
    st.sampled_from([*WORDS, *TEXTS, *FIELDS]),
    st.text(max_size=5),
    st.sampled_from([None, 1, -1, 1.5, math.nan, True, (1,), b"x", frozenset()]),
)
VALUES = st.one_of(
    SCALARS,
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
        max_leaves=6,
    ),
    st.sampled_from([deep, cycle, huge]).map(lambda make: make()),
)


@given(changes=st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=3))
def test_any_value_in_any_place_is_taken_or_refused(changes):
    data = whole()
    for place, value in changes:
        put(data, place, value)
    assert outcome(lambda: read_experiment(data, source="here"), "here")


@given(place=st.sampled_from(PLACES), value=st.sampled_from([{"x": {}}, [[]]]))
def test_a_value_of_the_wrong_type_is_refused_with_its_key(place, value):
    data = whole()
    put(data, place, value)
    message = outcome(lambda: read_experiment(data, source="here"), "here")
    assert isinstance(message, str)
    assert message.startswith(f"here: {'.'.join(place)}")


@given(section=st.sampled_from(SECTIONS), key=KEYS, value=VALUES)
def test_an_unknown_key_anywhere_is_refused(section, key, value):
    data = whole()
    put(data, (*section, f"{key}?" if isinstance(key, str) else key), value)
    assert isinstance(outcome(lambda: read_experiment(data, source="here"), "here"), str)


@st.composite
def near_misses(draw: st.DrawFn) -> tuple[tuple, str]:
    """A place of a field and its name with one letter dropped, doubled or changed."""
    place = draw(st.sampled_from([tuple(key.split(".")) for key in FIELDS]))
    name = place[-1]
    at = draw(st.integers(0, len(name) - 1))
    return place, name[:at] + draw(st.sampled_from(["", name[at] * 2, "Z"])) + name[at + 1 :]


@given(near_miss=near_misses())
def test_a_misspelt_key_is_refused_with_the_nearest(near_miss):
    place, misspelt = near_miss
    data = whole()
    put(data, (*place[:-1], misspelt), 1)
    message = outcome(lambda: read_experiment(data, source="here"), "here")
    assert isinstance(message, str)
    assert f"here: {'.'.join((*place[:-1], misspelt))}: unknown key; did you mean " in message


TAGS = [
    *("!!binary", "!!set", "!!omap", "!!pairs", "!!int", "!!float", "!!bool", "!!null", "!!str"),
    *("!!map", "!!seq", "!!timestamp", "!!merge", "!!value", "!!python/object:os.system", "!x"),
    *("!!python/object/apply:os.system", "!", "!<>", "!<tag:%zz>", "!!%FF", "!a!b", "&a", "&a &b"),
]
PLAIN = [
    *("", "~", "null", "no", "on", "yes", "off", "true", "TRUE", "=", "<<", "1:30", "190:20:30.15"),
    *("010", "0o10", "0x10", "0b11", "1_000", "1e-4", "'1e-4'", "1e400", "-1e400", ".inf", "-.INF"),
    *(".nan", "-0.0", "+1", "1.", ".5", "1e", "0x", "1" + "0" * 400, "1" + "0" * 5000),
    *("2001-01-01", "2001-13-45", "2001-01-01T25:61:61Z", "0x" + "f" * 9000, "0o", "0b", "--1"),
    *("*a", "*b", "&a [*a]", "&a {b: *a}", "&a {<<: *a}", "{<<: 3}", "{<<: [3]}", "{<<: {a: 1}}"),
    *("{<<: {}, <<: {}}", "? a", "? [[1]]\n: 1", "{[1]: 2}", "{{}: 2}", "{1: 2}", "{'': 2}"),
    *("{null: 1, ~: 2}", "{.nan: 1, .nan: 2}", "{a: 1, a: 2}", "[1, 2", "{a: 1", "]", "}", "- 1"),
    *("[" * 200, "[" * 60 + "]" * 60, "{a: " * 200, "- " * 200, "? " * 200, "|", ">", "|9", "|+-"),
    *("'", '"', '"\\ud800"', '"\\ud83d\\ude00"', '"\\UFFFFFFFF"', '"\\U00110000"', '"\\x0"'),
    *('"\\0"', '"\\e[31m"', "@a", "`a", "%a", "# a", "a # b", "a: b: c", "\t1", "1\t", "\ufeff1"),
    *("---", "--- 1\n--- 2", "...", "1\n...\n2", "%YAML 1.1\n---\nno", "%YAML 9.9\n---\n1"),
    *("...\n%YAML 1.3\n---\n1", "%TAG ! tag:x,2000:\n---\n!a b", "%x\n---\n1"),
    *("\0", "\x07", "\x7f", "\x85", "\u2028", "\ufffe", "\ud800", "a\nb: c", "\n\n  - x"),
]
SNIPPETS = st.recursive(
    st.sampled_from(PLAIN) | st.sampled_from(WORDS) | st.text(max_size=6),
    lambda inner: st.one_of(
        st.builds("{} {}".format, st.sampled_from(TAGS), inner),
        st.builds("[{}, {}]".format, inner, inner),
        st.builds("{{{}: {}}}".format, inner, inner),
    ),
    max_leaves=3,
)


def in_flow(place: tuple, snippet: str) -> str:
    sections = "".join(f"{key}: {{" for key in place[:-1])
    return f"{sections}{place[-1]}: {snippet}{'}' * (len(place) - 1)}"


@given(place=st.sampled_from(PLACES), snippet=SNIPPETS, flow=st.booleans())
def test_any_yaml_in_any_place_of_a_file_is_read_or_refused(file, place, snippet, flow):
    if flow:
        text = in_flow(place, snippet)
    else:
        text = "".join(f"{'  ' * depth}{key}:\n" for depth, key in enumerate(place[:-1]))
        text += f"{'  ' * (len(place) - 1)}{place[-1]}: {snippet}"
    assert read(file, f"experiment: odd\n{text}\n")


@given(
    changes=st.lists(
        st.tuples(
            st.sampled_from(["drop", "double", "swap", "put"]),
            st.integers(0, len(TEXT)),
            st.integers(1, 20),
            st.sampled_from([*PLAIN, *TAGS, *":,[]{}#&*!|>'\"%@`-? \t\n\r\0\ufeff"]),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a_damaged_file_is_read_or_refused(file, changes):
    text = TEXT
    for kind, at, size, snippet in changes:
        before, part, after = text[:at], text[at : at + size], text[at + size :]
        made = {"drop": "", "double": part * 2, "swap": part[::-1], "put": snippet + part}
        text = before + made[kind] + after
    assert read(file, text)


@given(content=st.binary(max_size=40), at=st.integers(0, len(TEXT)))
def test_bytes_in_a_file_are_read_or_refused(file, content, at):
    assert read(file, content)
    assert read(file, TEXT[:at].encode() + content + TEXT[at:].encode())


OVERRIDE_KEYS = st.one_of(
    st.sampled_from([*FIELDS, *(".".join(place) for place in PLACES), *WORDS, *TEXTS]),
    st.lists(st.sampled_from([*WORDS, "", " ", "x", "0"]), min_size=1, max_size=5).map(".".join),
    st.text(max_size=5).filter(lambda text: "=" not in text),
)


@given(
    overrides=st.lists(
        st.builds("{}={}".format, OVERRIDE_KEYS, SNIPPETS | st.sampled_from(TEXTS)),
        min_size=1,
        max_size=3,
    ),
    grids=st.booleans(),
)
def test_any_change_on_the_command_line_is_taken_or_refused(file, overrides, grids):
    file.write_text("experiment: odd\n")
    assert outcome(lambda: load([str(file), *overrides], grids=grids), file, "command line")


PRINTABLE = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=5)


@given(
    values=st.lists(
        st.integers(1, 10**30) | st.none() | st.floats(1e-300, 1e300) | PRINTABLE,
        min_size=2,
        max_size=5,
        unique_by=json.dumps,
    )
)
def test_any_values_between_commas_are_the_values_of_the_grid(values):
    texts = [json.dumps(value, ensure_ascii=False) for value in values]
    (change,) = read_changes([f"a={', '.join(texts)}"])
    assert (change.value, change.is_list) == (values, True)
    (change,) = read_changes([f"a=[{','.join(texts)}]"])
    assert (change.value, change.is_list) == (values, False)


@pytest.mark.slow
@given(place=st.sampled_from([*PLACES, ("extends",)]), snippet=SNIPPETS)
def test_any_part_is_taken_or_refused(file, place, snippet):
    part = file.with_name("part.yaml")
    part.write_bytes(in_flow(place, snippet).encode("utf-8", "surrogatepass"))
    file.write_text(f"{TEXT}extends: part.yaml\n")
    assert outcome(lambda: load([str(file)]), file, part)


@given(arguments=st.lists(st.sampled_from(TEXTS) | st.text(max_size=8), max_size=3))
def test_any_arguments_are_taken_or_refused(arguments):
    names = [one_line(Path(argument)) for argument in arguments]
    assert outcome(lambda: load(arguments), "command line", *names)


BOUNDS = st.one_of(
    st.sampled_from([*NUMBERS, "1", "a", None, [], 10**9, 10**30, 1e-3, 0.9]), st.integers()
)
SPACES = st.dictionaries(
    st.sampled_from([*FIELDS, "model", "train", "", "x", "model.depht", "search.space", "a.b.c"]),
    st.fixed_dictionaries(
        {},
        optional={
            **{
                kind: st.lists(BOUNDS, min_size=2, max_size=2) | SCALARS
                for kind in ("int", "uniform", "log_uniform")
            },
            "choice": st.lists(SCALARS | BOUNDS, max_size=4) | SCALARS,
            "when": st.dictionaries(st.sampled_from([*FIELDS, *WORDS, ""]), SCALARS, max_size=2)
            | SCALARS,
        },
    )
    | SCALARS,
    max_size=4,
)


@given(space=SPACES)
def test_any_search_space_is_taken_or_refused(space):
    data = {"experiment": "odd", "search": {"space": space}}
    result = outcome(lambda: read_experiment(data, source="here"), "here")
    if isinstance(result, Experiment):
        assert set(result.search.space) == set(space)
        assert all(key.startswith(("model.", "train.")) for key in space)


CHANGES = st.dictionaries(
    st.sampled_from(["model.depth", "model.residual", "train.learning_rate", "model"])
    | st.sampled_from([*FIELDS, "search.space.model.depth", "search.space.", "", "model.depht"]),
    SCALARS | st.sampled_from([1, 2, 0.5, "standard", {"choice": [1, 2]}, {"depth": 3}, {}]),
    max_size=3,
)


@given(
    arms=st.dictionaries(st.sampled_from(["a", "b", "c d", "1.5", "", "a/b"]), CHANGES, max_size=3)
    | SCALARS,
    seeds=st.lists(SCALARS | st.integers(0, 3), max_size=3) | SCALARS,
)
def test_any_arms_and_seeds_are_taken_or_refused(arms, seeds):
    data = {"experiment": "odd", "arms": arms, "seeds": seeds}
    result = outcome(lambda: read_experiment(data, source="here"), "here")
    if isinstance(result, Experiment):
        assert list(result.by_arm) == (list(arms) or [""])
        assert not any(arm.is_study for arm in result.by_arm.values())
        assert read_experiment(parse(result.to_yaml(), source="dump"), source="dump") == result


GPUS = st.just(0.0) | st.floats(1e-4, 1e300).map(lambda n: n if n <= 1 else float(int(n)))
"""None, a fraction of one that Ray can count, or whole ones."""
COUNTS = st.integers(1, 10**30)
DEPTHS = st.integers(1, 2_000)
WIDTHS = st.integers(1, 64).map(lambda number: number * 8)
PRINTED = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
PROMPTS = PRINTED.filter(lambda text: "\0" not in text)
RANGES = st.lists(st.floats(1e-300, 1e300), min_size=2, max_size=2, unique=True).map(sorted)
GOOD = st.fixed_dictionaries(
    {
        "experiment": st.text("aé_.- 0", min_size=1, max_size=8).filter(
            lambda name: name.strip(". ")[:1] not in ("", "-")
        )
    },
    optional={
        "seed": st.integers(0, 2**31 - 1),
        "storage": PRINTED.filter(lambda text: "://" not in text and text[0] != "~"),
        "data": st.builds(lambda path: {"corpus": "files", "path": f"/{path}"}, PRINTED),
        "resources": st.builds(lambda gpus: {"gpus_per_worker": gpus}, GPUS),
        "model": st.fixed_dictionaries(
            {},
            optional={
                "dim": WIDTHS,
                "depth": DEPTHS,
                "residual": st.sampled_from(registry.residual.names),
                "attention_windows": st.lists(COUNTS | st.none(), min_size=1, max_size=4),
                "dca": st.fixed_dictionaries(
                    {},
                    optional={
                        "last_k": COUNTS | st.none(),
                        "init_std": st.floats(0, 1e300),
                        "norm": st.booleans(),
                    },
                ),
                "activation": st.sampled_from(["gelu", "relu2", "swiglu"]),
                "logit_softcap": st.floats(5e-324, 1.7e308) | st.none(),
            },
        ),
        "train": st.fixed_dictionaries(
            {},
            optional={
                "tokens": st.integers(2_049, 10**15),
                "learning_rate": st.floats(5e-324, 1.7e308),
                "warmup_fraction": st.floats(0, 1),
                "beta2": st.floats(0, 1, exclude_max=True),
                "eval_tokens": COUNTS | st.none(),
                "compile": st.booleans(),
            },
        ),
        "search": st.builds(
            lambda bounds, low, size, values: {
                "space": {
                    "train.learning_rate": {"log_uniform": bounds},
                    "model.depth": {"int": [low, low + size]},
                    "train.weight_decay": {"choice": values, "when": {"model.depth": low}},
                }
            },
            *(RANGES, st.integers(1, 1_980), st.integers(1, 20)),
            st.lists(st.floats(0, 1), min_size=1, max_size=4, unique=True),
        ),
        "generate": st.fixed_dictionaries(
            {},
            optional={
                "prompts": st.lists(PROMPTS, min_size=1, max_size=3),
                "temperature": st.floats(0, 1e300),
            },
        ),
    },
)


@pytest.mark.slow
@given(data=GOOD)
def test_a_valid_configuration_is_the_same_after_a_round_trip_in_a_file_and_printed(file, data):
    experiment = read_experiment(data, source="here")
    dumped = experiment.model_dump(mode="json")
    assert read_experiment(dumped, source="again") == experiment
    assert read(file, json.dumps(dumped)) == experiment
    assert read(file, experiment.to_yaml()) == experiment


@given(text=st.sampled_from(PLAIN) | st.text(max_size=8))
def test_any_printed_text_is_read_as_the_same(text):
    text = text.encode("utf-8", "ignore").decode()  # without halves of characters
    assert parse(dump({"a": text, text: [text]}), source="here") == {"a": text, text: [text]}


@given(data=GOOD, workers=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_a_valid_configuration_can_be_shrunk_with_any_number_of_workers(file, data, workers):
    batch = 256 * math.lcm(*range(1, 10))
    resources, fit = ({"workers": number} for number in workers)
    train = {**data.get("train", {}), "batch_tokens": batch, "tokens": batch}
    data = {**data, "resources": resources, "train": train, "fit": {"resources": fit}}
    data.pop("search", None)
    file.write_text(json.dumps(data))
    assert load([str(file)], smoke=True).train.steps == 12


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "seed: 1\nseed: 2",
            ':3: not valid YAML: found duplicate key "seed", with the values 1 and 2',
        ),
        (
            "train: {tokens: 9}\ntrain: {evals: 1, seq_len: [2]}",
            "with the values {tokens: 9} and {evals: 1, seq_len: [2]}",
        ),
        ("train: {tokens: 4096, tokens: 4096}", ":2: not valid YAML: found duplicate key"),
        ("seed: {<<: {a: 1}, <<: {b: 2}}", ":2: not valid YAML: found duplicate merge key"),
        ('"a\\nb": 1', ": a\\nb: unknown key"),
        ('"\\e[31m": 1', ": \\x1b[31m: unknown key"),
        ("'': 1", ': "": unknown key'),
        ("1: 1", ": 1: unknown key"),
        ("~: 1", ": null: unknown key"),
        ("train.tokens: 4096", ": train.tokens: unknown key"),
        ("2001-01-01: 1", ": 2001-01-01: unknown key"),
        ("[1]: 1", ":2: not valid YAML: expected text keys"),
        ("? [[1]]\n: 1", ":2: not valid YAML: expected text keys"),
        ("? {a: 1}\n: 1", ":2: not valid YAML: expected text keys"),
        ("seed: 1e3", ": seed: input should be a valid integer, got 1000.0"),
        ("seed: 1.0", ": seed: input should be a valid integer, got 1.0"),
        ("seed: true", ": seed: input should be a valid integer, got true"),
        ("seed: 1:30", ': seed: input should be a valid integer, got "1:30"'),
        ("seed: 2001-01-01", ': seed: input should be a valid integer, got "2001-01-01"'),
        ("seed: 2001-13-45", ': seed: input should be a valid integer, got "2001-13-45"'),
        ("seed: 1" + "0" * 400, ": seed: input should be less than 2147483648, got 1000"),
        (
            "seed: 1" + "0" * 5000,
            ':2: not valid YAML: expected an integer of at most 4,300 digits, got "1000',
        ),
        (
            "seed: 0x" + "f" * 9000,
            ':2: not valid YAML: expected an integer of at most 4,300 digits, got "0xfff',
        ),
        (
            "seed: !!int x",
            ':2: not valid YAML: expected an integer of at most 4,300 digits, got "x"',
        ),
        (
            "seed: !!int ''",
            ':2: not valid YAML: expected an integer of at most 4,300 digits, got ""',
        ),
        ("seed: !!float ''", ':2: not valid YAML: expected a valid float, got ""'),
        ("seed: !!bool x", ':2: not valid YAML: expected a valid bool, got "x"'),
        ("seed: !!int {=: ~}", ":2: not valid YAML: expected a scalar node, but found mapping"),
        ("storage: !!str {=: e}", ":2: not valid YAML: expected a scalar node, but found mapping"),
        ("storage: !!binary aGk=", "2002:binary"),
        ("storage: !!set {a}", "2002:set"),
        ("storage: !!python/object:os.system x", ":2: not valid YAML: expected a plain value"),
        ("storage: !x y", ":2: not valid YAML: expected a plain value, got the tag !x"),
        ('storage: "\\ud800"', ':2: not valid YAML: expected a valid str, got "\\ud800"'),
        ('storage: "\\UFFFFFFFF"', ": not valid YAML: no such character"),
        ("...\n%YAML 1.3\n---\na: b", ": not valid YAML: no such character or version"),
        ("storage: a\0b", ": not valid YAML: unacceptable character #x0000"),
        ("storage: *a", ":2: not valid YAML: found undefined alias 'a'"),
        ("seed: &a [*a]", ":2: not valid YAML: expected text keys and plain values, got a value"),
        ("train: &a {<<: *a}", ":2: not valid YAML: expected text keys and plain values, got a v"),
        ("train: {learning_rate: '1e-4'}", 'learning_rate: input should be a valid number, got "1'),
        ("train: {learning_rate: 1e400}", "learning_rate: input should be a finite number, got I"),
        ("train: {learning_rate: 1" + "0" * 400 + "}", "learning_rate: input should be a finite"),
        ("train: {learning_rate: -0.0}", "learning_rate: input should be greater than 0"),
        ("train: {compile: no}", ': train.compile: input should be a valid boolean, got "no"'),
        ("train: {compile: on}", ': train.compile: input should be a valid boolean, got "on"'),
        ("train: {compile: 'true'}", "train.compile: input should be a valid boolean"),
        ("train: {compile: 1}", ": train.compile: input should be a valid boolean, got 1"),
        ("train:\n\ttokens: 3", ":3: not valid YAML: found character '\\t'"),
        (
            "---\nexperiment: e",
            ":2: not valid YAML: expected a single document in the stream but found another",
        ),
        ("seed: " + "[" * 10_000, ":2: not valid YAML: expected at most 50 levels"),
        ("seed: " + "{a: " * 5_000, ":2: not valid YAML: expected at most 50 levels"),
        ("seed:\n" + "- " * 10_000, ":3: not valid YAML: expected at most 50 levels"),
        ("? " * 10_000, ":2: not valid YAML: expected at most 50 levels"),
        ("storage: " + "x" * MAX_CHARACTERS, ": expected at most 32,768 characters of YAML"),
    ],
    ids=lambda text: ascii(text[:40]),
)
def test_odd_yaml_is_refused_with_the_place_and_the_reason(file, text, expected):
    message = read(file, f"experiment: e\n{text}\n")
    assert isinstance(message, str)
    assert message.startswith(f"{file}:")
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("train: {learning_rate: 1e-4}", "train.learning_rate", 1e-4),
        ("train: {learning_rate: 1}", "train.learning_rate", 1.0),
        ("generate: {temperature: -0.0}", "generate.temperature", 0.0),
        ("seed: 010", "seed", 10),
        ("seed: 0o10", "seed", 8),
        ("seed: 0x10", "seed", 16),
        ("storage: no", "storage", "no"),
        ("storage: 2001-01-01", "storage", "2001-01-01"),
        ("storage: 2001-01-01T00:00:00Z", "storage", "2001-01-01T00:00:00Z"),
        ("storage: =", "storage", "="),
        ('storage: "\\ud83d\\ude00"', "storage", "😀"),
        ("resources: &r {workers: 2}\nfit: {resources: *r}", "fit.resources.workers", 2),
        ("resources: &r {workers: 2}\nfit: {resources: {<<: *r}}", "fit.resources.workers", 2),
        ("seed: &a 1\npromote: &a {model: a}", "seed", 1),
        ("train: {}", "train.tokens", 400_000),
    ],
)
def test_odd_yaml_that_is_valid_is_read_as_yaml_1_2(file, text, key, expected, recwarn):
    experiment = read(file, f"\ufeffexperiment: e\n{text}\n")
    assert isinstance(experiment, Experiment), experiment
    value = experiment.get(key)
    assert (value, type(value)) == (expected, type(expected))
    assert not recwarn


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("=", "=: expected a key such as train.tokens before the ="),
        ("=1", "=1: expected a key such as"),
        (".=1", ".=1: expected a key such as"),
        ("model.=1", "model.=1: expected a key such as"),
        ("model..dim=1", "model..dim=1: expected a key such as"),
        ("search.space.=..", "search.space.=..: expected a key such as"),
        ("a\nb=1", "a\\nb=1: expected a key such as"),
        ("\udcff=1", "\\udcff=1: expected a key such as"),
        ("a." * 10_000 + "a=1", "expected a key such as"),
        ("a=", "a: unknown key"),
        ("a: b=1", "a: b: unknown key"),
        ("model=3", "model: input should be an object, got 3"),
        ("model.dim=", "model.dim: input should be a valid integer, got null"),
        ("model.dim.x=3", 'model.dim: input should be a valid integer, got {"x": 3}'),
        ("model.dim=1=2", 'model.dim: input should be a valid integer, got "1=2"'),
        ("train=null", "train: input should be an object, got null"),
        ("search.space=3", "search.space: input should be an object, got 3"),
        ("search.space.model.dim=", "search.space.model.dim: input should be an object, got null"),
        ("storage=caf\udce9", "storage=caf\\udce9: not valid YAML: unacceptable character"),
        ("seed=[1", "seed=[1: not valid YAML: "),
        ("seed=0x" + "f" * 9000, "not valid YAML: expected an integer of at most 4,300 digits"),
        ("storage=" + "x" * MAX_CHARACTERS + "x", "expected at most 32,768 characters"),
    ],
    ids=lambda text: ascii(text[:40]),
)
def test_an_odd_change_names_the_command_line(file, override, expected):
    message = read(file, "experiment: e\n", override)
    assert isinstance(message, str)
    assert message.startswith("command line: ")
    assert expected in message
    assert "\n" not in message


def test_an_experiment_that_cannot_be_opened_is_refused_by_name(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, expected in [
        (tmp_path, "expected a file, got a folder"),
        (tmp_path / "a\nb", "no such file"),
        (tmp_path / "a\0b", "null byte"),
        (tmp_path / "\ud800", "surrogates not allowed"),
        (tmp_path / "\udcff", "no such file"),
        (tmp_path / ("x" * 300), "File name too long"),
        (tmp_path / "loop", "Too many levels of symbolic links"),
        (Path("/dev/zero"), "expected at most 32,768 characters"),
        (Path("/dev/null"), "expected keys and values, got null"),
    ]:
        message = outcome(lambda path=path: load([str(path)]), one_line(path))
        assert expected in message


@pytest.mark.parametrize("arguments", [[""], ["", "seed=1"], ["a.yaml", "b.yaml"]])
def test_anything_but_one_experiment_is_refused(arguments):
    message = outcome(lambda: load(arguments), "command line")
    assert "expected at most one experiment" in message
    assert json.dumps([argument for argument in arguments if "=" not in argument]) in message


def tenfold(first: str, made: Callable[[int, str], str]) -> str:
    """Twelve lines, each of ten of the one before: a billion laughs."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{i}: &a{i} " + made(i, f"*a{i - 1}") for i in range(1, 12)]
    return "\n".join(lines)


LAUGHS = {
    "lists": tenfold("[x]", lambda i, alias: f"[{', '.join([alias] * 10)}]"),
    "mappings": tenfold(
        "{x: 1}", lambda i, alias: f"{{{', '.join(f'k{j}: {alias}' for j in range(10))}}}"
    ),
    "merges": tenfold("{x: 1}", lambda i, alias: f"{{<<: [{', '.join([alias] * 10)}], k{i}: 1}}"),
}


@pytest.mark.parametrize("name", LAUGHS)
@pytest.mark.parametrize("end", ["", "b: *a11\nb: *a11", "<<: *a11", "? *a11\n: 1"])
def test_aliases_of_aliases_of_aliases_are_not_written_out(file, name, end):
    message = read(file, f"experiment: e\n{LAUGHS[name]}\n{end}\n")
    assert "expected at most 32,768 values" in message or "expected text keys" in message


SEARCHED = [key for key in FIELDS if key.startswith(("model.", "train."))]
WHEN = ", ".join(f"{key}: 1" for key in SEARCHED)


@pytest.mark.extended
@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "search: {space: {model.depth: {int: [1, 1000000000]}}}",
        f"search: {{space: {{model.depth: {{int: [1, 1{'0' * 400}]}}}}}}",
        f"search: {{space: {{model.depth: {{choice: [{'1,' * 16_000}]}}}}}}",
        f"search: {{space: {{model.depth: {{choice: [{'[],' * 10_000}]}}}}}}",
        "search:\n space:\n" + "".join(f"  model.depth{i}: {{int: [1, 2]}}\n" for i in range(900)),
        "train:\n" + "".join(f" learning_rate{i}: 1\n" for i in range(1_400)),
        "".join(f"k{i}: 1\n" for i in range(3_000)),
        "search:\n space:\n"
        + "".join(
            f"  {key}: {{int: [1, 100], when: {{{WHEN}}}}}\n"
            for key in SEARCHED[: (MAX_CHARACTERS - 100) // (len(WHEN) + 60)]
        ),
        f"arms: {{{', '.join(f'a{i}: {{model.dca.last_k: {i + 1}}}' for i in range(64))}}}\n"
        f"search: {{space: {{model.depth: {{choice: {list(range(1, 400))}}}}}}}",
        f"model: {{attention_windows: [{'1,' * 8_000}]}}\n"
        f"search: {{space: {{model.depth: {{choice: [{'1,' * 8_000}]}}}}}}",
    ],
    ids=[
        *("wide", "huge", "choices", "bad choices", "unknown dimensions", "near misses"),
        *("unknown keys", "every condition", "arms times choices", "windows times choices"),
    ],
)
def test_a_long_file_is_read_or_refused_in_seconds(file, text):
    text = f"experiment: e\n{text}\n"
    assert len(text) <= MAX_CHARACTERS
    read(file, text)


def test_cyclic_conditions_are_refused(file):
    text = (
        "experiment: e\ntrain: {evals: 1}\nsearch:\n  space:\n"
        "    model.dca.last_k: {choice: [1, 2], when: {train.evals: 1}}\n"
        "    train.compile: {choice: [true, false], when: {model.dca.last_k: 1}}\n"
    )
    assert isinstance(read(file, text), Experiment)
    message = read(file, text.replace("train.evals: 1", "train.compile: true"))
    assert "search.space: cyclic `when` conditions: " in message
