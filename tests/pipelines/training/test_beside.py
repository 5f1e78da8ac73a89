"""What a GPU's host does beside training: batches read ahead, and checkpoints written.

The device is the CPU, on which nothing of this is done unless a test wants it.
"""

import threading
from contextlib import closing
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dca import registry
from pipelines.console.errors import DivergedError, StorageError
from pipelines.training import checkpoint, trainer
from pipelines.training.checkpoint import beside, list_checkpoints
from pipelines.training.loop import train
from pipelines.training.memory import ON_A_GPU, peak_bytes
from pipelines.training.optimizer import PARTS
from pipelines.training.step import BatchesAhead
from pipelines.training.trainer import Trainer
from tests.pipelines.training.runs import history, tensors

CPU = torch.device("cpu")
SECONDS = 60


def numbered(step: int) -> np.ndarray:
    """A batch that holds the number of its step."""
    return np.full((2, 3), step, dtype=np.uint8)


def test_batches_read_ahead_are_those_of_the_steps_in_any_order():
    with closing(BatchesAhead(numbered, CPU, steps=10)) as ahead:
        for step in (0, 1, 2, 7, 8, 3, 9, 9):
            assert ahead(step).tolist() == numbered(step).tolist()


def test_the_next_batch_is_read_before_it_is_wanted_and_none_behind_the_last():
    read = {step: threading.Event() for step in range(3)}

    def reading(step):
        read[step].set()
        return numbered(step)

    with closing(BatchesAhead(reading, CPU, steps=3)) as ahead:
        ahead(0)
        assert read[1].wait(SECONDS)
        assert not read[2].is_set()
        ahead(2)


def test_a_batch_that_cannot_be_read_is_an_error_at_its_step():
    def reading(step):
        if step == 1:
            raise OSError("the disk is gone")
        return numbered(step)

    with closing(BatchesAhead(reading, CPU, steps=3)) as ahead:
        ahead(0)
        with pytest.raises(OSError, match="the disk is gone"):
            ahead(1)


def test_trained_on_batches_read_ahead_the_weights_are_bitwise_the_same(
    run, splits, tmp_path, monkeypatch
):
    rows = history(train(run, splits, tmp_path / "plain", print))

    def ahead(*arguments):
        made = Trainer(*arguments)
        made.make_step.ahead = BatchesAhead(made.make_step._read, CPU, run.train.steps)
        return made

    monkeypatch.setattr("pipelines.training.loop.Trainer", ahead)
    assert history(train(run, splits, tmp_path / "ahead", print)) == rows
    ours, theirs = tensors(tmp_path / "ahead"), tensors(tmp_path / "plain")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


class RefuseReads(TorchDispatchMode):
    """No number is made of a tensor, but of `allowed`: on a GPU the host would wait for it."""

    def __init__(self, allowed: torch.Tensor | None = None) -> None:
        super().__init__()
        self.allowed = allowed

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        reads = func is torch.ops.aten._local_scalar_dense.default
        assert not reads or args[0] is self.allowed
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("residual", registry.residual.names)
def test_no_step_reads_a_number_of_a_tensor(run, splits, tmp_path, residual):
    everything = {
        **{"model.residual": residual, "model.dropout": 0.1, "train.micro_batch_tokens": 128},
        **{"train.optimizer": "muon", "train.ema_decay": 0.9},
    }
    made = Trainer(run.replace(everything), splits, tmp_path, print)
    loss, norm, non_finite = torch.zeros(3).unbind()
    with RefuseReads(allowed=non_finite):  # which Muon reads on a CPU
        for step in range(2):
            loss, norm = made.make_step(step, non_finite)
    assert loss.isfinite() and norm > 0
    (matrices,) = [group for group in made.optimizer.param_groups if PARTS in group]
    before = [weight.clone() for weight in matrices["params"]]
    for weight in matrices["params"]:
        weight.grad = torch.ones_like(weight)
    with RefuseReads(), torch.no_grad():  # and as Muon updates them on a GPU
        made.optimizer._update_matrices(matrices, non_finite)
    pairs = zip(matrices["params"], before, strict=True)
    assert not any(torch.equal(*pair) for pair in pairs)


