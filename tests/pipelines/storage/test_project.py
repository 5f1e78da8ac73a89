"""Commands that are shown: a shell reads each argument as it was meant."""

import shlex
from pathlib import Path

import pytest

from pipelines.storage.project import command_line, option
from pipelines.tracking.descriptions import (
    describe_champions,
    describe_comparison,
    describe_model,
    describe_version,
)

ODD = ["my model", "--", "-x", "it's", "$HOME", "a\nb", "é"]


@pytest.mark.parametrize("text", ODD)
def test_a_shell_reads_every_argument_as_it_was_meant(text):
    line = command_line(Path("/my code/generate.py"), "--model", text, 3)
    assert shlex.split(line) == ["python", "/my code/generate.py", "--model", text, "3"]


@pytest.mark.parametrize("text", ["--", "-x", "---"])
def test_a_text_that_begins_with_a_dash_is_joined_to_its_option(text):
    assert option("--prompt", text) == [f"--prompt={text}"]
    assert option("--prompt", f"a{text}") == ["--prompt", f"a{text}"]


def test_descriptions_have_commands_for_names_and_folders_with_spaces(monkeypatch):
    monkeypatch.setattr("pipelines.storage.project.ROOT", Path("/my code"))
    shown = [describe_model("my model"), describe_champions("my model")]
    shown += [describe_version(2.0, [], "models:/my model/1"), describe_comparison("", "run")]
    lines = [line for text in shown for line in text.splitlines() if line.startswith("python")]
    assert len(lines) == 5
    for line in lines:
        words = shlex.split(line)
        assert words[1].startswith("/my code/pipelines/"), line
        assert "my model" in words or "models:/my model/1" in words or "sweep.py" in words[1], line
