import io
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from unittest.mock import Mock

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.cli import cli
from mlflow.exceptions import MlflowException

from pipelines.compat.mlflow import MAX_TAG_CHARACTERS, NOTE_TAG
from pipelines.console.errors import ConfigError, DamagedError, PipelineError, StorageError
from pipelines.data.fingerprint import PreparedCorpus
from pipelines.tracking import provenance
from pipelines.tracking.models import model_id_of
from pipelines.tracking.provenance import this_process
from pipelines.tracking.schema import (
    CACHE_TAG,
    CHECKPOINT_KEY_TAG,
    DISCARDED,
    OUTPUTS_TAG,
    SCHEMA_VERSION,
    TRAINING_KINDS,
    schema_version,
)
from pipelines.tracking.store import Store
from pipelines.tracking.uri import OF_MLFLOW, gone_from, tracking_uri
from tests.pipelines.packages import log_untrained


def test_a_run_is_found_by_kind_and_key(store):
    run = store.create("fit", "key", "any name", params={"model": {"dim": 3}}, tags={"a": "b"})
    store.create("fit", "other", "any name")
    (found,) = store.find("fit", "key")
    assert found.info.run_id == run
    assert found.data.params == {"model.dim": "3"}
    store.tag(run, {CACHE_TAG: DISCARDED})
    assert store.find("fit", "key") == []
    assert len(store.find("fit")) == 1


def test_a_description_is_written_once(store):
    run = store.create("fit", "k", "n")
    for text in ("first", "second"):
        store.describe(text, run)
        store.describe(text)
    notes = store.client.get_run(run), store.client.get_experiment(store.experiment_id)
    assert notes[0].data.tags[NOTE_TAG] == "first"
    assert notes[1].tags[NOTE_TAG] == "first"


def test_a_result_is_on_the_page_of_its_model_with_the_bytes_it_was_measured_on(store, tmp_path):
    run = store.create("evaluate", "k", "n")
    model = store.client.create_logged_model(store.experiment_id, source_run_id=run)
    (tmp_path / "test.bin").write_bytes(b"abc")
    corpus = PreparedCorpus("files", "0" * 32, {})
    store.log_corpus(run, corpus, training=tmp_path / "test.bin", test=tmp_path / "test.bin")
    store.log_use(run, model.model_id)
    dataset = {"dataset_name": "files test", "dataset_digest": "0" * 32}
    for _ in range(2):
        store.log_metrics(run, {"test_bits_per_byte": 2.5}, model_id=model.model_id, **dataset)
    (metric,) = store.client.get_logged_model(model.model_id).metrics
    assert (metric.key, metric.value, metric.run_id) == ("test_bits_per_byte", 2.5, run)
    assert (metric.dataset_name, metric.dataset_digest) == tuple(dataset.values())
    found = store.client.get_run(run)
    assert found.data.metrics == {"test_bits_per_byte": 2.5}
    names = {given.dataset.name for given in found.inputs.dataset_inputs}
    assert names == {"files training", "files test"}
    assert [given.model_id for given in found.inputs.model_inputs] == [model.model_id]