def test_where_a_batch_does_not_fit_the_gpu_gradients_add_up_over_smaller_ones(
    run, splits, tmp_path, monkeypatch
):
    run = run.replace({"train.eval_tokens": 32})
    smaller = run.replace({"train.micro_batch_tokens": 64})
    there = ON_A_GPU * peak_bytes(smaller, on_gpu=True)
    given = history(train(smaller, splits, tmp_path / "given", print))
    monkeypatch.setattr("pipelines.training.step.free_memory_bytes", lambda *_: int(there) + 1)
    lines: list[str] = []
    assert history(train(run, splits, tmp_path / "found", lines.append)) == given
    assert lines == ["forward passes of 64 bytes: more do not fit the memory of the GPU"]


@pytest.fixture
def written_beside(monkeypatch):
    """Checkpoints are written in a thread, as on a GPU."""
    made = checkpoint.CheckpointWriter

    def writer(folder, key, *, beside):
        assert not beside
        return made(folder, key, beside=True)

    monkeypatch.setattr(trainer.checkpoint, "CheckpointWriter", writer)


@pytest.mark.parametrize("stop_after", [1, 3])
def test_written_beside_training_a_resumed_run_is_bitwise_the_whole_one(
    run, splits, tmp_path, stop_after, written_beside, monkeypatch
):
    run = run.replace({"train.ema_decay": 0.9, "train.optimizer": "muon"})
    first = train(run, splits, tmp_path / "parts", print)
    assert len([*islice(first, stop_after)]) == stop_after
    first.close()
    resumed = history(train(run, splits, tmp_path / "parts", print))
    monkeypatch.undo()
    assert resumed == history(train(run, splits, tmp_path / "whole", print))
    ours, theirs = tensors(tmp_path / "parts"), tensors(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_training_goes_on_while_a_checkpoint_is_written_which_is_of_its_own_step(
    run, splits, tmp_path, written_beside, monkeypatch
):
    """The first is written when its training has gone on, and its weights have changed."""
    whole = [*train(run, splits, tmp_path / "whole", print)]
    go_on, right = threading.Event(), beside.write
    monkeypatch.setattr(
        beside, "write", lambda *given, **how: go_on.wait(SECONDS) and right(*given, **how)
    )
    folder = tmp_path / "run"
    training = Trainer(run, splits, folder, print)
    training.train_to_next_evaluation()
    training._train_until(training.step + 1)
    assert not list_checkpoints(folder)
    go_on.set()
    training.close()
    (path,) = list_checkpoints(folder)
    snapshot, found = checkpoint.read(path)
    assert snapshot.step == run.train.eval_steps[0]
    assert [row["step"] for row in snapshot.history] == [row["step"] for row in whole[0]]
    stopped = train(run, splits, tmp_path / "stopped", print)
    next(stopped)
    stopped.close()
    assert all(torch.equal(found[name], one) for name, one in tensors(tmp_path / "stopped").items())


def test_the_last_checkpoint_is_there_before_the_last_rows_and_after_a_stop(
    run, splits, tmp_path, written_beside
):
    for rows in train(run, splits, tmp_path / "ended", print):
        if rows[-1]["step"] == run.train.steps:
            assert int(list_checkpoints(tmp_path / "ended")[-1].name) == run.train.steps
    stopped = train(run, splits, tmp_path / "stopped", print)
    (row, *_) = reversed([*islice(stopped, 2)][-1])
    stopped.close()
    assert int(list_checkpoints(tmp_path / "stopped")[-1].name) == row["step"]


@pytest.mark.parametrize("failing", [1, 4])
def test_a_checkpoint_that_cannot_be_written_ends_the_training(
    run, splits, tmp_path, failing, written_beside, monkeypatch
):
    right, count = beside.write, iter(range(1, 9))

    def write(*given, **how):
        if next(count) == failing:
            raise StorageError("the disk is full")
        right(*given, **how)

    monkeypatch.setattr(beside, "write", write)
    with pytest.raises(StorageError, match="the disk is full"):
        for rows in train(run, splits, tmp_path, print):
            assert rows[-1]["step"] <= run.train.eval_steps[failing - 1]
            assert rows[-1]["step"] < run.train.steps
    assert len(list_checkpoints(tmp_path)) == min(failing - 1, 2)


def test_of_two_errors_the_trainings_own_is_raised(
    run, splits, tmp_path, written_beside, monkeypatch
):
    def fail(*_, **__):
        raise StorageError("the disk is full")

    def diverge(self, stop):
        raise DivergedError("diverged at step 5")

    training = train(run, splits, tmp_path, print)
    monkeypatch.setattr(beside, "write", fail)
    next(training)
    monkeypatch.setattr(Trainer, "_train_until", diverge)
    with pytest.raises(DivergedError):
        next(training)
