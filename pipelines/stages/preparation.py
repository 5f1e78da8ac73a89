"""What a command settles before the first stage runs."""

from collections.abc import Collection

from pipelines.experiment import Experiment
from pipelines.registry.initial_weights import resolve_initial_weights
from pipelines.storage.location import storage_folder


def resolve_start(
    experiment: Experiment, *, searched: Collection[str] = (), write: bool = True
) -> Experiment:
    """The experiment with `train.start_from` as a copy in storage. Raises ConfigError."""
    source = experiment.train.start_from
    if source is None:
        return experiment
    copy = resolve_initial_weights(
        source,
        experiment.model,
        storage_folder(experiment.storage),
        registered=experiment.promote.model,
        searched=searched,
        write=write,
    )
    return experiment.replace({"train.start_from": copy})
