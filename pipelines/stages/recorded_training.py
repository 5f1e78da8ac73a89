"""A training run of a stage: trained, recorded in the tracking store, packaged as a model.

Shared by the stages fit and train, which import it, and PyTorch with it, once they train; and by
the trainings of a study, which are recorded by `pipelines.stages.study.replicates`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing

from torch import Tensor

from pipelines.cluster.capacity import require_capacity
from pipelines.cluster.connection import cluster_address, connect
from pipelines.console.errors import DamagedError, PipelineError
from pipelines.console.text import counted, format_duration
from pipelines.console.updates import Bar, ProgressUpdate
from pipelines.data.fingerprint import PreparedCorpus
from pipelines.data.splits import train_val_splits
from pipelines.engine.stage import Context
from pipelines.experiment import Experiment
from pipelines.registry.package import log_package
from pipelines.registry.results import Fitted
from pipelines.storage.remote import Folder
from pipelines.tracking.models import model_id_of
from pipelines.tracking.schema import BEST_METRIC
from pipelines.tracking.tensorboard import event_files
from pipelines.tracking.writer import Writer
from pipelines.training import checkpoint, loop
from pipelines.training.checkpoint import step_of
from pipelines.training.config import TrainingRun
from pipelines.training.history import (
    SECONDS,
    STEP,
    TOKENS,
    TOKENS_PER_SECOND,
    VAL_BITS,
    Row,
    best_row,
    finished,
)


def train_and_package(
    context: Context[Experiment], config: TrainingRun, corpus: PreparedCorpus, *, key: str
) -> Fitted:
    """Train into the context's run, resuming an unfinished one; package the best checkpoint.

    Args:
        context: Of the stage.
        config: The training.
        corpus: The text that it reads.
        key: The configuration key of the resources, for errors.

    """
    history = _train(context, config, corpus, key)
    with context.progress.waiting("training: packaging the best checkpoint", stage="training"):
        return package(context, config, corpus, history)


def describe_run(context: Context[Experiment], config: TrainingRun, corpus: PreparedCorpus) -> None:
    """Record a training run's parameters and the text it reads.

    One that is resumed keeps those it has: a text that has moved since has other paths.
    """
    known = context.store.client.get_run(context.run_id).data.params
    params = {key: value for key, value in config.params.items() if key not in known}
    context.store.log_params(context.run_id, params)
    files = train_val_splits(context.storage, corpus.fingerprint)
    splits = {"training": files.train, "validation": files.validation}
    context.store.log_corpus(context.run_id, corpus, **splits)


def _train(
    context: Context[Experiment],
    config: TrainingRun,
    corpus: PreparedCorpus,
    key: str,
) -> list[Row]:
    """Train to the end; returns the whole history.

    One worker trains in this process, unless there is a cluster, whose nodes may have the GPU that
    this machine lacks; several workers, and all on a cluster, train under Ray Train.
    """
    files, log = train_val_splits(context.storage, corpus.fingerprint), context.progress.log
    folder = fits_folder(context.storage) / context.run_id
    signing_key = context.store.checkpoint_key(context.run_id)
    with context.progress.working("training: starting"), ExitStack() as stack:
        if config.resources.max_workers == 1 and not cluster_address():
            run = loop.train(config, files, folder, log, key=signing_key)
        else:
            cluster = connect()
            if cluster_address():  # whose nodes may come and go
                from pipelines.cluster.room import watched_room  # after Ray's environment

                room = watched_room(config.resources, context.progress, name=context.run_id)
                stack.enter_context(room)
            else:
                require_capacity(cluster, config.resources, key)
            from pipelines.cluster.workers import train_with_workers

            run = train_with_workers(config, files, folder, log, key=signing_key)
        stack.enter_context(closing(run))
        return _record(context, run, config)


def _record(
    context: Context[Experiment], run: Iterator[list[Row]], config: TrainingRun
) -> list[Row]:
    """Write the rows of a training run to MLflow, to its end; returns its whole history."""
    experiment = context.config
    events = event_files(experiment.storage, experiment.experiment, enabled=experiment.tensorboard)
    history: dict[int, Row] = {}
    text = f"training: none of {counted(config.train.steps, 'step')} evaluated yet"
    shown = ProgressUpdate(text, {"stage": "training", "of_steps": config.train.steps})
    with (
        context.progress.repeating(lambda: shown),  # also while what is left is stored
        closing(Writer(context.store, events)) as writer,
    ):
        for rows in run:
            writer.write(context.run_id, rows)
            history |= {int(row[STEP]): row for row in rows}
            shown = _progress(history, config)
            context.progress.update(shown)
    return [history[step] for step in sorted(history)]


def _progress(history: Mapping[int, Row], config: TrainingRun) -> ProgressUpdate:
    """Step, quality, speed and the time left."""
    rows = [row for row in history.values() if VAL_BITS in row]
    last, steps = rows[-1], config.train.steps
    step, bits, speed = int(last[STEP]), last[VAL_BITS], last[TOKENS_PER_SECOND]
    steps_left = 0 if finished(list(history.values()), config.train) else steps - step
    seconds = last[SECONDS] / step * steps_left
    quality = f"validation {bits:.4f} bits per byte, {speed:,.0f} bytes/s"
    left = f"about {format_duration(seconds)} left"
    return ProgressUpdate(
        text=f"training: step {step}/{steps}, {quality}, {left}",
        bars=[Bar("training", step / (step + steps_left), f"step {step}/{steps}, {left}")],
        note=quality,
        curve=[row[VAL_BITS] for row in rows],
        data={
            "stage": "training",
            "step": step,
            "of_steps": steps,
            VAL_BITS: bits,
            "bytes_per_second": speed,
            "seconds_left": seconds,
        },
    )


def fits_folder(storage: Folder) -> Folder:
    """The folder in which each run has one for its checkpoints."""
    return storage / "fits"


def package(
    context: Context[Experiment], config: TrainingRun, corpus: PreparedCorpus, history: list[Row]
) -> Fitted:
    """Log the best checkpoint of the context's run as a pyfunc model; returns the stage's result.

    `history` is the whole one.
    """
    run_id, metric = context.run_id, config.train.best_metric
    folder = fits_folder(context.storage) / run_id
    best, weights = best_checkpoint(
        folder, history, metric, context.progress.log, context.store.checkpoint_key(run_id)
    )
    data = context.config.with_run(config)
    uri = log_package(context.store, run_id, data, config.params, weights, corpus, context.sources)
    context.store.log_metrics(
        run_id,
        {STEP: best[STEP], BEST_METRIC.format(metric): best[metric]},
        model_id=model_id_of(uri),
        dataset_name=f"{corpus.name} validation",
        dataset_digest=corpus.fingerprint,
    )
    return Fitted(
        run_id=run_id,
        model_uri=uri,
        val_bits_per_byte=best[VAL_BITS],
        parameters=config.model.parameter_count(),
        tokens=int(history[-1][TOKENS]),
        seconds=history[-1][SECONDS],
        workers=config.resources.workers_text,
    )


def best_checkpoint(
    folder: Folder, history: list[Row], metric: str, log: Callable[[str], None], key: str | None
) -> tuple[Row, dict[str, Tensor]]:
    """The best row whose checkpoint is sound, and its weights. Raises PipelineError if none is.

    With a key, one that is not signed with it is not sound.
    """
    evaluated = {row[STEP]: row for row in history if VAL_BITS in row}
    left = [path for path in checkpoint.list_checkpoints(folder) if step_of(path) in evaluated]
    while left:
        best = best_row([evaluated[step_of(path)] for path in left], metric)
        path = next(path for path in left if step_of(path) == best[STEP])
        try:
            return best, checkpoint.read_weights(path, key=key)
        except DamagedError as error:
            log(f"{error}; using the next best")
            left.remove(path)
    raise PipelineError(f"{folder}: no checkpoint is sound; --fresh trains again")
