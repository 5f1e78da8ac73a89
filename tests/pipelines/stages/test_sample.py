"""The sample's command, and the progress of a training."""

import json
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.console.errors import GoneError, PipelineError, StorageError
from pipelines.console.progress import Progress
from pipelines.engine.results import StageResults
from pipelines.registry.champions import Champions
from pipelines.registry.results import Promoted, Sampled
from pipelines.registry.versions import Registry
from pipelines.stages import sample as module
from pipelines.stages.recorded_training import _progress
from pipelines.stages.sample import STAGE, sample


class Texts:
    """A store that keeps the texts that are logged."""

    client = models = None

    def __init__(self) -> None:
        self.logged: list[tuple[str, str, str]] = []

    def log_text(self, run_id: str, text: str, file: str) -> None:
        self.logged.append((run_id, text, file))


def context(config):
    return SimpleNamespace(config=config, store=Texts(), run_id="r", progress=Progress())


def needs(champion: int | None) -> StageResults:
    return StageResults({"promote": Promoted("dca-gpt", champion, "decided")})


@pytest.fixture(autouse=True)
def fetched(monkeypatch) -> list[tuple[str, Path]]:
    """The ids of the models that are fetched, and their folders."""
    found = []
    monkeypatch.setattr(Registry, "model_id", lambda registry, v: f"{registry.name}-{v}")

    def fetch(models, model_id, folder):
        found.append((model_id, folder))
        return folder

    monkeypatch.setattr(module, "fetch_model", fetch)
    return found


@pytest.fixture
def commands(monkeypatch) -> list[list[str]]:
    """The commands that are run; each prints two texts."""
    found = []

    def run(name, arguments):
        assert name == "pipelines.generate"
        found.append(arguments)
        return subprocess.CompletedProcess(arguments, 0, '{"text": "a"}\n{"text": "b"}\n', "")

    monkeypatch.setattr(module, "run_isolated", run)
    return found


def test_the_champion_continues_the_prompts_as_configured(experiment, commands, fetched):
    changes = {"prompts": ["x", "--y"], "max_new_tokens": 7, "temperature": 0.5}
    here = context(experiment.replace({"generate": changes, "seed": 3}))
    uri = "models:/dca-gpt/2"
    assert sample(here, needs(2)) == Sampled("r", uri)
    assert here.store.logged == [("r", "a\n\n--------------------\n\nb", "samples.txt")]
    ((model_id, folder),) = fetched
    assert model_id == "dca-gpt-2"
    assert commands == [
        [
            *("--json", f"--model={folder}"),
            *("--prompt=x", "--prompt=--y", "--max-new-tokens=7", "--temperature=0.5"),
            *("--top-k=40", "--top-p=1.0", "--seed=3"),
        ]
    ]


@pytest.mark.parametrize("text", ["a\u2028b", "\u0085", "a\x0cb\x1e\r"])
def test_a_text_may_have_what_others_take_for_the_end_of_a_line(experiment, monkeypatch, text):
    line = json.dumps({"text": text}, ensure_ascii=False)
    child = subprocess.CompletedProcess([], 0, f"{line}\n", "")
    monkeypatch.setattr(module, "run_isolated", lambda *_: child)
    here = context(experiment)
    sample(here, needs(1))
    assert here.store.logged == [("r", text, "samples.txt")]


def test_what_is_null_cuts_nothing(experiment, commands):
    sample(context(experiment.replace({"generate": {"top_k": None, "top_p": 0.25}})), needs(1))
    assert commands[0][-3:-1] == ["--top-k=256", "--top-p=0.25"]


def test_a_text_that_takes_long_is_followed_by_a_line(experiment, commands, monkeypatch):
    shown, texts = threading.Event(), []
    monkeypatch.setattr("pipelines.console.progress.WATCH_SECONDS", 0.01)
    here = context(experiment)
    here.progress.update = lambda update: (texts.append(update.text), shown.set())
    generate = module.run_isolated

    def slow(name, arguments):
        assert shown.wait(60)
        return generate(name, arguments)

    monkeypatch.setattr(module, "run_isolated", slow)
    sample(here, needs(1))
    assert texts[0] == "  sample: generating, 0:00"


def test_without_a_champion_nothing_is_generated(experiment, commands):
    here = context(experiment)
    assert sample(here, needs(None)) == Sampled("r")
    assert here.store.logged == [("r", "no champion, no sample", "samples.txt")]
    assert commands == []


