"""The formula for memory, compared with what processes measure."""

import pytest

from pipelines.cost import timing
from pipelines.training import memory
from pipelines.training.config import TrainingRun
from pipelines.training.memory import peak_bytes


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


def test_the_formula_is_within_a_quarter_of_what_processes_show(small, monkeypatch):
    monkeypatch.setattr(timing, "TIMED_SECONDS", 0.1)
    standard = {"model.residual": "standard", "model.dim": 384}
    long = {"train.seq_len": 1024, "train.batch_tokens": 8192, "train.tokens": 8192}
    sizes = [small.replace(long | {"model.last_k": 4}), small.replace(standard), small]
    for size, found in zip(sizes, timing.time_steps(sizes, at_once=1), strict=True):
        expected = peak_bytes(size, on_gpu=False)
        assert expected == pytest.approx(found.peak_bytes, rel=0.25)
        own, theirs = (peak - memory.PROCESS_BYTES for peak in (expected, found.peak_bytes))
        assert own == pytest.approx(theirs, rel=0.25, abs=64 * memory.MIB)
        assert found.step_seconds > 0
        assert found.eval_seconds > 0


def test_workers_share_a_batch_and_its_memory(small):
    two = small.replace({"resources.workers": 2})
    assert peak_bytes(two, on_gpu=False) < peak_bytes(small, on_gpu=False)
    micro = small.replace({"train.micro_batch_tokens": 256})
    assert peak_bytes(micro, on_gpu=False) < peak_bytes(two, on_gpu=False)


def test_activations_computed_again_are_not_kept(small):
    deep = small.replace({"model.depth": 24})
    again = deep.replace({"train.activation_checkpointing": True})
    assert peak_bytes(again, on_gpu=True) < peak_bytes(deep, on_gpu=True) / 2


def test_workers_that_train_together_are_timed_together(run, monkeypatch):
    monkeypatch.setattr(timing, "TIMED_SECONDS", 0.1)
    (found,) = timing.time_steps([run.replace({"resources.workers": 2})], at_once=1)
    assert found.step_seconds > 0
