import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipelines.console import progress
from pipelines.console.errors import ConfigError, PipelineError, StorageError
from pipelines.console.updates import OutputMode
from pipelines.data import splits as module
from pipelines.data.batches import Batches, open_bytes
from pipelines.data.config import DataConfig
from pipelines.data.corpora import CORPORA, Source
from pipelines.data.files import read_files
from pipelines.data.published import PublishedText
from pipelines.data.splits import (
    find_splits,
    measure_corpus,
    sealed_test,
    train_val_splits,
    write_splits,
)
from pipelines.storage.files import put_file, temporary_copy


def of_files(path: Path) -> DataConfig:
    return DataConfig(corpus="files", path=str(path))


def numbered(length: int) -> np.ndarray:
    """Bytes from which a window's start can be read back, for lengths below 65,536."""
    index = np.arange(length)
    return np.where(index % 2, index // 512, (index // 2) % 256).astype(np.uint8)


def test_splits_are_contiguous_parts_of_the_whole_text(text, tmp_path):
    corpus = measure_corpus(of_files(text), seq_len=32)
    write_splits(of_files(text), corpus, tmp_path)
    files = train_val_splits(tmp_path, corpus.fingerprint)
    paths = [files.train, files.validation, sealed_test(tmp_path, corpus.fingerprint)]
    parts = [path.read_bytes() for path in paths]
    whole = text.read_bytes()
    assert b"".join(parts) == whole
    assert [len(part) for part in parts] == list(corpus.sizes.values())
    assert [round(len(part) / len(whole), 2) for part in parts] == [0.9, 0.05, 0.05]


def test_what_the_search_receives_does_not_lead_to_the_test_split(text, tmp_path):
    corpus = measure_corpus(of_files(text), seq_len=32)
    write_splits(of_files(text), corpus, tmp_path)
    held_out = sealed_test(tmp_path, corpus.fingerprint)
    files = train_val_splits(tmp_path, corpus.fingerprint)
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
        "pipelines/data/splits.py",  # defines it
        "pipelines/stages/corpus.py",  # makes it
        "pipelines/stages/evaluate.py",
        "pipelines/stages/promote.py",
        "pipelines/promote.py",
    }


def test_from_shared_storage_each_node_maps_a_copy_of_its_own(text, shared, tmp_path, monkeypatch):
    corpus = measure_corpus(of_files(text), seq_len=32)
    write_splits(of_files(text), corpus, shared)
    write_splits(of_files(text), corpus, tmp_path / "here")
    files = train_val_splits(shared, corpus.fingerprint)
    test = sealed_test(shared, corpus.fingerprint)
    for node in ("a", "b"):
        (tmp_path / node).mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / node))
        with temporary_copy(test) as path:
            parts = [bytes(open_bytes(file)) for file in (files.train, files.validation)]
            parts.append(path.read_bytes())
        assert b"".join(parts) == text.read_bytes()
        copies = [found for found in (tmp_path / node).rglob("*") if not found.is_dir()]
        sizes = sorted(copy.stat().st_size for copy in copies if copy.suffix != ".lock")
        assert sizes == sorted([corpus.sizes["train"], corpus.sizes["validation"]])
    splits = {"train": files.train, "validation": files.validation, "test": test}
    assert find_splits(shared, corpus.fingerprint) == splits
    assert find_splits(shared, "another") is None
    assert "sealed" not in str(files)


def test_splits_in_shared_storage_are_written_once_and_again_if_one_is_damaged(text, shared):
    corpus = measure_corpus(of_files(text), seq_len=32)
    write_splits(of_files(text), corpus, shared)
    write_splits(DataConfig(corpus="files", path="none"), corpus, shared)
    files = shared.files()
    assert len(files) == 6
    name = f"corpora/{corpus.fingerprint}/validation.bin"
    (shared / name).write_text("torn")
    write_splits(of_files(text), corpus, shared)
    assert (shared / name).size() == corpus.sizes["validation"]
    shared.remove()
    with pytest.raises(PipelineError, match=r"train\.bin.*: no such file in storage any more; run"):
        train_val_splits(shared, corpus.fingerprint)


