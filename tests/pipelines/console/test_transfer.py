import json
import re
import threading

import pytest

from pipelines.console.transfer import download_progress
from pipelines.console.updates import OutputMode


def shown(capsys, mode: OutputMode) -> tuple[str, str]:
    with download_progress("text.zip", 1_500_000, 3_000_000, mode) as show:
        show(2_000_000)  # within the interval
    return tuple(capsys.readouterr())


def test_in_a_log_file_a_download_is_a_line(capsys):
    out, err = shown(capsys, OutputMode.TEXT)
    assert (out, err.strip()) == ("", "downloading text.zip: 1.5 of 3.0 MB, 0:00")


def test_with_quiet_nothing_is_shown_of_a_download(capsys, monkeypatch):
    assert shown(capsys, OutputMode.QUIET) == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert shown(capsys, OutputMode.QUIET) == ("", "")


def test_a_terminal_has_a_bar_of_a_download(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    out, err = shown(capsys, OutputMode.TEXT)
    assert out == ""
    assert "━" in err
    assert " of " not in err


def test_while_no_bytes_come_the_time_is_shown(monkeypatch, capsys):
    """On a terminal, and in a log file."""
    with monkeypatch.context() as patch:
        patch.setenv("FORCE_COLOR", "1")
        with download_progress("a", 0, 3_000_000, OutputMode.TEXT):
            pass
    bar = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert re.search(r"0\.0/3\.0 MB \? +0:00:00 -:--:--", bar)
    texts, twice = [], threading.Event()
    monkeypatch.setattr("pipelines.console.progress.WATCH_SECONDS", 0.01)
    monkeypatch.setattr(
        "pipelines.console.progress.Progress.update",
        lambda _, update: (texts.append(update.text), len(texts) > 1 and twice.set()),
    )
    with download_progress("a", 0, 3_000_000, OutputMode.TEXT):
        assert twice.wait(60)
    assert texts[:2] == 2 * ["downloading a: 0.0 of 3.0 MB, 0:00"]


def test_with_json_a_download_is_an_event(capsys):
    row = json.loads("".join(shown(capsys, OutputMode.JSON)))
    del row["time"]
    sizes = {"bytes": 1_500_000, "of_bytes": 3_000_000}
    assert row == {"event": "progress", "download": "text.zip", **sizes}


@pytest.mark.parametrize("mode", OutputMode)
def test_the_bytes_so_far_may_be_shown_at_any_time(mode, capsys):
    with download_progress("a", 0, 0, mode) as show:
        show(0)
