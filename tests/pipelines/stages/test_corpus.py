"""A corpus is what its fingerprint says: known without its file, restored when the data changed."""

import sys
from pathlib import Path

import pytest

from pipelines import promote
from pipelines.console.errors import ConfigError
from pipelines.console.progress import Progress
from pipelines.data.splits import sealed_test
from pipelines.engine import dag
from pipelines.engine.stage import Context
from pipelines.experiment import Experiment
from pipelines.stages import corpus

pytestmark = pytest.mark.usefixtures("tracking")


@pytest.fixture
def held_out(data, tmp_path) -> Experiment:
    """A configuration with a text for each split."""
    for name in ("train", "validation", "test"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    paths = {f"{name}_path": str(tmp_path / name) for name in ("validation", "test")}
    files = {"corpus": "files", "path": str(tmp_path / "train"), **paths}
    return read_experiment({**data, "data": files}, source="test")


def context(config: Experiment, tmp_path: Path) -> Context:
    """Without a tracking store: this stage leaves nothing there."""
    return Context(config, tmp_path / "runs", None, Progress(), pipeline_run="")


def test_a_plan_with_enwik8_neither_downloads_nor_reads(config, tmp_path):
    enwik8 = config.replace({"data": {"corpus": "enwik8", "path": str(tmp_path / "data")}})
    (node,) = dag.plan([corpus.STAGE], enwik8, until=None, fresh=False)
    assert node.identity is not None
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "runs").exists()


def test_the_test_part_that_was_given_is_the_one_that_candidates_meet(held_out, tmp_path):
    found = corpus.corpus(context(held_out, tmp_path), {})
    assert found["bytes"] == {"train": 500, "validation": 1000, "test": 400}
    sealed = sealed_test(tmp_path / "runs", found["fingerprint"])
    assert sealed.read_bytes() == b"test" * 100
    with corpus.test_bytes(held_out, found["fingerprint"]) as path:
        assert path == sealed


def test_a_corpus_of_three_files_is_restored_by_its_fingerprint(held_out, tmp_path):
    found = corpus.look(held_out)
    again = corpus.again(found["name"], found["fingerprint"])
    assert again.peek(held_out) == found
    assert again.run(context(held_out, tmp_path), {}) == found
    (tmp_path / "train").unlink()  # what is in storage needs no file
    corpus._measured.cache_clear()
    assert again.run(context(held_out, tmp_path), {}) == found


def test_a_corpus_in_shared_storage_is_restored_without_its_files(
    held_out, shared, tmp_path, monkeypatch
):
    held_out = held_out.replace({"storage": str(shared)})
    here = Context(held_out, shared, None, Progress(), pipeline_run="")
    found = corpus.corpus(here, {})
    for name in ("train", "validation", "test"):
        (tmp_path / name).unlink()
    corpus._measured.cache_clear()
    again = corpus.again(found["name"], found["fingerprint"])
    assert again.peek(held_out) == found
    assert again.run(here, {}) == found
    with corpus.test_bytes(held_out, found["fingerprint"]) as path:
        assert path.read_bytes() == b"test" * 100
    assert not path.exists()


def test_held_out_files_that_have_changed_are_not_the_corpus_of_before(held_out, tmp_path):
    found = corpus.look(held_out)
    (tmp_path / "test").write_bytes(b"Test" * 100)
    corpus._measured.cache_clear()
    with pytest.raises(ConfigError, match=f"the corpus {found['fingerprint']} is not in "):
        corpus.again(found["name"], found["fingerprint"]).run(context(held_out, tmp_path), {})
    with (
        pytest.raises(ConfigError, match=r"or data\.path=PATH where it still is"),
        corpus.test_bytes(held_out, found["fingerprint"]),
    ):
        pass


def test_the_gate_may_be_told_where_each_part_is_now(monkeypatch):
    changes = ["data.path=a", "data.validation_path=b", "data.test_path=c"]
    monkeypatch.setattr(sys, "argv", ["promote.py", "promote", "1", *changes])
    assert promote._arguments().changes == changes
    monkeypatch.setattr(sys, "argv", ["promote.py", "promote", "1", "data.corpus=files"])
    with pytest.raises(ConfigError, match=r"where the test text is: storage, data\.path, "):
        promote._arguments()
