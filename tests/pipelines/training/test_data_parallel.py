"""Several processes train one run."""

import itertools
import os
from pathlib import Path

import pytest
import torch

from pipelines.data.splits import TrainValSplits, measure_corpus, train_val_splits, write_splits
from pipelines.storage.location import storage_folder
from pipelines.training import checkpoint
from pipelines.training.config import TrainingRun
from pipelines.training.loop import train
from tests.pipelines import forked
from tests.pipelines.training.runs import KEY, STUCK, forge, history, tensors

TOLERANCE = 1e-5
"""Of sums in another order, after 16 steps."""


def _worker(
    rank: int,
    world: int,
    run: TrainingRun,
    splits: TrainValSplits,
    folder: Path,
    group: Path,
    stop: int,
    environment: dict[str, str],
) -> None:
    os.environ.update(environment)  # it has that of the process it was forked from
    torch.distributed.init_process_group("gloo", f"file://{group}", rank=rank, world_size=world)
    evaluations = train(run, splits, folder, key=KEY)
    for _ in itertools.islice(evaluations, stop):
        pass
    evaluations.close()
    torch.distributed.destroy_process_group()
    # The model, in a reference cycle, still holds the group, whose threads may hold tensors when
    # Python finalizes: they then abort the process (pytorch/pytorch#179291).
    os._exit(0)


def together(
    run: TrainingRun,
    splits: TrainValSplits,
    folder: Path,
    group: Path,
    *,
    stop: int = 9,
    workers: int = 2,
) -> None:
    """Train with some workers, for some evaluations."""
    work = (workers, run, splits, folder, group, stop, dict(os.environ))
    torch.multiprocessing.start_processes(_worker, work, workers, start_method=forked.METHOD)


@pytest.mark.process
def test_two_workers_resumed_are_bitwise_two_that_never_stopped(run, splits, tmp_path):
    """The newest checkpoint was altered in storage: both must go on from the one before it. With
    averaged weights, of which every worker has its own."""
    run = run.replace({"train.ema_decay": 0.9})
    together(run, splits, tmp_path / "whole", tmp_path / "a")
    together(run, splits, tmp_path / "parts", tmp_path / "b", stop=2)
    newest = checkpoint.list_checkpoints(tmp_path / "parts")[-1]
    forge(newest)
    together(run, splits, tmp_path / "parts", tmp_path / "c")
    ours, theirs = tensors(tmp_path / "parts"), tensors(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_two_workers_go_on_from_the_same_object(run, s3, tmp_path):
    shared = storage_folder(s3)
    found = measure_corpus(run.data, seq_len=run.train.seq_len)
    write_splits(run.data, found, shared)
    files = train_val_splits(shared, found.fingerprint)
    first = train(run, files, shared / "run", print, key=KEY)
    begun = [next(first)[-1]["step"], next(first)[-1]["step"]]
    first.close()
    together(run, files, shared / "run", tmp_path / "group")
    (rows,) = train(run, files, shared / "run", print, key=KEY)
    evaluated = [row["step"] for row in rows if "val_bits_per_byte" in row]
    assert evaluated == run.train.eval_steps
    assert evaluated[:2] == begun


@pytest.mark.process
def test_two_workers_lose_patience_together(run, splits, tmp_path):
    stuck = run.replace(STUCK)
    together(stuck, splits, tmp_path / "run", tmp_path / "group")
    assert [int(path.name) for path in checkpoint.list_checkpoints(tmp_path / "run")] == [4, 8]
    (rows,) = train(stuck, splits, tmp_path / "run", print)
    assert rows[-1]["step"] == 8


@pytest.mark.process
def test_workers_share_muons_updates_and_have_the_weights_of_one(run, splits, tmp_path):
    """Three share eight matrices of one shape, and four of the other, unevenly."""
    run = run.replace({"train.optimizer": "muon", "train.micro_batch_tokens": None})
    one = history(train(run, splits, tmp_path / "1", print))
    together(run, splits, tmp_path / "3", tmp_path / "group-3", workers=3)
    several = history(train(run, splits, tmp_path / "3", print))
    for ours, theirs in zip(several, one, strict=True):
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=10 * TOLERANCE)
    last = several[-1]["val_bits_per_byte"]
    assert last == pytest.approx(one[-1]["val_bits_per_byte"], rel=10 * TOLERANCE)


@pytest.mark.process
def test_any_number_of_workers_trains_as_one_does(run, splits, tmp_path):
    """Four share 8 sequences evenly, three do not; the last run goes from two to three, as one
    does whose nodes come and go."""
    run = run.replace({"train.micro_batch_tokens": 64})
    alone = history(train(run, splits, tmp_path / "alone", print))
    together(run, splits, tmp_path / "4", tmp_path / "group-4", workers=4)
    together(run, splits, tmp_path / "2-3", tmp_path / "group-2", workers=2, stop=2)
    together(run, splits, tmp_path / "2-3", tmp_path / "group-3", workers=3)
    for name in ("4", "2-3"):
        several = history(train(run, splits, tmp_path / name, print))
        assert [row["step"] for row in several] == [row["step"] for row in alone]
        for ours, theirs in zip(several, alone, strict=True):
            for metric in ("train_bits_per_byte", "grad_norm"):
                assert ours[metric] == pytest.approx(theirs[metric], rel=TOLERANCE)
        last = several[-1]["val_bits_per_byte"]
        assert last == pytest.approx(alone[-1]["val_bits_per_byte"], rel=TOLERANCE)
