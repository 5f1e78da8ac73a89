"""probe: the time of each arm's training steps beside the baseline's, before they are trained.

In turns, when nothing else of the study runs: trainings that share a machine slow each other. With
`budget: time` the tokens of each arm follow from it.
"""

import json
from collections.abc import Mapping
from importlib.metadata import version
from statistics import median
from typing import Any

from dca import registry
from pipelines.comparison.config import PROBE_ROUNDS
from pipelines.comparison.statistics import median_interval
from pipelines.comparison.values import Ratio
from pipelines.console.errors import PipelineError
from pipelines.data.fingerprint import PreparedCorpus
from pipelines.data.splits import TrainValSplits, train_val_splits
from pipelines.engine.code import CodeDigests
from pipelines.engine.results import StageResults, from_json, json_digest
from pipelines.engine.stage import Context, Stage
from pipelines.experiment import Experiment
from pipelines.registry.package import hardware
from pipelines.registry.results import Probed, training_key
from pipelines.search.results import Selected
from pipelines.tracking.schema import PROBE_KIND, STEP_TIME, arm_metric
from pipelines.tracking.store import Store
from pipelines.training.config import STEP_PARAMS, TrainingRun


def probe(context: Context[Experiment], needs: StageResults) -> Probed:
    """Time each arm beside the baseline, but those that were timed before: on this machine, with
    the same code and PyTorch.

    An arm whose search failed is left out. Without the baseline nothing is timed; with `budget:
    time` that is a PipelineError, since the trainings' tokens follow from it.
    """
    config, splits = (
        context.config,
        train_val_splits(context.storage, needs[PreparedCorpus].fingerprint),
    )
    selected = {str(values[0]): one.values for values, one in needs.all(Selected).items()}
    if config.baseline_arm not in selected:
        if config.budget == "time":
            message = "has no winner, beside whose steps those of the arms are timed"
            raise PipelineError(f"the baseline, {config.baseline_arm}, {message}")
        return Probed(0.0, {}, {})
    names = [name for name in config.arm_names if name in selected]
    runs = {name: config.of_arm(name).fit_run(selected[name]) for name in names}
    base = runs[config.baseline_arm]
    machine, codes = _machine(), CodeDigests()
    keys = {name: _key(run, base, machine, codes) for name, run in runs.items()}
    times, seconds = ({}, 0.0) if context.fresh else _earlier(context.store, keys)
    new = [name for name in runs if name not in times and name != config.baseline_arm]
    found: list[float] = []
    for place, name in enumerate(new, 1):
        text = f"probe: steps of {name} and {config.baseline_arm}, {place} of {len(new)}"
        rounds = _time(context, text, (base, runs[name]), splits)
        times[name] = Ratio(*median_interval([arm / first for first, arm in rounds]))
        found += [first for first, _ in rounds]
    times = {name: times.get(name, Ratio(1.0)) for name in runs}
    metrics = {arm_metric(STEP_TIME, name): one.value for name, one in times.items()}
    context.store.log_metrics(context.run_id, metrics)
    tokens = _tokens(runs, base, times) if config.budget == "time" else {}
    return Probed(median(found) if found else seconds, times, keys, tokens)


def _time(
    context: Context[Experiment],
    text: str,
    runs: tuple[TrainingRun, TrainingRun],
    splits: TrainValSplits,
) -> list[tuple[float, float]]:
    """Seconds of a token of two trainings in each round, in a process with the fit's resources."""
    from pipelines.cluster.task import run_task
    from pipelines.training.timing import times_in_turns  # with PyTorch

    resources = context.config.fit.resources
    with (
        context.progress.working(text),
        context.progress.watching(lambda: f"  {text}", stage=PROBE_KIND),
    ):
        return run_task(
            times_in_turns, *runs, splits, PROBE_ROUNDS, resources=resources, key="fit.resources"
        )


def _key(
    run: TrainingRun, base: TrainingRun, machine: Mapping[str, Any], codes: CodeDigests
) -> str:
    """A digest of what the ratio of the times of two trainings depends on."""
    trainings = [
        {key: value for key, value in one.params.items() if key.startswith(STEP_PARAMS)}
        | {"resources": one.resources.model_dump(mode="json"), "code": codes[_modules(one)]}
        for one in (run, base)
    ]
    return json_digest([*trainings, machine])


def _machine() -> dict[str, Any]:
    """What steps are timed on, but for what a restart may change. Of a cluster, whose nodes may
    differ, the machine of this process."""
    found = {**hardware(), "torch": version("torch")}
    return {key: found[key] for key in ("processor", "cpus", "gpus", "torch")}


def _modules(run: TrainingRun) -> tuple[str, ...]:
    """The modules whose code, with what they import, is timed."""
    names = (registry.architecture, registry.residual)
    of_model = (one.module(getattr(run.model, one.field)) for one in names)
    return ("pipelines.training.timing", *sorted(of_model))


def _earlier(store: Store, keys: Mapping[str, str]) -> tuple[dict[str, Ratio], float]:
    """The times that an earlier probe has found of the same trainings, and the baseline's, which
    one without another arm has not measured."""
    times: dict[str, Ratio] = {}
    seconds = 0.0
    for run in store.find(PROBE_KIND)[::-1]:  # a newer one wins
        result = from_json(Probed, json.dumps(store.read_result(run)))
        if result is None:
            continue
        by_key = {key: result.times[name] for name, key in result.keys.items()}
        same = {name: by_key[key] for name, key in keys.items() if key in by_key}
        times |= same
        seconds = result.token_seconds if same and result.token_seconds else seconds
    return times, seconds


def _tokens(
    runs: Mapping[str, TrainingRun], base: TrainingRun, times: Mapping[str, Ratio]
) -> dict[str, int]:
    """Tokens of each training that take the time of the baseline's, in whole steps."""
    budget = base.train.steps * base.train.batch_tokens
    return {
        training_key(run): _whole_steps(budget / times[name].value, run.train.batch_tokens)
        for name, run in runs.items()
    }


def _whole_steps(tokens: float, batch_tokens: int) -> int:
    return max(1, round(tokens / batch_tokens)) * batch_tokens


STAGE = Stage(
    name=PROBE_KIND,
    result=Probed,
    run=probe,
    depends_on=("corpus", "select"),
    partial=True,
    config_keys=("arms", "baseline", "budget", "model", "train", "fit"),
    modules=lambda config: (
        "pipelines.stages.study.probe",
        *(name for arm in config.arm_names for name in config.of_arm(arm).model_modules()),
    ),
)
