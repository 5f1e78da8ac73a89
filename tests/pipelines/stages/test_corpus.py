"""A corpus is identified by its fingerprint: restored without its text, refused if that changed."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines import promote
from pipelines.console.errors import ConfigError
from pipelines.console.updates import OutputMode
from pipelines.data.fingerprint import PreparedCorpus
from pipelines.data.splits import find_splits, sealed_test
from pipelines.engine import dag
from pipelines.engine.results import StageResults
from pipelines.engine.stage import Context
from pipelines.experiment import Experiment, read_experiment
from pipelines.stages import corpus
from pipelines.stages.corpus import CorpusStage
from pipelines.tracking.schema import PROMOTE_TAG, TEST_FINGERPRINT_TAG
from tests.pipelines.commands import invocation

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
    return Context(config, tmp_path / "runs", None, invocation(), pipeline_run="")


def run(config: Experiment, tmp_path: Path, fingerprint: str | None = None) -> PreparedCorpus:
    return CorpusStage(fingerprint=fingerprint).run(context(config, tmp_path), StageResults({}))


def test_a_plan_with_enwik8_neither_downloads_nor_reads(experiment, tmp_path):
    enwik8 = experiment.replace({"data": {"corpus": "enwik8", "path": str(tmp_path / "data")}})
    (planned,) = dag.plan([CorpusStage().stage], enwik8, until=None, fresh=False)
    assert planned.identity is not None
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "runs").exists()


def test_a_file_in_place_of_the_folder_of_enwik8_is_refused_before_its_size_is_shown(
    experiment, tmp_path, capsys
):
    (tmp_path / "a.txt").touch()
    enwik8 = experiment.replace({"data": {"corpus": "enwik8", "path": str(tmp_path / "a.txt")}})
    with pytest.raises(ConfigError, match=r"data\.path: .*a\.txt: expected a folder, got a file"):
        run(enwik8, tmp_path)
    assert capsys.readouterr().out == ""


def test_the_test_part_that_was_given_is_the_one_that_candidates_meet(held_out, tmp_path):
    found = run(held_out, tmp_path)
    assert found.bytes == {"train": 500, "validation": 1000, "test": 400}
    sealed = sealed_test(tmp_path / "runs", found.fingerprint)
    assert sealed.read_bytes() == b"test" * 100
    with corpus.test_bytes(held_out, found.fingerprint) as path:
        assert path == sealed


def test_a_corpus_of_three_files_is_restored_by_its_fingerprint(held_out, tmp_path):
    found = CorpusStage().preview(held_out)
    fingerprint = found.fingerprint
    assert CorpusStage(fingerprint=fingerprint).preview(held_out) == found
    assert run(held_out, tmp_path, fingerprint) == found
    renamed = CorpusStage(fingerprint=fingerprint, name="its own").preview(held_out)
    assert renamed == replace(found, name="its own")
    (tmp_path / "train").unlink()  # what is in storage needs no file
    assert run(held_out, tmp_path, fingerprint) == found


def test_a_text_that_the_command_line_names_has_the_bytes_of_the_version(held_out, tmp_path):
    """It was neither read nor refused where storage has those of the version."""
    found = run(held_out, tmp_path)
    named = CorpusStage(fingerprint=found.fingerprint, is_named=True)
    assert named.preview(held_out) == found
    (tmp_path / "train").write_bytes(b"another text\n" * 1000)
    named = CorpusStage(fingerprint=found.fingerprint, is_named=True)
    refused = r"^command line: data: expected the text of the version"
    with pytest.raises(ConfigError, match=refused):
        named.preview(held_out)
    with (
        pytest.raises(ConfigError, match=refused),
        corpus.test_bytes(held_out, found.fingerprint, is_named=True),
    ):
        pass


def test_a_command_reads_its_text_once(held_out, tmp_path, monkeypatch):
    stage = CorpusStage()
    found = stage.preview(held_out)
    monkeypatch.setattr(corpus, "measure_corpus", lambda *_, **__: pytest.fail("read again"))
    assert stage.preview(held_out) == found
    assert stage.run(context(held_out, tmp_path), StageResults({})) == found


def test_a_corpus_in_shared_storage_is_restored_without_its_files(held_out, shared, tmp_path):
    held_out = held_out.replace({"storage": str(shared)})
    here = Context(held_out, shared, None, invocation(), pipeline_run="")
    found = CorpusStage().run(here, StageResults({}))
    for name in ("train", "validation", "test"):
        (tmp_path / name).unlink()
    again = CorpusStage(fingerprint=found.fingerprint)
    assert again.preview(held_out) == found
    assert again.run(here, StageResults({})) == found
    with corpus.test_bytes(held_out, found.fingerprint) as path:
        assert path.read_bytes() == b"test" * 100
    assert not path.exists()


def test_what_reads_the_splits_of_an_earlier_run_shows_that(held_out, tmp_path, monkeypatch):
    found, modes = run(held_out, tmp_path), []
    monkeypatch.setattr(
        corpus, "find_splits", lambda *given: modes.append(given[2]) or find_splits(*given)
    )
    stage = CorpusStage(OutputMode.JSON, fingerprint=found.fingerprint)
    assert stage.preview(held_out) == found
    with corpus.test_bytes(held_out, found.fingerprint):
        assert modes == [OutputMode.JSON, OutputMode.TEXT]


def test_a_part_of_the_path_that_cannot_be_read_is_bad_input(held_out, monkeypatch):
    def contained(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "secret/*.txt")

    monkeypatch.setattr(corpus, "contained", contained)
    with pytest.raises(ConfigError, match=r"^data\.path: .*: Permission denied$"):
        CorpusStage().preview(held_out)


def test_held_out_files_that_have_changed_are_not_the_corpus_of_before(held_out, tmp_path):
    found = CorpusStage().preview(held_out)
    (tmp_path / "test").write_bytes(b"Test" * 100)
    with pytest.raises(ConfigError, match=f"the corpus {found.fingerprint} is not in "):
        run(held_out, tmp_path, found.fingerprint)
    with (
        pytest.raises(ConfigError, match=r"or data\.path=PATH where it is"),
        corpus.test_bytes(held_out, found.fingerprint),
    ):
        pass


def test_a_test_split_that_was_edited_is_not_scored(held_out, tmp_path):
    found = run(held_out, tmp_path)
    sealed = sealed_test(tmp_path / "runs", found.fingerprint)
    sealed.write_bytes(b"Test" * 100)
    with corpus.test_bytes(held_out, found.fingerprint) as path:
        assert path != sealed
        assert path.read_bytes() == b"test" * 100
    (tmp_path / "test").unlink()
    with pytest.raises(ConfigError), corpus.test_bytes(held_out, found.fingerprint):
        pass


def test_the_test_split_is_made_again_where_storage_has_none(held_out):
    found = CorpusStage().preview(held_out)
    with corpus.test_bytes(held_out, found.fingerprint) as path:
        assert path.read_bytes() == b"test" * 100
    assert not path.exists()


def test_the_gate_may_be_told_where_each_part_is_now():
    changes = ["data.path=a", "data.validation_path=b", "data.test_path=c"]
    assert promote._parse(["promote", "1", *changes]).changes == changes
    with pytest.raises(ConfigError, match=r"where the test text is: storage, data\.path, "):
        promote._parse(["promote", "1", "data.corpus=files"])


def test_a_version_is_compared_although_the_search_space_is_not_valid_on_its_values(held_out):
    """The gate then needs the test text, which is another one now."""
    searched = held_out.replace({"search.space": {"model.dim": {"choice": [16, 20]}}})
    packaged = searched.with_run(searched.fit_run({"model.dim": 24, "model.heads": 4}))
    tags = {PROMOTE_TAG: json.dumps(packaged["promote"]), TEST_FINGERPRINT_TAG: "0" * 32}
    registry = SimpleNamespace(
        name="dca-gpt",
        model_id=lambda _: "m-1",
        read_packaged=lambda *_: packaged,
        get=lambda _: SimpleNamespace(tags=tags, name="dca-gpt", version="1"),
    )
    arguments = promote._parse(["promote", "1"])
    with pytest.raises(ConfigError, match=f"the corpus {'0' * 32} is not in "):
        promote._decide(registry, 1, arguments)
    lacking = [("promote", "{", "tag promote"), ("test.fingerprint", None, "tag test.fingerprint")]
    for tag, value, expected in lacking:
        tags[tag] = value
        with pytest.raises(ConfigError, match=f"it has no {expected} as it was written: --force"):
            promote._decide(registry, 1, arguments)
    registry.read_packaged = lambda *_: None
    with pytest.raises(ConfigError, match="it has no configuration: --force REASON promotes it"):
        promote._decide(registry, 1, arguments)


def test_a_corpus_without_a_name_of_its_own_is_that_of_the_configuration(held_out):
    assert CorpusStage().preview(held_out).name == "files"
    assert CorpusStage(name="mine").preview(held_out).name == "mine"


@pytest.mark.parametrize("path", [".", "**", "./**/*.bin", "link"])
def test_a_text_that_contains_what_is_written_is_refused_with_both_places(
    data, tmp_path, monkeypatch, path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.bin")
    (tmp_path / "link").symlink_to(".")
    (tmp_path / "mlflow.bin").touch()
    (tmp_path / "runs/corpora/sealed").mkdir(parents=True)
    (tmp_path / "runs/corpora/sealed/x.bin").write_bytes(b"x" * 1000)
    config = read_experiment(
        {**data, "data": {"corpus": "files", "path": path}, "storage": "runs"}, source="test"
    )
    if path != "link":
        (tmp_path / "link").unlink()
    with pytest.raises(ConfigError) as error:
        CorpusStage().preview(config)
    both = f"the storage {tmp_path}/runs and the tracking store {tmp_path}/mlflow.bin, which"
    assert f"data.path: {path} contains {both}" in str(error.value)


@pytest.mark.parametrize("linked", [False, True])
def test_a_place_that_cannot_be_used_is_not_taken_for_a_part_of_the_text(
    data, tmp_path, monkeypatch, linked
):
    folder = tmp_path / "in" / ("folder" if linked else "mlflow.db")
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "in")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    if linked:
        Path("mlflow.db").symlink_to("folder")
    text = folder / "text.txt"
    text.write_bytes(b"text" * 1000)
    for storage, problem in {
        "runs": f"{tmp_path}/in/mlflow.db is a folder; expected a file, which is made if there",
        f"{text}/x": f"storage: {text}/x: expected a folder that can be written; {text} is none",
    }.items():
        files = {"corpus": "files", "path": str(text)}
        config = read_experiment({**data, "data": files, "storage": storage}, source="test")
        with pytest.raises(ConfigError) as error:
            CorpusStage().preview(config)
        assert problem in str(error.value)


def test_a_text_beside_what_is_written_is_not_refused(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    (tmp_path / "mlflow.db").touch()
    (tmp_path / "books").mkdir()
    for name in ("a.txt", "books/b.txt"):
        (tmp_path / name).write_bytes(name.encode() * 200)
    for path, storage in [("books", "."), ("*.txt", "."), ("**/*.txt", "runs")]:
        files = {"corpus": "files", "path": path}
        config = read_experiment({**data, "data": files, "storage": storage}, source="test")
        assert CorpusStage().preview(config).bytes["train"] > 0


def test_the_files_and_bytes_that_were_read_are_shown(held_out, tmp_path, capsys):
    run(held_out, tmp_path)
    assert capsys.readouterr().out == "  3 files, 1,900 bytes\n"
    (tmp_path / "runs" / "other").mkdir()
    found = CorpusStage().preview(held_out)
    run(held_out, tmp_path, found.fingerprint)
    assert capsys.readouterr().out == "  1,900 bytes\n"
