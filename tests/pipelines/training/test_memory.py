"""The formula for memory, compared with what processes measure."""

import importlib
import itertools
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from pipelines.data.splits import TrainValSplits
from pipelines.experiment import read_experiment
from pipelines.storage.project import ROOT
from pipelines.training import memory, train
from pipelines.training.config import TrainingRun
from pipelines.training.memory import micro_tokens_that_fit, peak_bytes

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
        "train.precision": "float32",
    }
    return run.replace(sizes | {"train.batch_tokens": 2048, "train.seq_len": 256})


def peak_of_a_process(run: TrainingRun, folder: Path) -> float:
    """What a process like a trial's holds at most: with Ray, Optuna and the training in memory."""
    importlib.import_module("pipelines.cluster.trial")
    text = folder / "random.bin"
    text.write_bytes(np.random.default_rng(0).bytes(1 << 20))
    rows = [row for new in train(run, TrainValSplits(text, text), folder / "run") for row in new]
    return rows[-1]["peak_memory_bytes"] + RAY_CONNECTION_BYTES


MUON = {"train.optimizer": "muon", "model.dim": 512, "train.batch_tokens": 512}
PARTS = {"model.activation": "swiglu", "model.qk_norm": True, "model.logit_softcap": 30.0}
PARTS |= {"model.kv_heads": 1}
LONG = {
    "train.seq_len": 1024,
    "train.batch_tokens": 8192,
    "train.tokens": 8192,
    "model.dca.last_k": 4,
}


@pytest.mark.extended
@pytest.mark.process
@pytest.mark.parametrize(
    "changes",
    [
        LONG,
        pytest.param({"model.residual": "standard", "model.dim": 384}, marks=pytest.mark.faults),
        pytest.param(MUON, marks=pytest.mark.faults),
        pytest.param({}, marks=pytest.mark.faults),
        pytest.param({**PARTS, **LONG}, marks=pytest.mark.faults),
    ],
    ids=["long windows", "wide", "Muon", "small", "parts"],
)
def test_the_formula_is_within_a_quarter_of_what_processes_show(small, tmp_path, changes):
    size = small.replace(changes)
    steps = {"train.tokens": 2 * size.train.batch_tokens, "train.learning_rate": 1e-6}
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        found = pool.submit(peak_of_a_process, size.replace(steps), tmp_path).result()
    expected = peak_bytes(size, on_gpu=False)
    assert expected == pytest.approx(found, rel=0.25)
    own, theirs = (peak - memory.PROCESS_BYTES for peak in (expected, found))
    assert own == pytest.approx(theirs, rel=0.25, abs=64 * memory.MIB)


@pytest.mark.parametrize(
    ("changes", "copies"),
    [
        ({}, 2),  # the average itself, and its bytes for the file
        ({"resources.workers": 2, "resources.strategy": "fsdp"}, 3),  # whole beside the part too
    ],
)
def test_the_average_is_part_of_the_checkpoint_that_is_written(small, changes, copies):
    wide = {"model.dim": 1024, "train.micro_batch_tokens": 256}  # where writing takes the most
    without = small.replace(wide | changes)
    parameters = without.model.parameter_count()
    held, matrices = parameters, memory._matrix_numbers(without.model)
    if changes:
        held -= matrices // 2
    more = peak_bytes(without.replace({"train.ema_decay": 0.99}), on_gpu=False)
    more -= peak_bytes(without, on_gpu=False)
    assert more == 4 * held + 4 * (copies - 1) * parameters


def test_workers_share_a_batch_and_its_memory(small):
    two = small.replace({"resources.workers": 2})
    assert peak_bytes(two, on_gpu=False) < peak_bytes(small, on_gpu=False)
    micro = small.replace({"train.micro_batch_tokens": 256})
    assert peak_bytes(micro, on_gpu=False) < peak_bytes(two, on_gpu=False)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("on_gpu", [True, False])
