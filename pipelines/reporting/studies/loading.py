"""Reading a study from the tracking store: the runs of its instances, and its comparison.

Used by pipelines.reporting.loading. Of a study the report shows the comparison of its arms, and of
one training, the winner's, what it shows of any sweep.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.console.errors import ConfigError, Problem
from pipelines.console.text import nearest, quote_value
from pipelines.engine.results import R, Values, from_json
from pipelines.experiment import Experiment
from pipelines.registry.results import Compared, Probed
from pipelines.reporting.studies.study import Study
from pipelines.tracking.schema import COMPARE_KIND, MEASURED_FILE, PROBE_KIND
from pipelines.tracking.store import Run, Store
from pipelines.training.config import TrainingRun


def require_arm(experiment: Experiment, name: str) -> None:
    """Raise ConfigError unless an experiment has an arm of this name, for --baseline: it becomes a
    part of the name of the report's folder."""
    known = experiment.arm_names
    if name in known:
        return
    message = f"expected none: {experiment.experiment} is no study of several arms"
    if known:
        message = f"expected an arm of {', '.join(known)}, got {quote_value(name)}"
    raise ConfigError(Problem(message, "--baseline", nearest=nearest(name, known)))


@dataclass(frozen=True)
class StudyRuns:
    """The runs of a study's stages, and the winner among its trainings."""

    config: Experiment
    runs: Mapping[str, Run]
    """By stage and values, as in fit/dca-2/3."""
    store: Store

    @property
    def winner(self) -> Values:
        """Arm and seed of the winner; until there is one, of the baseline and its first seed."""
        compared = self._result(COMPARE_KIND, Compared)
        arm = (self.config.baseline_arm,) if self.config.arms else ()
        return compared.winner if compared else (*arm, self.config.replicate_seeds[0])

    @property
    def of_winner(self) -> dict[str, Run]:
        """The winner's runs by stage, as a sweep without arms has them."""
        values = list(map(str, self.winner))
        found = {}
        for path, run in self.runs.items():
            stage, *own = path.split("/")
            if own == values[: len(own)]:
                found[stage] = run
        return found

    @property
    def winner_config(self) -> Experiment:
        """The experiment of the winner's arm."""
        config = self.config
        return config.of_arm(str(self.winner[0])) if config.arms else config.of_seed(config.seed)

    def fit_run(self, run: TrainingRun) -> TrainingRun:
        """A training with the tokens that the study's budget allows."""
        probed = self._result(PROBE_KIND, Probed)
        tokens = probed.tokens_of(run) if probed else None
        return run if tokens is None else run.replace({"train.tokens": tokens})

    def study(self, baseline: str | None = None) -> Study | None:
        """The comparison, if it has ended; with another baseline that one.

        Raises ConfigError for another baseline before there is a comparison.
        """
        run = self.runs.get(COMPARE_KIND)
        found = None
        if run is not None and self._result(COMPARE_KIND, Compared) is not None:
            found = from_json(Study, self.store.read_text(run.info.run_id, MEASURED_FILE))
        if baseline is None:
            return found
        if found is None:
            message = "the newest run of the study has not compared the arms yet"
            raise ConfigError(Problem(message, "--baseline"))
        return found.against(baseline)

    def _result(self, stage: str, kind: type[R]) -> R | None:
        run = self.runs.get(stage)
        return from_json(kind, json.dumps(self.store.read_result(run))) if run else None
