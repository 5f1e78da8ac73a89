"""Seconds of an optimizer step on this machine, found by training for a few steps."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np

from pipelines.compat.ray import DEFAULT_NICENESS, NICENESS
from pipelines.console.errors import PipelineError
from pipelines.data.splits import TrainValSplits
from pipelines.training import loop
from pipelines.training.config import TrainingRun

TIMED_SECONDS = 2.0
STEPS = 4
"""Of a row of the history; the first row warms up and is left out."""
CORPUS_BYTES = 1 << 20


def step_flops(run: TrainingRun) -> float:
    """FLOPs of one optimizer step, over all workers."""
    train = run.train
    return 3.0 * run.model.flops_per_token(train.seq_len) * train.batch_tokens


def interpolated(times: Mapping[TrainingRun, float]) -> Callable[[TrainingRun], float]:
    """A function from any run to its time, between those given, by the FLOPs of a step."""
    known = sorted((step_flops(run), seconds) for run, seconds in times.items())
    flops, seconds = [flops for flops, _ in known], [seconds for _, seconds in known]
    return lambda run: float(np.interp(step_flops(run), flops, seconds))


def time_steps(runs: Sequence[TrainingRun], *, processes: int) -> list[float]:
    """Seconds of a step of each run, trained for a few steps on random bytes by one worker.

    As many processes do so at once as workers will, and slow each other down; the slowest counts.
    The exchange of gradients is left out. Raises PipelineError if a process dies.
    """
    spawn = get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch, ProcessPoolExecutor(processes, spawn) as pool:
        text = Path(scratch) / "random.bin"
        text.write_bytes(np.random.default_rng(0).bytes(CORPUS_BYTES))
        tasks = [
            pool.submit(_time_all, runs, text, Path(scratch, str(n))) for n in range(processes)
        ]
        try:
            return [float(s) for s in np.max([task.result() for task in tasks], axis=0)]
        except BrokenProcessPool:
            raise PipelineError("the timed steps ended early: was the memory enough?") from None


def _time_all(runs: Sequence[TrainingRun], text: Path, folder: Path) -> list[float]:
    """In one process, which is as nice as Ray's workers and has a GPU only if they have."""
    os.nice(int(os.environ.get(NICENESS, DEFAULT_NICENESS)))
    if not runs[0].resources.gpus_per_worker:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return [_time(run, text, folder / str(number)) for number, run in enumerate(runs)]


def _time(run: TrainingRun, text: Path, folder: Path) -> float:
    train = run.train
    sequences = -(-train.batch_tokens // (train.seq_len * run.resources.max_workers))
    batch, micro = sequences * train.seq_len, train.micro_batch_tokens
    evals = max(2, train.steps // STEPS)
    changes = {
        "resources.workers": 1,
        "train.batch_tokens": batch,
        "train.micro_batch_tokens": micro if micro and batch % micro == 0 else None,
        "train.tokens": evals * STEPS * batch,
        **{
            "train.evals": evals,
            "train.eval_tokens": train.seq_len,
            "train.log_every_steps": STEPS,
        },
        **{"train.start_from": None, "train.patience": None},
        "train.learning_rate": 1e-6,  # random bytes must not make it diverge
    }
    rows, corpus = [], TrainValSplits(text, text)
    with closing(loop.train(run.replace(changes), corpus, folder, lambda _: None)) as history:
        for new in history:
            rows += new
            if len(rows) > 1 and rows[-1]["time"] > rows[0]["time"] + TIMED_SECONDS:
                break
    return median(batch / row["tokens_per_second"] for row in rows[1:])
