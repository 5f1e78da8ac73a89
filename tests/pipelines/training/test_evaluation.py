import pytest
import torch

from dca import build_model
from pipelines.data.batches import open_bytes
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
