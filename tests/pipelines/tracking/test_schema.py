"""The names in the tracking store: spelled once, and read with their types."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeGuard, get_args

import pytest
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag

from pipelines import promote
from pipelines.compat.mlflow import COMMIT_TAG
from pipelines.console.errors import ConfigError
from pipelines.storage.digests import DIGESTS_FILE
from pipelines.tracking import schema
from pipelines.tracking.schema import Provenance, VersionTags, schema_version
from pipelines.training import history
from pipelines.training.config import TrainConfig
from pipelines.training.initial_weights import DESCRIPTION, WEIGHTS

ROOT = Path(__file__).parents[3]
SPELLED = {
    "tracking/schema.py": "the names themselves",
    "training/history.py": "the columns of a history, which the training library names",
    "training/initial_weights.py": "the files of a model's folder, which the library reads",
    "storage/digests.py": "the list of digests, which checkpoints have as well",
    "registry/packaged_model.py": "runs in a package, without the project",
}
"""Modules in which names stand as literals, by reason."""
ALLOWED = {
    ("training/config.py", "val_bits_per_byte"): "a Literal: types cannot be made of names",
    ("training/config.py", "train_bits_per_byte"): "the same",
    ("reporting/page/model_sections.py", "test_bits_per_byte"): "a field of the result Tested",
    ("reporting/page/cells.py", "n/a"): "a cell without a number, not a parameter's value",
    ("reporting/figures/search_space.py", "n/a"): "the same beside a bar",
    ("search/jobs_progress.py", "best_{}"): "a key of events",
}
HOLDERS = {"tags", "metrics", "params", "last_row"}
"""What is read by a name of the store. An ordinary word counts as a name there only."""
WITH_HISTORIES = ("cost/", "search/", "stages/", "tracking/", "training/")
"""Where a `row` is one of a history; elsewhere it is one of a table."""
READERS = {"find", "children", "create", "history", "set_tag"}
"""Methods that take a kind or a metric by its name."""
WORD = re.compile(r"[a-z_]+|(seed|train\.\w+)")
"""Names that are also words, columns of tables or keys of the configuration."""
SHAPED = re.compile(r"\bdca\.[a-z_]+|^gate\.|(\w|\})_bits_per_byte")
"""What looks like the name of a tag or metric, whether the schema has it or not."""


@cache
def names() -> set[str]:
    values = {**vars(schema), **{k: v for k, v in vars(history).items() if k.isupper()}}
    values |= {"WEIGHTS": WEIGHTS, "DESCRIPTION": DESCRIPTION, "DIGESTS_FILE": DIGESTS_FILE}
    found = {value for name, value in values.items() if name.isupper() and isinstance(value, str)}
    return found - {schema.LIVE, schema.DISCARDED, COMMIT_TAG}


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The strings of a module with their lines, f-strings as templates; without docstrings."""
    skipped = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
            parts = [p.value if isinstance(p, ast.Constant) else "{}" for p in node.values]
            yield node.lineno, "".join(map(str, parts))
        elif is_text(node) and id(node) not in skipped:
            yield node.lineno, node.value


def is_text(node: ast.AST | None) -> TypeGuard[ast.Constant]:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def keys(tree: ast.AST, holders: set[str]) -> Iterator[tuple[int, str]]:
    """The strings by which something is read from what holds the store's names, or written."""

    def holder(node: ast.expr) -> bool:
        return getattr(node, "attr", getattr(node, "id", "")) in holders

    for node in ast.walk(tree):
        found: list[ast.expr | None] = []
        if isinstance(node, ast.Subscript) and holder(node.value):
            found = [node.slice]
        elif isinstance(node, ast.Compare) and holder(node.comparators[-1]):
            found = [node.left]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr == "get" and holder(node.func.value):
                found = [*node.args[:1]]
            elif node.func.attr in READERS:
                found = [*node.args]
            elif node.func.attr in ("tag", "log_metrics"):
                found = [key for arg in node.args if isinstance(arg, ast.Dict) for key in arg.keys]
        elif isinstance(node, ast.keyword) and isinstance(node.value, ast.Dict):
            found = [*node.value.keys] if node.arg in holders else []
        for key in found:
            if is_text(key):
                yield key.lineno, key.value


@cache
def modules() -> set[str]:
    """The modules of the model, whose names look like those of tags."""
    return {".".join(p.relative_to(ROOT).with_suffix("").parts) for p in ROOT.glob("dca/**/*")}


def misspelled(source: str, path: str) -> list[str]:
    """Names of the store that a module spells, with their lines."""
    tree = ast.parse(source)
    holders = HOLDERS | ({"row"} if path.startswith(WITH_HISTORIES) else set())
    words = {name for name in names() if WORD.fullmatch(name)}
    whole = names() - words
    found = [
        *((n, text) for n, text in texts(tree) if text in whole or SHAPED.search(text)),
        *((n, text) for n, text in keys(tree, holders) if text in words),
    ]
    return sorted(
        {
            f"pipelines/{path}:{line}: {text}"
            for line, text in found
            if (path, text) not in ALLOWED and text not in modules()
        }
    )


