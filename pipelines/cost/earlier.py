"""What earlier runs of an experiment took on this machine, from the tracking store."""

import platform
from itertools import chain
from statistics import median

from pipelines.compat.mlflow import FINISHED
from pipelines.config.yaml_text import flatten
from pipelines.experiment import Experiment
from pipelines.search.config import SearchTask
from pipelines.search.resume import StoredTrial, trials_of
from pipelines.storage.location import storage_folder
from pipelines.tracking.encoding import encode_param
from pipelines.tracking.schema import HOST_TAG, INACTIVE_PARAM
from pipelines.tracking.store import Run, Store
from pipelines.training.config import TrainingRun

MAX_PIPELINES = 5
"""The newest ones are read."""
TIMED_PARAMS = (
    *("train.seq_len", "train.batch_tokens", "train.micro_batch_tokens", "train.ema_decay"),
    *("train.evals", "train.eval_tokens", "train.activation_checkpointing", "train.compile"),
)
"""What changes the time of a step or of an evaluation besides the model."""


class EarlierRuns:
    """The finished runs of the newest pipelines with the same resources on this machine."""

    def __init__(self, experiment: Experiment) -> None:
        folder = storage_folder(experiment.storage)
        self._store = Store.open(experiment.experiment, folder, create=False)
        data = experiment.model_dump(mode="json", include={"resources": True, "fit": {"resources"}})
        wanted = {key: encode_param(value) for key, value in flatten(data)}
        found = self._store.find("pipeline") if self._store else []
        same = [run for run in found if run.data.tags.get(HOST_TAG) == platform.node()]
        same = [run for run in same if wanted.items() <= run.data.params.items()]
        self._pipelines = same[:MAX_PIPELINES]
        self._searches = self._children("search", self._pipelines)
        self._trials = [self._children("trial", [search]) for search in self._searches]

    def step_seconds(self, kind: str, run: TrainingRun) -> float | None:
        """Of a trial or fit with the same model, batch and evaluations, all its time shared among
        its steps; None if there is none."""
        wanted = {
            key: encode_param(value)
            for key, value in run.params.items()
            if key.startswith("model.") or key in TIMED_PARAMS
        }
        trials = list(chain.from_iterable(self._trials))
        for stored in trials if kind == "trial" else self._children(kind, self._pipelines):
            params = stored.data.params
            if all(params.get(key) in (v, INACTIVE_PARAM) for key, v in wanted.items()):
                steps = stored.data.metrics["tokens"] / run.train.batch_tokens
                return _duration(stored) / steps
        return None

    def stage_seconds(self, name: str) -> float | None:
        """Median time of a stage; of a search, until its first trial. None if none has ended."""
        if name == "search":
            begun = [(s, t[-1]) for s, t in zip(self._searches, self._trials, strict=True) if t]
            seconds = [(t.info.start_time - s.info.start_time) / 1000 for s, t in begun]
        else:
            seconds = [_duration(run) for run in self._children(name, self._pipelines)]
        return median(seconds) if seconds else None

    def stored_trials(
        self, task: SearchTask, search: Run | None
    ) -> tuple[list[StoredTrial], float]:
        """The trials of a search that was begun, and the seconds it has taken."""
        if self._store is None or search is None:
            return [], 0.0
        seconds = self._store.history(search.info.run_id, "seconds").values()
        return trials_of(self._store, search.info.run_id, task), max(seconds, default=0.0)

    def _children(self, kind: str, parents: list[Run]) -> list[Run]:
        """Finished runs of a kind, newest first."""
        if self._store is None:
            return []
        runs = [run for p in parents for run in self._store.children(p.info.run_id, kind)]
        return [run for run in runs if run.info.status == FINISHED]


def _duration(run: Run) -> float:
    return (run.info.end_time - run.info.start_time) / 1000
