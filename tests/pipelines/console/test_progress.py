"""Progress and results of a command: on a terminal, in a log file, as JSON events, with --quiet."""

import argparse
import io
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from fcntl import ioctl
from pathlib import Path

import pyte
import pytest
from rich.console import Console

from pipelines.console import progress as module
from pipelines.console.command import Parser
from pipelines.console.errors import ConfigError, Problem
from pipelines.console.options import add_output_options, output_mode
from pipelines.console.panel import MAX_WIDTH, SPARKLINE, SPARKS, Panel, sparkline
from pipelines.console.process import output_guarded
from pipelines.console.progress import Progress
from pipelines.console.updates import Bar, ProgressUpdate

SEARCH = ProgressUpdate(
    text="search: 4/8 trials (4 complete), 2 running, best 2.5408 (trial 1), about 0:55 left",
    data={"stage": "search", "best": 2.5408},
    bars=[
        Bar("search", 0.6, "4/8 trials, about 0:55 left"),
        Bar("trial 4", 0.25, "2.9505, 9,470 bytes/s"),
        Bar("trial 11", 0.0, "begins"),
    ],
    note="4 complete, 2 running, best 2.5408 (trial 1), 9,470 bytes/s",
    curve=[4.0, 3.0, 2.5408],
)


def progress_with(*options: str) -> Progress:
    """The progress of a command that was given these options."""
    parser = Parser()
    add_output_options(parser)
    return Progress(output_mode(parser.parse_args(options)))


def report_everything(progress: Progress) -> None:
    progress.log("search    new", "stage", stage="search", state="begun")
    with progress.working("starting"):
        progress.update(SEARCH)
        progress.update(SEARCH)
    progress.log("  a checkpoint is damaged")
    progress.result("winner: trial 1", {"select": {"trial": 1}})


def test_a_log_file_gets_lines_and_few_updates(capsys):
    progress = progress_with()
    report_everything(progress)
    progress.update(SEARCH)
    out, err = capsys.readouterr()
    assert err == ""
    assert out == "search    new\n  a checkpoint is damaged\n\nwinner: trial 1\n"
    progress._last -= 31
    progress.update(SEARCH)
    assert capsys.readouterr().out == f"  {SEARCH.text}\n"


def test_short_pieces_of_work_one_after_the_other_show_that_they_work(capsys, monkeypatch):
    seconds = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: seconds[0])
    progress = progress_with()
    for _ in range(6):  # none of them takes 15 s, as the time between two lines
        with progress.working("starting"):
            seconds[0] += 7
            progress.update(SEARCH)
    assert capsys.readouterr().out == 2 * f"  {SEARCH.text}\n"
    progress.log("search    complete")
    with progress.working("starting"):
        seconds[0] += 14
        progress.update(SEARCH)
    assert capsys.readouterr().out == "search    complete\n"


@pytest.mark.parametrize("columns", ["0", "00", "1", "x", ""])
def test_a_terminal_of_a_strange_width_gets_every_line(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    report_everything(progress_with())
    assert "\nwinner: trial 1\n" in capsys.readouterr().out


def test_what_looks_like_the_name_of_a_picture_is_printed_as_it_is(capsys):
    Progress().log("arm a:x:b, s[:m:], /data/:key:/file [bold]")
    assert capsys.readouterr().out == "arm a:x:b, s[:m:], /data/:key:/file [bold]\n"


def test_with_quiet_only_the_result_is_printed(capsys):
    report_everything(progress_with("--quiet"))
    assert capsys.readouterr() == ("winner: trial 1\n", "")


def test_two_commands_of_one_process_each_have_their_own_mode(capsys):
    quiet, text = progress_with("--quiet"), progress_with()
    quiet.log("one")
    text.log("two")
    assert capsys.readouterr().out == "two\n"


def test_with_json_each_line_is_an_object(capsys):
    report_everything(progress_with("--json"))
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(abs(row.pop("time") - time.time()) < 60 for row in rows)
    assert rows == [
        {"event": "stage", "stage": "search", "state": "begun"},
        {"event": "progress", "stage": "search", "best": 2.5408},
        {"event": "note", "text": "a checkpoint is damaged"},
        {"event": "result", "text": "winner: trial 1", "outputs": {"select": {"trial": 1}}},
    ]


@pytest.mark.parametrize("option", ["dry_run", "print_config"])
def test_json_does_not_go_with_what_is_printed_for_people(option):
    arguments = argparse.Namespace(json=True, quiet=False, **{option: True})
    with pytest.raises(ConfigError) as error:
        output_mode(arguments)
    message = f"expected without --{option.replace('_', '-')}"
    assert error.value.problems == [Problem(message, "--json")]


def drawn(width: int, height: int = 24, encoding: str = "utf-8") -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, force_terminal=True, width=width, height=height, no_color=True)
    console.print(Panel(SEARCH, console))
    file.seek(0)
    return [line.rstrip() for line in file.read().splitlines()]