def test_provenance_is_that_of_the_store_and_not_of_the_process(store, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.tracking.store.provenance", lambda: {"mlflow.user": "other"})
        second = Store.open("tiny", tmp_path / "runs")
        users = [
            at.client.get_run(at.create("fit", key, key)).data.tags["mlflow.user"]
            for key, at in (("a", second), ("b", second))
        ]
        assert users == ["other", "other"]
        assert store.run_tags == {"mlflow.user": "other"}  # found out at its first use
    assert store.run_tags == {"mlflow.user": "other"}  # and once
    assert Store.open("tiny", tmp_path / "runs").run_tags["mlflow.source.name"] == "pipelines"


def test_an_artifact_that_is_not_as_it_was_logged_is_named(store, tmp_path):
    run = store.create("fit", "k", "n")
    folder = tmp_path / "made"
    (folder / "below").mkdir(parents=True)
    for name in ("a.bin", "below/b c.bin"):
        (folder / name).write_bytes(name.encode())
    store.log_files(run, folder, "copies")
    store.log_file(run, folder / "a.bin")
    store.log_text(run, "été\r\n", "texts/c.txt")

    def damaged() -> str | None:
        return store.damaged_artifact(store.client.get_run(run))

    artifacts = Path(store.client.get_run(run).info.artifact_uri.removeprefix("file://"))
    for name in ("a.bin", "copies/a.bin", "copies/below/b c.bin", "texts/c.txt"):
        assert damaged() is None
        file = artifacts / name
        content = file.read_bytes()
        file.write_bytes(content[:-1])
        assert damaged() == f"{name} is not what was logged"
        file.unlink()
        assert damaged() == f"{name} is missing"
        file.mkdir()
        assert damaged() == f"{name} is missing"
        file.rmdir()
        file.write_bytes(content)


def test_an_artifact_that_is_logged_again_counts_as_it_is_now(store):
    run = store.create("fit", "k", "n")
    for text in ("first", "second"):
        store.log_text(run, text, "file.txt")
        assert store.damaged_artifact(store.client.get_run(run)) is None


def test_an_artifact_is_not_written_to_where_a_link_points(store, tmp_path):
    run = store.create("fit", "k", "n")
    artifacts = Path(store.client.get_run(run).info.artifact_uri.removeprefix("file://"))
    made, victim = tmp_path / "made", tmp_path / "victim"
    for folder in (artifacts, made, victim):
        folder.mkdir(parents=True)
    for file in (made / "a.txt", victim / "a.txt"):
        file.write_text("mine")
    (artifacts / "a.txt").symlink_to(victim / "a.txt")
    (artifacts / "below").symlink_to(victim)
    for log in (
        lambda: store.log_file(run, made / "a.txt"),
        lambda: store.log_text(run, "other", "a.txt"),
        lambda: store.log_text(run, "other", "below/a.txt"),
        lambda: store.log_files(run, made, "below"),
    ):
        with pytest.raises(DamagedError, match=r"(a\.txt|below) is a link; expected plain files"):
            log()
    assert (victim / "a.txt").read_text() == "mine"


def test_a_text_artifact_that_is_missing_is_one_line(store):
    run = store.create("fit", "k", "n")
    store.log_text(run, "a", "file.txt")
    file = Path(store.client.get_run(run).info.artifact_uri.removeprefix("file://")) / "file.txt"
    file.unlink()
    with pytest.raises(DamagedError, match=rf"^run {run}: file\.txt is missing$"):
        store.read_text(run, "file.txt")
    file.mkdir()
    with pytest.raises(DamagedError, match=rf"^run {run}: file\.txt is "):
        store.read_text(run, "file.txt")


def test_a_text_artifact_is_read_back_whatever_the_encoding_of_this_machine(store, monkeypatch):
    monkeypatch.setattr(io, "text_encoding", lambda given, *_: given or "ascii")
    run = store.create("fit", "k", "n")
    store.log_text(run, "été\n", "folder/file.txt")
    assert store.read_text(run, "folder/file.txt") == "été\n"


def test_a_text_without_a_digest_is_read_only_in_an_older_store(store):
    run = store.create("fit", "k", "n")
    store.client.log_text(run, "planted", "file.txt")
    with pytest.raises(DamagedError, match=r"file\.txt: the tracking store has no digest of it$"):
        store.read_text(run, "file.txt")
    store.untag(run, "dca.schema")
    assert store.read_text(run, "file.txt") == "planted"


def test_a_run_has_the_version_of_the_schema(store):
    run = store.client.get_run(store.create("fit", "k", "n"))
    assert schema_version(run.data.tags) == SCHEMA_VERSION


def test_a_run_that_trains_has_a_key_of_its_own_from_its_creation(store):
    keys = [store.checkpoint_key(store.create(kind, kind, kind)) for kind in TRAINING_KINDS]
    assert all(re.fullmatch("[0-9a-f]{32}", key) for key in keys)
    assert len({*keys}) == 3
    again = store.create("fit", "fit", "fit")  # as if the answer had been lost
    assert store.checkpoint_key(again) == keys[TRAINING_KINDS.index("fit")]
    assert store.checkpoint_key(store.create("search", "search", "search")) is None
    store.untag(again, CHECKPOINT_KEY_TAG)  # as in an older store
    store.resume(again)
    assert store.checkpoint_key(again) is None


def test_a_tag_that_would_be_cut_short_is_refused(store):
    long = {OUTPUTS_TAG: json.dumps(MAX_TAG_CHARACTERS * "x")}
    message = r"tag dca.outputs: 8,002 characters, expected at most 8,000"
    with pytest.raises(PipelineError, match=message):
        store.create("fit", "k", "n", tags=long)
    assert store.find("fit") == []
    run = store.create("fit", "k", "n")
    with pytest.raises(PipelineError, match=message):
        store.tag(run, long)
    assert OUTPUTS_TAG not in store.client.get_run(run).data.tags
    store.tag(run, {OUTPUTS_TAG: MAX_TAG_CHARACTERS * "x"})


def test_a_description_that_is_too_long_ends_with_a_mark(store):
    run = store.create("fit", "k", "n")
    store.describe(2 * MAX_TAG_CHARACTERS * "x", run)
    note = store.client.get_run(run).data.tags[NOTE_TAG]
    assert (len(note), note[-8:]) == (MAX_TAG_CHARACTERS, "x\n\n(cut)")


class Pages:
    """A client whose search has several pages."""

    def __init__(self, *pages: list[str]) -> None:
        self.pages, self.tokens = pages, list[str | None]()

    def search_runs(self, ids, query, *, order_by, page_token):
        assert (ids, order_by) == (["7"], ["attributes.start_time DESC"])
        self.tokens.append(page_token)
        number = int(page_token or 0)
        return Page(self.pages[number], str(number + 1) if number + 1 < len(self.pages) else None)


class Page(list):
    def __init__(self, runs: list[str], token: str | None) -> None:
        super().__init__(runs)
        self.token = token


def test_runs_are_found_on_every_page():
    client = Pages(["a", "b"], [], ["c"])
    assert Store(client, "7").find("trial") == ["a", "b", "c"]
    assert client.tokens == [None, "1", "2"]


@pytest.mark.parametrize("more", [0, 1])
def test_a_result_that_is_too_long_for_a_tag_is_read_back_from_a_file(store, more):
    result = {"a": "x" * (MAX_TAG_CHARACTERS - len('{"a": ""}') + more)}
    run = store.create("fit", "k", "n")
    store.write_result(run, result)
    found = store.client.get_run(run)
    assert (json.loads(found.data.tags[OUTPUTS_TAG]) == result) == (more == 0)
    assert store.read_result(found) == result


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (PipelineError("x" * 6000), "FAILED", "x" * 5000),
        (ValueError(), "FAILED", "ValueError"),
        (KeyboardInterrupt(), "KILLED", "KeyboardInterrupt"),
    ],
)
def test_a_run_that_failed_has_its_reason(store, error, status, reason):
    run = store.create("fit", "k", "n")
    store.fail(run, error)
    found = store.client.get_run(run)
    assert (found.info.status, found.data.tags["dca.reason"]) == (status, reason)
    assert store.client._cancelled.is_set()


