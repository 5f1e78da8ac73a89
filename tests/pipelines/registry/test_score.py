import math
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dca import ModelConfig, build_model
from dca.registry import residual
from pipelines.console.errors import DamagedError, PipelineError
from pipelines.engine.code import read_sources
from pipelines.registry import score as score_module
from pipelines.registry.gate import Gate, force
from pipelines.registry.score import (
    NotCausalError,
    Score,
    block_edges,
    require_causal,
    score,
    windows_text,
)
from pipelines.registry.versions import Registry
from pipelines.tracking.models import model_id_of
from tests.pipelines.packages import isolated_forked, log_untrained


@pytest.mark.process
def test_each_version_is_evaluated_by_its_own_sources(experiment, store, tmp_path, monkeypatch):
    """The second one's code makes every byte equally likely: 8 bits, whatever its weights are."""
    test = tmp_path / "test.bin"
    test.write_bytes(Path(experiment.data.path).read_bytes()[:3000])
    registry = Registry(store.client, "tiny")
    sources = read_sources()
    for seed in range(2):
        run, uri = log_untrained(store, experiment, seed, sources)
        assert registry.register(uri, run, {}) == seed + 1
        sources["dca/architectures/gpt.py"] += FLAT.encode()
    force(registry, 2, "to be compared with")
    isolated_forked(monkeypatch)
    decision = Gate(registry, experiment.promote, test, "some", tmp_path).decide(1)
    assert decision.numbers["champion_bits_per_byte"] == pytest.approx(8.0, abs=1e-6)
    assert decision.numbers["bits_per_byte"] != pytest.approx(8.0, abs=1e-3)
    assert not decision.promoted


@pytest.mark.process
def test_a_packaged_model_that_looks_ahead_is_refused(experiment, store, tmp_path, monkeypatch):
    """By `score`, as evaluate calls it, and by the gate. Its bits would be next to none."""
    test = tmp_path / "test.bin"
    test.write_bytes(Path(experiment.data.path).read_bytes()[:3000])
    sources = read_sources()
    sources["dca/architectures/gpt.py"] += LOOKS_AHEAD.encode()
    isolated_forked(monkeypatch)
    run, uri = log_untrained(store, experiment, sources=sources)
    registry = Registry(store.client, "tiny")
    registry.register(uri, run, {})
    with pytest.raises(NotCausalError) as error:
        score(store.models, model_id_of(uri), test)
    assert str(error.value) == (
        f"{uri}: refused: it sees what it predicts: replacing the bytes from place 1 of a window "
        "on changes its prediction of the byte at place 1"
    )
    decision = Gate(registry, experiment.promote, test, "some", tmp_path).decide(1)
    assert (decision.promoted, decision.reason) == (False, str(error.value))


@pytest.mark.extended
@pytest.mark.process
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ValueError('no such\\nkernel')", "ValueError: no such"),
        ("raise MemoryError", "MemoryError: MemoryError"),
        ("import os; os._exit(3)", "exit code 3"),
        ("import os; os._exit(0)", "exit code 0: its code ended the process"),
        ("raise SystemExit('gone')", "exit code 1: gone"),
    ],
)
def test_why_a_version_cannot_be_scored_is_one_line(experiment, store, monkeypatch, code, reason):
    sources = read_sources() | {"dca/__init__.py": code.encode()}
    if "gone" not in code:  # one of them is a process as users have it
        isolated_forked(monkeypatch)
    _, uri = log_untrained(store, experiment, sources=sources)
    with pytest.raises(PipelineError) as error:
        score(store.models, model_id_of(uri), Path(experiment.data.path))
    assert str(error.value) == f"{uri}: cannot be scored: {reason}"
    assert isinstance(error.value, DamagedError) is ("ValueError" in reason)


FLAT = """

_forward = GPT.forward
GPT.forward = lambda self, *args: 0.0 * _forward(self, *args)
"""


LOOKS_AHEAD = """

_blind = GPT.forward

def _seeing(self, ids_bt, *args):
    following = F.one_hot(ids_bt.roll(-1, 1), self.config.vocab)
    return _blind(self, ids_bt, *args) + 9.0 * following

GPT.forward = _seeing
"""


class Toy(torch.nn.Module):
    """Logits of a position: a function of the embedded bytes of the whole batch."""

    def __init__(self, mix) -> None:
        super().__init__()
        self.embed, self.mix = torch.nn.Embedding(256, 256), mix

    def forward(self, ids_bt):
        return self.mix(self.embed(ids_bt))


def causal(x_btd: torch.Tensor) -> torch.Tensor:
    return x_btd.cumsum(1) / torch.arange(1, x_btd.shape[1] + 1)[:, None]


LEAKS = {
    "the next byte": lambda x: x + x.roll(-1, 1),
    "the last byte of the window": lambda x: x + 1e-2 * x[:, -1:],
    "a byte far ahead": lambda x: x + x.roll(-40, 1) * (torch.arange(64)[:, None] < 24),
    "the block of 4 bytes around it": lambda x: (
        x + x.unflatten(1, (-1, 4)).mean(2).repeat_interleave(4, 1)
    ),
    "the mean over the window": lambda x: x - x.mean(1, keepdim=True),
    "other windows of the batch": lambda x: x - x.mean(0, keepdim=True),
    "a scale of the whole batch": lambda x: x / x.abs().mean(),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_whatever_a_model_sees_of_the_future_the_probe_finds_it(leak):
    torch.manual_seed(0)
    text = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)
    require_causal(Toy(causal), text, 64)
    with pytest.raises(NotCausalError, match="it sees what it predicts: replacing the bytes"):
        require_causal(Toy(LEAKS[leak]), text, 64)