@pytest.mark.parametrize(
    ("uri", "exists", "valid"), [(None, False, True), ("m", True, True), ("m", False, False)]
)
def test_a_sample_is_valid_while_its_model_exists(uri, exists, valid):
    store = SimpleNamespace(models=SimpleNamespace(exists=lambda given: given == uri and exists))
    if valid:
        STAGE.verify(store, Sampled("r", uri))
    else:
        with pytest.raises(PipelineError, match="m does not exist any more"):
            STAGE.verify(store, Sampled("r", uri))


def test_the_progress_of_a_training_has_its_step_quality_and_the_time_left(run):
    rows = {
        1: {"step": 1, "train_bits_per_byte": 4.0},
        2: {"step": 2, "val_bits_per_byte": 4.0, "tokens_per_second": 1000.0, "seconds": 5.0},
        4: {"step": 4, "val_bits_per_byte": 3.0, "tokens_per_second": 1234.5, "seconds": 10.0},
        8: {"step": 8, "val_bits_per_byte": 2.0, "tokens_per_second": 2345.5, "seconds": 30.0},
        10: {"step": 10, "train_bits_per_byte": 1.0},
    }
    shown = _progress(rows, run)
    assert shown.text == (
        "training: step 8/16, validation 2.0000 bits per byte, 2,346 bytes/s, about 0:30 left"
    )
    (bar,) = shown.bars
    assert (bar.name, bar.share, bar.note) == ("training", 0.5, "step 8/16, about 0:30 left")
    assert shown.note == "validation 2.0000 bits per byte, 2,346 bytes/s"
    assert list(shown.curve) == [4.0, 3.0, 2.0]
    assert (shown.data["step"], shown.data["of_steps"]) == (8, 16)
    assert (shown.data["seconds_left"], shown.data["bytes_per_second"]) == (30.0, 2345.5)


def test_a_training_whose_patience_is_over_has_no_time_left(run):
    patient = run.replace({"train.patience": 1})
    row = {"tokens_per_second": 1.0, "seconds": 10.0}
    rows = {n: {"step": n, "val_bits_per_byte": float(n), **row} for n in (4, 8)}
    shown = _progress(rows, patient)
    assert (shown.data["seconds_left"], shown.bars[0].share) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("code", "out", "err", "reason"),
    [
        (1, "", "warning\nFOLDER: no SHA256SUMS\n", "models:/dca-gpt/2: no SHA256SUMS"),
        (3, "", "", "its code ended the process, exit code 3"),
        (0, '{"text": "a"}\n', "", "its code ended the process, exit code 0"),
    ],
)
def test_a_champion_that_cannot_be_used_is_one_line_with_the_ways_on(
    experiment, monkeypatch, fetched, code, out, err, reason
):
    def fail(*_) -> subprocess.CompletedProcess:
        named = err.replace("FOLDER", str(fetched[0][1]))
        return subprocess.CompletedProcess([], code, out, named)

    monkeypatch.setattr(module, "run_isolated", fail)
    monkeypatch.setattr(Champions, "ways_on", lambda champions, champion: f"{champions} {champion}")
    two = experiment.replace({"generate.prompts": ["a", "b"]})
    with pytest.raises(PipelineError) as error:
        sample(context(two), needs(2))
    assert str(error.value) == (
        f"the champion, models:/dca-gpt/2, cannot be used: {reason}; run "
        f"{Champions(Registry(None, 'dca-gpt'))} 2"
    )


def test_only_a_champion_that_is_damaged_is_to_be_replaced(experiment, commands, monkeypatch):
    """An outage was blamed on the champion, and a rollback advised."""
    monkeypatch.setattr(Champions, "ways_on", lambda *_: "rollback")
    given: list[Exception] = [StorageError("no tracking server answers"), GoneError("m-1: gone")]

    def fail(*_) -> None:
        raise given.pop(0)

    monkeypatch.setattr(module, "fetch_model", fail)
    with pytest.raises(StorageError, match=r"^no tracking server answers$"):
        sample(context(experiment), needs(2))
    with pytest.raises(PipelineError, match="dca-gpt/2, cannot be used: m-1: gone; run rollback"):
        sample(context(experiment), needs(2))
    assert commands == []


FULL = "standard output: No space left on device"


@pytest.mark.parametrize(
    ("code", "err", "reason"),
    [
        (-9, "a warning\n", "its process was ended by signal 9 (Killed)"),
        (1, f"a warning\n{FULL}\n", FULL),
    ],
)
def test_short_memory_and_a_full_disk_are_not_the_champions_fault(
    experiment, monkeypatch, code, err, reason
):
    child = subprocess.CompletedProcess([], code, "", err)
    monkeypatch.setattr(module, "run_isolated", lambda *_: child)
    with pytest.raises(PipelineError) as error:
        sample(context(experiment), needs(2))
    assert str(error.value) == f"models:/dca-gpt/2: {reason}"