def test_a_run_that_failed_beside_others_does_not_end_their_calls(store):
    store.fail(store.create("fit", "k", "n"), ValueError("a"), command_ends=False)
    assert not store.client._cancelled.is_set()


def test_a_run_that_is_resumed_says_so_and_runs(store):
    run = store.create("fit", "k", "n")
    store.end(run)
    store.resume(run, {"a": {"b": 1}})
    found = store.client.get_run(run)
    assert (found.info.status, found.data.tags["dca.reason"]) == ("RUNNING", "resumed")
    assert found.data.params == {"a.b": "1"}


def test_metrics_of_a_run_are_stored_once_at_step_0(store):
    run = store.create("fit", "k", "n")
    for _ in range(2):
        store.log_metrics(run, {"a": 1.0})
    (point,) = store.client.get_metric_history(run, "a")
    assert (point.step, point.value) == (0, 1.0)
    assert point.timestamp > 10**12
    store.log_metrics(run, {"a": 2.0})
    assert len(store.client.get_metric_history(run, "a")) == 2


def test_a_metrics_history_is_in_the_order_of_its_steps(store):
    run = store.create("fit", "k", "n")
    for step in (3, 1, 2):
        store.log_metrics(run, {"step": step, "a": 10.0 * step})
    assert [*store.history(run, "a").items()] == [(1, 10.0), (2, 20.0), (3, 30.0)]


