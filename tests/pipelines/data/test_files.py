"""Files by a path, folder or glob: exactly those, or an error that names what is in the way."""

import bz2
import functools
import gzip
import json
import lzma
import os
import subprocess
import time
from pathlib import Path

import pytest

from pipelines.console import progress
from pipelines.console.errors import ConfigError
from pipelines.console.updates import OutputMode
from pipelines.data import reading
from pipelines.data.config import DataConfig
from pipelines.data.files import contained, find_files
from pipelines.data.splits import measure_corpus


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def found(folder: Path, pattern: str) -> list[str]:
    """The files of a pattern below a folder, relative to it."""
    paths = find_files(str(folder / pattern), key="data.path")
    return [str(path.relative_to(folder)) for path in paths]


def refusal(folder: Path, pattern: str) -> str:
    with pytest.raises(ConfigError) as error:
        find_files(str(folder / pattern), key="data.test_path")
    assert str(error.value).startswith("data.test_path: ")
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix("data.test_path: ").replace(f"{folder}/", "")


def test_what_is_not_there_has_the_nearest_name_beside_it(tmp_path, monkeypatch):
    put(tmp_path, "books/a.txt", "books/b.txt")
    for pattern, nearest in {
        "books/a.TXT": "books/a.txt",
        "book/a.txt": "books/a.txt",
        "boks": "books",
        "books/zzz": "",
        "books/x*": "",
        "books/a.txt/c": "",
    }.items():
        hint = f"; did you mean {nearest}?" if nearest else ""
        assert refusal(tmp_path, pattern).endswith(f"no such file, folder or glob match{hint}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"did you mean books/b\.txt\?$"):
        find_files("books/b.tx", key="data.path")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("books[1].txt", ["books[1].txt"]),
        ("books[2].txt", ["books2.txt"]),
        ("part[1]/*.txt", ["part[1]/b.txt"]),
        ("part[12]/*.txt", ["part1/a.txt", "part2/c.txt"]),
        ("*", ["*"]),
    ],
)
def test_a_name_is_taken_literally_where_a_file_or_folder_has_it(tmp_path, pattern, expected):
    put(tmp_path, "books[1].txt", "books1.txt", "books2.txt", "*")
    put(tmp_path, "part1/a.txt", "part[1]/b.txt", "part2/c.txt")
    assert found(tmp_path, pattern) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("rec/**/*.txt", ["a-b/c.txt", "a.txt", "a/b.txt", "a/b/c.txt"]),
        ("rec/**", ["a-b/c.txt", "a.txt", "a/b.md", "a/b.txt", "a/b/c.txt"]),
        ("rec/**/b/**", ["a/b/c.txt"]),
        ("rec/**/**/*.md", ["a/b.md"]),
        ("rec/*.txt", ["a.txt"]),
        ("rec/?-*/[!a]*", ["a-b/c.txt"]),
        ("rec/.*", [".hidden"]),
        ("rec/**/.*/*", [".git/x"]),
        ("rec", [".git/x", ".hidden", "a/b/c.txt", "a/b.md", "a/b.txt", "a-b/c.txt", "a.txt"]),
    ],
)
def test_a_glob_takes_what_matches_at_any_depth_and_a_folder_all_below_it(
    tmp_path, pattern, expected
):
    names = ["a.txt", "a/b.txt", "a/b/c.txt", "a/b.md", "a-b/c.txt", ".hidden", ".git/x"]
    put(tmp_path / "rec", *names)
    if pattern == "rec/.*":
        (tmp_path / "rec/.git/x").unlink()
        (tmp_path / "rec/.git").rmdir()
    assert found(tmp_path, pattern) == [f"rec/{name}" for name in expected]


def test_a_relative_glob_is_one_of_the_current_folder(tmp_path, monkeypatch):
    put(tmp_path, "a/x.txt", "b/x.txt")
    monkeypatch.chdir(tmp_path)
    for pattern in ("*/x.txt", "./*/x.txt", "**/x.txt", "**"):
        paths = [str(path) for path in find_files(pattern, key="data.path")]
        assert paths == ["a/x.txt", "b/x.txt"]


