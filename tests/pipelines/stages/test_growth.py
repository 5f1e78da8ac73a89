"""A search that grows, through the DAG and the tracking store; its trials train nothing."""

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from pipelines.cluster.trial import TrialOutcome
from pipelines.engine import dag
from pipelines.engine.results import from_json
from pipelines.experiment import Experiment
from pipelines.search import run as module
from pipelines.search.recorder import Recorder
from pipelines.search.results import Selected
from pipelines.search.resume import joining
from pipelines.search.searcher import StudySearcher
from pipelines.search.study import build_study
from pipelines.stages import select, sweep_stages
from pipelines.stages.corpus import CorpusStage
from pipelines.stages.search import search_stage
from pipelines.storage.location import storage_folder
from pipelines.tracking.descriptions import describe_pipeline
from pipelines.tracking.store import Store
from pipelines.tracking.writer import Writer
from tests.pipelines.commands import invocation
from tests.pipelines.stored import PROVENANCE, copy_store, same_provenance

RATE = "train.learning_rate"
SPACE = {RATE: {"log_uniform": [1e-4, 1e-2]}, "model.depth": {"int": [1, 2]}}
DIVERGES_FROM = 1.0


def number_of(run: Any) -> int:
    return int(run.data.tags["dca.trial"])


class Sweep:
    """An experiment's search and selection, again and again."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.ran: list[int] = []
        """Numbers of the trials that the last command has run."""
        self.kill_after = math.inf
        """Trials after which the command is killed."""

    def run(self, *, retry_failed: bool = False, fresh: bool = False, **changes: Any) -> None:
        self.ran, config = [], self.experiment.replace(changes)
        dag.run(
            self.stages(retry_failed),
            config,
            invocation(),
            lock_name="test",
            descriptions=describe_pipeline(config.experiment, config.promote.model, ["sweep.py"]),
            fresh=fresh,
        )

    def stages(self, retry_failed: bool) -> list[Any]:
        return [CorpusStage().stage, search_stage(retry_failed=retry_failed), select.STAGE]

    def reason(self, retry_failed: bool = False, **changes: Any) -> str:
        """Why the search would run."""
        config = self.experiment.replace(changes)
        planned = dag.plan(self.stages(retry_failed), config, until="search", fresh=False)
        return "reused" if planned[-1].reused else planned[-1].reason

    def train(self, sessions: list[module.Session]) -> None:
        """Stands for run_trials: a trial's result is how far its rate is from 0.003."""
        (session,) = sessions
        context, task, stored = session.context, session.task, session.stored
        writer = Writer(context.store)
        given = stored.trials, session.previous_seconds, writer
        recorder = Recorder(context, task, session.corpus, *given)
        searcher = StudySearcher(
            build_study(task, stored.trials), task, open_run=recorder.open_run, stored=stored
        )
        while (suggested := searcher.suggest("trial")) != "FINISHED":
            if len(self.ran) == self.kill_after:
                recorder.close()
                writer.close()
                raise KeyboardInterrupt
            number, rate = suggested["number"], suggested["values"].get(RATE, 0.004)
            self.ran.append(number)
            result = {"failed": "diverged", "done": True}
            if rate < DIVERGES_FROM:
                bits = 2 + abs(math.log10(rate / 0.003))
                row = {"step": 4, "time": 1e9, "tokens": 1024, "seconds": 2.0}
                row |= {"train_bits_per_byte": bits, "val_bits_per_byte": bits}
                recorder.write(number, [row])
                result = {"objective": bits, "tokens": 1024, "rows": [row], "finished": True}
            recorder.end_trial(number, TrialOutcome.of(result))
            searcher.on_trial_complete("trial", result | {"curve": [], "tokens": 1024})
        recorder.close()
        writer.close()

    def ended(self) -> dict[int, tuple[str, int]]:
        """The run and the end of each trial that has ended."""
        return {
            number_of(run): (run.info.run_id, run.info.end_time)
            for run in self.trials
            if "dca.state" in run.data.tags
        }

    @property
    def trials(self) -> list[Any]:
        """The runs of the latest search's trials."""
        return self.store.children(self.store.find("search")[0].info.run_id, "trial")

    @cached_property
    def store(self) -> Store:
        store = Store.open(self.experiment.experiment, storage_folder(self.experiment.storage))
        assert store is not None
        return store

    def trial(self, number: int) -> Any:
        """The run of a trial of the latest search."""
        return next(run for run in self.trials if number_of(run) == number)

    @property
    def selected(self) -> Selected:
        """The latest selection."""
        result = from_json(Selected, self.store.find("select")[0].data.tags["dca.outputs"])
        assert result is not None
        return result

    @property
    def best(self) -> tuple[int, list[int]]:
        """The selected trial, and those that are marked as such."""
        (search,) = self.store.find("search")
        marked = [run for run in self.trials if "dca.best" in run.data.tags]
        return int(search.data.tags["dca.best_trial"]), [number_of(run) for run in marked]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test leaves a copy of its first four trials for the others."""
    return tmp_path_factory.mktemp("first")


@pytest.fixture
def sweep(
    experiment: Experiment,
    tracking: str,
    first: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Sweep:
    """After its first four trials."""
    found = Sweep(experiment.replace({"search": {"space": SPACE, "trials": 4}}))
    monkeypatch.setattr(module, "run_trials", found.train)
    monkeypatch.setattr(PROVENANCE, same_provenance)
    monkeypatch.setattr("pipelines.search.recorder.save_study", lambda path, *_: path.touch())
    if any(first.iterdir()):
        copy_store(first, tmp_path)
    else:
        found.run()
        assert found.ran == [0, 1, 2, 3]
        copy_store(tmp_path, first)
    return found


WIDER = {f"search.space.{RATE}": {"log_uniform": [1e-5, 1e-1]}}
MORE = {"search.trials": 6}


GROWN = [
    ({}, "search.trials: 4 -> 6"),
    (WIDER, f"search.space.{RATE}.log_uniform: [0.0001, 0.01] -> [1e-05, 0.1]; "),
    ({"search.space.model.depth": {"choice": [1, 2, 3]}}, "search.space.model.depth."),
    ({"search.space.train.weight_decay": {"uniform": [0, 1]}}, "search.space.train.weight_decay."),
    ({"search.space.model.residual": {"choice": ["dca", "standard"]}}, "search.space.model."),
    ({"search.max_tokens": 10**9}, "search.max_tokens: null -> 1000000000; "),
    ({"search.sampler.name": "random"}, "search.sampler.name: tpe -> random; "),
    ({"search.scheduler.name": "none"}, "search.scheduler.name: asha -> none; "),
]


def test_a_search_that_grows_runs_what_is_missing_and_gives_its_reason(sweep):
    before = sweep.ended()
    for changes, reason in GROWN:
        assert sweep.reason(**MORE | changes).startswith(f"goes on: {reason}")
    everything = MORE | {key: value for changes, _ in GROWN for key, value in changes.items()}
    sweep.run(**everything)
    assert sweep.ran == [4, 5]
    assert sweep.ended().items() >= before.items()
    assert len(sweep.ended()) == 6
    assert sweep.reason(**everything) == "reused"
    after = sweep.ended()
    for changes in ({"search.trials": 2}, {"failures.retries": 9}, {"search.max_seconds": 9}):
        sweep.run(**everything | changes)
        assert (sweep.ran, sweep.ended()) == ([], after)


@pytest.mark.extended
def test_a_range_that_is_narrowed_and_widened_again_keeps_every_trial(sweep):
    rates = {number_of(run): float(run.data.params[RATE]) for run in sweep.store.find("trial")}
    low, high = sorted(rates.values())[1:3]
    middle = {f"search.space.{RATE}": {"log_uniform": [low * 0.999, high * 1.001]}}
    before = sweep.ended()
    sweep.run(**middle)
    assert sweep.ran == [4, 5]
    winner, marked = sweep.best
    assert rates.get(winner, low) in (low, high) or winner in (4, 5)
    assert marked == [winner]
    sweep.run()
    assert sweep.ran == []
    assert len(sweep.ended()) == 6
    assert sweep.ended().items() >= before.items()


@pytest.mark.extended
def test_a_winner_is_trained_as_it_was_when_a_key_that_was_fixed_is_searched(sweep):
    sweep.run(**{"search.space": {RATE: SPACE[RATE]}, "model.depth": 1})
    assert sweep.selected.values.keys() == {RATE}
    sweep.run(**{"search.space": SPACE | {"model.depth": {"int": [1, 3]}}, "model.depth": 2})
    assert sweep.ran == []
    chosen = sweep.store.client.get_run(sweep.selected.run_id).data.params
    assert sweep.selected.values["model.depth"] == int(chosen["model.depth"])


@pytest.mark.extended
def test_the_winner_that_is_marked_is_that_of_the_last_command(sweep):
    best, _ = sweep.best
    rate = float(sweep.trial(best).data.params[RATE])
    sweep.run(**{f"search.space.{RATE}": {"log_uniform": [1e-4, rate * 0.999]}})
    assert sweep.best[0] != best
    assert sweep.best[1] == [sweep.best[0]]
    sweep.run()
    winner = min(sweep.trials, key=lambda run: run.data.metrics["best_val_bits_per_byte"])
    assert sweep.best == (number_of(winner), [number_of(winner)])


@pytest.mark.extended
def test_trials_of_several_searches_join_one_whose_space_has_them(sweep):
    sweep.run(**{"model.dim": 32})
    assert sweep.ran == [0, 1, 2, 3]
    runs = {run.info.run_id: run.info.end_time for run in sweep.store.find("trial")}
    both = {"search.space.model.dim": {"choice": [16, 32]}, "search.trials": 9}
    config = sweep.experiment.replace(both)
    planned = dag.plan(sweep.stages(False), config, until="search", fresh=False)[-1]
    assert planned.run is not None
    assert len(joining(sweep.store, planned.run.info.run_id, config.search_task())) == 4
    sweep.run(**both)
    assert sweep.ran == [8]
    assert sorted(sweep.ended()) == list(range(9))
    assert dict(sweep.ended().values()).items() >= runs.items()
    sweep.run(**{"model.dim": 32})
    assert sweep.ran == []


@pytest.mark.extended
def test_a_search_whose_trials_joined_another_takes_them_back(sweep):
    whole, other = sweep.ended(), {"model.dim": 32}
    sweep.run(**other)
    both = {"search.space.model.dim": {"choice": [16, 32]}, "search.trials": 8}
    sweep.run(**both)
    winner = sweep.selected
    for changes, reason in [({}, "resumes an unfinished run"), (both, "resumes an unfinished run")]:
        assert sweep.reason(**changes) == reason
        sweep.run(**changes)
        assert sweep.ran == []
        assert sweep.reason(**changes) == "reused"
    assert sweep.selected == winner
    sweep.run()
    (search,) = [run for run in sweep.store.find("search") if "dca.outputs" in run.data.tags]
    trials = sweep.store.children(search.info.run_id, "trial")
    assert {run.info.run_id for run in trials} == {run for run, _ in whole.values()}
    rates = sorted(float(run.data.params[RATE]) for run in trials)
    half = {f"search.space.{RATE}": {"log_uniform": [1e-4, (rates[1] + rates[2]) / 2]}}
    sweep.run(**half | both | {"search.trials": 4})  # takes some of them
    sweep.run()
    assert sweep.ran == []
    assert len(sweep.store.find("trial")) == 8


@pytest.mark.extended
def test_a_search_that_has_lost_all_its_trials_in_an_older_store_takes_them_back(sweep):
    (search,) = sweep.store.find("search")
    sweep.run(**{"model.dim": 32})
    new = sweep.store.find("search")[0].info.run_id
    for run in sweep.store.children(search.info.run_id, "trial"):
        sweep.store.tag(run.info.run_id, {"mlflow.parentRunId": new})
    assert sweep.reason() == "another search has its trials"
    sweep.run()
    assert sweep.ran == []
    assert len(sweep.store.children(search.info.run_id, "trial")) == 4


@pytest.mark.extended
def test_checkpoints_of_an_unfinished_trial_stay_while_it_is_not_needed(sweep):
    sweep.kill_after = 1
    with pytest.raises(KeyboardInterrupt):
        sweep.run(**{"search.trials": 8})
    (search,) = sweep.store.find("search")
    storage = storage_folder(sweep.experiment.storage)
    folder = storage / "trials" / search.info.run_id / "trial-0005"
    folder.mkdir(parents=True)
    sweep.run(**{"search.trials": 5})
    assert folder.exists()
    sweep.kill_after = math.inf
    sweep.run(**{"search.trials": 6})
    assert sweep.ran == [5]
    assert not folder.exists()


@pytest.mark.extended
@pytest.mark.parametrize(
    "changes",
    [
        {"search.space.train.weight_decay": {"choice": [0.1]}},
        {"search.space.model.residual": {"choice": ["dca", "standard"]}},
    ],
)
def test_a_fit_of_the_same_winner_is_that_of_the_search_before_it_grew(sweep, changes):
    def fit(**changes: Any) -> dag.PlannedStage:
        config = sweep.experiment.replace(changes)
        stages = sweep_stages(CorpusStage(), config)
        return dag.plan(stages, config, until="fit", fresh=False)[-1]

    before, winner = fit(), sweep.selected.run_id
    sweep.run(**changes)
    assert sweep.selected.run_id == winner
    assert fit(**changes).key == before.key
    assert fit(**changes, **{"fit.tokens": 8192}).key != before.key


@pytest.mark.extended
@pytest.mark.parametrize("changes", [{"seed": 1}, {"train.tokens": 8192}, {"model.dim": 32}])
def test_another_search_begins_anew(sweep, changes):
    assert "goes on" not in sweep.reason(**changes)
    sweep.run(**changes)
    assert sweep.ran == [0, 1, 2, 3]
    assert len(sweep.store.find("search")) == 2
    sweep.run()
    assert sweep.ran == []


def test_a_search_that_was_killed_grows_from_where_it_was(sweep):
    first = sweep.ended()
    for kill_after, changes in ((2, {"search.trials": 8}), (1, WIDER | {"search.trials": 8})):
        sweep.kill_after = kill_after
        with pytest.raises(KeyboardInterrupt):
            sweep.run(**changes)
        assert len(sweep.ran) == kill_after
    sweep.kill_after = math.inf
    sweep.run(**WIDER | {"search.trials": 8})
    assert sorted(sweep.ended()) == list(range(8))
    assert sweep.ended().items() >= first.items()
    assert len(sweep.store.find("trial")) == 8
    assert len(sweep.store.find("search")) == 1


@pytest.mark.extended
def test_a_search_whose_trials_were_all_deleted_is_made_again(sweep):
    before = sweep.ended()
    store = sweep.store
    *others, winner = sorted(sweep.trials, key=lambda run: run.info.run_id == sweep.selected.run_id)
    store.client.delete_run(winner.info.run_id)
    assert sweep.reason() == "reused"  # another one is selected
    for run in others:
        store.client.delete_run(run.info.run_id)
    assert sweep.reason() == "the runs of its trials were deleted"
    sweep.run()
    assert sweep.ran == [0, 1, 2, 3]
    assert not {run for run, _ in sweep.ended().values()} & {run for run, _ in before.values()}
    assert sweep.selected.run_id in {run.info.run_id for run in sweep.trials}


@pytest.mark.extended
def test_fewer_trials_than_have_begun_finish_without_the_unfinished_one(sweep):
    sweep.kill_after = 1
    with pytest.raises(KeyboardInterrupt):
        sweep.run(**{"search.trials": 8})
    sweep.run(**{"search.trials": 5})
    assert sweep.ran == []
    assert len(sweep.ended()) == 5


GRID = {
    "search.sampler.name": "grid",
    "search.space": {RATE: {"choice": [1e-3, 1e3, 2e3]}},
    "search.trials": 3,
}


def test_failed_trials_alone_run_again(sweep):
    sweep.run(**GRID)
    before = sweep.ended()
    assert sweep.reason(**GRID) == "reused"
    assert sweep.reason(retry_failed=True, **GRID) == "failed trials run again: 2"
    sweep.kill_after = 1
    with pytest.raises(KeyboardInterrupt):
        sweep.run(retry_failed=True, **GRID)
    assert sweep.ran == [1]
    sweep.kill_after = math.inf
    sweep.run(**GRID)  # what was opened again is unfinished, with the option or without
    assert sweep.ran == [2]
    after = sweep.ended()
    assert [run for run, _ in after.values()] == [run for run, _ in before.values()]
    assert [after[number][1] > before[number][1] for number in range(3)] == [False, True, True]
    sweep.run(retry_failed=True, **GRID | {"search.trials": 1})
    assert sweep.ran == [1, 2]


@pytest.mark.extended
def test_fresh_begins_a_search_that_later_ones_go_on_from(sweep):
    sweep.run(fresh=True)
    assert sweep.ran == [0, 1, 2, 3]
    sweep.run(**MORE)
    assert sweep.ran == [4, 5]
    assert len(sweep.store.find("search")) == 1
    assert len(sweep.store.find("trial")) == 10