@pytest.mark.slow
def test_an_experiment_is_made_once_also_beside_another_command(store, tmp_path, monkeypatch):
    find, answers = MlflowClient.get_experiment_by_name, [None, None]
    monkeypatch.setattr(
        MlflowClient,
        "get_experiment_by_name",
        lambda client, name: answers.pop() if answers else find(client, name),
    )
    assert Store.open("tiny", tmp_path / "runs").experiment_id == store.experiment_id


def test_a_run_of_another_user_that_may_not_be_ended_stays(store, monkeypatch):
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    runs = [store.create("trial", key, key) for key in ("theirs", "ours")]
    for run in runs:
        store.tag(run, {"dca.process": f"{this_process().split()[0]} {ended.pid} 1"})
    end = Store.end

    def refused(store: Store, run_id: str, status: str) -> None:
        if run_id == runs[0]:
            raise StorageError("the server refuses the user ann")
        end(store, run_id, status)

    monkeypatch.setattr(Store, "end", refused)
    store.end_killed()
    statuses = [store.client.get_run(run).info.status for run in runs]
    assert statuses == ["RUNNING", "KILLED"]


def test_a_storage_that_was_moved_is_missed_and_not_begun_anew(store, tmp_path, caplog):
    """MLflow keeps the path of an experiment's artifacts."""
    store.log_text(store.create("pipeline", "key", "a"), "text", "a.txt")
    new = tmp_path / "new" / "runs"
    shutil.copytree(tmp_path / "runs", new)
    assert Store.open("tiny", new)
    old = tmp_path / "runs"
    warning = f"tiny: its artifacts go to {old}/artifacts, where they were at first, and not to "
    assert [one.getMessage() for one in caplog.records] == [f"{warning}{new}/artifacts"]
    shutil.rmtree(old)
    for create in (True, False):
        with pytest.raises(ConfigError, match=f"tiny were in {old}/artifacts, which is gone") as e:
            Store.open("tiny", new, create=create)
    assert not old.exists()
    files = f"{old}/artifacts/models/m-1/artifacts"
    way = f"; if {old} was moved, link it to there: ln -s STORAGE {old}"
    assert gone_from(f"file://{files}") == f"its files are gone from file://{files}{way}"
    assert gone_from(Path(files)) == f"its files are gone from {files}{way}"
    assert gone_from(tmp_path / "a b/runs/artifacts/models/m-1/artifacts").endswith(
        f": mkdir -p '{tmp_path}/a b' && ln -s STORAGE '{tmp_path}/a b/runs'"
    )
    subprocess.run(re.search("ln -s [^;]+", str(e.value))[0], shell=True, check=True)
    assert Store.open("tiny", new)
    assert gone_from(files) == f"its files are gone from {files}"
    old.unlink()
    assert Store.open("tiny", None, create=False)  # for what is in the database alone
    assert Store.open("tiny", old, create=False)  # deleted: the search runs again
    assert Store.open("tiny", old)
    assert len(caplog.records) == 1


def test_the_experiment_that_mlflow_makes_itself_is_not_one_that_was_moved(store, tmp_path):
    assert store.client.get_experiment("0").name == OF_MLFLOW
    with pytest.raises(ConfigError, match=r"^experiment: Default is MLflow's own experiment; exp"):
        Store.open(OF_MLFLOW, tmp_path / "runs")


def test_no_experiment_is_made_where_none_is_wanted(store, tmp_path, monkeypatch):
    assert Store.open("other", tmp_path / "other", create=False) is None
    assert not (tmp_path / "other").exists()
    refused = Mock(side_effect=MlflowException("Missing value for required parameter"))
    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", refused)  # as a server does
    assert Store.open("", tmp_path / "other", create=False) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    assert Store.open("tiny", tmp_path / "other", create=False) is None
    assert not (tmp_path / "none.db").exists()


