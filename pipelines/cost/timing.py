"""Seconds of an optimizer step on this machine, found by training for a few steps."""

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from multiprocessing import active_children, get_context
from pathlib import Path
from statistics import median

import numpy as np

from pipelines.compat.ray import DEFAULT_NICENESS, NICENESS
from pipelines.console.errors import PipelineError
from pipelines.console.isolated import end_with_parent
from pipelines.data.splits import TrainValSplits
from pipelines.storage.scratch import scratch_folder
from pipelines.training import loop
from pipelines.training.config import TrainingRun
from pipelines.training.history import TIME, TOKENS_PER_SECOND, Row
from pipelines.training.timing import worker_share

TIMED_SECONDS = 2.0
"""Of all sizes together, after the first rows: a plan is waited for."""
STEPS = 2
"""Of a row of the history; the first row warms up and is left out. Few: a plan of the quickstart
takes at most 20 seconds on two cores, and a step half a second."""
MAX_ROWS = 1000
"""More are not made in that time; each training has a list of where it is evaluated."""
CORPUS_BYTES = 1 << 20
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"


def time_steps(runs: Sequence[TrainingRun], *, processes: int) -> list[float]:
    """Seconds of a step of each run, trained for a few steps on random bytes by one worker.

    As many processes do so at once as workers will, and slow each other down; the slowest counts.
    The exchange of gradients is left out. Raises PipelineError if a process dies.
    """
    spawn = get_context("spawn")
    with (
        scratch_folder() as scratch,
        ProcessPoolExecutor(
            processes, spawn, end_with_parent, (os.getpid(),), max_tasks_per_child=1
        ) as pool,
    ):
        text = scratch / "random.bin"
        text.write_bytes(np.random.default_rng(0).bytes(CORPUS_BYTES))
        with without_interrupts():
            tasks = [pool.submit(_time_all, runs, text, number) for number in range(processes)]
        try:
            return [float(s) for s in np.max([task.result() for task in tasks], axis=0)]
        except BrokenProcessPool:
            raise PipelineError("the timed steps ended early: was the memory enough?") from None
        except KeyboardInterrupt:
            for process in active_children():
                process.kill()
            raise


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Let the processes that are started in a block ignore Ctrl-C, which reaches all processes of a
    terminal: each would print where it was. The one that has started them ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _time_all(runs: Sequence[TrainingRun], text: Path, number: int) -> list[float]:
    """What one of the processes does: with the niceness and the GPUs of one of Ray's workers."""
    gpus = runs[0].resources.gpus_per_worker
    os.environ[VISIBLE_GPUS] = _visible_gpus(os.environ.get(VISIBLE_GPUS), number, gpus)
    os.nice(max(0, int(os.environ.get(NICENESS, DEFAULT_NICENESS)) - os.nice(0)))
    each = TIMED_SECONDS / len(runs)
    return [_time(run, text, text.with_name(f"{number}-{i}"), each) for i, run in enumerate(runs)]


def _visible_gpus(given: str | None, number: int, gpus: float) -> str:
    """Those of a process by its number; if the user has chosen some, of these."""
    first, count = int(number * gpus), max(1, round(gpus)) if gpus else 0
    named = given.split(",") if given is not None else [*map(str, range(first + count))]
    return ",".join(named[first : first + count])


def _time(run: TrainingRun, text: Path, folder: Path, seconds: float) -> float:
    share = worker_share(run)
    batch = share.train.batch_tokens
    evals = min(max(2, run.train.steps // STEPS), MAX_ROWS)
    changes = {
        "train.tokens": evals * STEPS * batch,
        "train.evals": evals,
        "train.eval_tokens": run.train.seq_len,
        "train.log_every_steps": STEPS,
        "train.patience": None,
        "train.learning_rate": 1e-6,  # random bytes must not make it diverge
    }
    rows: list[Row] = []
    with closing(loop.train(share.replace(changes), TrainValSplits(text, text), folder)) as history:
        for new in history:
            rows += new
            if len(rows) > 1 and rows[-1][TIME] > rows[0][TIME] + seconds:
                break
    return median(batch / row[TOKENS_PER_SECOND] for row in rows[1:])
