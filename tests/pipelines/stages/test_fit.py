import json
import re
import shlex
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from dca import build_model
from pipelines.compat.mlflow import NOTE_TAG
from pipelines.console import progress as progress_module
from pipelines.console.errors import ConfigError, DamagedError, PipelineError
from pipelines.console.progress import Progress
from pipelines.console.updates import OutputMode
from pipelines.data.fingerprint import PreparedCorpus
from pipelines.data.splits import measure_corpus, write_splits
from pipelines.engine.results import StageResults
from pipelines.engine.stage import Context
from pipelines.experiment import load
from pipelines.registry.package import verify_fitted
from pipelines.registry.results import Fitted
from pipelines.search.results import Selected
from pipelines.stages import fit, recorded_training, train
from pipelines.stages.fit import STAGE
from pipelines.stages.recorded_training import best_checkpoint, describe_run
from pipelines.training import checkpoint
from pipelines.training.checkpoint import Snapshot
from tests.pipelines.commands import invocation
from tests.pipelines.packages import log_untrained
from tests.pipelines.training.runs import KEY, forge, unsign

WEIGHTS = "artifacts/model/model.safetensors"
BITS = {1: 3.0, 2: 1.0, 3: 2.0}
HISTORY = [{"step": step, "val_bits_per_byte": bits} for step, bits in BITS.items()]


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of steps 2, the best, and 3."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    for step in BITS:
        snapshot = Snapshot(step, HISTORY[:step], min(step, 2), 0.0, "key")
        checkpoint.save(tmp_path, model, optimizer, snapshot, key=KEY)
        torch.nn.init.constant_(model.weight, step)
    return tmp_path


def test_the_best_sound_checkpoint_is_packaged(folder):
    logged: list[str] = []

    def packaged() -> tuple[int, float]:
        row, weights = best_checkpoint(folder, HISTORY, "val_bits_per_byte", logged.append, None)
        return row["step"], float(weights["weight"][0, 0])

    assert packaged() == (2, 1)
    assert logged == []
    (folder / "00000002" / "state.json").write_text("{}")
    assert packaged() == (3, 2)
    assert "00000002: damaged checkpoint" in logged[0]
    (folder / "00000003" / "tensors.safetensors").unlink()
    with pytest.raises(PipelineError, match="no checkpoint is sound; --fresh trains again"):
        packaged()


def test_what_the_run_did_not_write_is_not_packaged(folder):
    logged: list[str] = []

    def packaged() -> tuple[int, float]:
        row, weights = best_checkpoint(folder, HISTORY, "val_bits_per_byte", logged.append, KEY)
        return row["step"], float(weights["weight"][0, 0])

    assert packaged() == (2, 1)
    forge(folder / "00000002")
    assert packaged() == (3, 2)
    assert "00000002: damaged checkpoint: SIGNATURE" in logged[0]
    unsign(folder / "00000003")
    with pytest.raises(PipelineError, match="no checkpoint is sound; --fresh trains again"):
        packaged()


def test_one_step_is_not_packaged_as_another(folder):
    """As if it were the best one: the recorded result would be another's."""
    shutil.rmtree(folder / "00000002")
    shutil.copytree(folder / "00000003", folder / "00000002")
    row, _ = best_checkpoint(folder, HISTORY, "val_bits_per_byte", print, KEY)
    assert row["step"] == 3


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (WEIGHTS, "safetensors was altered"),
        ("artifacts/model/SHA256SUMS", "its SHA256SUMS is not the one that was logged"),
    ],
)
def test_a_packaged_model_that_is_damaged_does_not_count(store, experiment, file, expected):
    run, uri = log_untrained(store, experiment)
    fitted = Fitted(run, uri, 2.0, 10, 100, 1.0, "1")
    verify_fitted(store, fitted)
    location = store.client.get_logged_model(uri.removeprefix("models:/")).artifact_location
    path = Path(location.removeprefix("file://"), file)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DamagedError, match=expected):
        verify_fitted(store, fitted)
    path.unlink()
    with pytest.raises(PipelineError, match=uri):
        verify_fitted(store, fitted)


def began(store, experiment, project) -> Context:
    """The context of a command during which a source is edited."""
    run = store.create("fit", "key", "fit")
    context = Context(experiment, project, store, invocation(), "pipeline", run)
    source = project / "dca" / "mix.py"
    source.write_text(source.read_text().replace("\nimport", "\nNUMBER = 1\nimport", 1))
    return context


def test_a_model_is_packaged_with_the_sources_of_before_an_edit(
    store, experiment, project, tmp_path, monkeypatch
):
    before = (project / "dca" / "mix.py").read_bytes()
    context = began(store, experiment, project)
    row = {"step": 1, "tokens": 256, "seconds": 1.0, "val_bits_per_byte": 2.0}
    weights = build_model(experiment.model).state_dict()
    monkeypatch.setattr(recorded_training, "best_checkpoint", lambda *_: (row, weights))
    corpus = PreparedCorpus("files", "0" * 32, {})
    made = recorded_training.package(context, experiment.training_run(), corpus, [row])
    model = store.models.download(made.model_uri.removeprefix("models:/"), tmp_path)
    packaged = model / "code" / "dca"
    assert (packaged / "mix.py").read_bytes() == before
    names = {path.relative_to(packaged).as_posix() for path in packaged.rglob("*.*")}
    assert {f"dca/{name}" for name in names} == {
        name for name in context.sources if name.startswith("dca/")
    }


