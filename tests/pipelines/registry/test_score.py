import shutil
from pathlib import Path

import pytest

from pipelines.console.errors import PipelineError
from pipelines.registry import package
from pipelines.registry.gate import Gate, force
from pipelines.registry.score import score
from pipelines.registry.versions import Registry
from pipelines.storage.project import ROOT
from pipelines.tracking.models import model_id_of
from tests.pipelines.packages import log_untrained


def test_each_version_is_evaluated_by_its_own_sources(experiment, store, tmp_path, monkeypatch):
    """The second one's code makes every byte equally likely: 8 bits, whatever its weights are."""
    test = tmp_path / "test.bin"
    test.write_bytes(Path(experiment.data.path).read_bytes()[:3000])
    registry = Registry(store.client, "tiny")
    for seed in range(2):
        run, uri = log_untrained(store, experiment, seed)
        assert registry.register(uri, run, {}) == seed + 1
        shutil.copytree(ROOT / "dca", tmp_path / "dca", dirs_exist_ok=True)
        model = tmp_path / "dca" / "architectures" / "gpt.py"
        model.write_text(model.read_text() + FLAT)
        monkeypatch.setattr(package, "ROOT", tmp_path)
    force(registry, 2, "to be compared with")
    decision = Gate(registry, experiment.promote, test, "some").decide(1)
    assert decision.numbers["champion_bits_per_byte"] == pytest.approx(8.0, abs=1e-6)
    assert decision.numbers["bits_per_byte"] != pytest.approx(8.0, abs=1e-3)
    assert not decision.promoted


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ValueError('no such\\nkernel')", "cannot be scored: ValueError: no such"),
        ("import os; os._exit(3)", "cannot be scored: exit code 3"),
        ("raise SystemExit('gone')", "cannot be scored: exit code 1: gone"),
    ],
)
def test_why_a_version_cannot_be_scored_is_one_line(
    experiment, store, tmp_path, monkeypatch, code, reason
):
    shutil.copytree(ROOT / "dca", tmp_path / "dca")
    (tmp_path / "dca" / "__init__.py").write_text(code)
    monkeypatch.setattr(package, "ROOT", tmp_path)
    _, uri = log_untrained(store, experiment)
    with pytest.raises(PipelineError) as error:
        score(store.models, model_id_of(uri), Path(experiment.data.path))
    assert str(error.value) == f"{uri}: {reason}"


FLAT = """

_forward = GPT.forward
GPT.forward = lambda self, *args: 0.0 * _forward(self, *args)
"""