@pytest.mark.parametrize("pattern", ["rec", "rec/**", "rec/sub/*", "rec/*/*.txt"])
def test_a_folder_that_cannot_be_read_is_named_and_never_left_out(tmp_path, monkeypatch, pattern):
    put(tmp_path, "rec/a/a.txt", "rec/sub/b.txt")
    read = {"listdir": os.listdir, "scandir": os.scandir}
    assert len(found(tmp_path, pattern)) in (1, 2)

    def refuse(name, path):
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return read[name](path)

    for name in read:
        monkeypatch.setattr(os, name, functools.partial(refuse, name))
    assert refusal(tmp_path, pattern) == "rec/sub: Permission denied"


@pytest.mark.parametrize("pattern", ["rec", "rec/**", "rec/*", "rec/b"])
def test_what_is_no_file_is_named_and_never_left_out(tmp_path, pattern):
    put(tmp_path, "rec/a")
    (tmp_path / "rec/b").symlink_to("nowhere")
    assert refusal(tmp_path, pattern) == "rec/b: a link that leads nowhere"
    (tmp_path / "rec/b").unlink()
    os.mkfifo(tmp_path / "rec/b")
    assert refusal(tmp_path, pattern) == "rec/b: neither a file nor a folder"


def test_a_folder_that_a_glob_matches_is_not_left_out_silently(tmp_path):
    put(tmp_path, "rec/a.txt", "rec/sub/b.txt")
    assert refusal(tmp_path, "rec/*").startswith("rec/sub: a folder, which matches too; expected")
    assert found(tmp_path, "rec/**/*") == ["rec/a.txt", "rec/sub/b.txt"]
    put(tmp_path, "rec/more/sub2")
    for pattern in ("rec/**/sub*", "rec/**/sub", "**/rec/*"):
        assert ": a folder, which matches too; expected" in refusal(tmp_path, pattern)
    assert found(tmp_path, "rec/**/sub/**") == ["rec/sub/b.txt"]


@pytest.mark.parametrize("pattern", ["rec", "rec/**/*.txt"])
def test_links_are_followed_but_no_folder_is_read_twice(tmp_path, pattern):
    put(tmp_path, "rec/a.txt", "other/b.txt", "third/c.txt")
    (tmp_path / "rec/more").symlink_to("../other")
    (tmp_path / "rec/c.txt").symlink_to("../third/c.txt")
    assert found(tmp_path, pattern) == ["rec/a.txt", "rec/c.txt", "rec/more/b.txt"]
    (tmp_path / "rec/twice").symlink_to("../other")
    assert ": the same folder as rec/" in refusal(tmp_path, pattern).replace(f"{tmp_path}/", "")
    (tmp_path / "rec/twice").unlink()
    (tmp_path / "rec/loop").symlink_to(".")
    assert refusal(tmp_path, pattern) == "rec/loop: a link to a folder that contains it"


@pytest.mark.parametrize("pattern", ["rec", "rec/a", "rec/**", "rec/**/*.txt"])
def test_folders_with_many_links_into_each_other_are_refused_at_once(tmp_path, pattern):
    """The ways through them are as many as names of 40 links."""
    for name, other in ("ab", "ba"):
        put(tmp_path, f"rec/{name}/{name}.txt")
        for number in range(8):
            (tmp_path / f"rec/{name}/{number}").symlink_to(f"../{other}")
    assert ": the same folder as rec/" in refusal(tmp_path, pattern)
    for name in "ab":
        (tmp_path / f"rec/{name}/{name}.txt").unlink()
    assert "no " in refusal(tmp_path, pattern)


@pytest.mark.parametrize("pattern", ["rec", "rec/*.txt"])
@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_a_file_that_is_reached_twice_is_refused(tmp_path, pattern, link):
    put(tmp_path, "rec/a.txt", "rec/b.txt")
    getattr(tmp_path / "rec/c.txt", link)(tmp_path / "rec/b.txt")
    assert refusal(tmp_path, pattern) == "rec/c.txt: the same file as rec/b.txt; expected it once"


@pytest.mark.parametrize("pattern", ["none", "a.txt/b", "a.txt/*", "x" * 300, "\0", "none/**"])
def test_what_is_not_there_is_one_line(tmp_path, pattern):
    put(tmp_path, "a.txt")
    message = refusal(tmp_path, pattern)
    assert message.endswith(("no such file, folder or glob match", "a.txt: Not a directory"))


