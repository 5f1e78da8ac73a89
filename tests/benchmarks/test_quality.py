"""The benchmark of quality at a size of seconds, with a stand-in for the public package."""

import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import plain, quality
from benchmarks.quality import OURS, PLAIN, PUBLIC, START, TIMED_BYTES, Bench, Training
from dca import ModelConfig
from pipelines.comparison.time_to_quality import Curve
from pipelines.experiment import read_experiment

TOY = {
    "experiment": "quality",
    "model": {"dim": 16, "depth": 2, "heads": 2},
    "train": {
        **{"tokens": 256, "seq_len": 32, "batch_tokens": 64, "precision": "float32"},
        **{"evals": 2, "eval_tokens": 64},
    },
}
KEPT = {**quality.DCA, "train.batch_tokens": 32}
MUON = {**quality.MUON, "train.batch_tokens": 64}


class PublicModel(nn.Sequential):
    """What takes the place of the package's model: with its arguments, from ids to logits."""

    def __init__(self, *, num_tokens, dim, depth, heads, dim_head, **others):
        assert set(others) == {"ff_expansion_factor", "past_layers_k"}
        assert heads * dim_head == dim
        super().__init__(nn.Embedding(num_tokens, dim), nn.Linear(dim, num_tokens))


@pytest.fixture
def command(monkeypatch, capsys, text, tmp_path):
    """Runs the benchmark; returns its two tables by model, and what it trained."""
    small = {"BASE": TOY, "THREADS": 1, "START": (0.1, 256), "TIMED_BYTES": 256}
    small["TUNING"] = {"train.tokens": 256, "train.evals": 1}
    small["OURS"] = {row: values for row, values in OURS.items() if "kept" not in row}
    small["OURS"] |= {"2-DCA, Muon": MUON, "2-DCA, Muon, bfloat16": MUON}
    small["OURS"] |= {"kept": KEPT, "half": {**KEPT, "train.tokens": 128}}
    small["KEPT_FILE"], small["SCRATCH"] = tmp_path / "quality.json", tmp_path / "build"
    for name, value in small.items():
        monkeypatch.setattr(quality, name, value)
    public = SimpleNamespace(DCAGPT=PublicModel)
    monkeypatch.setitem(sys.modules, "deep_cross_attention", public)

    def run(*arguments: str) -> tuple[dict, dict, list[str]]:
        counts = ("--seeds", "1", "--rounds", "2")
        quality.main(["--text", str(text), *counts, *arguments])
        out, err = capsys.readouterr()
        tables = [block.splitlines() for block in out.split("\n\n")[1:]]
        grid, comparison = (*map(cells, tables), {})[:2]
        return grid, comparison, [line for line in err.splitlines() if "round" not in line]

    return run


def cells(lines: list[str]) -> dict[str, list[str]]:
    split = [line.strip("|").split("|") for line in lines[2:]]
    return {line[0].strip(): [cell.strip() for cell in line[1:]] for line in split}


@pytest.mark.extended
@pytest.mark.slow
def test_every_row_is_tuned_or_ours_trained_once_and_timed(command, tmp_path):
    _, none, grid_trained = command("--until", "tune")
    assert none == {} and len(grid_trained) >= 2 * 5
    grid, rows, trained = command("--until", "train")
    assert [*grid] == [PLAIN, PUBLIC]
    assert [*rows] == [PLAIN, PUBLIC, *quality.OURS]
    assert len(trained) == len(rows)  # and none of the grid's again
    assert rows[PLAIN][4:] == ["-"] * 4
    assert {line[1] for line in rows.values()} == {"-"}  # nothing was timed
    assert not (tmp_path / "build/curves.png").exists()

    kept = json.loads((tmp_path / "quality.json").read_text())
    curves = [found["curve"] for name, found in kept.items() if "seed=0" in name]
    assert [read[-1] for read, _ in curves] == [256] * (len(rows) - 1) + [128]
    assert [f"{bits[-1]:.4f}" for _, bits in curves] == [line[3] for line in rows.values()]
    lost, old = [name for name in kept if name.startswith("2-DCA")][:2]
    del kept[lost]
    kept[old]["settings"]["code"] = "older"
    (tmp_path / "quality.json").write_text(json.dumps(kept))
    _, timed, again = command()
    assert again == [lost, old]
    assert all(float(line[1]) >= 0 and float(line[2].split()[0]) > 0 for line in timed.values())
    assert (tmp_path / "build/curves.png").stat().st_size > 0


