"""What a configuration takes on this machine, found by training it for a few steps.

As many processes as will train at once do the same work at the same time, with the libraries, the
threads and the niceness of Ray's workers: two trials on two cores are slower than one alone.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from pipelines.console.errors import PipelineError
from pipelines.data.splits import TrainValSplits
from pipelines.training import loop
from pipelines.training.config import TrainingRun
from pipelines.training.device import pick_device
from pipelines.training.memory import peak_bytes

NICENESS = int(os.environ.get("RAY_worker_niceness", "15"))  # noqa: SIM112
"""Ray's for its workers."""
TIMED_SECONDS = 2.0
"""Time for one configuration, after the warm-up; a started stretch is not cut."""
STEPS = 4
"""Steps of a stretch between two evaluations; the first stretch warms up."""
EVAL_WINDOWS = 64
"""Most windows that an evaluation reads here: two batches of them."""
CORPUS_BYTES = 1 << 20
RAY_BYTES = 15 << 20
"""What a worker's connection to Ray adds: 595 MiB in a sweep where such a process had 580."""


@dataclass(frozen=True)
class StepTiming:
    """Means over the timed steps of the slowest of the processes that trained at once."""

    step_seconds: float
    eval_seconds: float
    """One evaluation, with its checkpoint."""
    peak_bytes: int
    """Of the largest process; on a GPU, of its tensors."""


def time_steps(configs: Sequence[TrainingRun], *, at_once: int) -> list[StepTiming]:
    """Train each configuration in `at_once` copies of `resources.max_workers` processes.

    Those that need most memory come last: a process's peak is that of all it has done before.
    Raises PipelineError if a process dies, which is how running out of memory ends.
    """
    workers = configs[0].resources.max_workers
    order = sorted(range(len(configs)), key=lambda i: peak_bytes(configs[i], on_gpu=False))
    hungrier = [configs[i] for i in order]
    with (
        tempfile.TemporaryDirectory() as scratch,
        ProcessPoolExecutor(
            at_once * workers, mp_context=get_context("spawn"), max_tasks_per_child=1
        ) as pool,
    ):
        corpus = _noise(Path(scratch), max(config.train.seq_len for config in configs))
        tasks = [
            pool.submit(_work, hungrier, corpus, Path(scratch) / str(copy), rank, number)
            for number, (copy, rank) in enumerate(np.ndindex(at_once, workers))
        ]
        try:
            found = [task.result() for task in tasks]
        except BrokenProcessPool:
            raise PipelineError("the timed steps ended early: was the memory enough?") from None
    slowest = dict(zip(order, map(_slowest, zip(*found, strict=True)), strict=True))
    return [slowest[i] for i in range(len(configs))]


def _noise(folder: Path, seq_len: int) -> TrainValSplits:
    """Random bytes to train on: what they say costs nothing."""
    train, validation = folder / "train.bin", folder / "validation.bin"
    rng = np.random.default_rng(0)
    for path in (train, validation):
        path.write_bytes(rng.bytes(max(CORPUS_BYTES, (EVAL_WINDOWS + 1) * seq_len)))
    return TrainValSplits(train, validation)


def _slowest(same: Sequence[StepTiming]) -> StepTiming:
    return StepTiming(
        max(one.step_seconds for one in same),
        max(one.eval_seconds for one in same),
        max(one.peak_bytes for one in same),
    )


def _work(
    configs: Sequence[TrainingRun], corpus: TrainValSplits, folder: Path, rank: int, number: int
) -> list[StepTiming]:
    """What one process does; `number` counts them all, `rank` those that train together."""
    resources = configs[0].resources
    gpus = resources.gpus_per_worker
    first = int(number * gpus)
    seen = range(first, first + max(1, round(gpus))) if gpus else ()
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, seen))
    os.nice(max(0, NICENESS - os.nice(0)))
    import pipelines.search.trial  # noqa: F401  # Ray and all that a worker has in memory

    if resources.max_workers > 1:
        folder.mkdir(exist_ok=True)
        dist.init_process_group(
            "nccl" if gpus else "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=resources.max_workers,
        )
    try:
        return [_time(one, corpus, folder / str(i)) for i, one in enumerate(configs)]
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _time(config: TrainingRun, corpus: TrainValSplits, folder: Path) -> StepTiming:
    """Stretch by stretch until the time is over."""
    train = config.train
    stretches = 1 + max(1, train.steps // STEPS - 1)
    windows = min(EVAL_WINDOWS, max(1, eval_tokens(config) // train.seq_len))
    short = config.replace(
        {
            "train.tokens": stretches * STEPS * train.batch_tokens,
            "train.evals": stretches,
            "train.eval_tokens": windows * train.seq_len,
            "train.start_from": None,
            "train.patience": None,
            "train.learning_rate": 1e-6,  # noise teaches nothing, and must not diverge
        }
    )
    with closing(loop.train(short, corpus, folder, lambda _: None)) as run:
        warm, began = next(run)[-1], time.perf_counter()
        for rows in run:
            wall, last = time.perf_counter() - began, rows[-1]
            if not _go_on(wall < TIMED_SECONDS):
                break
    trained = last["seconds"] - warm["seconds"]
    steps = last["step"] - warm["step"]
    evaluated = (wall - trained) / (steps / STEPS)
    share = eval_tokens(config) / (windows * train.seq_len)
    ray = RAY_BYTES if pick_device().type == "cpu" else 0
    peak = int(last["peak_memory_bytes"]) + ray
    return StepTiming(trained / steps, evaluated * share, peak)


def eval_tokens(config: TrainingRun) -> int:
    """Bytes that an evaluation reads, where the configuration says how many."""
    return config.train.eval_tokens or EVAL_WINDOWS * config.train.seq_len


def _go_on(wanted: bool) -> bool:
    """Processes that train together stop together, as the first of them says."""
    if not dist.is_initialized():
        return wanted
    answer = torch.tensor(float(wanted), device=pick_device())
    dist.broadcast(answer, src=0)
    return bool(answer)
