"""Stored studies with given results, without any training."""

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.comparison.values import Interval, Ratio
from pipelines.console.progress import Progress
from pipelines.data.fingerprint import PreparedCorpus
from pipelines.engine.results import StageResults, Values, label, to_json
from pipelines.engine.stage import Context, Invocation
from pipelines.experiment import Experiment
from pipelines.registry.results import Compared, Diverged, Fitted, Probed, Tested, Untested
from pipelines.search.results import Searched, Selected
from pipelines.stages.study import compare
from pipelines.storage.location import storage_folder
from pipelines.tracking.schema import EXPERIMENT_FILE, OUTPUTS_TAG, STAGE_TAG
from pipelines.tracking.store import Store
from pipelines.tracking.writer import Writer
from tests.pipelines.stored import CORPUS, Made, store_trial

RATE = "train.learning_rate"
NOISE = (0.004, -0.002, 0.001, -0.006, 0.003, 0.005, -0.001, -0.004)
"""Of an arm's replicates but the baseline's."""
VALIDATION = 0.03
"""Bits per byte that validation is below test."""
TOKEN_SECONDS = 2e-5


@dataclass
class StoredStudy:
    """A study whose stages before compare have results; that one can be run."""

    store: Store
    config: Experiment
    pipeline: str
    found: dict[str, dict[Values, object]] = field(default_factory=dict)

    @property
    def results(self) -> StageResults:
        return StageResults({}, self.found)

    def context(self, run_id: str) -> Context[Experiment]:
        """Of a stage."""
        invocation = Invocation(("pipelines/sweep.py",), Progress())
        folder = storage_folder(self.config.storage)
        return Context(self.config, folder, self.store, invocation, self.pipeline, run_id)

    def open_run(self, stage: str, values: Values, **options: Any) -> str:
        """The run of an instance, to which the pipeline's refers."""
        name = f"{label(stage, values)} {self.pipeline}"
        run = self.store.create(stage, name, name, parent=self.pipeline, **options)
        path = "/".join([stage, *map(str, values)])
        self.store.tag(self.pipeline, {STAGE_TAG.format(path): run})
        return run

    def end_run(self, run: str, stage: str, values: Values, result: object) -> None:
        """Store the result of an instance."""
        self.store.tag(run, {OUTPUTS_TAG: json.dumps(to_json(result))})
        self.store.end(run)
        self.found.setdefault(stage, {})[values] = result

    def compare(self) -> Compared:
        """Run the stage compare."""
        run = self.open_run("compare", ())
        found = compare.STAGE.run(self.context(run), self.results)
        self.end_run(run, "compare", (), found)
        return found


def store_study(
    store: Store,
    config: Experiment,
    gains: Mapping[str, float],
    *,
    times: Mapping[str, float] | None = None,
    diverged: Collection[Values] = (),
    ended: int | None = None,
) -> StoredStudy:
    """Store a study of which each arm is better than the first by its gain.

    Args:
        store: Where.
        config: The study.
        gains: Bits per byte by arm; of a study of seeds alone, by the name of the experiment.
        times: Step times relative to the baseline; none if it was not probed.
        diverged: Arms and seeds of trainings that diverged.
        ended: How many trainings have ended; None for all.
    """
    name = f"{config.experiment} {json.dumps(config.model_dump(mode='json'))}"
    pipeline = store.create("pipeline", name, "pipeline", params=config.model_dump(mode="json"))
    store.log_text(pipeline, config.to_yaml(), EXPERIMENT_FILE)
    study = StoredStudy(store, config, pipeline)
    study.found["corpus"] = {(): PreparedCorpus("files", CORPUS, {"test": 3000})}
    arms: list[Values] = [(one,) for one in config.arm_names] or [()]
    for arm, gain in zip(arms, gains.values(), strict=True):
        _store_search(study, arm, gain)
    if times is not None:
        probed = {one: Ratio(t, Interval(0.98 * t, 1.02 * t)) for one, t in times.items()}
        keys = dict.fromkeys(probed, "")
        run = study.open_run("probe", ())
        study.end_run(run, "probe", (), Probed(TOKEN_SECONDS, probed, keys))
    left = math.inf if ended is None else ended
    for arm, gain in zip(arms, gains.values(), strict=True):
        for place, seed in enumerate(config.replicate_seeds):
            if (left := left - 1) >= 0:
                noise = NOISE[place % len(NOISE)] if gain else 0.0
                bits = 2.5 + 0.01 * place - gain + noise
                _store_training(study, (*arm, seed), bits, lost=(*arm, seed) in diverged)
    return study


def _of_arm(study: StoredStudy, arm: Values) -> Experiment:
    config = study.config
    return config.of_arm(str(arm[0])) if arm else config.of_seed(config.tuning_seed)


def _store_search(study: StoredStudy, arm: Values, gain: float) -> None:
    """A trial for each learning rate, of which the one before the last is the best."""
    config = _of_arm(study, arm)
    choice = config.search.space[RATE].choice
    assert choice is not None
    run = study.open_run("search", arm, params={"corpus": CORPUS})
    writer, best = Writer(study.store), max(len(choice) - 2, 0)
    for number, rate in enumerate(choice):
        bits = 2.6 - gain + 0.05 * abs(number - best)
        made = Made({RATE: rate}, [bits + 0.5, bits + 0.2, bits + 0.1, bits])
        trial = store_trial(study.store, writer, config, run, number, made)
        if number == best:
            selected = Selected(number, trial, {RATE: rate}, bits)
    writer.close()
    count = {"complete": len(choice), "pruned": 0, "failed": 0}
    study.end_run(run, "search", arm, Searched(run, count, (), f"0-{len(choice) - 1}"))
    study.end_run(study.open_run("select", arm), "select", arm, selected)


def _store_training(study: StoredStudy, values: Values, bits: float, *, lost: bool) -> None:
    arm, seed = values[:-1], int(values[-1])
    config = _of_arm(study, arm).of_seed(seed)
    selected = study.found["select"][arm]
    assert isinstance(selected, Selected)
    training = config.fit_run(selected.values)
    run = study.open_run("fit", values, params=training.params)
    tested: object = Untested()
    if lost:
        fitted: object = Diverged(run, "diverged at step 3: the gradient is not finite")
    else:
        _store_rows(study, run, training, bits - VALIDATION)
        tokens = training.train.steps * training.train.batch_tokens
        fitted = Fitted(run, "", bits - VALIDATION, 7000, tokens, 3.0, "1")
        tested = Tested(bits, CORPUS, {"gzip": 3.1}, 0.1)
    study.end_run(run, "fit", values, fitted)
    study.end_run(study.open_run("evaluate", values), "evaluate", values, tested)


def _store_rows(study: StoredStudy, run: str, training: Any, bits: float) -> None:
    """A curve that falls to these bits per byte."""
    train = training.train
    rows = [
        {
            "step": step,
            "time": 1e9 + step,
            "tokens": step * train.batch_tokens,
            "train_bits_per_byte": bits,
            "val_bits_per_byte": bits + 0.1 * ((train.steps / step) ** 0.7 - 1),
            "seconds": 0.5 * step,
            "peak_memory_bytes": 600e6,
        }
        for step in train.eval_steps
    ]
    writer = Writer(study.store)
    writer.write(run, rows)
    writer.close()
    study.store.log_metrics(run, {f"best_{train.best_metric}": bits})
