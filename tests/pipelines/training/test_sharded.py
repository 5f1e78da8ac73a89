"""Workers that hold parts of the weights (FSDP) train as one does that holds all of them.

So do those with copies, see test_data_parallel.py. The processes of one test train several runs,
because they load PyTorch's sharding first.
"""

import itertools
import json
import os
import warnings
from collections import Counter
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from dca import registry
from dca.block import SublayerBlock
from pipelines.console.errors import DivergedError
from pipelines.data.splits import TrainValSplits
from pipelines.training.config import TrainingRun
from pipelines.training.loop import train
from pipelines.training.parallel.matrices import RowExchange, held_rows
from tests.pipelines import forked
from tests.pipelines.training.runs import KEY, history, tensors
from tests.pipelines.training.test_data_parallel import TOLERANCE

pytestmark = pytest.mark.extended

LIMIT = timedelta(minutes=1)
"""Longest wait for another worker: one that makes fewer passes would be waited for."""
FSDP = {"resources.strategy": "fsdp"}
METRICS = ("train_bits_per_byte", "grad_norm", "val_bits_per_byte")
Runs = list[tuple[Path, TrainingRun]]
Groups = list[tuple[int, Runs]]
"""How many of the processes train together, in a group of their own, and what: in this order."""


def _worker(rank: int, groups: Groups, splits: TrainValSplits, file: Path, stop: int) -> None:
    """Train for some evaluations; write how each ended, and how often gradients were scattered."""
    torch.set_num_threads(1)
    warnings.filterwarnings("error", message=".*FSDP")  # a text that is not the one ignored
    calls = Counter[str]()

    def counting(name, function, *given, **options):
        calls[name] += 1
        return function(*given, **options)

    dist.reduce_scatter_single = partial(counting, "scattered", dist.reduce_scatter_single)
    dist.all_gather_single = partial(counting, "gathered", dist.all_gather_single)
    for number, (world, runs) in enumerate(groups):
        if rank >= world:
            continue
        dist.init_process_group("gloo", f"file://{file}{number}", LIMIT, world, rank)
        for folder, run in runs:
            calls.clear()
            error = ""
            try:
                with closing(train(run, splits, folder, key=KEY)) as evaluations:
                    for _ in itertools.islice(evaluations, stop):
                        pass
            except DivergedError as found:
                error = str(found)
            folder.with_suffix(f".{rank}").write_text(json.dumps({"error": error, **calls}))
        dist.destroy_process_group()
    os._exit(0)  # see test_data_parallel.py


def train_in_groups(groups: Groups, splits: TrainValSplits, file: Path, *, stop: int = 9) -> None:
    workers = max(world for world, _ in groups)
    work = (groups, splits, file, stop)
    torch.multiprocessing.start_processes(_worker, work, workers, start_method=forked.METHOD)


def ended(folder: Path, rank: int) -> dict:
    return json.loads(folder.with_suffix(f".{rank}").read_text())


def assert_equal_curves(ours: list[dict], theirs: list[dict], tolerance: float) -> None:
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for own, other in zip(ours, theirs, strict=True):
        for metric in METRICS[: 3 if own["val_bits_per_byte"] else 2]:
            assert own[metric] == pytest.approx(other[metric], rel=tolerance), own["step"]


SHORT = {"train.tokens": 1024, "train.evals": 1}
FEW = ("standard", "dca", "hyper_connections", "value_residual")
"""Kinds that call their blocks and sublayers in different ways."""
OTHERS = [
    {"model.residual": name, **SHORT} for name in sorted(registry.residual.names) if name not in FEW
]
ALL = {
    **{"model.residual": "dca", "train.optimizer": "muon", "train.ema_decay": 0.9},
    **{"train.micro_batch_tokens": 64, "train.activation_checkpointing": True},
    **{"model.tied_embeddings": False, "model.kv_heads": 1},
}
HALF = {"train.precision": "bfloat16", "train.micro_batch_tokens": 64, **SHORT}
DIVERGING = {"train.learning_rate": 1e30, "train.log_every_steps": 3}