@pytest.mark.parametrize(("size", "seq_len"), [(2, 64), (3, 64), (50, 64), (5000, 1), (5000, 2)])
def test_short_texts_and_windows_are_probed_as_far_as_they_go(size, seq_len):
    text = np.arange(size, dtype=np.uint8)
    require_causal(Toy(causal), text, seq_len)
    if min(size - 1, seq_len) > 1:
        with pytest.raises(NotCausalError):
            require_causal(Toy(LEAKS["the next byte"]), text, seq_len)


def test_answers_that_are_not_finite_are_no_sign_of_the_future():
    def overflowing(x_btd: torch.Tensor) -> torch.Tensor:
        return causal(x_btd) * torch.tensor(float("inf"))

    require_causal(Toy(overflowing), np.arange(200, dtype=np.uint8), 64)


def test_every_kind_of_model_passes_the_probe(experiment):
    """Trained weights would be no other: no kind has a path from later positions."""
    text = np.frombuffer(Path(experiment.data.path).read_bytes()[:5000], np.uint8)
    for kind in residual.names:
        torch.manual_seed(0)
        config = ModelConfig(dim=16, depth=3, heads=2, residual=kind, attention_windows=(8, None))
        require_causal(build_model(config).eval(), text, 33)


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


SCORE = Score([1.0] * 29 + [11.0], 31, 8, 16, 7, 100.0, 0.5)


def test_a_score_is_of_the_predicted_bytes_and_read_only_for_the_same_text():
    assert SCORE.bits_per_byte == 40 / 30
    assert Score.read(asdict(SCORE), 31) == SCORE
    assert Score.read(asdict(SCORE), 32) is None
    assert Score.read(asdict(SCORE) | {"block_bits": [1.0] * 29}, 31) is None
    assert Score.read(asdict(SCORE) | {"later": 1}, 31) is None
    for lengths in ({"seq_len": 17}, {"seq_len": 0}, {"trained_seq_len": 7}):
        assert Score.read(asdict(SCORE) | lengths, 31) is None
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
    packaged = SimpleNamespace(
        model=Toy(lambda x: 0.0 * x),
        dca=SimpleNamespace(stream=stream),
        config={"train": {"seq_len": 16}},
    )
    monkeypatch.setattr(score_module.time, "perf_counter", Clock())
    found = score_module._measure(packaged, text, tmp_path / "share")
    assert asked == 3 * [([list(range(64))], 65, 0.0)]
    assert found.block_bits == pytest.approx(8.0 * np.diff(block_edges(100)))
    assert (found.text_bytes, found.parameters) == (100, 256 * 256)
    assert found.latency_seconds == 2.0  # rounds: looks 1 to 3, 4 to 6, 7 to 9
    assert found.bytes_per_second == 64 / 3.0


def test_a_process_that_ends_without_a_result_shows_the_end_of_its_errors(tmp_path, monkeypatch):
    child = SimpleNamespace(returncode=9, stderr=f" {'x' * 400}end\n", stdout="")
    monkeypatch.setattr(score_module, "run_isolated", lambda *_: child)
    found = score_module._in_own_process(tmp_path, tmp_path, tmp_path / "none")
    assert found == {"error": f"exit code 9: {'x' * 297}end"}
    child.stderr = ""
    assert score_module._in_own_process(tmp_path, tmp_path, tmp_path) == {"error": "exit code 9"}


def test_the_windows_are_those_asked_for_and_never_longer_than_those_of_the_training(tmp_path):
    """Bits of an own method of the package are not asked for."""
    lengths = []

    class Watched(Toy):
        def forward(self, ids_bt):
            lengths.append(ids_bt.shape[1])
            return super().forward(ids_bt)

    text = tmp_path / "text"
    text.write_bytes(bytes(range(200)))
    packaged = SimpleNamespace(
        model=Watched(causal),
        dca=SimpleNamespace(stream=lambda *_, **__: iter([torch.tensor(0)])),
        config={"train": {"seq_len": 50}},
        bits=lambda data: 1e-9 * np.ones(len(data) - 1),
    )
    for asked, used in ((None, 50), (20, 20), (80, 50)):
        lengths.clear()
        found = score_module._measure(packaged, text, tmp_path / "share", asked)
        assert (found.seq_len, found.trained_seq_len, max(lengths)) == (used, 50, used)
        assert found.bits_per_byte > 1


def test_the_windows_are_told_and_those_of_the_trainings_if_they_differ():
    assert windows_text(SCORE, SCORE) == "in the same windows of 8 (trained with 16 and 16)"
    short, long = (replace(SCORE, trained_seq_len=length) for length in (8, 32))
    assert windows_text(short, short) == "in the same windows of 8"
    assert windows_text(long, short) == "in the same windows of 8 (trained with 32 and 8)"


def test_a_text_is_read_in_parts_of_whole_batches_and_its_share_is_reported(tmp_path, monkeypatch):
    """So that the numbers are those of the text as a whole."""
    parts, share = [], tmp_path / "share"

    def bits(model, data, seq_len):
        parts.append(data)
        return np.asarray(data[1:], dtype=float)

    seq_len = 4
    size = 2 * seq_len * score_module.PART_WINDOWS
    monkeypatch.setattr(score_module, "text_bits", bits)
    for more, count in ((1, 2), (2, 3), (7, 3)):
        parts.clear()
        data = np.arange(size + more)
        assert score_module._bits(None, data, seq_len, share).tolist() == data[1:].tolist()
        assert [len(part) for part in parts[:2]] == [size // 2 + 1] * 2
        assert len(parts) == count
        assert share.read_text() == "100 %"