def test_a_name_of_the_store_is_spelled_in_the_schema_alone():
    folder, found = ROOT / "pipelines", []
    for path in sorted(folder.rglob("*.py")):
        name = str(path.relative_to(folder))
        found += [] if name in SPELLED else misspelled(path.read_text(), name)
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        'x = "dca.state"',
        'x = f"the tag `dca.anything` of {run}"',
        'x = f"dca.stage.{name}"',
        'x = f"best_{metric}"',
        'x = f"{name}_bits_per_byte"',
        'x = {"gate.new": 1}',
        'path / "samples.txt"',
        'x = "scores/{}-{}.json".format(fingerprint, length)',
        'run.data.params["corpus"]',
        'run.data.metrics.get("tokens", 0)',
        '"seconds" in one.metrics',
        'store.find("fit")',
        'store.history(run, "seconds")',
        'store.log_metrics(run, {"tokens": 1})',
        'store.create(KIND, key, key, tags={"host": "here"})',
        'row["step"]',
    ],
)
def test_a_name_that_is_spelled_again_is_found(source):
    assert misspelled(f'"""The tag dca.state."""\n{source}', "search/any.py") != []


@pytest.mark.parametrize(
    "source",
    [
        'def f():\n    """The tag dca.state."""',
        'x = "dca.residuals.dca"',
        'x = f"{seconds} seconds for {tokens} tokens of a trial"',
        'x = {"tokens": 1}',
        'table["tokens"]',
        'outputs["fit"]',
        'run.replace({"train.tokens": 1})',
        "run.data.params[CORPUS_PARAM]",
    ],
)
def test_a_word_that_is_also_a_name_is_not(source):
    assert misspelled(source, "reporting/any.py") == []


def test_what_has_no_schema_version_is_of_version_0():
    versions = {None: 0, "1": 1, "2": 2, "": 0, "-1": 0, "1.5": 0, "any": 0}
    for text, version in versions.items():
        assert schema_version({} if text is None else {schema.SCHEMA_TAG: text}) == version


def test_a_result_that_was_cut_short_is_none():
    assert schema.stage_outputs({schema.OUTPUTS_TAG: '{"trial": 1}'}) == {"trial": 1}
    for text in ('{"trial": 1, "fro', "null", "[1]"):
        tags = {schema.OUTPUTS_TAG: text, schema.INPUTS_TAG: text}
        assert schema.stage_outputs(tags) is None
        assert schema.stage_inputs(tags) == {}
    assert schema.stage_outputs({}) is None


def test_the_runs_of_stages_are_read_from_a_pipelines_tags():
    tags = {"dca.stage.fit": "a", "dca.state": "b", "dca.stage.search": "c"}
    assert schema.stage_runs(tags) == {"fit": "a", "search": "c"}


def version(**tags: str) -> ModelVersion:
    found = [ModelVersionTag(name.replace("__", "."), value) for name, value in tags.items()]
    return ModelVersion("dca-gpt", "3", 0, tags=found)


def test_a_versions_tags_have_types():
    found = VersionTags.of(
        version(
            **{"test__bits_per_byte": "2.5", "parameters": "1000", "dirty": "true"},
            **{"promote": '{"confidence": 0.9}', "gate__promoted": "true", "gate__gain": "nan"},
            **{"gate__least_gain": "-0.5", "gate__champion": "none", "commit": "abc"},
        )
    )
    assert (found.test_bits, found.parameters, found.dirty) == (2.5, 1000, True)
    assert found.promote == {"confidence": 0.9}
    assert (found.promoted, found.champion, found.commit) == (True, "none", "abc")
    assert found.gain != found.gain
    assert found.min_gain == -0.5


def test_a_version_of_an_older_store_lacks_tags_and_is_read():
    assert VersionTags.of(version()) == VersionTags()
    assert VersionTags.of(version(promote="{cut")).promote is None


@pytest.mark.parametrize("name", ["test__bits_per_byte", "parameters", "gate__gain"])
def test_a_number_of_a_version_that_is_none_is_named(name):
    with pytest.raises(ConfigError) as caught:
        VersionTags.of(version(**{name: "ma\nny"}))
    tag = name.replace("__", ".")
    assert str(caught.value) == rf"dca-gpt version 3: tag {tag}: expected a number, got ma\nny"


def test_the_code_that_made_a_run_is_read_from_its_tags():
    tags = {COMMIT_TAG: "abc", "git.dirty": "false", "version.torch": "2", "version.ray": "3"}
    found = Provenance.of({**tags, "host": "any"})
    assert found == Provenance("abc", False, {"torch": "2", "ray": "3"})
    assert found.packages_text == "torch 2, ray 3"
    assert Provenance.of({}) == Provenance(None, None, {})


def test_the_configuration_takes_the_metrics_that_a_history_has():
    (field,) = [f for name, f in TrainConfig.model_fields.items() if name == "best_metric"]
    assert get_args(field.annotation) == (history.VAL_BITS, history.TRAIN_BITS)


def test_a_version_with_such_a_tag_is_listed_with_the_reason():
    edited, row = version(test__bits_per_byte="abc"), {"version": 3, "created_seconds": 0}
    cells = promote._cells(edited, {**row, "aliases": ["champion"]})
    assert cells[:3] == ["3", "champion", ""]
    assert cells[-1] == "tag test.bits_per_byte: expected a number, got abc"
    assert len(cells) == len(promote._cells(version(), {**row, "aliases": []}))