@pytest.mark.process
@pytest.mark.parametrize(
    "changes",
    [
        [*({"model.residual": name, **SHORT} for name in FEW), ALL, HALF, DIVERGING],
        pytest.param(OTHERS, marks=pytest.mark.faults),
    ],
    ids=["few", "others"],
)
def test_two_workers_with_parts_of_the_weights_train_as_one_with_all(
    run, splits, tmp_path, changes
):
    """Every residual kind, and everything that acts on weights together."""
    runs = {tmp_path / f"fsdp-{i}": run.replace(one) for i, one in enumerate(changes)}
    sharded = [(folder, one.replace(FSDP)) for folder, one in runs.items()]
    train_in_groups([(2, sharded)], splits, tmp_path / "group")
    for folder, one in runs.items():
        whole = train(one, splits, tmp_path / folder.name.replace("fsdp", "one"), print)
        if one.train.learning_rate > 1:
            with pytest.raises(DivergedError) as error:
                list(whole)
            assert [ended(folder, rank)["error"] for rank in (0, 1)] == 2 * [str(error.value)]
            continue
        tolerance = {"bfloat16": 0.02}.get(one.train.precision, 10 * TOLERANCE)
        theirs = history(whole)
        assert_equal_curves(history(train(one, splits, folder, print)), theirs, tolerance)
        apart = issubclass(registry.residual[one.model.residual], SublayerBlock)
        units = (1 + apart) * one.model.depth
        # gradients once a step; weights twice a pass, also with checkpointing, and to evaluate
        scattered = units * one.train.steps
        passes = one.train.steps * (128 // (one.train.micro_batch_tokens or 128))
        gathered = units * (2 * passes + len(one.train.eval_steps))
        for rank in (0, 1):
            found = ended(folder, rank)
            assert (found["scattered"], found["gathered"]) == (scattered, gathered), (
                one.model.residual
            )


@pytest.mark.process
def test_a_run_goes_on_with_any_number_of_workers_with_or_without_parts(run, splits, tmp_path):
    """One worker; three or four with parts of 48 and 16 rows, three with 2, 3 and 3 sequences in
    passes of one; two with parts; two with all; one."""
    changes = {"train.ema_decay": 0.9, "train.evals": 5, "model.residual": "dca"}
    run = run.replace(changes | {"model.ff_mult": 3})
    passes_of_one = {"train.micro_batch_tokens": run.train.seq_len}
    adamw, muon = run, run.replace({"train.optimizer": "muon"} | passes_of_one)
    folders = {tmp_path / "adamw": adamw, tmp_path / "muon": muon}
    for folder, one in folders.items():
        assert len([*itertools.islice(train(one, splits, folder, print, key=KEY), 1)]) == 1
    sharded = [(folder, one.replace(FSDP)) for folder, one in folders.items()]
    groups = [(4, sharded[:1]), (3, sharded[1:]), (2, [*sharded, *folders.items()])]
    train_in_groups(groups, splits, tmp_path / "group", stop=2)
    for folder, one in folders.items():
        whole = folder.with_suffix(".whole")
        theirs = history(train(one, splits, whole, print))
        assert_equal_curves(
            history(train(one, splits, folder, print, key=KEY)), theirs, 10 * TOLERANCE
        )
        ours = tensors(folder)
        assert {name: value.shape for name, value in ours.items()} == {
            name: value.shape for name, value in tensors(whole).items()
        }


def test_every_row_has_one_holder_and_every_part_one_owner():
    for height in (1, 2, 5, 48):
        for world in (1, 2, 3, 8):
            held = [held_rows(height, worker, world) for worker in range(world)]
            assert [row for first, last in held for row in range(first, last)] == [*range(height)]
            sizes = {last - first for first, last in held if last - first}
            chunk = torch.chunk(torch.empty(height), world)  # as PyTorch cuts
            assert sizes == {len(one) for one in chunk}
    exchange = RowExchange([(48, 16), (5, 16)], [(16, 16, 16), (5,)], 1, 3)
    owned = [part for own in exchange.owned for part in own]
    assert sorted(owned) == [(0, 0, 16, 16), (0, 16, 32, 16), (0, 32, 48, 16), (1, 0, 5, 16)]
    assert max(map(len, exchange.owned)) == 2
