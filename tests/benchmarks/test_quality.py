"""The benchmark of quality at a size of seconds, with a stand-in for the public package."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import plain, quality
from benchmarks.plain import Point
from benchmarks.quality import OURS, PLAIN, PUBLIC, Training
from dca import ModelConfig

TOY = {
    "experiment": "quality",
    "model": {"dim": 16, "depth": 2, "heads": 2},
    "train": {
        **{"tokens": 256, "seq_len": 32, "batch_tokens": 64, "precision": "float32"},
        **{"evals": 2, "eval_tokens": 64},
    },
}


class PublicModel(nn.Sequential):
    """What takes the place of the package's model: with its arguments, from ids to logits."""

    def __init__(self, *, num_tokens, dim, depth, heads, dim_head, **others):
        assert set(others) == {"ff_expansion_factor", "past_layers_k"}
        assert heads * dim_head == dim
        super().__init__(nn.Embedding(num_tokens, dim), nn.Linear(dim, num_tokens))


@pytest.fixture
def command(monkeypatch, capsys, text, tmp_path):
    """Runs the benchmark; returns its two tables by model, and what it trained."""
    monkeypatch.setattr(quality, "BASE", TOY)
    monkeypatch.setattr(quality, "THREADS", 1)
    monkeypatch.setattr(quality, "RATES", (1e-3, 1e-2))
    monkeypatch.setattr(quality, "BATCHES", (64,))
    public = SimpleNamespace(DCAGPT=PublicModel)
    monkeypatch.setitem(sys.modules, "deep_cross_attention", public)

    def run(*arguments: str) -> tuple[dict, dict, list[str]]:
        quality.main(["--text", str(text), "--folder", str(tmp_path), "--seeds", "1", *arguments])
        out, err = capsys.readouterr()
        tables = [block.splitlines() for block in out.split("\n\n")[1:]]
        grid, comparison = (*map(cells, tables), {})[:2]
        return grid, comparison, err.splitlines()

    return run


def cells(lines: list[str]) -> dict[str, list[str]]:
    split = [line.strip("|").split("|") for line in lines[2:]]
    return {line[0].strip(): [cell.strip() for cell in line[1:]] for line in split}


@pytest.mark.slow
def test_every_row_is_tuned_or_ours_trained_and_compared_once(command, tmp_path):
    _, none, grid_trained = command("--tune")
    assert none == {} and len(grid_trained) == 4
    grid, rows, trained = command()
    assert [*grid] == [PLAIN, PUBLIC]
    assert all("**" in "".join(line) for line in grid.values())
    assert [*rows] == [PLAIN, PUBLIC, *OURS]
    assert len(trained) == len(rows)  # and none of the grid's again
    assert rows[PLAIN][3:] == ["-"] * 4
    assert (tmp_path / "curves.png").stat().st_size > 0

    stored = json.loads((tmp_path / "results.json").read_text())
    final = [found["curve"][-1] for name, found in stored.items() if "seed=0" in name]
    assert [tokens for tokens, _, _ in final] == [256] * len(rows)
    assert [f"{bits:.4f}" for *_, bits in final] == [line[2] for line in rows.values()]
    lost, old = [name for name in stored if name.startswith("2-DCA")][:2]
    del stored[lost]
    stored[old]["settings"]["code"] = "older"
    (tmp_path / "results.json").write_text(json.dumps(stored))
    assert command()[2] == [lost, old]


@pytest.mark.slow
def test_without_the_public_package_the_other_rows_are_compared(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "deep_cross_attention", None)
    monkeypatch.setattr(quality, "OURS", {"standard": OURS["ours, standard"]})
    grid, rows, trained = command()
    assert [*grid] == [PLAIN]
    assert [*rows] == [PLAIN, "standard"]
    assert "pip install" in "".join(line for line in trained if line.startswith(PUBLIC))


@pytest.mark.parametrize("arguments", [["--text", "missing"], ["--text", ".", "--seeds", "0"]])
def test_bad_input_is_one_line_and_leaves_nothing(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        quality.main([*arguments, "--folder", str(tmp_path / "new")])
    assert capsys.readouterr().err.count("error:") == 1
    assert not (tmp_path / "new").exists()


def training(seconds: float, *bits: float) -> Training:
    """One whose evaluations are `seconds` apart."""
    curve = [Point(10 * n, seconds * n, value) for n, value in enumerate(bits, 1)]
    return Training(1000, curve, 40)


def test_time_and_quality_are_compared_with_the_plain_training_of_the_same_seed():
    plain_ones = [training(10, 8.0, 6.0, 5.0, 4.0), training(20, 8.0, 6.0, 5.0, 4.0)]
    twice_as_fast = [training(5, 8.0, 6.0, 5.0, 4.0), training(10, 8.0, 6.0, 5.0, 4.0)]
    sooner = [training(10, 8.0, 4.0, 3.0, 2.0), training(20, 8.0, 4.0, 3.0, 2.0)]
    worse = [training(20, 9.0, 7.0, 6.0, 5.0), training(20, 8.0, 6.0, 5.0, 4.0)]
    diverged = [training(10, 8.0), training(20, 8.0, 6.0, 5.0, 4.0)]
    found = {PLAIN: plain_ones, "fast": twice_as_fast, "sooner": sooner}
    rows = cells(
        quality.comparison_table(found | {"worse": worse, "diverged": diverged}).splitlines()
    )
    assert rows[PLAIN] == ["1,000", "60.0", "4.0000", "-", "-", "-", "-"]
    same = ["4.0000", "1.000 [1.000, 1.000]"]
    assert rows["fast"] == ["1,000", "30.0", "4.0000", "30.0", "0.500 [0.500, 0.500]", *same]
    half = ["2.0000", "0.500 [0.500, 0.500]"]
    assert rows["sooner"] == ["1,000", "60.0", "2.0000", "30.0", "0.500 [0.500, 0.500]", *half]
    assert rows["worse"][3:5] == ["1 of 2 reached", "-"]
    assert rows["worse"][5] == "5.5000"  # after half of its first training 7, after the second 4
    assert rows["diverged"][2:] == ["inf", "1 of 2 reached", "-", "diverged", "-"]


def test_the_plain_transformer_reads_no_later_byte_and_starts_near_chance():
    torch.manual_seed(0)
    model = plain.GPT(ModelConfig(dim=16, depth=2, heads=2), seq_len=8)
    ids_bt = torch.randint(256, (1, 8))
    other_bt = ids_bt.clone()
    other_bt[:, 5:] = (other_bt[:, 5:] + 1) % 256
    logits_btv, changed_btv = model(ids_bt), model(other_bt)
    torch.testing.assert_close(logits_btv[:, :5], changed_btv[:, :5])
    assert not torch.allclose(logits_btv[:, 5:], changed_btv[:, 5:])
    assert logits_btv.log_softmax(-1).exp().max() < 0.01
