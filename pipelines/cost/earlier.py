"""What earlier runs of an experiment took on this machine, from the tracking store."""

import platform
from statistics import median

from pipelines.compat.mlflow import FINISHED
from pipelines.config.yaml_text import flatten
from pipelines.experiment import Experiment
from pipelines.storage.location import storage_folder
from pipelines.tracking.encoding import encode_param
from pipelines.tracking.schema import (
    FIT_KIND,
    HOST_TAG,
    INACTIVE_PARAM,
    PIPELINE_KIND,
    REASON_TAG,
    SEARCH_KIND,
    SECONDS_METRIC,
    TOKENS_METRIC,
    TRIAL_KIND,
)
from pipelines.tracking.store import Run, Store
from pipelines.training.config import STEP_PARAMS, TrainingRun

MAX_PIPELINES = 5


class EarlierRuns:
    """The runs of the newest pipelines with the same resources on this machine."""

    def __init__(self, experiment: Experiment) -> None:
        folder = storage_folder(experiment.storage)
        self.store = Store.open(experiment.experiment, folder, create=False)
        data = experiment.model_dump(mode="json", include={"resources": True, "fit": {"resources"}})
        wanted = {key: encode_param(value) for key, value in flatten(data)}
        found = self.store.find(PIPELINE_KIND) if self.store else []
        found = [run for run in found if run.data.tags.get(HOST_TAG) == platform.node()]
        found = [run for run in found if wanted.items() <= run.data.params.items()]
        self._pipelines = found[:MAX_PIPELINES]
        self._read: dict[tuple[str, str], list[Run]] = {}

    def step_seconds(self, kind: str, run: TrainingRun) -> float | None:
        """Of trials or fits with the same model and batch, evaluations left out; None without."""
        parents = (
            self._pipelines if kind == FIT_KIND else self._children(SEARCH_KIND, self._pipelines)
        )
        wanted = {k: encode_param(v) for k, v in run.params.items() if k.startswith(STEP_PARAMS)}
        data = [stored.data for stored in self._children(kind, parents)]
        found = [
            one.metrics[SECONDS_METRIC] * run.train.batch_tokens / one.metrics[TOKENS_METRIC]
            for one in data
            if {SECONDS_METRIC, TOKENS_METRIC} <= one.metrics.keys()
            and all(one.params.get(key) in (value, INACTIVE_PARAM) for key, value in wanted.items())
        ]
        return median(found) if found else None

    def stage_seconds(self, name: str) -> float | None:
        """Of a stage, of a search until its first trial; None if none ran without a break."""
        found = []
        for run in self._children(name, self._pipelines):
            ends = [run.info.end_time]
            if name == SEARCH_KIND:
                ends = [trial.info.start_time for trial in self._children(TRIAL_KIND, [run])]
            if ends and run.info.status == FINISHED and REASON_TAG not in run.data.tags:
                found.append((min(ends) - run.info.start_time) / 1000)
        return median(found) if found else None

    def _children(self, kind: str, parents: list[Run]) -> list[Run]:
        if self.store is None:
            return []
        found: list[Run] = []
        for parent in parents:
            key = parent.info.run_id, kind
            if key not in self._read:  # of thousands of trials it takes seconds
                self._read[key] = self.store.children(*key)
            found += self._read[key]
        return found
