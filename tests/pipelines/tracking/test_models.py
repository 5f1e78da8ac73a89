import errno
import os
import shutil
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from pipelines.console.errors import GoneError, PipelineError, StorageError
from pipelines.registry.versions import Registry
from pipelines.tracking.models import model_id_of, model_uri
from pipelines.tracking.schema import SCHEMA_VERSION, schema_version
from pipelines.tracking.store import Store
from tests.pipelines.packages import log_untrained


def test_json_about_a_model_is_read_back_and_none_if_it_is_not_what_was_written(store, tmp_path):
    run = store.create("fit", "k", "n")
    model = store.client.create_logged_model(store.experiment_id, source_run_id=run)
    models, model_id = store.models, model.model_id
    models.write_json(model_id, "folder/file.json", {"a": [1]})
    assert models.read_json(model_id, "folder/file.json") == {"a": [1]}
    assert models.read_json(model_id, "none.json") is None
    assert models.read_json("m-" + 32 * "0", "none.json") is None
    assert not Path(model.artifact_location.removeprefix("file://"), "folder").exists()
    assert store.damaged_artifact(store.client.get_run(run)) is None
    (path,) = (tmp_path / "runs").rglob("folder/file.json")
    for damaged in ('{"a": [', path.read_text().replace("1", "2")):
        path.write_text(damaged)
        assert models.read_json(model_id, "folder/file.json") is None
    path.unlink()
    assert models.read_json(model_id, "folder/file.json") is None


def test_json_about_a_model_that_the_user_may_not_write_is_left_out_with_a_line(
    store, monkeypatch, caplog
):
    """Of another user's experiment: what it is for, as the gate's decision, goes on."""
    run = store.create("fit", "k", "n")
    model_id = store.client.create_logged_model(store.experiment_id, source_run_id=run).model_id

    def refuse(*_: object) -> None:
        raise MlflowException("Permission denied", error_code=PERMISSION_DENIED)

    monkeypatch.setattr(store.client._client, "log_text", refuse)
    store.models.write_json(model_id, "scores/a.json", {"a": 1})
    assert "scores/a.json: not stored: MLFLOW_TRACKING_URI=" in caplog.text
    assert store.models.read_json(model_id, "scores/a.json") is None


def test_a_model_is_logged_once_and_exists_until_its_files_are_gone(store, experiment, tmp_path):
    run, uri = log_untrained(store, experiment)
    assert log_untrained(store, experiment) == (run, uri)
    models, model_id = store.models, model_id_of(uri)
    assert model_uri(model_id) == uri
    assert models.logged_by(run) == model_id
    assert models.logged_by(store.create("fit", "other", "n")) is None
    assert models.exists(uri)
    logged = store.client.get_logged_model(model_id)
    assert schema_version(logged.tags) == SCHEMA_VERSION
    Path(logged.artifact_location.removeprefix("file://"), "MLmodel").unlink()
    assert not models.exists(uri)
    store.client.delete_logged_model(model_id)
    assert not models.exists(uri)
    with pytest.raises(PipelineError, match=uri):
        models.download(model_id, tmp_path / "copy")


def test_a_registered_version_exists_as_long_as_the_files_of_its_model(store, experiment):
    run, uri = log_untrained(store, experiment)
    assert not store.models.exists("models:/tiny/1")
    Registry(store.client, "tiny").register(uri, run, {})
    assert store.models.exists("models:/tiny/1")
    assert not store.models.exists("models:/tiny/2")
    location = store.client.get_logged_model(model_id_of(uri)).artifact_location
    Path(location.removeprefix("file://"), "MLmodel").unlink()
    assert not store.models.exists("models:/tiny/1")


def test_a_model_is_logged_in_the_store_that_is_asked_and_not_in_the_last_one_opened(
    store, experiment, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
        other = Store.open("tiny", tmp_path / "other")
    _, uri = log_untrained(store, experiment)
    assert store.models.exists(uri)
    assert not other.models.exists(uri)


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, "No space left"), (errno.EMFILE, "Too many open files")],
)
def test_what_keeps_files_from_being_read_is_not_taken_for_their_loss(
    store, experiment, tmp_path, monkeypatch, number, expected
):
    run, uri = log_untrained(store, experiment)
    store.log_text(run, "text", "folder/file.txt")
    models, model_id = store.models, model_id_of(uri)
    models.write_json(model_id, "scores/a.json", {})

    def fail(*_, **__) -> None:
        raise OSError(number, os.strerror(number), "/tmp/x")

    monkeypatch.setattr(shutil, "copy2", fail)
    monkeypatch.setattr(shutil, "copyfile", fail)
    for work in (
        lambda: models.download(model_id, tmp_path / "copy"),
        lambda: models.read_packaged(model_id, "artifacts/model/config.json"),
        lambda: models.read_json(model_id, "scores/a.json"),
        lambda: models.require_whole(model_id),
        lambda: models.exists(uri),
        lambda: store.read_text(run, "folder/file.txt"),
        lambda: store.damaged_artifact(store.client.get_run(run)),
    ):
        with pytest.raises(StorageError, match=expected):
            work()


@pytest.mark.parametrize("lost", ["artifacts/model/config.json", ""])
def test_what_was_deleted_of_a_model_is_named_and_is_not_taken_for_a_model_without_it(
    store, experiment, lost
):
    _, uri = log_untrained(store, experiment)
    model_id = model_id_of(uri)
    location = store.client.get_logged_model(model_id).artifact_location
    store.models.require_files(model_id)
    assert store.models.read_packaged(model_id, "artifacts/model/other.json") is None
    path = Path(location.removeprefix("file://"), lost)
    path.unlink() if lost else shutil.rmtree(path)
    with pytest.raises(GoneError, match=f"^{uri}: its ({lost} is|files are) gone"):
        store.models.read_packaged(model_id, "artifacts/model/config.json")
    store.client.delete_logged_model(model_id)
    with pytest.raises(GoneError, match=f"^{uri}: it was deleted from the tracking store"):
        store.models.read_packaged(model_id, "artifacts/model/config.json")