def test_a_folder_without_a_file_is_there(tmp_path):
    (tmp_path / "rec/empty").mkdir(parents=True)
    assert refusal(tmp_path, "rec") == "rec: no file in this folder, nor below it"


@pytest.mark.slow
def test_a_folder_may_be_deeper_than_python_recurses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(1200):
        Path("d").mkdir()
        monkeypatch.chdir("d")
    Path("a.txt").touch()
    monkeypatch.chdir(tmp_path)
    deep = "/".join([*["d"] * 1200, "a.txt"])
    assert found(tmp_path, "d") == found(tmp_path, "d/**/*.txt") == found(tmp_path, "**") == [deep]
    assert contained("d", [tmp_path / "d/b"], key="data.path") == [tmp_path / "d/b"]
    subprocess.run(["rm", "-r", "d"], check=True)  # pytest would recurse


def test_files_are_counted(tmp_path):
    put(tmp_path, "a/x.txt", "a/y.txt", "b", "c")
    (tmp_path / "a/x.txt").write_bytes(b"x" * 1000)
    config = DataConfig(corpus="files", path=str(tmp_path / "a"))
    assert measure_corpus(config, seq_len=4).files == 2
    for name in ("b", "c"):
        (tmp_path / name).write_text(name * 100)
    held_out = {"validation_path": str(tmp_path / "b"), "test_path": str(tmp_path / "c")}
    assert measure_corpus(config.replace(held_out), seq_len=4).files == 4


def test_what_a_pattern_contains_need_not_exist_for_a_folder(tmp_path):
    put(tmp_path, "a/x.txt", "a/runs/y.txt")
    places = [tmp_path / "a/runs", tmp_path / "a/none", tmp_path / "b"]
    within = lambda pattern: contained(str(tmp_path / pattern), places, key="data.path")  # noqa: E731
    assert within("a") == places[:2]
    assert within("a/**") == places[:1]
    assert within("a/*.txt") == within("a/x.txt") == []


def test_a_link_to_itself_among_the_places_is_compared_as_it_is(tmp_path):
    put(tmp_path, "a/x.txt")
    (tmp_path / "loop").symlink_to("loop")
    assert contained(str(tmp_path / "a"), [tmp_path / "loop"], key="data.path") == []


def test_what_a_link_in_a_folder_leads_to_is_contained(tmp_path):
    put(tmp_path, "a/x.txt", "runs/trials/y.txt")
    (tmp_path / "a/more").symlink_to("../runs")
    places = [tmp_path / "runs/trials", tmp_path / "runs/none", tmp_path / "b"]
    assert contained(str(tmp_path / "a"), places, key="data.path") == places[:2]
    (tmp_path / "runs/trials/y.txt").unlink()  # nor has it any file
    assert contained(str(tmp_path / "a"), places, key="data.path") == places[:2]


def test_reading_a_large_text_is_shown(tmp_path, monkeypatch, capsys):
    put(tmp_path, "a")
    (tmp_path / "a").write_bytes(b"abcd" * 1000)
    monkeypatch.setattr(progress, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(reading, "read_files", lambda _: (time.sleep(0.05) or b"x" for _ in "abc"))
    reader = reading.CorpusReader(DataConfig(corpus="files", path="a"), OutputMode.JSON)
    monkeypatch.chdir(tmp_path)
    assert b"".join(reader) == b"xxx"
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[0])["text"].startswith("reading the text: 0 MB")


@pytest.mark.parametrize(
    ("name", "pack"),
    [("gzip", gzip.compress), ("bzip2", bz2.compress), ("xz", lzma.compress)],
)
def test_a_compressed_file_is_no_text(tmp_path, name, pack):
    put(tmp_path, "text/a.txt")
    (tmp_path / "text" / "b").write_bytes(pack(b"a text " * 1000))
    config = DataConfig(corpus="files", path=str(tmp_path / "text"))
    with pytest.raises(ConfigError) as error:
        measure_corpus(config, seq_len=8)
    assert str(error.value) == (
        f"data.path: {tmp_path}/text/b is compressed ({name}); expected the text itself"
    )


def test_a_text_that_begins_as_the_name_of_a_format_is_one(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"BZhang wrote this text, PK too. " * 100)
    config = DataConfig(corpus="files", path=str(tmp_path))
    assert sum(measure_corpus(config, seq_len=8).sizes.values()) == 3200