def test_workers_that_share_the_weights_hold_less_the_more_there_are(small, on_gpu, optimizer):
    sizes = {"model.depth": 12, "train.micro_batch_tokens": 256, "train.optimizer": optimizer}
    sizes |= {"model.dim": 512}
    peaks = []
    for workers in (1, 2, 4, 8):
        whole = small.replace({**sizes, "resources.workers": workers})
        shared = whole.replace({"resources.strategy": "fsdp"})
        peaks.append(peak_bytes(shared, on_gpu=on_gpu))
        if workers == 1:
            assert peaks[0] == peak_bytes(whole, on_gpu=on_gpu)
        elif on_gpu:
            assert peaks[-1] < peak_bytes(whole, on_gpu=True)
    assert peaks[1:] == sorted(peaks[1:], reverse=True)


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


MICRO = {"train.micro_batch_tokens": 128}
WHOLE = {**MICRO, "train.eval_tokens": None}
DCA = {"model.residual": "dca", "model.depth": 5}
SHARED = {"resources.workers": 2, "resources.strategy": "fsdp", "model.dim": 512}
ONE = {
    **MICRO,
    "train.eval_tokens": 1,
    "model.residual": "hyper_connections",
    "model.hyper_connections.streams": 64,
    "model.dim": 8,
    "model.heads": 2,
}


@pytest.mark.parametrize(
    ("changes", "on_cpu", "on_gpu"),
    [
        ({}, 101_456_896, 60_562_432),
        ({"model.residual": "dca"}, 108_832_768, 64_268_288),
        ({"model.residual": "hyper_connections"}, 130_594_336, 75_150_880),
        ({"model.residual": "value_residual"}, 101_456_960, 60_562_496),
        ({"model.ff_mult": 6}, 114_826_240, 67_640_320),
        ({"model.kv_heads": 1}, 94_084_096, 56_728_576),
        ({"model.qk_norm": True}, 104_602_624, 62_135_296),
        ({"model.activation": "relu2"}, 101_456_896, 60_562_432),
        ({"model.activation": "swiglu"}, 110_943_232, 65_330_176),
        ({"model.logit_softcap": 30.0}, 105_651_200, 64_756_736),
        ({"train.activation_checkpointing": True}, 65_805_312, 42_736_640),
        (
            {"train.activation_checkpointing": True, "model.residual": "dca"},
            *(71_428_096, 45_565_952),
        ),
        ({"train.precision": "bfloat16"}, 60_923_776, 60_923_776),
        ({"train.optimizer": "muon"}, 100_867_072, 59_972_608),
        (
            {"train.optimizer": "muon", **MICRO, "model.dim": 1024, "train.eval_tokens": 128},
            1_065_467_904,
            914_472_960,
        ),
        ({"train.ema_decay": 0.9}, 102_179_584, 61_285_120),
        ({"resources.workers": 2}, 52_173_824, 32_576_768),
        ({**SHARED, "resources.strategy": "ddp"}, *(490_790_912, 327_213_056)),
        (SHARED, *(490_790_912, 302_047_232)),
        ({**SHARED, "resources.workers": 4}, *(285_270_016, 211_855_360)),
        ({**SHARED, "train.optimizer": "muon"}, *(471_916_544, 283_172_864)),
        ({**SHARED, "train.micro_batch_tokens": 128}, *(292_681_728, 240_166_912)),
        ({**SHARED, "train.precision": "bfloat16"}, *(302_578_688, 302_578_688)),
        # a checkpoint that is written
        ({**MICRO, "model.dim": 1024, "train.eval_tokens": 128}, 918_724_608, 633_454_592),
        # evaluations
        (WHOLE, 32_576_768, 32_576_768),
        ({**MICRO, "train.eval_tokens": 2048}, 17_372_416, 17_372_416),
        ({**MICRO, "train.eval_tokens": 8192}, 32_576_768, 32_576_768),
        (
            {**MICRO, "train.eval_tokens": 8192, "model.activation": "swiglu"},
            35_759_360,
            35_759_360,
        ),
        ({**WHOLE, **DCA, "model.dca.last_k": None}, 39_059_200, 39_059_200),
        ({**WHOLE, **DCA, "model.dca.last_k": 1}, 35_904_256, 35_904_256),
        ({**ONE, "model.depth": 1, "model.ff_mult": 1}, 14_326_752, 7_537_632),
    ],
)
def test_the_formula_gives_the_golden_numbers(changes, on_cpu, on_gpu):
    """In bytes. If a factor was changed on purpose, change them here."""
    base = {"model.residual": "standard", "model.dim": 64, "model.depth": 3, "model.heads": 4}
    base |= {"train.seq_len": 128, "train.batch_tokens": 4096, "train.eval_tokens": 4096}
    sized = TrainingRun().replace(base | changes)
    again = sized.train.activation_checkpointing
    process = memory.PROCESS_BYTES + (memory.COMPILER_BYTES if again else 0)
    process += memory.SHARDING_BYTES if sized.resources.strategy == "fsdp" else 0
    assert peak_bytes(sized, on_gpu=False) - process == on_cpu
    assert peak_bytes(sized, on_gpu=True) == on_gpu


