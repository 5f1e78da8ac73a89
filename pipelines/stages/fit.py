"""fit: the winner trained at its full budget, and packaged."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing

from torch import Tensor

from pipelines.runtime import notes
from pipelines.runtime.cluster import join, require
from pipelines.runtime.config import Config, run_params
from pipelines.runtime.dag import Context, Outputs, Stage
from pipelines.runtime.errors import PipelineError
from pipelines.runtime.package import log_package
from pipelines.runtime.progress import Bar, Now, Progress, clock
from pipelines.runtime.storage import Folder
from pipelines.runtime.tensorboard import events_of
from pipelines.runtime.tracking import Store, Writer
from pipelines.training import checkpoint, loop
from pipelines.training.checkpoint import Damaged, Row, step_of
from pipelines.training.data import development


def fit(context: Context, needs: Mapping[str, Outputs]) -> Outputs:
    """Train, resuming what a killed command began; package the best checkpoint."""
    config = context.config.replace(needs["select"]["values"]).fit_config()
    folder = context.storage / "fits" / context.run_id
    describe_run(context.store, context.run_id, config, context.storage, needs["corpus"])
    _explain(context, config, needs["select"])
    history = train_recorded(context, config, needs["corpus"], folder, key="fit.resources")
    return package(context, config, needs["corpus"], folder, history)


def train_recorded(
    context: Context, config: Config, corpus: Outputs, folder: Folder, *, key: str
) -> list[Row]:
    """Train to the end, into the context's run; returns the whole history.

    One worker trains here, unless there is a cluster, whose nodes may have what this one lacks;
    several, and all on a cluster, train under Ray Train. `key` names the resources in errors.
    """
    files = development(context.storage, corpus["fingerprint"])
    progress = context.progress
    with context.progress.working("training: starting"):
        if config.resources.most == 1 and not os.environ.get("RAY_ADDRESS"):
            run = loop.train(config, files, folder, progress.line)
        else:
            require(join(), config.resources, key)
            from pipelines.training.workers import train_with_workers  # needs Ray's environment

            run = train_with_workers(config, files, folder, progress.line)
        with closing(run):
            return record(context.store, context.run_id, run, config, progress)


def describe_run(
    store: Store, run_id: str, config: Config, storage: Folder, corpus: Outputs
) -> None:
    """A training run's parameters and the text it reads, in MLflow."""
    store.log_params(run_id, run_params(config))
    files = development(storage, corpus["fingerprint"])
    store.log_corpus(run_id, corpus, training=files.train, validation=files.validation)


def _explain(context: Context, config: Config, selected: Outputs) -> None:
    trial = notes.link(
        f"trial {selected['trial']}", context.store.experiment_id, selected["run_id"]
    )
    note = notes.of_fit(config, selected["values"], trial, context.pipeline_run)
    context.store.describe(note, context.run_id)


def record(
    store: Store, run_id: str, run: Iterator[list[Row]], config: Config, progress: Progress
) -> list[Row]:
    """Drive a training run to its end, writing its rows to MLflow; returns its whole history."""
    writer = Writer(store, events_of(config))
    history: dict[int, Row] = {}
    try:
        for rows in run:
            writer.write(run_id, rows)
            history |= {int(row["step"]): row for row in rows}
            last = rows[-1]
            steps_left = config.train.steps - last["step"]
            if loop.finished(list(history.values()), config.train):
                steps_left = 0
            progress.live(_now(history, config.train.steps, steps_left))
    finally:
        writer.close()
    return [history[step] for step in sorted(history)]


def _now(history: Mapping[int, Row], steps: int, steps_left: float) -> Now:
    """How far the training is and how it does."""
    rows = [row for row in history.values() if "val_bits_per_byte" in row]
    last = rows[-1]
    step, bits, speed = int(last["step"]), last["val_bits_per_byte"], last["tokens_per_second"]
    seconds = last["seconds"] / step * steps_left
    does = f"validation {bits:.4f} bits per byte, {speed:,.0f} bytes/s"
    left = f"about {clock(seconds)} left"
    return Now(
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
    context: Context, config: Config, corpus: Outputs, folder: Folder, history: list[Row]
) -> Outputs:
    """Log the best checkpoint as a pyfunc model; returns the run's result."""
    run_id, metric = context.run_id, config.train.best_metric
    best, weights = _best(folder, history, metric, context.progress.line)
    data = config.model_dump(mode="json")
    uri = log_package(run_id, data, run_params(config), weights, corpus)
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
    left = [path for path in checkpoint.checkpoints(folder) if step_of(path) in evaluated]
    while left:
        best = loop.best_row([evaluated[step_of(path)] for path in left], metric)
        path = next(path for path in left if step_of(path) == best["step"])
        try:
            return best, checkpoint.read_weights(path)
        except Damaged as error:
            say(f"{error}; using the next best")
            left.remove(path)
    raise PipelineError(f"{folder}: no checkpoint is sound; --fresh trains again")


STAGE = Stage(
    name="fit",
    run=fit,
    needs=("corpus", "select"),
    reads=("seed", "model", "train", "fit.tokens"),
    sources=(
        "dca",
        "pipelines/training",
        "pipelines/stages/fit.py",
        "pipelines/runtime/package.py",
        "pipelines/runtime/packaged_model.py",
    ),
)
