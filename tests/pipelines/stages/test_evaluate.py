"""The test of several trainings in one call; models are scored by tests of the registry."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pipelines.console.errors import DamagedError
from pipelines.data.fingerprint import PreparedCorpus
from pipelines.data.splits import measure_corpus, write_splits
from pipelines.engine.results import StageResults, from_json
from pipelines.engine.stage import Context
from pipelines.experiment import Experiment
from pipelines.registry.results import Diverged, Fitted, Tested, Untested
from pipelines.registry.score import Score
from pipelines.stages import evaluate as module
from pipelines.stages import sweep_stages
from pipelines.stages.corpus import CorpusStage
from pipelines.tracking.store import Store
from pipelines.training import evaluation
from tests.pipelines.commands import invocation
from tests.pipelines.packages import log_untrained

MODELS = {"one": 2.0, "two": 2.5}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is computed; the scores of models are made up."""
    found: list[str] = []

    def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: found.append(name) or call(*given)

    def score(models: Any, model_id: str, text: Any, progress: Any, name: str) -> Score:
        found.append(name)
        if name == "evaluate[damaged]":
            raise DamagedError(f"{model_id}: altered")
        bits = MODELS[name.removeprefix("evaluate[").removesuffix("]")]
        size = text.stat().st_size
        return Score([bits * (size - 1)], size, 32, 32, 9, 1.0, 1.0)

    monkeypatch.setattr(module, "score", score)
    monkeypatch.setattr(evaluation, "compressors", noted("compressors", lambda _: {"xz": 3.0}))
    monkeypatch.setattr(module, "overlap_share", noted("overlap", lambda *_: 0.25))
    return found


@pytest.fixture
def context(experiment: Experiment, store: Store, tmp_path) -> Context[Experiment]:
    return Context(experiment, tmp_path / "runs", store, invocation(), "pipeline")


@pytest.fixture
def corpus(experiment: Experiment, tmp_path) -> PreparedCorpus:
    found = measure_corpus(experiment.data, seq_len=experiment.train.seq_len)
    write_splits(experiment.data, found, tmp_path / "runs")
    return PreparedCorpus("files", found.fingerprint, found.sizes)


def test_what_is_of_the_text_alone_is_computed_once_and_a_divergence_is_not_tested(
    context, corpus, calls
):
    run_id, uri = log_untrained(context.store, context.config)
    fits = {name: Fitted(run_id, uri, 2.0, 9, 4096, 1.0, "1") for name in (*MODELS, "damaged")}
    instances = []
    for name, fit in {**fits, "lost": Diverged(run_id, "diverged at step 3")}.items():
        own = context.store.create("evaluate", name, name)
        needs = StageResults({"corpus": corpus, "fit": fit})
        instances.append((replace(context, run_id=own, values=(name,)), needs))
    ended: dict[int, Any] = {}
    module.evaluate_together(instances, ended.__setitem__)
    one, two, damaged, lost = (ended[place] for place in range(4))
    assert one == Tested(2.0, corpus.fingerprint, {"xz": 3.0}, 0.25)
    assert two == replace(one, test_bits_per_byte=2.5)
    assert isinstance(damaged, DamagedError)
    assert lost == Untested()
    assert calls == [
        "evaluate[one]",
        "compressors",
        "overlap",
        "evaluate[two]",
        "evaluate[damaged]",
    ]
    metrics = context.store.client.get_run(instances[1][0].run_id).data.metrics
    assert metrics == {
        "test_bits_per_byte": 2.5,
        "xz_bits_per_byte": 3.0,
        "test_overlap_share": 0.25,
    }


def test_a_test_split_that_is_copied_for_long_is_followed_by_a_line(context, corpus, monkeypatch):
    copy, shown, texts = module.temporary_copy, threading.Event(), []
    monkeypatch.setattr("pipelines.console.progress.WATCH_SECONDS", 0.01)
    context.progress.update = lambda update: (texts.append(update.text), shown.set())
    monkeypatch.setattr(module, "temporary_copy", lambda file: shown.wait(60) and copy(file))
    with module._opened(context, StageResults({"corpus": corpus})) as text:
        assert text.path.read_bytes()
    assert texts[0] == "evaluate: copying the test split, 0:00"


def test_the_two_results_of_a_test_are_told_apart_when_they_are_read():
    tested = '{"test_bits_per_byte": 2.0, "fingerprint": "a", "baselines": {}}'
    assert from_json(module.STAGE.result, tested) == Tested(2.0, "a", {})
    assert from_json(module.STAGE.result, "{}") == Untested()


@pytest.mark.parametrize("stage", sweep_stages(CorpusStage()), ids=lambda stage: stage.name)
def test_an_edited_result_is_none_of_any_stage(stage):
    """One of evaluate was taken for that of a training that diverged."""
    for edited in ('{"test_bits_per_byte": "2.0"}', '{"edited": 1}'):
        assert from_json(stage.result, edited) is None
