"""What a search remembers of itself; its trials are run by the tests of the commands."""

import pytest

from pipelines.console.errors import PipelineError
from pipelines.console.progress import Progress
from pipelines.data.splits import measure_corpus, write_splits
from pipelines.engine.stage import Context
from pipelines.experiment import Experiment
from pipelines.search.recorder import Recorder
from pipelines.search.resume import trials_of
from pipelines.search.space import Space
from pipelines.stages import search as module
from pipelines.stages.search import search


@pytest.fixture
def begun(config: Experiment, store, tmp_path) -> tuple[Context, dict]:
    """A search that another start has begun, and what it needs."""
    config = config.replace({"search.max_seconds": 20})
    found = measure_corpus(config.data, seq_len=config.train.seq_len)
    write_splits(config.data, found, tmp_path / "runs")
    pipeline, run = (store.create(kind, kind, kind) for kind in ("pipeline", "search"))
    context = Context(config, tmp_path / "runs", store, Progress(), pipeline, run)
    corpus = {"fingerprint": found.fingerprint, "name": "files", "bytes": found.sizes}
    return context, {"corpus": corpus}


def start(context: Context, needs: dict, seconds: float) -> None:
    """One of the search's starts, which lasts so long and ends no trial."""
    before = max(context.store.history(context.run_id, "seconds").values(), default=0.0)
    recorder = Recorder(context, needs["corpus"], Space(context.config), [], before)
    recorder._started -= seconds
    recorder.close()


def test_the_seconds_of_a_search_add_up_over_its_starts(begun, monkeypatch):
    context, needs = begun
    given: list[float] = []
    monkeypatch.setattr(module, "_run_trials", lambda *arguments: given.append(arguments[-1]))
    for seconds in (6, 6, 6):
        start(context, needs, seconds)
        with pytest.raises(PipelineError, match=r"no trial began within search\.max_seconds"):
            search(context, needs)
    assert given == pytest.approx([6, 12, 18], abs=1)
    start(context, needs, 6)
    with pytest.raises(PipelineError):
        search(context, needs)
    assert len(given) == 3


def test_a_trial_whose_run_was_made_just_before_a_kill_is_known_without_its_parameters(begun):
    context, _ = begun
    tags = {"dca.trial": "0", "dca.values": '{"train.learning_rate": 0.001}'}
    run = context.store.create("trial", "made", "made", parent=context.run_id, tags=tags)
    (trial,) = trials_of(context.store, context.run_id, context.config)
    assert (trial.run_id, trial.state, trial.tokens, trial.curve) == (run, None, 0, {})
    assert trial.values == {"train.learning_rate": 0.001}
