"""The formula for memory, compared with what processes measure."""

import importlib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from pipelines.data.splits import TrainValSplits
from pipelines.training import memory, train
from pipelines.training.config import TrainingRun
from pipelines.training.memory import peak_bytes

RAY_CONNECTION_BYTES = 15 << 20
"""What a worker's connection to Ray adds: 595 MiB in a sweep where such a process had 580."""


@pytest.fixture
def small(run: TrainingRun) -> TrainingRun:
    sizes = {
        "model.dim": 128,
        "model.heads": 4,
        "model.depth": 4,
        "train.evals": 1,
        "train.eval_tokens": 4096,
    }
    return run.replace(sizes | {"train.batch_tokens": 2048, "train.seq_len": 256})


def peak_of_a_process(run: TrainingRun, folder: Path) -> float:
    """What a process like a trial's holds at most: with Ray, Optuna and the training in memory."""
    importlib.import_module("pipelines.search.trial")
    text = folder / "random.bin"
    text.write_bytes(np.random.default_rng(0).bytes(1 << 20))
    rows = [row for new in train(run, TrainValSplits(text, text), folder / "run") for row in new]
    return rows[-1]["peak_memory_bytes"] + RAY_CONNECTION_BYTES


def test_the_formula_is_within_a_quarter_of_what_processes_show(small, tmp_path):
    standard = {"model.residual": "standard", "model.dim": 384}
    long = {"train.seq_len": 1024, "train.batch_tokens": 8192, "train.tokens": 8192}
    sizes = [small.replace(long | {"model.last_k": 4}), small.replace(standard), small]
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for number, size in enumerate(sizes):
            folder = tmp_path / str(number)
            folder.mkdir()
            steps = {"train.tokens": 4 * size.train.batch_tokens, "train.learning_rate": 1e-6}
            found = pool.submit(peak_of_a_process, size.replace(steps), folder).result()
            expected = peak_bytes(size, on_gpu=False)
            assert expected == pytest.approx(found, rel=0.25)
            own, theirs = (peak - memory.PROCESS_BYTES for peak in (expected, found))
            assert own == pytest.approx(theirs, rel=0.25, abs=64 * memory.MIB)


def test_workers_share_a_batch_and_its_memory(small):
    two = small.replace({"resources.workers": 2})
    assert peak_bytes(two, on_gpu=False) < peak_bytes(small, on_gpu=False)
    micro = small.replace({"train.micro_batch_tokens": 256})
    assert peak_bytes(micro, on_gpu=False) < peak_bytes(two, on_gpu=False)


def test_activations_computed_again_are_not_kept(small):
    deep = small.replace({"model.depth": 24})
    again = deep.replace({"train.activation_checkpointing": True})
    assert peak_bytes(again, on_gpu=True) < peak_bytes(deep, on_gpu=True) / 2


def test_the_compiler_takes_memory_once_where_it_is_imported(small):
    again = small.replace({"train.activation_checkpointing": True})
    both = again.replace({"train.compile": True})
    compiled = small.replace({"train.compile": True})
    added = peak_bytes(compiled, on_gpu=False) - peak_bytes(small, on_gpu=False)
    assert added == memory.COMPILER_BYTES > 128 << 20
    assert peak_bytes(both, on_gpu=False) == peak_bytes(again, on_gpu=False)
    assert peak_bytes(compiled, on_gpu=True) == peak_bytes(small, on_gpu=True)