def test_a_row_is_tuned_until_half_and_double_of_its_best_values_are_worse():
    """A bowl in the logarithms, with its lowest point two steps from where the tuning starts."""
    lowest, made = (1e-3, 2048), []

    class Bowl(Bench):
        def training(self, row, values, seed):
            point = values["train.learning_rate"], values["train.batch_tokens"]
            made.append(point)
            away = [math.log2(one / other) for one, other in zip(point, lowest, strict=True)]
            return training(sum(x * x for x in away), tokens=10)

    base = read_experiment(quality.BASE, source="test")
    grid = Bowl(base, None, "").tune(PLAIN, START)
    assert quality.best(grid) == lowest
    assert len(made) == len(set(made)) == len(grid) <= 13
    around = [(2e-3, 2048), (5e-4, 2048), (1e-3, 1024), (1e-3, 4096)]
    assert set(around) <= set(grid)
    lowest = (4e-3, 1)  # a step has at least a sequence
    assert min(batch for _, batch in Bowl(base, None, "").tune(PLAIN, START)) == 256


@pytest.mark.slow
def test_without_the_public_package_the_other_rows_are_compared(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "deep_cross_attention", None)
    monkeypatch.setattr(quality, "OURS", {"standard": OURS["ours, standard"]})
    grid, rows, trained = command("--until", "train")
    assert [*grid] == [PLAIN]
    assert [*rows] == [PLAIN, "standard"]
    assert "pip install" in "".join(line for line in trained if line.startswith(PUBLIC))


@pytest.mark.parametrize("arguments", [["--text", "missing"], ["--text", ".", "--seeds", "0"]])
def test_bad_input_is_one_line_and_leaves_nothing(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(quality, "SCRATCH", tmp_path / "new")
    with pytest.raises(SystemExit, match="2"):
        quality.main(arguments)
    assert capsys.readouterr().err.count("error:") == 1
    assert not (tmp_path / "new").exists()


def training(*bits: float, tokens: int = 40) -> Training:
    """One that is evaluated every 10 bytes."""
    return Training(1000, Curve([10 * n for n in range(1, len(bits) + 1)], bits), tokens)


def test_time_and_quality_are_compared_with_the_plain_training_of_the_same_seed():
    plain_one, half_way = training(8.0, 6.0, 5.0, 4.0), training(8.0, 4.0, 3.0, 2.0)
    worse = training(9.0, 7.0, 6.0, 5.0)
    found = {
        PLAIN: [plain_one, plain_one],
        "fast": [plain_one, plain_one],
        "sooner": [half_way, half_way],
        "short": [training(8.0, 4.0, tokens=20)] * 2,
        "worse": [worse, plain_one],
        "diverged": [training(8.0), plain_one],
    }
    seconds = {row: [TIMED_BYTES * 0.5, TIMED_BYTES * 1.0] * 4 for row in found}
    seconds |= {row: [TIMED_BYTES * 0.25, TIMED_BYTES * 0.5] * 4 for row in ("fast", "short")}
    rows = cells(quality.comparison_table(found, seconds).splitlines())
    assert rows[PLAIN] == ["1,000", "30", "1.000 [1.000, 1.000]", "4.0000", *["-"] * 4]
    half = "0.500 [0.500, 0.500]"
    equal = ["+0.000 [+0.000, +0.000]", "1.000 [1.000, 1.000]"]
    assert rows["fast"] == ["1,000", "15", half, "4.0000", *equal, half, equal[0]]
    less = "-2.000 [-2.000, -2.000]"
    assert rows["sooner"][4:] == [less, half, half, less]
    assert rows["short"] == [
        *["1,000", "8", half, "4.0000", equal[0]],
        *[half, "0.250 [0.250, 0.250]", equal[0]],
    ]
    assert rows["worse"][4:7] == ["+0.500 [-5.853, +6.853]", *["1 of 2 reached"] * 2]
    assert rows["diverged"][3:] == ["inf", "diverged", *["1 of 2 reached"] * 2, "diverged"]


def test_the_bytes_in_the_time_of_plain_are_those_that_a_slower_row_has_read_by_then():
    plain_one, slow = training(8.0, 6.0, 5.0, 4.0), training(8.0, 6.0, 4.0, 3.0)
    seconds = {PLAIN: [1.0] * 6, "slow": [2.0] * 6}
    rows = cells(
        quality.comparison_table({PLAIN: [plain_one], "slow": [slow]}, seconds).splitlines()
    )
    assert rows["slow"][4:] == ["-1.000", "0.750", "1.500", "+2.000"]


def test_the_plain_transformer_reads_no_later_byte_and_starts_near_chance():
    torch.manual_seed(0)
    model = plain.GPT(ModelConfig(dim=16, depth=2, heads=2), seq_len=8)
    ids_bt = torch.randint(256, (1, 8))
    other_bt = ids_bt.clone()
    other_bt[:, 5:] = (other_bt[:, 5:] + 1) % 256
    logits_btv, changed_btv = model(ids_bt), model(other_bt)
    torch.testing.assert_close(logits_btv[:, :5], changed_btv[:, :5])
    assert not torch.allclose(logits_btv[:, 5:], changed_btv[:, 5:])
    assert logits_btv.log_softmax(-1).exp().max() < 0.1
