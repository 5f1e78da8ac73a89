"""What was measured of the arms of a study: read from the results of its stages and their runs."""

import math
from collections.abc import Mapping
from typing import TypeVar

from pipelines.comparison.table import Arm
from pipelines.comparison.time_to_quality import Curve, LearningRates, learning_rates
from pipelines.engine.results import StageResults, Values
from pipelines.experiment import Experiment
from pipelines.registry.results import Diverged, Fitted, Probed, Tested
from pipelines.search.results import Searched, Selected, read_numbers
from pipelines.search.resume import stored_search
from pipelines.tracking.store import Run, Store
from pipelines.tracking.trials import read_evaluations
from pipelines.training.history import PEAK_MEMORY

T = TypeVar("T")
LEARNING_RATE = "train.learning_rate"
START_BITS = 8.0
"""Bits per byte before training: every byte is as probable as any other."""


def measured_arms(store: Store, config: Experiment, results: StageResults) -> tuple[Arm, ...]:
    """The arms in their order; of a study of seeds alone one, with the name of the experiment."""
    if not config.arms:
        return (_arm(store, config.of_seed(config.tuning_seed), config.experiment, (), results),)
    return tuple(
        _arm(store, config.of_arm(name), name, (name,), results) for name in config.arm_names
    )


def _arm(store: Store, config: Experiment, name: str, arm: Values, results: StageResults) -> Arm:
    """One arm, whose results have the values `arm` and, of a training, the seed.

    A model whose answers on the test split are not finite counts as one whose training diverged.
    """
    tested, probed = _by_seed(results.all(Tested), arm), results.get(Probed)
    fitted = _by_seed(results.all(Fitted), arm)
    stored = {seed: store.client.get_run(one.run_id) for seed, one in fitted.items()}
    diverged = dict.fromkeys(_by_seed(results.all(Diverged), arm))
    scores = {seed: one.test_bits_per_byte for seed, one in tested.items()}
    bits = {seed: one if math.isfinite(one) else None for seed, one in scores.items()} | diverged
    run = config.fit_run(results.all(Selected)[arm].values)
    peaks = [
        one.data.metrics[PEAK_MEMORY] for one in stored.values() if PEAK_MEMORY in one.data.metrics
    ]
    return Arm(
        name,
        bits=dict(sorted(bits.items())),
        curves={seed: _curve(store, config, one) for seed, one in stored.items()},
        parameters=run.model.parameter_count(),
        flops_per_token=3.0 * run.model.flops_per_token(run.train.seq_len),
        peak_memory_bytes=int(max(peaks, default=0)) or None,
        step_time=probed.times[name] if probed else None,
        rates=_rates(store, config, results.all(Searched)[arm]),
    )


def _by_seed(found: Mapping[Values, T], arm: Values) -> dict[int, T]:
    """The results of an arm by seed, the last of their values."""
    return {int(values[-1]): one for values, one in found.items() if values[:-1] == arm}


def _curve(store: Store, config: Experiment, run: Run) -> Curve:
    found = read_evaluations(store, run.info.run_id, run.data.params, config.train.best_metric)
    return Curve([one.tokens for one in found], [one.bits_per_byte for one in found])


def _rates(store: Store, config: Experiment, searched: Searched) -> LearningRates | None:
    """Of the trials that used a learning rate to their end, or as far as they were let go.

    A trial that was stopped early is no better than its best so far; one that failed for another
    reason than divergence says nothing.
    """
    if LEARNING_RATE not in config.search.space:
        return None
    task = config.search_task()
    stored = stored_search(store, searched.search_run, task, any_code=True, evaluations=False)
    numbers = read_numbers(searched.selection)
    trials = [
        (float(trial.values[LEARNING_RATE]), trial.objective)
        for trial in stored.trials
        if trial.number in numbers
        and LEARNING_RATE in trial.values
        and (trial.objective is not None or trial.diverged)
    ]
    return learning_rates(trials, START_BITS)
