"""The share of a test text that the training text has too."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data import overlap
from pipelines.data.overlap import STRING_BYTES, overlap_share


def by_definition(train: bytes, test: bytes) -> float:
    known = {train[i : i + STRING_BYTES] for i in range(len(train) - STRING_BYTES + 1)}
    covered = set()
    for i in range(len(test) - STRING_BYTES + 1):
        if test[i : i + STRING_BYTES] in known:
            covered |= set(range(i, i + STRING_BYTES))
    return len(covered) / len(test) if test else 0.0


@pytest.fixture(scope="module")
def share(tmp_path_factory):
    """The function on bytes, with small chunks and pieces and a small filter."""
    folder = tmp_path_factory.mktemp("overlap")

    def of(train: bytes, test: bytes) -> float:
        (folder / "train").write_bytes(train)
        (folder / "test").write_bytes(test)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(overlap, "CHUNK_BYTES", 100)
            patch.setattr(overlap, "PIECE_STRINGS", 130)
            patch.setattr(overlap, "FILTER_SLOTS", 1)
            return overlap_share(folder / "train", folder / "test")

    return of


@given(st.data())
def test_it_is_the_share_by_its_definition(share, data):
    """Texts of few symbols, and pieces of one in the other."""
    symbols = st.lists(st.sampled_from(b"ab"), max_size=300).map(bytes)
    train = data.draw(symbols)
    start, size = data.draw(st.integers(0, 250)), data.draw(st.integers(50, 200))
    test = data.draw(symbols) + train[start : start + size] + data.draw(symbols)
    assert share(train, test) == by_definition(train, test)


def test_a_copy_is_found_whole_and_random_bytes_not_at_all(tmp_path):
    random = np.random.default_rng(0).bytes
    train, piece = random(300_000), random(1_000)
    (tmp_path / "train").write_bytes(train[:150_000] + piece + train[150_000:])
    (tmp_path / "test").write_bytes(random(2_000) + piece + random(1_000))
    assert overlap_share(tmp_path / "train", tmp_path / "test") == 0.25


def test_its_memory_does_not_grow_with_the_test_text(tmp_path, monkeypatch):
    monkeypatch.setattr(overlap, "CHUNK_BYTES", 1_000)
    monkeypatch.setattr(overlap, "PIECE_STRINGS", 2_000)
    random, peaks = np.random.default_rng(0).bytes, []
    (tmp_path / "train").write_bytes(random(3_000))
    for size in (6_000, 40_000):
        (tmp_path / "test").write_bytes(random(size))
        tracemalloc.start()
        overlap_share(tmp_path / "train", tmp_path / "test")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_texts_that_are_too_short_share_nothing(share):
    assert share(b"a" * 63, b"a" * 63) == share(b"", b"a" * 64) == share(b"a" * 64, b"") == 0.0
    assert share(b"a" * 64, b"a" * 64) == 1.0
