"""What Optuna 5 marks as experimental, or leaves without a documented way.

Used by pipelines.search, whose modules load Optuna anyway.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's log lines and its ExperimentalWarning, in the time of a block.

    Optuna logs to stderr, also each new study; the samplers and arguments below are experimental,
    and so is `Study.set_metric_names`.
    """
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def quasi_random_points(
    distributions: Mapping[str, BaseDistribution], seed: int
) -> Iterator[dict[str, Any]]:
    """The points of a scrambled Sobol sequence in a space.

    QMCSampler is experimental. Its `sample_relative` is called without a running trial: through
    `Study.ask` the first trial would be drawn independently, outside the sequence.
    """
    sampler = optuna.samplers.QMCSampler(seed=seed, scramble=True)
    study, trial = optuna.create_study(), create_trial(state=TrialState.WAITING)
    while True:
        yield sampler.sample_relative(study, trial, dict(distributions))


def cma_es(
    seed: int,
    startup_trials: int,
    *,
    source_trials: Sequence[FrozenTrial] | None = None,
    x0: Mapping[str, Any] | None = None,
) -> optuna.samplers.BaseSampler:
    """CMA-ES, which learns from pruned trials too, started from the best of `source_trials` or at
    the point `x0`.

    `consider_pruned_trials` and `source_trials` are experimental. `x0` is deprecated since 4.9 and
    removed in 6.0, with which the point must be enqueued as a trial instead.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.CmaEsSampler(
            seed=seed,
            n_startup_trials=startup_trials,
            consider_pruned_trials=True,
            source_trials=None if source_trials is None else list(source_trials),
            x0=None if x0 is None else dict(x0),
        )


def set_times(trial: FrozenTrial, started: datetime, ended: datetime) -> None:
    """Give a trial that is not in a study yet its times: `create_trial` sets both to now."""
    trial.datetime_start, trial.datetime_complete = started, ended


def close(storage: optuna.storages.RDBStorage) -> None:
    """Close the file of a study: RDBStorage has no method for it, only an SQLAlchemy engine."""
    storage.engine.dispose()
