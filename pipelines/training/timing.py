"""The time of training steps: two trainings in turns, so that a slow moment slows both.

Used by a study's stage probe, in a process of its own, and by the cost estimate.
"""

import gc
import math
import time
from pathlib import Path

import torch

from pipelines.data.splits import TrainValSplits
from pipelines.storage.scratch import scratch_folder
from pipelines.training.config import TrainingRun
from pipelines.training.loop import ignore_log, threads_restored
from pipelines.training.trainer import Trainer

WARM_UP_STEPS = 3
SECONDS = 0.5
"""Of the timed steps of one training in a round, unless its whole budget takes less."""


def times_in_turns(
    first: TrainingRun, second: TrainingRun, splits: TrainValSplits, rounds: int
) -> list[tuple[float, float]]:
    """Seconds of a token of two trainings in each round; which goes first alternates.

    One of them is in memory at a time. Of several workers one is timed, with its share of the
    batch: the exchange of gradients is left out.
    """
    found = []
    with threads_restored(), scratch_folder() as folder:  # which stays empty
        for number in range(rounds):
            runs = (first, second) if number % 2 == 0 else (second, first)
            times = [_token_seconds(run, splits, folder) for run in runs]
            found.append((times[number % 2], times[1 - number % 2]))
    return found


def worker_share(run: TrainingRun) -> TrainingRun:
    """What one of a training's workers computes, as a training of its own."""
    train = run.train
    sequences = -(-train.batch_tokens // (train.seq_len * run.resources.max_workers))
    batch, micro = sequences * train.seq_len, train.micro_batch_tokens
    changes = {
        "resources.workers": 1,
        "train.batch_tokens": batch,
        "train.micro_batch_tokens": micro if micro and batch % micro == 0 else None,
        "train.tokens": train.steps * batch,
        "train.start_from": None,
    }
    return run.replace(changes)


def _token_seconds(run: TrainingRun, splits: TrainValSplits, folder: Path) -> float:
    """Seconds of a step, over the tokens of the batch, after the first steps."""
    trainer = Trainer(worker_share(run), splits, folder, ignore_log)
    _steps_seconds(trainer, WARM_UP_STEPS - 1)
    steps = math.ceil(SECONDS / _steps_seconds(trainer, 1))
    steps = min(steps, run.train.steps)
    seconds = _steps_seconds(trainer, steps)
    trainer.close()
    del trainer  # before another is made
    gc.collect()
    if run.train.compile:
        torch.compiler.reset()
    return seconds / steps / run.train.batch_tokens


def _steps_seconds(trainer: Trainer, count: int) -> float:
    """Time of some steps, after which the device has done all work."""
    non_finite = torch.zeros((), device=trainer.device)
    begun, loss = time.perf_counter(), non_finite
    for _ in range(count):
        loss, _ = trainer.make_step(0, non_finite)
    loss.item()
    return time.perf_counter() - begun
