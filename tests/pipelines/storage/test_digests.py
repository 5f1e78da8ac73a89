import subprocess

import pytest

from pipelines.storage import project
from pipelines.storage.digests import (
    format_digests,
    parse_digests,
    sha256_of,
    verify_digests,
    write_digests,
)
from pipelines.storage.project import ROOT


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b c"):
        (tmp_path / name).write_text(name)
    write_digests(tmp_path, ["a", "b c"])
    return tmp_path


def test_what_is_written_is_read_and_sha256sum_agrees(folder):
    text = (folder / "SHA256SUMS").read_text()
    assert parse_digests(text) == {name: sha256_of(folder / name) for name in ("a", "b c")}
    assert format_digests({"deep/a": folder / "a"}) == f"{sha256_of(folder / 'a')}  deep/a\n"
    check = ["sha256sum", "--check", "--quiet", "SHA256SUMS"]
    assert subprocess.run(check, cwd=folder).returncode == 0
    verify_digests(folder, ["b c", "a"])


@pytest.mark.parametrize("names", [["a"], ["a", "b c", "d"]])
def test_the_list_must_be_of_the_very_files(folder, names):
    with pytest.raises(ValueError, match="SHA256SUMS: expected"):
        verify_digests(folder, names)


@pytest.mark.parametrize("name", ["../a", "/a", "a/../b", "./a", "a//b", "a/."])
def test_a_list_names_files_in_its_folder_only(name):
    with pytest.raises(ValueError, match="is not the name of a file in its folder"):
        parse_digests(f"{64 * '0'}  {name}\n")


def test_an_altered_file_and_a_missing_one_are_errors(folder):
    (folder / "a").write_text("other")
    with pytest.raises(ValueError, match="a: a digest does not match"):
        verify_digests(folder, ["a", "b c"])
    (folder / "a").unlink()
    with pytest.raises(FileNotFoundError):
        verify_digests(folder, ["a", "b c"])


@pytest.mark.parametrize("damage", ["", "cut", "not hexadecimal", "twice"])
def test_a_malformed_text_is_an_error(folder, damage):
    text = (folder / "SHA256SUMS").read_text()
    damaged = {
        "cut": text[:-1],
        "not hexadecimal": text.replace(text[:4], "zzzz"),
        "twice": text + text,
    }
    with pytest.raises(ValueError, match="SHA256SUMS"):
        (folder / "SHA256SUMS").write_text(damaged.get(damage, ""))
        verify_digests(folder, ["a", "b c"])


def test_the_projects_own_files_are_found():
    assert (ROOT / "pipelines" / "storage" / "project.py").samefile(project.__file__)
    assert (ROOT / "dca" / "config.py").is_file()
