"""The results of one pipeline run of an experiment, as tables and plain data.

Made by pipelines.reporting.loading; read by everything else in this package and by the notebooks.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from pipelines.experiment import Experiment
from pipelines.registry.champions import Promotion
from pipelines.reporting.studies.study import Study
from pipelines.tracking.encoding import encode_param
from pipelines.tracking.schema import (
    COMPARE_KIND,
    FIT_KIND,
    INACTIVE_PARAM,
    SELECT_KIND,
    TRAIN_KIND,
    VersionTags,
    stage_outputs,
)
from pipelines.tracking.store import Run, Store
from pipelines.training.config import TrainingRun

INACTIVE = INACTIVE_PARAM
"""Value of a searched key in a trial in which the key did not apply."""


@dataclass(frozen=True)
class Results:
    """One pipeline run: its stages' runs, its trials, and the model that came out of it."""

    config: Experiment
    store: Store
    pipeline: Run
    stages: dict[str, Run]
    """The runs that hold the stages' results, by stage; without stages that have not begun."""
    trials: pd.DataFrame
    """One row per trial, by number: run_id, state, reason, bits_per_byte (its best; NaN without a
    result), second (value of search.second_objective), tokens, steps, seconds, parameters (missing
    if the values do not go together), pareto (whether it lies on the Pareto front), configuration,
    and the value of each searched key, INACTIVE where the key did not apply."""
    curves: pd.DataFrame
    """One row per evaluation of the trials and the fit: name, number (-1 for the fit), step,
    tokens, seconds of training, bits_per_byte, best (so far, of train.best_metric), and the
    trial's value of each searched key."""
    completed_runs: pd.DataFrame
    """One row per training run of the experiment that used its whole budget, one for each seed of a
    configuration: configuration, kind, run_id, seed, bits_per_byte, tokens."""
    version: int | None = None
    """Version of the registered model that the fit became."""
    version_tags: VersionTags = field(default_factory=VersionTags)
    """Tags of that version, with the gate's decision."""
    champion: int | None = None
    """The version of the registered model that is champion now."""
    promotions: Sequence[Promotion] = ()
    """Every move of the champion, rollbacks too, in order."""
    lineage: dict[str, Any] = field(default_factory=dict)
    """Corpus, provenance and hardware, as packaged with the fit's model."""
    samples: str = ""
    """The generated text."""
    other_pipeline_count: int = 0
    """Number of other pipeline runs of the experiment."""
    whole: Experiment | None = None
    """The experiment, if it is a study; all else is of its winner, until there is one of its
    baseline, and `config` is that of this arm."""
    study: Study | None = None
    """The comparison of a study; None before it has ended."""
    arm: str = ""
    """That arm of a study."""
    instances: Mapping[str, Run] = field(default_factory=dict)
    """The runs of all arms and seeds of a study, by stage and values as in fit/dca-2/3."""

    @property
    def experiment(self) -> Experiment:
        """The experiment as it was given."""
        return self.whole or self.config

    @property
    def keys(self) -> list[str]:
        """The searched keys."""
        return list(self.config.search.space)

    @property
    def metric(self) -> str:
        """The metric that the search minimised."""
        return self.config.train.best_metric

    @property
    def split(self) -> str:
        """The text on which that metric is computed, for people."""
        return split_of(self.metric)

    @property
    def winner(self) -> int | None:
        """Number of the selected trial; None if none is selected yet, or its run was deleted."""
        number = self.outputs(SELECT_KIND).get("trial")
        return number if number in self.trials.index else None

    @property
    def fit(self) -> Run | None:
        """The final training run: of the winner, or of train.py if there was no search."""
        return self.stages.get(FIT_KIND) or self.stages.get(TRAIN_KIND)

    @property
    def model_uri(self) -> str | None:
        """URI of the model that the fit logged."""
        name = FIT_KIND if FIT_KIND in self.stages else TRAIN_KIND
        return self.outputs(name).get("model_uri")

    @property
    def winning_values(self) -> list[str | int]:
        """Arm and seed of a study's winner, the seed alone without arms; else nothing."""
        return list(self.outputs(COMPARE_KIND).get("winner", []))

    @property
    def trainings(self) -> tuple[int, int]:
        """How many trainings of a study have ended, and how many it has."""
        experiment, stage = self.experiment, f"{FIT_KIND}/"
        fits = [run for path, run in self.instances.items() if path.startswith(stage)]
        ended = sum(stage_outputs(run.data.tags) is not None for run in fits)
        return ended, max(len(experiment.arms), 1) * len(experiment.replicate_seeds)

    def outputs(self, stage: str) -> dict[str, Any]:
        """The stored result of a stage; empty if it has not ended.

        As it was stored, because older stores have other fields.
        """
        if stage not in self.stages:
            return {}
        return self.store.read_result(self.stages[stage]) or {}

    def configuration(self, run: TrainingRun) -> str:
        """The `configuration` column's text for a training."""
        params = {key: encode_param(value) for key, value in run.params.items()}
        return configuration_text(params, str(self.lineage["corpus"]["fingerprint"]))


def split_of(metric: str) -> str:
    """The text on which a train.best_metric is computed, for people."""
    return "validation" if metric.startswith("val_") else "training"


def configuration_text(params: Mapping[str, str], corpus: str) -> str:
    """A text that is equal for runs that differ in nothing but the seed.

    `corpus` is the fingerprint of the corpus.
    """
    compared = {k: v for k, v in params.items() if k.startswith(("model.", "train."))}
    return json.dumps([corpus, sorted(compared.items())])
