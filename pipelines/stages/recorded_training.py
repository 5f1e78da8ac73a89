"""A training run as a stage: launched, recorded in the tracking store, packaged as a model.

Used by the stages fit and train.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing

from torch import Tensor

from pipelines.cluster.capacity import require_capacity
from pipelines.cluster.connection import connect
from pipelines.console.errors import DamagedError, PipelineError
from pipelines.console.text import format_duration
from pipelines.console.updates import Bar, ProgressUpdate
from pipelines.data.splits import train_val_splits
from pipelines.engine.stage import Context, Outputs
from pipelines.experiment import Experiment
from pipelines.registry.package import log_package
from pipelines.storage.remote import Folder
from pipelines.tracking.store import Store
from pipelines.tracking.tensorboard import event_files
from pipelines.tracking.writer import Writer
from pipelines.training import checkpoint, loop
from pipelines.training.checkpoint import step_of
from pipelines.training.config import TrainingRun
from pipelines.training.history import Row, best_row, finished

TRAINING_SOURCES = ("dca", "pipelines/data", "pipelines/training")
"""Code that can change the numbers of a training run."""


def train_recorded(
    context: Context[Experiment], config: TrainingRun, corpus: Outputs, folder: Folder, *, key: str
) -> list[Row]:
    """Train to the end, into the context's run; returns the whole history.

    One worker trains here, unless there is a cluster, whose nodes may have what this one lacks;
    several, and all on a cluster, train under Ray Train. `key` names the resources in errors.
    """
    files = train_val_splits(context.storage, corpus["fingerprint"])
    progress = context.progress
    with context.progress.working("training: starting"):
        if config.resources.max_workers == 1 and not os.environ.get("RAY_ADDRESS"):
            run = loop.train(config, files, folder, progress.log)
        else:
            require_capacity(connect(), config.resources, key)
            from pipelines.cluster.workers import train_with_workers  # needs Ray's environment

            run = train_with_workers(config, files, folder, progress.log)
        with closing(run):
            return record(context, run, config)


def describe_run(
    store: Store, run_id: str, config: TrainingRun, storage: Folder, corpus: Outputs
) -> None:
    """A training run's parameters and the text it reads, in MLflow."""
    store.log_params(run_id, config.params)
    files = train_val_splits(storage, corpus["fingerprint"])
    store.log_corpus(run_id, corpus, training=files.train, validation=files.validation)


def record(
    context: Context[Experiment], run: Iterator[list[Row]], config: TrainingRun
) -> list[Row]:
    """Drive a training run to its end, writing its rows to MLflow; returns its whole history."""
    experiment, run_id = context.config, context.run_id
    events = event_files(experiment.storage, experiment.experiment, enabled=experiment.tensorboard)
    writer = Writer(context.store, events)
    history: dict[int, Row] = {}
    try:
        for rows in run:
            writer.write(run_id, rows)
            history |= {int(row["step"]): row for row in rows}
            last = rows[-1]
            steps_left = config.train.steps - last["step"]
            if finished(list(history.values()), config.train):
                steps_left = 0
            context.progress.update(_now(history, config.train.steps, steps_left))
    finally:
        writer.close()
    return [history[step] for step in sorted(history)]


def _now(history: Mapping[int, Row], steps: int, steps_left: float) -> ProgressUpdate:
    """How far the training is and how it does."""
    rows = [row for row in history.values() if "val_bits_per_byte" in row]
    last = rows[-1]
    step, bits, speed = int(last["step"]), last["val_bits_per_byte"], last["tokens_per_second"]
    seconds = last["seconds"] / step * steps_left
    does = f"validation {bits:.4f} bits per byte, {speed:,.0f} bytes/s"
    left = f"about {format_duration(seconds)} left"
    return ProgressUpdate(
        text=f"training: step {step}/{steps}, {does}, {left}",
        bars=[Bar("training", step / (step + steps_left), f"step {step}/{steps}, {left}")],
        note=does,
        curve=[row["val_bits_per_byte"] for row in rows],
        data={
            "stage": "training",
            "step": step,
            "of_steps": steps,
            "val_bits_per_byte": bits,
            "bytes_per_second": speed,
            "seconds_left": seconds,
        },
    )


def package(
    context: Context[Experiment],
    config: TrainingRun,
    corpus: Outputs,
    folder: Folder,
    history: list[Row],
) -> Outputs:
    """Log the best checkpoint as a pyfunc model; returns the run's result."""
    run_id, metric = context.run_id, config.train.best_metric
    best, weights = _best(folder, history, metric, context.progress.log)
    data = context.config.with_run(config)
    uri = log_package(run_id, data, config.params, weights, corpus)
    context.store.log_metrics(
        run_id,
        {"step": best["step"], f"best_{metric}": best[metric]},
        model_id=uri.removeprefix("models:/"),
        dataset_name=f"{corpus['name']} validation",
        dataset_digest=corpus["fingerprint"],
    )
    return {
        "run_id": run_id,
        "model_uri": uri,
        "val_bits_per_byte": best["val_bits_per_byte"],
        "parameters": config.model.parameter_count(),
        "tokens": int(history[-1]["tokens"]),
        "seconds": history[-1]["seconds"],
        "workers": config.resources.shown,
    }


def _best(
    folder: Folder, history: list[Row], metric: str, say: Callable[[str], None]
) -> tuple[Row, dict[str, Tensor]]:
    """The best row whose checkpoint is sound, and its weights. Raises PipelineError if none is."""
    evaluated = {row["step"]: row for row in history if "val_bits_per_byte" in row}
    left = [path for path in checkpoint.list_checkpoints(folder) if step_of(path) in evaluated]
    while left:
        best = best_row([evaluated[step_of(path)] for path in left], metric)
        path = next(path for path in left if step_of(path) == best["step"])
        try:
            return best, checkpoint.read_weights(path)
        except DamagedError as error:
            say(f"{error}; using the next best")
            left.remove(path)
    raise PipelineError(f"{folder}: no checkpoint is sound; --fresh trains again")