def test_a_tag_that_is_removed_may_be_missing(store):
    run = store.create("fit", "k", "n", tags={"a": "b"})
    for _ in range(2):
        store.untag(run, "a")
    assert "a" not in store.client.get_run(run).data.tags


def test_a_host_of_any_name_finds_its_runs(store, monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "ann's host")
    run = store.create("fit", "k", "n")
    store.end_killed()
    assert store.client.get_run(run).info.status == "RUNNING"
    monkeypatch.setattr(provenance, "_start_of", lambda _: 0)
    store.end_killed()
    assert store.client.get_run(run).info.status == "KILLED"


def test_a_deleted_experiment_names_the_command_that_restores_it(store, tmp_path):
    store.client.delete_experiment(store.experiment_id)
    for create in (True, False):
        with pytest.raises(ConfigError) as error:
            Store.open("tiny", tmp_path / "runs", create=create)
    command = re.search(r"restore it: (.+) ; else give another experiment", str(error.value))[1]
    variable, mlflow, *arguments = shlex.split(command)
    assert (variable, mlflow) == (f"MLFLOW_TRACKING_URI={tracking_uri()}", "mlflow")
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert Store.open("tiny", tmp_path / "runs").experiment_id == store.experiment_id


def test_what_was_deleted_in_mlflow_is_made_again(store, experiment):
    run, uri = log_untrained(store, experiment)
    store.client.delete_logged_model(model_id_of(uri))
    assert store.models.logged_by(run) is None
    assert log_untrained(store, experiment)[1] != uri
    store.client.delete_run(run)
    assert store.find("fit", "untrained 0") == []
    assert log_untrained(store, experiment)[0] != run


def test_runs_of_a_killed_process_are_ended_at_the_next_start(store, monkeypatch):
    host = this_process().split()[0]
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    other = Store(store.client, store.client.create_experiment("other"))
    runs = {}
    for name, process in (
        ("killed", f"{host} {ended.pid} 1"),
        ("of another process with its number", f"{host} {os.getpid()} 1"),
        ("of another machine", f"else {ended.pid} 1"),
        ("damaged", f"{host} x"),
        ("own", this_process()),
    ):
        runs[name] = (other if name == "killed" else store).create("trial", name, name)
        store.tag(runs[name], {"dca.process": process})
    done = store.create("trial", "done", "done")
    store.end(done)
    store.end_killed()
    status = {name: store.client.get_run(run).info.status for name, run in runs.items()}
    assert [name for name, one in status.items() if one == "KILLED"] == list(runs)[:2]
    store.resume(runs["killed"])
    tags = store.client.get_run(runs["killed"]).data.tags
    assert (tags["dca.process"], tags["dca.reason"]) == (this_process(), "resumed")
    store.end_killed()
    assert store.client.get_run(runs["killed"]).info.status == "RUNNING"
    assert store.client.get_run(done).info.status == "FINISHED"


def test_storage_that_cannot_be_written_is_refused_first(tracking, tmp_path, monkeypatch):
    storage, access = tmp_path / "runs", os.access
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: path != storage and access(path, mode))
        with pytest.raises(ConfigError, match=f"^storage: {storage} cannot be written$"):
            Store.open("new", storage)
    assert Store.open("new", storage, create=False) is None


def test_storage_that_can_be_no_folder_is_refused_with_what_is_expected(tracking, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "to file").symlink_to("file")
    expected = "expected a folder that can be written"
    for place, reason in {
        tmp_path / "file": f"{expected}, which this is not",
        tmp_path / "to file": f"{expected}, which this is not",
        tmp_path / "link": f"{expected}; {tmp_path}/link is a link to nowhere, which is not there",
        Path("/dev/null"): f"{expected}, which this is not",
        tmp_path / "file/a/b": f"{expected}; {tmp_path}/file is none",
        Path("/proc/x"): f"{expected}; to make it: No such file or directory",
    }.items():
        with pytest.raises(ConfigError, match=f"^storage: {place}: {reason}$"):
            Store.open("new", place)
