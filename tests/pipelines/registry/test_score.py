import shutil
from pathlib import Path

import pytest

from pipelines.engine.stage import ROOT
from pipelines.registry import package
from pipelines.registry.gate import Gate, force
from pipelines.registry.versions import Registry
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


FLAT = """

_forward = GPT.forward
GPT.forward = lambda self, *args: 0.0 * _forward(self, *args)
"""