def test_the_panel_has_a_bar_for_the_search_and_for_each_running_trial():
    search, four, eleven, note = drawn(80)
    assert search.startswith("search ")
    assert search.endswith("4/8 trials, about 0:55 left")
    assert search.count("━") > 2 * four.count("━") > 0 == eleven.count("━")
    assert four.endswith("2.9505, 9,470 bytes/s")
    assert eleven.startswith("trial 11 ")
    assert note.endswith("4 complete, 2 running, best 2.5408 (trial 1), 9,470 bytes/s █▃▁")


@pytest.mark.parametrize("width", [20, 40, 79, 300])
def test_the_panel_fits_the_terminal(width):
    rows = drawn(width)
    assert max(len(row) for row in rows) <= min(width, MAX_WIDTH)
    assert "trial 1" in "".join(rows)


def test_of_more_trials_than_rows_the_first_are_shown_and_the_note():
    rows = drawn(80, height=6)
    assert [row.split()[0] for row in rows[:2]] == ["search", "trial"]
    assert "best 2.5408" in rows[-1]
    assert len(rows) == 3


def test_without_unicode_there_is_no_curve():
    text = "\n".join(drawn(80, encoding="ascii"))
    assert "best 2.5408" in text
    assert not set(SPARKS) & set(text)


def test_a_curve_ends_with_its_last_point_and_shows_its_extremes():
    assert sparkline([]) == sparkline([3.0]) == ""
    assert sparkline([2.0, 2.0]) == SPARKS[0] * 2
    assert sparkline([3.0, 2.0, 1.0]) == "█▅▁"
    long = sparkline([*range(1000), 0])
    assert len(long) == SPARKLINE
    assert (long[0], long[-2], long[-1]) == ("▁", "█", "▁")


SCRIPT = """
import sys, time
from pipelines.console.command import run_command
from pipelines.console.progress import Progress
from tests.pipelines.console.test_progress import SEARCH

def main(argv):
    progress = Progress()
    with progress.working("starting Ray"):
        progress.log("trial 3 complete")
        progress.update(SEARCH)
        print("from below")
        time.sleep(float(argv[0]))
    progress.result("winner: trial 1", {})
    return 0

sys.exit(run_command(main, sys.argv, resumes=True))
"""