def test_the_sizes_of_a_process_are_in_bytes():
    assert (memory.MIB, memory.GIB) == (2**20, 2**30)
    assert memory.PROCESS_BYTES / 2**20 == 435
    assert memory.COMPILER_BYTES / 2**20 == 136


SHARES = [(1, None, 256), (2, None, 128), (1, 64, 64), (4, 128, 64), ([3, 4], None, 96)]
"""Workers, train.micro_batch_tokens and the largest forward pass, of 8 sequences of 32."""


def test_a_forward_pass_reads_a_micro_batch_of_a_workers_share(run):
    for workers, micro, expected in SHARES:
        changes = {"resources.workers": workers, "train.micro_batch_tokens": micro}
        assert memory.micro_tokens(run.replace(changes)) == expected


def test_on_a_gpu_a_forward_pass_is_the_largest_that_fits(run):
    run = run.replace({"train.batch_tokens": 32 * 12, "train.eval_tokens": 32})

    def need(sequences: int) -> float:
        one = run.replace({"train.micro_batch_tokens": 32 * sequences})
        return memory.ON_A_GPU * peak_bytes(one, on_gpu=True)

    for sequences, next_larger in ((12, None), (6, 12), (4, 6), (3, 4), (2, 3), (1, 2)):
        there = 10 * need(12) if next_larger is None else need(next_larger) - 1
        assert micro_tokens_that_fit(run, int(there)) == 32 * sequences
    assert micro_tokens_that_fit(run, 0) == 32
    evaluated = run.replace({"train.eval_tokens": 32 * 32})  # which takes more than any batch here
    assert micro_tokens_that_fit(evaluated, 0) == 32 * 12


def test_of_several_workers_each_needs_a_forward_pass_of_its_share(run):
    run = run.replace(
        {"train.batch_tokens": 32 * 12, "train.eval_tokens": 32, "resources.workers": 3}
    )
    whole = memory.ON_A_GPU * peak_bytes(run, on_gpu=True)
    assert micro_tokens_that_fit(run, int(whole) + 1) == 32 * 12
    assert micro_tokens_that_fit(run, int(whole) - 1) == 32 * 3  # of 4


def test_the_documented_table_is_that_of_the_formula():
    page = (ROOT / "docs" / "cluster.md").read_text()
    rows = re.findall(r"^\| 24 x (\d+) (standard|2-DCA) \| (.*) \|$", page, re.M)
    assert len(rows) == 4
    ways = [(False, None), (True, None), (True, 4 * 1024)]
    for width, name, cells in rows:
        found = []
        for strategy, (again, micro) in itertools.product(("ddp", "fsdp"), ways):
            changes = {
                "model": {"dim": int(width), "depth": 24, "heads": 16, **KINDS[name]},
                "resources": {"workers": 8, "gpus_per_worker": 1, "strategy": strategy},
                "train": {
                    **{"seq_len": 1024, "batch_tokens": 8 * 16 * 1024, "tokens": 10**9},
                    **{"precision": "bfloat16", "micro_batch_tokens": micro},
                    "activation_checkpointing": again,
                },
            }
            run = read_experiment({"experiment": "x", **changes}, source="test").training_run()
            found.append(f"{peak_bytes(run, on_gpu=True) / 2**30:.1f}")
        assert found == cells.split(" | "), (width, name)


KINDS = {"standard": {"residual": "standard"}, "2-DCA": {"residual": "dca", "dca": {"last_k": 2}}}
