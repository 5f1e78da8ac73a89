import math
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipelines.console.errors import PipelineError
from pipelines.registry import package
from pipelines.registry import score as score_module
from pipelines.registry.gate import Gate, force
from pipelines.registry.score import Score, block_edges, score
from pipelines.registry.versions import Registry
from pipelines.storage.project import ROOT
from pipelines.tracking.models import model_id_of
from tests.pipelines.packages import isolated_forked, log_untrained


@pytest.mark.process
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
    isolated_forked(monkeypatch)
    decision = Gate(registry, experiment.promote, test, "some").decide(1)
    assert decision.numbers["champion_bits_per_byte"] == pytest.approx(8.0, abs=1e-6)
    assert decision.numbers["bits_per_byte"] != pytest.approx(8.0, abs=1e-3)
    assert not decision.promoted


@pytest.mark.process
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
    if "gone" not in code:  # one of them is a process as users have it
        isolated_forked(monkeypatch)
    _, uri = log_untrained(store, experiment)
    with pytest.raises(PipelineError) as error:
        score(store.models, model_id_of(uri), Path(experiment.data.path))
    assert str(error.value) == f"{uri}: {reason}"


FLAT = """

_forward = GPT.forward
GPT.forward = lambda self, *args: 0.0 * _forward(self, *args)
"""


@pytest.mark.parametrize(
    ("text_bytes", "blocks", "first", "last"),
    [
        *((2, 1, 1, 1), (10, 9, 1, 9), (31, 30, 1, 30), (1000, 30, 33, 999)),
        *((122_881, 30, 4096, 122_880), (126_976, 30, 4232, 126_975)),
        *((126_977, 31, 4096, 126_976), (4_096_001, 1000, 4096, 4_096_000)),
        (10**7, 1000, 9999, 9_999_999),
    ],
)
def test_a_text_is_cut_into_thirty_to_a_thousand_equal_blocks(text_bytes, blocks, first, last):
    edges = block_edges(text_bytes)
    assert (len(edges) - 1, edges[:2], edges[-1]) == (blocks, [0, first], last)
    sizes = np.diff(edges)
    assert sizes.max() - sizes.min() <= 1


SCORE = Score([1.0] * 29 + [11.0], 31, 7, 100.0, 0.5)


def test_a_score_is_of_the_predicted_bytes_and_read_only_for_the_same_text():
    assert SCORE.bits_per_byte == 40 / 30
    assert Score.read(asdict(SCORE), 31) == SCORE
    assert Score.read(asdict(SCORE), 32) is None
    assert Score.read(asdict(SCORE) | {"block_bits": [1.0] * 29}, 31) is None
    assert Score.read(asdict(SCORE) | {"later": 1}, 31) is None
    assert Score.read(None, 31) is None
    for number in (math.nan, math.inf, -1.0, "1.0", None, True):
        for key, value in (("latency_seconds", number), ("block_bits", [1.0] * 29 + [number])):
            assert Score.read(asdict(SCORE) | {key: value}, 31) is None


class Clock:
    """Each look at it takes a second more than the one before."""

    def __init__(self) -> None:
        self.now, self.step = 0.0, 0.0

    def __call__(self) -> float:
        self.step += 1
        self.now += self.step
        return self.now


def test_the_best_of_three_rounds_is_timed_from_a_prompt_of_64_bytes(tmp_path, monkeypatch):
    asked = []

    def stream(model, ids_bt, *, max_new_tokens, temperature):
        asked.append((ids_bt.tolist(), max_new_tokens, temperature))
        return iter([torch.tensor(0)] * max_new_tokens)

    text = tmp_path / "text"
    text.write_bytes(bytes(range(100)))
    model = torch.nn.Linear(3, 2)
    packaged = SimpleNamespace(
        model=model, dca=SimpleNamespace(stream=stream), bits=lambda data: np.ones(len(data) - 1)
    )
    monkeypatch.setattr(score_module.time, "perf_counter", Clock())
    found = score_module._measure(packaged, text, tmp_path / "share")
    assert asked == 3 * [([list(range(64))], 65, 0.0)]
    assert found.block_bits == np.diff(block_edges(100)).tolist()
    assert (found.text_bytes, found.parameters) == (100, 8)
    assert found.latency_seconds == 2.0  # rounds: looks 1 to 3, 4 to 6, 7 to 9
    assert found.bytes_per_second == 64 / 3.0


def test_a_process_that_ends_without_a_result_shows_the_end_of_its_errors(tmp_path, monkeypatch):
    child = SimpleNamespace(returncode=9, stderr=f" {'x' * 400}end\n", stdout="")
    monkeypatch.setattr(score_module, "run_isolated", lambda *_: child)
    found = score_module._in_own_process(tmp_path, tmp_path, tmp_path / "none")
    assert found == {"error": f"exit code 9: {'x' * 297}end"}
    child.stderr = ""
    assert score_module._in_own_process(tmp_path, tmp_path, tmp_path) == {"error": "exit code 9"}


def test_a_text_is_read_in_parts_of_whole_batches_and_its_share_is_reported(tmp_path):
    """So that the numbers are those of the text as a whole."""
    parts, share = [], tmp_path / "share"

    def bits(data):
        parts.append(data)
        return np.asarray(data[1:], dtype=float)

    seq_len = 4
    size = 2 * seq_len * score_module.PART_WINDOWS
    packaged = SimpleNamespace(config={"train": {"seq_len": seq_len}}, bits=bits)
    for more, count in ((1, 2), (2, 3), (7, 3)):
        parts.clear()
        data = np.arange(size + more)
        assert score_module._bits(packaged, data, share).tolist() == data[1:].tolist()
        assert [len(part) for part in parts[:2]] == [size // 2 + 1] * 2
        assert len(parts) == count
        assert share.read_text() == "100 %"
