import bz2
import gzip
import lzma
import math

import numpy as np
import pytest
import torch

from dca import build_model
from pipelines.data.batches import open_bytes
from pipelines.training import evaluation
from pipelines.training.evaluation import bits_per_byte, compressors

TOLERANCE = 1e-5
"""Of sums in another order, of another batch size."""


class Uniform(torch.nn.Module):
    """Predicts every byte with the same probability."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = torch.nn.Parameter(torch.zeros(()))

    def forward(self, ids_bt: torch.Tensor) -> torch.Tensor:
        return self.logit.expand(*ids_bt.shape, 256)


def test_a_model_that_knows_nothing_needs_eight_bits_per_byte(splits):
    data = open_bytes(splits.validation)
    assert bits_per_byte(Uniform(), data, seq_len=32) == pytest.approx(8)
    assert bits_per_byte(Uniform(), data, seq_len=32, tokens=1) == pytest.approx(8)


def test_evaluation_in_any_batch_size_gives_the_same_number(run, splits):
    model, data = build_model(run.model), open_bytes(splits.validation)
    whole = bits_per_byte(model, data, seq_len=32, batch=1000)
    assert bits_per_byte(model, data, seq_len=32, batch=7) == pytest.approx(whole, rel=TOLERANCE)
    assert model.training


def test_compressors_and_entropy_of_a_known_text(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(bytes(range(4)) * 1000)
    bits = compressors(path)
    assert bits["order-0 entropy"] == pytest.approx(2)
    assert max(bits["gzip"], bits["bz2"], bits["xz"]) < 0.3


class Half(torch.nn.Module):
    """Predicts byte 0 with probability 1/2, and each other one with 1/510."""

    def __init__(self) -> None:
        super().__init__()
        shares = torch.full((256,), 1 / 510)
        shares[0] = 0.5
        self.logits = torch.nn.Parameter(shares.log())
        self.read: list[torch.Tensor] = []

    def forward(self, ids_bt: torch.Tensor) -> torch.Tensor:
        assert not self.training
        self.read.append(ids_bt)
        return self.logits.expand(*ids_bt.shape, 256)


def test_windows_are_spread_over_the_split_and_each_byte_counts_once():
    data = np.zeros(41, dtype=np.uint8)  # ten windows of four bytes, each byte of them predicted
    data[33:] = 1
    for tokens, starts, ones in (
        (None, range(0, 40, 4), 8),
        (99, range(0, 40, 4), 8),
        (15, (0, 16, 36), 4),  # 12 bytes, the 4.5th window rounded to the even one
        (1, (0,), 0),
    ):
        model = Half()
        found = bits_per_byte(model, data, seq_len=4, tokens=tokens, batch=3)
        read = torch.cat(model.read)
        expected = np.stack([data[start : start + 4] for start in starts])
        assert read.tolist() == expected.tolist()
        count = read.numel()
        bits = (count - ones) + ones * math.log2(510)
        assert found == pytest.approx(bits / count, rel=1e-5)  # float32
        assert max(map(len, model.read)) <= 3


def test_the_share_of_each_worker_adds_up_to_the_whole(monkeypatch):
    data = np.arange(82, dtype=np.uint8)
    summed = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda nats: summed.append(nats.item()))
    read = []
    for rank in range(3):
        monkeypatch.setattr(evaluation, "rank_and_world", lambda rank=rank: (rank, 3))
        model = Half()
        bits_per_byte(model, data, seq_len=4)
        read += [ids[0].item() for ids in torch.cat(model.read)]
    assert sorted(read) == list(range(0, 80, 4))
    assert sum(summed) == pytest.approx(math.log(510) * 80, rel=1e-6)


def test_compressors_have_the_size_of_their_strongest_setting(text):
    data = text.read_bytes()
    found = compressors(text)
    assert found["gzip"] == 8 * len(gzip.compress(data, 9)) / len(data)
    assert found["bz2"] == 8 * len(bz2.compress(data, 9)) / len(data)
    assert found["xz"] == 8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) / len(data)
    _, counts = np.unique(np.frombuffer(data, np.uint8), return_counts=True)
    shares = counts / counts.sum()
    assert found["order-0 entropy"] == pytest.approx(-sum(p * math.log2(p) for p in shares))