@pytest.mark.parametrize("module", [fit, train])
def test_a_training_does_not_begin_with_code_of_before_and_after_an_edit(
    store, experiment, project, module
):
    context = began(store, experiment.replace({"model.residual": "dca"}), project)
    needs = {"corpus": PreparedCorpus("files", "0" * 32, {}), "select": Selected(0, "r", {}, 1.0)}
    with pytest.raises(PipelineError, match=r"^dca/mix.py was edited since this command began"):
        module.STAGE.run(context, StageResults(needs))


def test_a_training_that_is_resumed_keeps_the_parameters_it_began_with(experiment, store, tmp_path):
    storage = tmp_path / "runs"
    found = measure_corpus(experiment.data, seq_len=experiment.train.seq_len)
    write_splits(experiment.data, found, storage)
    corpus = PreparedCorpus("files", found.fingerprint, found.sizes)
    run = store.create("fit", "key", "fit")
    context = SimpleNamespace(store=store, storage=storage, run_id=run)
    describe_run(context, experiment.training_run(), corpus)
    before = store.client.get_run(run).data.params
    changes = {"data.path": "/moved.txt", "model.dca.last_k": 7}
    describe_run(context, experiment.replace(changes).training_run(), corpus)
    assert store.client.get_run(run).data.params == before
    assert before["data.path"] == experiment.data.path


def test_the_command_in_the_note_of_a_fit_trains_the_same(experiment, store, tmp_path, monkeypatch):
    workers = {"workers": [1, 2], "cpus_per_worker": 2, "strategy": "fsdp"}
    fit = {"tokens": 8192, "evals": 16, "eval_tokens": "all", "compile": True, "resources": workers}
    config, values = experiment.replace({"fit": fit}), {"train.learning_rate": 1e-3}
    storage = tmp_path / "runs"
    found = measure_corpus(config.data, seq_len=config.train.seq_len)
    write_splits(config.data, found, storage)
    corpus = PreparedCorpus("files", found.fingerprint, found.sizes)
    pipeline = store.create("pipeline", "key", "pipeline", params=config.model_dump(mode="json"))
    run = store.create("fit", "key", "fit")
    context = Context(config, storage, store, invocation(), pipeline, run)
    monkeypatch.setattr(recorded_training, "train_and_package", MagicMock())
    STAGE.run(context, StageResults({"corpus": corpus, "select": Selected(0, "r", values, 2.0)}))
    note = store.client.get_run(run).data.tags[NOTE_TAG]
    (line,) = re.findall("^python .+", note, re.M)
    (tmp_path / "experiment.yaml").write_text(config.to_yaml())
    monkeypatch.chdir(tmp_path)
    assert load(shlex.split(line)[2:]).training_run() == config.fit_run(values)


def test_a_training_shows_itself_before_its_first_evaluation(experiment, monkeypatch, capsys):
    monkeypatch.setattr(progress_module, "WATCH_SECONDS", 0.001)
    monkeypatch.setattr(recorded_training, "Writer", lambda *_: MagicMock())
    context = SimpleNamespace(
        config=experiment, store=None, run_id="r", progress=Progress(OutputMode.JSON)
    )

    def run():
        deadline, first = time.monotonic() + 10, ""
        while not first and time.monotonic() < deadline:
            time.sleep(0.01)
            first = capsys.readouterr().out
        shown.append(json.loads(first.splitlines()[0]))
        return
        yield

    shown: list[dict] = []
    assert recorded_training._record(context, run(), experiment.training_run()) == []
    assert (shown[0]["stage"], shown[0]["of_steps"]) == ("training", 16)


def test_the_packaging_of_a_large_model_shows_itself(experiment, monkeypatch, capsys):
    monkeypatch.setattr(progress_module, "WATCH_SECONDS", 0.001)
    monkeypatch.setattr(recorded_training, "_train", lambda *_: [])
    shown = ""

    def package(*_) -> None:
        nonlocal shown
        deadline = time.monotonic() + 10
        while not shown and time.monotonic() < deadline:
            time.sleep(0.01)
            shown = capsys.readouterr().out

    monkeypatch.setattr(recorded_training, "package", package)
    context = SimpleNamespace(progress=Progress(OutputMode.JSON))
    recorded_training.train_and_package(context, experiment.training_run(), None, key="fit")
    assert json.loads(shown.splitlines()[0])["text"].startswith("training: packaging the best ch")


def test_a_winner_that_does_not_fit_another_fit_is_named_with_the_ways_on(experiment):
    changed = experiment.replace({"fit.resources.workers": 2})
    needs = StageResults({"select": Selected(3, "r", {"train.batch_tokens": 96}, 2.0)})
    with pytest.raises(ConfigError) as error:
        STAGE.configured(changed, needs)
    message = str(error.value)
    assert message.startswith(
        "fit: trial 3, the winner of the search, does not fit it: train.batch"
    )
    assert message.endswith("; expected another fit, or --fresh, which searches again")
