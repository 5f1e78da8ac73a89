import gzip
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pipelines.runtime.config import DataConfig
from pipelines.runtime.errors import ConfigError
from pipelines.training.data import Batches, development, measure, open_bytes, prepare, sealed_test


def of_files(path: Path) -> DataConfig:
    return DataConfig(corpus="files", path=str(path))


def numbered(length: int) -> np.ndarray:
    """Bytes from which a window's start can be read back, for lengths below 65,536."""
    index = np.arange(length)
    return np.where(index % 2, index // 512, (index // 2) % 256).astype(np.uint8)


def test_splits_are_contiguous_parts_of_the_whole_text(text, tmp_path):
    corpus = measure(of_files(text), seq_len=32)
    prepare(of_files(text), corpus, tmp_path)
    files = development(tmp_path, corpus.fingerprint)
    paths = [files.train, files.validation, sealed_test(tmp_path, corpus.fingerprint)]
    parts = [path.read_bytes() for path in paths]
    whole = text.read_bytes()
    assert b"".join(parts) == whole
    assert [len(part) for part in parts] == list(corpus.sizes.values())
    assert [round(len(part) / len(whole), 2) for part in parts] == [0.9, 0.05, 0.05]


def test_what_the_search_receives_does_not_lead_to_the_test_split(text, tmp_path):
    corpus = measure(of_files(text), seq_len=32)
    prepare(of_files(text), corpus, tmp_path)
    held_out = sealed_test(tmp_path, corpus.fingerprint)
    files = development(tmp_path, corpus.fingerprint)
    assert {files.train.parent, files.validation.parent} == {
        tmp_path / "corpora" / corpus.fingerprint
    }
    assert held_out.parent not in (files.train.parent, *files.train.parent.parents)


def test_no_module_of_the_search_or_the_training_opens_the_test_split():
    users = {
        path.as_posix()
        for path in Path("pipelines").rglob("*.py")
        if re.search("sealed_test|split_paths|test_bytes", path.read_text())
    }
    assert users == {
        "pipelines/training/data.py",
        "pipelines/stages/corpus.py",  # makes it
        "pipelines/stages/evaluate.py",
        "pipelines/stages/promote.py",
        "pipelines/promote.py",
    }


def test_a_torn_split_is_written_again(text, tmp_path):
    corpus = measure(of_files(text), seq_len=32)
    prepare(of_files(text), corpus, tmp_path)
    path = development(tmp_path, corpus.fingerprint).validation
    content = path.read_bytes()
    path.write_bytes(content[:10])
    prepare(of_files(text), corpus, tmp_path)
    assert path.read_bytes() == content


def test_a_folder_and_a_glob_are_read_in_the_order_of_their_paths(tmp_path):
    for name, byte in [("b.txt", b"b"), ("a.txt", b"a"), ("c.md", b"c")]:
        (tmp_path / name).write_bytes(byte * 1000)
    whole = measure(of_files(tmp_path), seq_len=32)
    texts = measure(DataConfig(corpus="files", path=str(tmp_path / "*.txt")), seq_len=32)
    (tmp_path / "joined").write_bytes(b"a" * 1000 + b"b" * 1000)
    assert texts == measure(of_files(tmp_path / "joined"), seq_len=32)
    assert (whole.size, texts.size) == (3000, 2000)


@pytest.mark.parametrize(("size", "expected"), [(0, "0 bytes"), (100, "100 bytes")])
def test_an_empty_or_too_short_corpus_is_refused(tmp_path, size, expected):
    path = tmp_path / "short"
    path.write_bytes(b"x" * size)
    with pytest.raises(ConfigError, match=expected):
        measure(of_files(path), seq_len=32)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.txt: no such file, folder or glob match"):
        measure(of_files(tmp_path / "none.txt"), seq_len=32)


def test_enwik8_is_found_plain_zipped_or_gzipped(tmp_path):
    content = bytes(numbered(5000))
    config = DataConfig(corpus="enwik8", path=str(tmp_path))
    with pytest.raises(ConfigError, match=r"expected one of enwik8, enwik8\.gz, enwik8\.zip in"):
        measure(config, seq_len=32)
    with zipfile.ZipFile(tmp_path / "enwik8.zip", "w") as archive:
        archive.writestr("enwik8", content)
    zipped = measure(config, seq_len=32)
    (tmp_path / "enwik8.gz").write_bytes(gzip.compress(content))
    gzipped = measure(config, seq_len=32)
    (tmp_path / "enwik8").write_bytes(content)
    assert measure(config, seq_len=32) == gzipped == zipped


def test_the_standard_library_is_a_corpus_on_every_machine():
    corpus = measure(DataConfig(), seq_len=256)
    assert corpus.size > 5_000_000
    assert corpus == measure(DataConfig(), seq_len=256)


def test_an_epoch_visits_every_window_once_and_the_next_in_another_order():
    data = np.arange(1000, dtype=np.int64)  # any array will do: a window shows where it starts
    batches = Batches(data, seq_len=10, sequences=7, seed=3)
    per_epoch = 98
    starts = np.concatenate([batches(step)[:, 0] for step in range(2 * per_epoch // 7)])
    epochs = starts[:per_epoch], starts[per_epoch:]
    for epoch in epochs:
        assert len(set(epoch // 10)) == per_epoch
        assert len(set(epoch % 10)) == 1
    assert not np.array_equal(*epochs)


def test_a_batch_is_a_function_of_the_seed_and_the_step_alone():
    data = numbered(5000)
    forward = Batches(data, 16, 4, seed=0)
    history = [forward(step) for step in range(200)]
    resumed = Batches(data, 16, 4, seed=0)
    assert all(np.array_equal(resumed(step), history[step]) for step in (150, 3, 199))
    assert not np.array_equal(Batches(data, 16, 4, seed=1)(0), history[0])


@pytest.mark.parametrize("world", [1, 2, 4])
def test_workers_share_the_same_global_batch(world):
    batches = Batches(numbered(5000), 16, 8, seed=0)
    shares = [batches(5, rank, world) for rank in range(world)]
    assert np.array_equal(np.concatenate(shares), batches(5))


def test_a_split_is_mapped_and_not_read(tmp_path):
    path = tmp_path / "split"
    path.write_bytes(b"abc")
    data = open_bytes(path)
    assert isinstance(data, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        data[0] = 1
