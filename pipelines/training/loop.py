"""The training loop: an iterator over evaluations that resumes from its folder.

Independent of Ray: a trial, a Ray Train worker or a script iterates over it, and closes it to stop
early. In a process group, which its launcher creates, it trains data-parallel.
"""

import faulthandler
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress

import torch

from pipelines.console.text import counted
from pipelines.data.splits import TrainValSplits
from pipelines.storage.remote import Folder
from pipelines.storage.writer_lock import writer_lock
from pipelines.training.config import TrainingRun
from pipelines.training.device import rank_and_world
from pipelines.training.history import Row, finished
from pipelines.training.trainer import Trainer


def ignore_log(text: str) -> None:
    """A `log` that ignores its text."""


def train(
    run: TrainingRun,
    splits: TrainValSplits,
    folder: Folder,
    log: Callable[[str], None] = ignore_log,
    *,
    key: str | None = None,
) -> Generator[list[Row]]:
    """Train a model, yielding new rows of its history at each evaluation.

    Args:
        run: The configuration of the training run.
        splits: The prepared corpus.
        folder: For the run's checkpoints. If it holds one, training resumes from it, and the first
            rows yielded are the whole history so far.
        log: Called with a line about resuming, damaged checkpoints or an early end.
        key: A secret, the same each time the run is started, which whoever else can write the
            folder does not have. Checkpoints are signed with it, and others are not resumed from.

    A checkpoint is written before its rows are yielded; on a GPU it may be written while the steps
    behind it are made, and the last one before the last rows are yielded. In a process group every
    rank must iterate; rank 0 writes. Raises DivergedError if the loss or a gradient is not finite,
    StorageError if a checkpoint cannot be written, PipelineError if another process trains in the
    folder.
    """
    lock = writer_lock(folder) if rank_and_world()[0] == 0 else nullcontext(folder)
    with lock as locked, threads_restored():
        trainer = Trainer(run, splits, locked, log, key)
        with closed(trainer):
            if rows := trainer.new_rows():
                yield rows
            while not finished(trainer.history, run.train):
                trainer.train_to_next_evaluation()
                if finished(trainer.history, run.train):
                    trainer.writer.wait()
                    if trainer.step < run.train.steps:
                        patience = counted(run.train.patience or 0, "evaluation")
                        log(
                            f"ends at step {trainer.step}/{run.train.steps}: no better "
                            f"{run.train.best_metric} in train.patience = {patience}"
                        )
                yield trainer.new_rows()


@contextmanager
def closed(trainer: Trainer) -> Iterator[None]:
    """Close a trainer at the end, also of a training that fails: of two errors, with the first."""
    try:
        yield
    except Exception:
        with suppress(Exception):
            trainer.close()
        raise
    except BaseException:  # it is stopped
        trainer.close()
        raise
    trainer.close()


@contextmanager
def threads_restored() -> Iterator[None]:
    """Put PyTorch's number of threads back, which a trainer sets for the whole process."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def with_watchdog(rows: Generator[list[Row]], seconds: int | None) -> Generator[list[Row]]:
    """The same rows, in a process that ends itself if the next ones take longer than `seconds`.

    That works also if the process hangs outside of Python, because a thread of the C library
    measures the time. The process's supervisor then starts it again. None: no limit.
    """
    with closing(rows):
        while True:
            if seconds is not None:
                faulthandler.dump_traceback_later(seconds, exit=True)
            try:
                new = next(rows, None)
            finally:
                faulthandler.cancel_dump_traceback_later()
            if new is None:
                return
            yield new