def test_a_torn_split_is_written_again(text, tmp_path):
    corpus = measure_corpus(of_files(text), seq_len=32)
    write_splits(of_files(text), corpus, tmp_path)
    path = train_val_splits(tmp_path, corpus.fingerprint).validation
    content = path.read_bytes()
    path.write_bytes(content[:10])
    write_splits(of_files(text), corpus, tmp_path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_of_other_bytes_is_not_the_corpus_and_is_written_again(text, tmp_path, split):
    corpus = measure_corpus(of_files(text), seq_len=32)
    write_splits(of_files(text), corpus, tmp_path)
    path = find_splits(tmp_path, corpus.fingerprint)[split]
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert find_splits(tmp_path, corpus.fingerprint) is None
    write_splits(of_files(text), corpus, tmp_path)
    assert path.read_bytes() == content


def test_what_is_no_file_is_no_split_and_is_not_waited_for(text, tmp_path):
    corpus = measure_corpus(of_files(text), seq_len=32)
    write_splits(of_files(text), corpus, tmp_path)
    path = find_splits(tmp_path, corpus.fingerprint)["validation"]
    content = path.read_bytes()
    path.unlink()
    path.mkdir()
    assert find_splits(tmp_path, corpus.fingerprint) is None
    with pytest.raises(StorageError, match=r"validation\.bin: cannot be written: Is a directory$"):
        write_splits(of_files(text), corpus, tmp_path)
    path.rmdir()
    os.mkfifo(path)
    write_splits(of_files(text), corpus, tmp_path)
    assert path.read_bytes() == content


def test_the_same_bytes_with_another_border_between_the_splits_are_not_the_corpus(text, tmp_path):
    corpus = measure_corpus(of_files(text), seq_len=32)
    write_splits(of_files(text), corpus, tmp_path)
    files = find_splits(tmp_path, corpus.fingerprint)
    train, validation = (files[split].read_bytes() for split in ("train", "validation"))
    files["train"].write_bytes(train + validation[:1])
    files["validation"].write_bytes(validation[1:])
    assert find_splits(tmp_path, corpus.fingerprint) is None


@pytest.mark.parametrize("digest_too", [True, False])
def test_a_shared_split_is_refused_also_with_the_digest_of_its_other_bytes(
    text, shared, tmp_path, digest_too
):
    corpus = measure_corpus(of_files(text), seq_len=32)
    write_splits(of_files(text), corpus, shared)
    name = f"corpora/sealed/{corpus.fingerprint}.bin"
    other = tmp_path / "other"
    other.write_bytes(bytes(corpus.sizes["test"]))
    (shared / name).upload(other)
    if digest_too:
        put_file(other, shared / name)
    assert find_splits(shared, corpus.fingerprint) is None
    write_splits(of_files(text), corpus, shared)
    assert find_splits(shared, corpus.fingerprint)


def test_a_stored_corpus_is_read_once_in_a_process(text, tmp_path, monkeypatch):
    corpus = measure_corpus(of_files(text), seq_len=32)
    write_splits(of_files(text), corpus, tmp_path)
    assert find_splits(tmp_path, corpus.fingerprint)
    monkeypatch.setattr("pipelines.data.splits.read_files", lambda _: pytest.fail("read again"))
    assert find_splits(tmp_path, corpus.fingerprint)


def test_a_look_at_large_splits_in_storage_is_shown(text, tmp_path, monkeypatch, capsys):
    corpus = measure_corpus(of_files(text), seq_len=32)
    write_splits(of_files(text), corpus, tmp_path)
    monkeypatch.setattr(progress, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(module, "read_files", lambda paths: time.sleep(0.03) or read_files(paths))
    write_splits(of_files(text), corpus, tmp_path, OutputMode.JSON)
    event = json.loads(capsys.readouterr().out.splitlines()[0])
    assert event["text"].startswith("checking the splits in storage, 0:0")


def test_a_folder_and_a_glob_are_read_in_the_order_of_their_paths(tmp_path):
    for name, byte in [("b.txt", b"b"), ("a.txt", b"a"), ("c.md", b"c")]:
        (tmp_path / name).write_bytes(byte * 1000)
    whole = measure_corpus(of_files(tmp_path), seq_len=32)
    texts = measure_corpus(DataConfig(corpus="files", path=str(tmp_path / "*.txt")), seq_len=32)
    (tmp_path / "joined").write_bytes(b"a" * 1000 + b"b" * 1000)
    assert texts == measure_corpus(of_files(tmp_path / "joined"), seq_len=32)
    assert [sum(corpus.sizes.values()) for corpus in (whole, texts)] == [3000, 2000]


def test_the_first_bytes_of_a_text_are_the_corpus_that_a_file_of_them_is(tmp_path):
    """Cut within a file, between two, and at the end of all; written as measured."""
    for name, byte in [("a", b"a"), ("b", b"b"), ("c", b"c")]:
        (tmp_path / "text" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "text" / name).write_bytes(byte * 1000)
    whole = b"".join(path.read_bytes() for path in sorted((tmp_path / "text").iterdir()))
    for size in (1500, 2000, 3000, 9999):
        (tmp_path / "prefix").write_bytes(whole[:size])
        config = DataConfig(corpus="files", path=str(tmp_path / "text"), max_bytes=size)
        corpus = measure_corpus(config, seq_len=32)
        assert corpus == measure_corpus(of_files(tmp_path / "prefix"), seq_len=32)
        write_splits(config, corpus, tmp_path / "runs")
        found = find_splits(tmp_path / "runs", corpus.fingerprint)
        assert b"".join(file.read_bytes() for file in found.values()) == whole[:size]
    with pytest.raises(ConfigError, match=r"^data: the corpus has 50 bytes; expected at least"):
        measure_corpus(config.replace({"max_bytes": 50}), seq_len=32)


def test_files_behind_the_first_bytes_are_not_read(tmp_path, monkeypatch):
    opened = []

    def read(path: str) -> Iterator[bytes]:
        for name in "abc":
            opened.append(name)
            yield name.encode() * 1000

    monkeypatch.setitem(CORPORA, "long", Source(read))
    measure_corpus(DataConfig(corpus="long", path="x", max_bytes=1000), seq_len=32)
    assert opened == ["a", "b"]


@pytest.mark.parametrize(("size", "expected"), [(0, "0 bytes"), (100, "100 bytes")])
def test_an_empty_or_too_short_corpus_is_refused(tmp_path, size, expected):
    path = tmp_path / "short"
    path.write_bytes(b"x" * size)
    with pytest.raises(ConfigError, match=expected):
        measure_corpus(of_files(path), seq_len=32)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.txt: no such file, folder or glob match"):
        measure_corpus(of_files(tmp_path / "none.txt"), seq_len=32)


def parts_in(folder: Path, **texts: bytes) -> DataConfig:
    """A corpus of three files, of which some are other than they would be."""
    texts = {"train": b"a" * 500, "validation": b"b" * 100, "test": b"c" * 200} | texts
    for name, text in texts.items():
        (folder / name).write_bytes(text)
    return DataConfig(
        corpus="files",
        path=str(folder / "train"),
        validation_path=str(folder / "validation"),
        test_path=str(folder / "test"),
    )


def test_held_out_files_are_the_splits_and_the_rest_is_all_for_training(tmp_path):
    config = parts_in(tmp_path)
    corpus = measure_corpus(config, seq_len=32)
    assert corpus.sizes == {"train": 500, "validation": 100, "test": 200}
    write_splits(config, corpus, tmp_path / "runs")
    files = train_val_splits(tmp_path / "runs", corpus.fingerprint)
    assert files.train.read_bytes() == b"a" * 500
    assert files.validation.read_bytes() == b"b" * 100
    assert sealed_test(tmp_path / "runs", corpus.fingerprint).read_bytes() == b"c" * 200


def test_held_out_files_may_be_folders_and_globs(tmp_path):
    whole = measure_corpus(parts_in(tmp_path), seq_len=32)
    for name, byte in [("1.txt", b"b"), ("2.txt", b"b"), ("3.md", b"c")]:
        (tmp_path / "parts" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "parts" / name).write_bytes(byte * (200 if byte == b"c" else 50))
    config = DataConfig(
        corpus="files",
        path=str(tmp_path / "train"),
        validation_path=str(tmp_path / "parts" / "*.txt"),
        test_path=str(tmp_path / "parts" / "3.md"),
    )
    assert measure_corpus(config, seq_len=32) == whole


def test_the_same_bytes_cut_elsewhere_are_another_corpus(tmp_path):
    text = bytes(numbered(1000))
    (tmp_path / "whole").write_bytes(text)
    fingerprints = {measure_corpus(of_files(tmp_path / "whole"), seq_len=32).fingerprint}
    for cut, end in [(800, 900), (700, 900), (800, 950)]:
        parts = {"train": text[:cut], "validation": text[cut:end], "test": text[end:]}
        fingerprints.add(measure_corpus(parts_in(tmp_path, **parts), seq_len=32).fingerprint)
    assert len(fingerprints) == 4


@pytest.mark.parametrize(
    ("part", "key"),
    [("train", "path"), ("validation", "validation_path"), ("test", "test_path")],
)
def test_each_given_part_must_be_longer_than_a_window(tmp_path, part, key):
    measure_corpus(parts_in(tmp_path, **{part: b"x" * 33}), seq_len=32)
    with pytest.raises(ConfigError, match=f"data.{key}: 32 bytes; expected more than train.seq_le"):
        measure_corpus(parts_in(tmp_path, **{part: b"x" * 32}), seq_len=32)


def test_a_held_out_file_that_is_missing_is_named_with_its_key(tmp_path):
    config = parts_in(tmp_path)
    (tmp_path / "test").unlink()
    with pytest.raises(ConfigError, match=r"data\.test_path: .*test: no such file, folder or glob"):
        measure_corpus(config, seq_len=32)


@pytest.mark.parametrize("how", ["the folder of the others", "symbolic link", "hard link"])
def test_a_file_in_two_parts_is_refused(tmp_path, how):
    config = parts_in(tmp_path)
    if how == "symbolic link":
        (tmp_path / "test").unlink()
        (tmp_path / "test").symlink_to(tmp_path / "validation")
    elif how == "hard link":
        (tmp_path / "test").unlink()
        (tmp_path / "test").hardlink_to(tmp_path / "validation")
    else:
        config = config.model_copy(update={"path": str(tmp_path)})
    with pytest.raises(
        ConfigError, match=r"is in data\.\w+ too; expected each file in one of them"
    ):
        measure_corpus(config, seq_len=32)


def test_a_copy_of_a_file_in_another_part_is_refused(tmp_path):
    config = parts_in(tmp_path)
    (tmp_path / "test").write_bytes((tmp_path / "validation").read_bytes())
    expected = (
        r"/test has the same content as \S+/validation in data.validation_path; expected each"
    )
    with pytest.raises(ConfigError, match=rf"data\.test_path: \S+{expected}"):
        measure_corpus(config, seq_len=32)
    for part in ("validation", "test"):  # empty files are no copies
        (tmp_path / f"{part}s").mkdir()
        (tmp_path / part).rename(tmp_path / f"{part}s" / part)
        (tmp_path / f"{part}s" / "empty").touch()
    (tmp_path / "tests" / "test").write_bytes(b"other" * 20)
    folders = {f"{part}_path": str(tmp_path / f"{part}s") for part in ("validation", "test")}
    assert measure_corpus(config.model_copy(update=folders), seq_len=32)


@pytest.mark.parametrize("after", [b"longer", b"y" * 4000, b""])
def test_a_text_that_changes_between_two_readings_is_not_kept(tmp_path, after):
    path = tmp_path / "text"
    path.write_bytes(b"x" * 4000)
    corpus = measure_corpus(of_files(path), seq_len=32)
    path.write_bytes(b"x" * 4000 + after if after == b"longer" else after)
    with pytest.raises(ConfigError, match="the text changed while it was read"):
        write_splits(of_files(path), corpus, tmp_path / "runs")
    assert not [found for found in (tmp_path / "runs").rglob("*") if found.is_file()]


def test_a_published_corpus_is_read_when_its_splits_are_written_and_not_before(
    tmp_path, monkeypatch
):
    text = bytes(numbered(4000))
    readings = []

    def read(path: str) -> list[bytes]:
        readings.append(path)
        return [text]

    published = PublishedText("text", "", 0, len(text), hashlib.sha256(text).hexdigest())
    monkeypatch.setitem(CORPORA, "known", Source(read, published))
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "text").write_bytes(text)
    config = DataConfig(corpus="known", path=str(folder))
    corpus = measure_corpus(config, seq_len=32)
    assert readings == []
    write_splits(config, corpus, tmp_path)
    write_splits(config, measure_corpus(config, seq_len=32), tmp_path)
    assert readings == [str(folder)]
    (tmp_path / "text").write_bytes(text)
    assert measure_corpus(of_files(tmp_path / "text"), seq_len=32) == corpus


def test_the_first_bytes_of_a_published_corpus_count_if_all_of_it_is_what_was_published(
    tmp_path, monkeypatch
):
    text = bytes(numbered(4000))

    def read(path: str) -> Iterator[bytes]:
        yield from (text[:1500], text[1500:])
        if path == "other":
            raise ConfigError("another text")

    published = PublishedText("text", "", 0, len(text), hashlib.sha256(text).hexdigest())
    monkeypatch.setitem(CORPORA, "known", Source(read, published))
    monkeypatch.setattr(Source, "fetch", lambda *_: None)
    (tmp_path / "prefix").write_bytes(text[:1000])
    prefix = measure_corpus(of_files(tmp_path / "prefix"), seq_len=32)
    config = DataConfig(corpus="known", path="here", max_bytes=1000)
    assert measure_corpus(config, seq_len=32) == prefix
    with pytest.raises(ConfigError, match="another text"):
        measure_corpus(config.replace({"path": "other"}), seq_len=32)
    for size in (4000, 5000):  # which is all: it need not be read
        whole = DataConfig(corpus="known", path="other", max_bytes=size)
        assert measure_corpus(whole, seq_len=32).fingerprint == published.sha256[:32]


def test_the_standard_library_is_a_corpus_on_every_machine():
    corpus = measure_corpus(DataConfig(), seq_len=256)
    assert sum(corpus.sizes.values()) > 5_000_000
    assert corpus == measure_corpus(DataConfig(), seq_len=256)


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


def test_a_batch_is_a_function_of_the_seed_and_the_step_only():
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


def test_the_order_of_the_data_is_golden():
    """If it changes, every earlier training's numbers do."""
    batches = Batches(np.arange(1000), seq_len=10, sequences=7, seed=3)
    starts = {step: batches(step)[:, 0].tolist() for step in (0, 13, 14)}
    assert starts == {
        0: [828, 448, 228, 18, 348, 238, 608],
        13: [148, 578, 368, 718, 548, 58, 198],
        14: [309, 79, 319, 759, 809, 839, 739],  # the next epoch
    }


@pytest.mark.parametrize(
    ("size", "starts"),
    [
        (11, [[0, 0], [0, 0], [0, 0]]),
        (12, [[1, 1], [1, 1], [0, 1]]),
        (22, [[8, 5], [9, 5], [4, 6]]),
        (31, [[8, 18], [15, 5], [19, 9]]),
    ],
)
def test_a_text_of_a_few_windows_is_read_from_all_its_starts(size, starts):
    batches = Batches(np.arange(size), seq_len=10, sequences=2, seed=0)
    assert [batches(step)[:, 0].tolist() for step in range(3)] == starts
    assert batches(0).shape == (2, 11)


def test_workers_that_do_not_divide_a_batch_share_it_all_the_same():
    batches = Batches(numbered(5000), 16, 5, seed=0)
    shares = [batches(2, rank, 3) for rank in range(3)]
    assert [len(share) for share in shares] == [1, 2, 2]
    assert np.array_equal(np.concatenate(shares), batches(2))


def test_a_corpus_is_long_enough_from_a_window_in_each_split_on(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"x" * 659)
    message = r"^data: the corpus has 659 bytes; expected at least 661 for splits of 90/5/5 % and"
    with pytest.raises(ConfigError, match=message):
        measure_corpus(of_files(path), seq_len=32)
    path.write_bytes(b"x" * 661)
    assert measure_corpus(of_files(path), seq_len=32).sizes == {
        "train": 595,
        "validation": 33,
        "test": 33,
    }
    held_out = tmp_path / "held-out"
    held_out.write_bytes(b"ab")
    config = DataConfig(
        corpus="files", path=str(path), validation_path=str(path) + "2", test_path=str(held_out)
    )
    path.with_name("text2").write_bytes(b"abc")
    with pytest.raises(ConfigError, match=r"^data\.test_path: 2 bytes; expected at least 3$"):
        measure_corpus(config, seq_len=1)
