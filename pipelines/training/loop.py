"""The training loop: plain PyTorch, knowing neither Tune nor Train.

It resumes by itself from what it finds in its folder and yields what happened; whoever drives it
stops it by asking for no more. With a process group it trains data-parallel; the group is the
launcher's affair.
"""

import faulthandler
from collections.abc import Callable, Generator
from contextlib import closing, nullcontext

from pipelines.data.splits import TrainValSplits
from pipelines.storage.remote import Folder
from pipelines.storage.writer_lock import writer_lock
from pipelines.training.config import TrainingRun
from pipelines.training.evaluation import rank_and_world
from pipelines.training.history import Row, finished
from pipelines.training.trainer import Trainer


def train(
    config: TrainingRun, corpus: TrainValSplits, folder: Folder, say: Callable[[str], None]
) -> Generator[list[Row]]:
    """Train `config.model` on the corpus, yielding new rows of the history at each evaluation.

    Resumes from `folder` if it holds a checkpoint; the first rows are then the whole history, so
    that a reader who missed some gets them. A checkpoint is written before its rows are yielded.
    In a process group every rank must iterate; only rank 0 writes. `say` hears what a person should
    know. Raises Diverged with the step, StorageError if a checkpoint cannot be written.
    """
    lock = writer_lock(folder) if rank_and_world()[0] == 0 else nullcontext(folder)
    with lock as mine:
        run = Trainer(config, corpus, mine, say)
        if rows := run.new_rows():
            yield rows
        while not finished(run.history, config.train):
            run.train_to_next_evaluation()
            if finished(run.history, config.train) and run.step < config.train.steps:
                say(
                    f"ends at step {run.step}/{config.train.steps}: no better "
                    f"{config.train.best_metric} in train.patience = {config.train.patience} "
                    f"evaluations"
                )
            yield run.new_rows()


def with_watchdog(run: Generator[list[Row]], seconds: int | None) -> Generator[list[Row]]:
    """`run`, in a process that ends itself if the next rows take longer than that.

    Also if it hangs outside Python: the clock is a thread of C. Whoever supervises the process
    starts it again.
    """
    with closing(run):
        while True:
            if seconds is not None:
                faulthandler.dump_traceback_later(seconds, exit=True)
            try:
                rows = next(run, None)
            finally:
                faulthandler.cancel_dump_traceback_later()
            if rows is None:
                return
            yield rows
