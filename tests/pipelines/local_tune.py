"""Sweeps without Ray: trials and fits run one after the other in the process of the command.

For tests of what the pipeline does around Ray: budgets, retries, failures, what is stored.
Proposals, early stopping, events and training are the real ones, the loop over the trials is not.
A fit of several workers is trained by one, on the same batches.
"""

import itertools
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from ray.tune.schedulers import TrialScheduler

from pipelines.cluster import connection, task, workers
from pipelines.cluster.jobs import GroupEvents, JobGroup, ScheduleEach, TakeTurns
from pipelines.cluster.trial import Trial
from pipelines.data.splits import TrainValSplits
from pipelines.search import run
from pipelines.stages import recorded_training
from pipelines.stages.study import replicates
from pipelines.training.loop import train


@pytest.fixture
def local_tune(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> "LocalTune":
    """Takes the place of Tune and of Ray Train in commands that run in this process."""
    return LocalTune(tmp_path_factory.mktemp("tune"), monkeypatch)


class LocalTune:
    """Runs the trials of a search; may be told to interrupt it, or to crash trials."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (run, replicates):
            monkeypatch.setattr(module, "run_jobs", self._run)
        monkeypatch.setattr(recorded_training, "connect", lambda: None)
        monkeypatch.setattr(recorded_training, "require_capacity", lambda *_: None)
        monkeypatch.setattr(workers, "train_with_workers", train)
        monkeypatch.setattr(connection, "start_early", lambda **_: None)
        monkeypatch.setattr(task, "run_task", lambda work, *args, **_: work(*args))
        self._file = folder / "error.pkl"
        self.interrupt_at = math.inf
        """Results of trials after which Ctrl-C is pressed."""
        self.diverge: set[str] = set()
        """Trainings of a study that diverge at their first step, by name."""
        self.started: list[str] = []
        """The groups of the trials that have started, in order."""
        self.crashes: dict[int | str, BaseException] = {}
        """Errors that end the process of a trial after its first result, once, by its number; of
        the training of a study by its name."""

    def _run(
        self, groups: Mapping[str, JobGroup], corpus: TrainValSplits, *_: object, **__: str
    ) -> None:
        """Stands for pipelines.cluster.jobs.run_jobs."""
        searcher, scheduler, events = TakeTurns(groups), ScheduleEach(groups), GroupEvents(groups)
        cloudpickle.dumps((searcher, scheduler, events))  # as a Tuner does
        trainings = {name: (group.base, group.folder) for name, group in groups.items()}
        for tune_id in map(str, itertools.count()):
            config = searcher.suggest(tune_id)
            if config == "FINISHED":
                return
            trial = SimpleNamespace(trial_id=tune_id, config=config, last_result={})
            scheduler.on_trial_add(None, trial)
            events.on_trial_start(0, [], trial)
            try:
                for result in self._results(config, trainings, corpus):
                    self._end_or_go_on(trial, result, searcher, scheduler, events)
                    if trial.last_result["done"]:
                        break
            except Exception as error:
                self._file.write_bytes(cloudpickle.dumps(error))
                trial.pickled_error_file = str(self._file)
                searcher.on_trial_complete(tune_id, trial.last_result, error=True)
                events.on_trial_error(0, [], trial)
            events.on_step_end(0, [])

    def _results(
        self, config: dict[str, Any], trainings: Mapping[str, Any], corpus: TrainValSplits
    ) -> Iterator[dict[str, Any]]:
        trial = Trial.__new__(Trial)  # without the process and the folder that Tune makes for it
        trial.setup(config, trainings, corpus)
        self.started.append(config["group"])
        if config["group"] in self.diverge:
            failed = {"failed": "diverged at step 1", "diverged": True}
            yield {**failed, "notes": [], "done": True}
        try:
            while True:
                yield trial.step()
                self.interrupt_at -= 1
                if self.interrupt_at <= 0:
                    raise KeyboardInterrupt
                for name in (config["number"], config["group"]):
                    if name in self.crashes:
                        raise self.crashes.pop(name)
        finally:
            trial.cleanup()

    def _end_or_go_on(
        self, trial: Any, result: dict[str, Any], searcher: Any, scheduler: Any, events: Any
    ) -> None:
        """In the order of Tune's own loop."""
        result["pid"] = os.getpid()
        if result["done"] or scheduler.on_trial_result(None, trial, result) == TrialScheduler.STOP:
            result["done"] = True
        else:
            searcher.on_trial_result(trial.trial_id, result)
        events.on_trial_result(0, [], trial, result)
        trial.last_result = result
        if result["done"]:
            searcher.on_trial_complete(trial.trial_id, result)
            scheduler.on_trial_complete(None, trial, result)
            events.on_trial_complete(0, [], trial)