class Terminal:
    """A command in a terminal, and what is on its screen."""

    def __init__(self, seconds: float, columns: int = 80, **environment: str) -> None:
        self.screen = pyte.Screen(columns, 24)
        self.raw = b""
        self._stream = pyte.ByteStream(self.screen)
        self._end, theirs = pty.openpty()
        self.resize(columns)
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(seconds)],
            **{"stdin": theirs, "stdout": theirs, "stderr": theirs},
            cwd=Path(__file__).parents[3],
            env={**os.environ, "TERM": "xterm-256color", **environment},
        )
        os.close(theirs)

    def resize(self, columns: int) -> None:
        ioctl(self._end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.screen.resize(24, columns)

    def until(self, text: str, times: int = 1) -> str:
        """Read until a text was drawn so often; the screen."""
        return self._read(lambda: self.raw.count(text.encode()) >= times)

    def end(self) -> str:
        """Read until the command has ended; the screen."""
        return self._read(lambda: False)

    def _read(self, enough: Callable[[], bool]) -> str:
        while not enough():
            try:
                part = os.read(self._end, 4096)
            except OSError:  # the command has ended
                break
            self.raw += part
            self._stream.feed(part)
        return self.text

    @property
    def text(self) -> str:
        return "\n".join(row.rstrip() for row in self.screen.display).rstrip()


@pytest.mark.process
def test_a_terminal_shows_a_panel_and_keeps_the_lines():
    terminal = Terminal(0.6)
    rows = terminal.until("█▃▁").splitlines()
    assert rows[:2] == ["trial 3 complete", "from below"]
    rows = terminal.end().splitlines()
    assert rows == ["trial 3 complete", "from below", "", "winner: trial 1"]
    assert not terminal.screen.cursor.hidden
    assert terminal.process.wait() == 0


def test_texts_do_not_control_the_terminal():
    written = io.StringIO()
    progress = Progress()
    progress.console = Console(file=written, force_terminal=True, highlight=False)
    progress.log("reason: \x1b]0;owned\x07")
    assert written.getvalue() == "reason: \\x1b]0;owned\\x07\n"


@pytest.mark.process
@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TTY_INTERACTIVE": "0"}])
def test_a_terminal_that_cannot_draw_gets_lines(environment):
    terminal = Terminal(0, **environment)
    rows = terminal.end().splitlines()
    assert rows == ["trial 3 complete", "from below", "", "winner: trial 1"]
    assert b"\x1b" not in terminal.raw


@pytest.mark.process
def test_no_color_is_respected():
    terminal = Terminal(0.4, NO_COLOR="1")
    assert "search   ━" in terminal.until("█▃▁")
    terminal.end()
    assert not [code for code in terminal.raw.split(b"\x1b[")[1:] if code[:1] == b"3"]


@pytest.mark.process
def test_ctrl_c_leaves_a_clean_terminal():
    terminal = Terminal(60)
    terminal.until("█▃▁", times=2)
    terminal.process.send_signal(signal.SIGINT)
    rows = [row for row in terminal.end().splitlines() if row]
    assert rows[:3] == [
        "trial 3 complete",
        "from below",
        "interrupted; run the same command again to go on:",
    ]
    assert not terminal.screen.cursor.hidden
    assert terminal.process.wait() == 130


@pytest.mark.process
def test_a_terminal_that_becomes_narrow_shows_the_panel_as_it_fits():
    terminal = Terminal(60)
    terminal.until("█▃▁")
    terminal.resize(40)
    terminal.screen.reset()
    terminal.raw = b""
    shown = terminal.until("█▃▁", times=2)
    assert "trial 11" in shown
    assert max(len(row) for row in shown.splitlines()) <= 40
    terminal.process.kill()
    terminal.process.wait()


@pytest.mark.parametrize(("options", "seconds"), [((), 15), (("--json",), 1)])
def test_a_line_of_progress_is_written_after_so_many_seconds(options, seconds, monkeypatch, capsys):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progress = progress_with(*options)
    progress.update(SEARCH)
    assert len(capsys.readouterr().out.splitlines()) == 1  # the first one at once
    now += seconds
    progress.update(SEARCH)
    assert capsys.readouterr().out == ""
    now += 0.01
    progress.update(SEARCH)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_another_process_is_watched_and_its_time_shown(monkeypatch, capsys):
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.001)
    progress, looked = progress_with("--json"), threading.Event()

    def look() -> str:
        looked.set()
        return "half of it"

    with progress.watching(look, stage="evaluate"):
        assert looked.wait(10)
    row = json.loads(capsys.readouterr().out.splitlines()[0])
    assert (row["event"], row["stage"]) == ("progress", "evaluate")
    assert row["text"].startswith("half of it, 0:0")


def test_work_in_a_log_file_has_a_first_line_after_the_interval_and_in_json_at_once(
    monkeypatch, capsys
):
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    for options, lines in (((), 0), (("--json",), 1)):
        progress = progress_with(*options)
        with progress.working("starting"):
            progress.update(SEARCH)
        assert len(capsys.readouterr().out.splitlines()) == lines


def test_the_first_line_in_a_log_file_is_so_long_after_the_command_began(monkeypatch, capsys):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with output_guarded():
        now += 15  # of imports
        progress = Progress()
        with progress.working("starting"):
            progress.update(SEARCH)
            assert capsys.readouterr().out == ""
            now += 0.01
            progress.update(SEARCH)
            assert len(capsys.readouterr().out.splitlines()) == 1


def test_without_an_option_that_prints_json_goes_with_anything():
    for options in ({}, {"dry_run": False}, {"print_config": False, "dry_run": False}):
        assert output_mode(argparse.Namespace(json=True, quiet=False, **options)).name == "JSON"
    for plain in ({"dry_run": True}, {"print_config": True}):
        assert output_mode(argparse.Namespace(json=False, quiet=False, **plain)).name == "TEXT"
        assert output_mode(argparse.Namespace(json=False, quiet=True, **plain)).name == "QUIET"


def test_a_curve_of_as_many_points_as_columns_has_each_and_a_longer_one_every_second():
    assert len(sparkline(range(SPARKLINE))) == SPARKLINE
    assert sparkline(range(8)) == SPARKS
    assert sparkline([0, 9] * 15 + [0]) == SPARKS[0] * SPARKLINE
    assert (SPARKLINE, MAX_WIDTH) == (16, 100)


@pytest.mark.parametrize("width", [12, 24, 30])
def test_on_a_narrow_terminal_texts_are_cut_and_not_wrapped(width):
    bars = [Bar("a name of many words", 0.5, "some words of a note")] * 3
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    console = Console(file=file, force_terminal=True, width=width, height=24, no_color=True)
    console.print(Panel(ProgressUpdate("x", bars=bars), console))
    file.seek(0)
    assert len(file.read().splitlines()) == 4
