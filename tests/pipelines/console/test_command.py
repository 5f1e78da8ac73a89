"""Exit codes, signals and what is printed of an error."""

import errno
import gc
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from pipelines.console import command, process
from pipelines.console.command import Parser, run_command
from pipelines.console.errors import ConfigError, PipelineError, Problem
from pipelines.console.process import GARBAGE_THRESHOLDS, SIGNALS, handlers_restored

ROOT = Path(__file__).parents[3]


def failing(error: BaseException) -> Callable[[Sequence[str]], int]:
    def main(argv: Sequence[str]) -> int:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("bad"), 2, "bad\n"),
        (ConfigError(Problem("bad", "a.b", "e.yaml", "a.c"), "worse"), 2, "e.yaml: a.b: bad; did"),
        (PipelineError("failed"), 1, "failed\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/runs/x"), 1, "/runs/x: No space left"),
        (OSError(errno.ENOSPC, "No space", "/from", None, "/to"), 1, "/to: No space\n"),
        (OSError(errno.EROFS, "Read-only file system"), 1, "disk: Read-only file system\n"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 9), 2, "xxxxxxxxx: File name too"),
        (OSError(errno.EACCES, "Permission denied", "/else/a"), 2, "/else/a: Permission denied\n"),
        (OSError(errno.EPERM, "Operation not permitted", "a"), 2, "a: Operation not permitted\n"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "a"), 2, "a: Too many levels"),
        (OSError(errno.EACCES, "Permission denied"), 1, "disk: Permission denied\n"),
        (OSError(errno.EPERM, "Operation not permitted"), 1, "Traceback (most recent call last):"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to go on:\n  python a"),
    ],
)
def test_an_expected_failure_is_its_message_and_a_code(error, code, message, capsys):
    assert run_command(failing(error), ["a.py", "b c"], resumes=True) == code
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize(("free", "place"), [(5, "{0}/cwd, {0}/tmp"), (1 << 30, "disk")])
def test_a_full_disk_is_named_by_the_folders_without_room(
    tmp_path, monkeypatch, capsys, free, place
):
    for name in ("cwd", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("TMPDIR", f"{tmp_path}/tmp")
    monkeypatch.setenv("HOME", f"{tmp_path}/none")
    monkeypatch.setattr(command, "_free", lambda _: free)
    assert run_command(failing(OSError(errno.ENOSPC, "No space")), ["a.py"]) == 1
    assert capsys.readouterr().err == f"{place.format(tmp_path)}: No space\n"


@pytest.mark.parametrize("below", ["", "a", "a/b"])
@pytest.mark.parametrize("put", [Path.touch, lambda path: path.symlink_to("none")])
def test_a_file_where_a_folder_is_expected_is_one_line(tmp_path, capsys, put, below):
    put(tmp_path / "corpora")
    make = (tmp_path / "corpora" / below).mkdir
    assert run_command(lambda _: make(parents=True, exist_ok=True), ["a.py"]) == 2
    expected = f"{tmp_path}/corpora: expected a folder, got a file\n"
    assert capsys.readouterr().err == expected


def test_a_folder_that_is_there_already_is_no_file(tmp_path, capsys):
    assert run_command(lambda _: tmp_path.mkdir(), ["a.py"]) == 1
    assert "FileExistsError" in capsys.readouterr().err


def test_no_folder_for_temporary_files_is_one_line(monkeypatch, capsys):
    def main(argv: Sequence[str]) -> int:
        tempfile.mkdtemp()
        return 0

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/none"])
    assert run_command(main, ["a.py"]) == 2
    expected = "TMPDIR: No usable temporary directory found in ['/proc/none']; expected one\n"
    assert capsys.readouterr().err == expected


def test_a_working_folder_that_was_deleted_is_one_line(monkeypatch, tmp_path, capsys):
    def main(argv: Sequence[str]) -> int:
        Path("a").absolute()
        return 0

    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run_command(main, ["a.py"]) == 2
    expected = "the folder in which the command was started is gone\n"
    assert capsys.readouterr().err == expected
    monkeypatch.chdir(tmp_path)


def test_what_is_no_text_is_refused_by_every_command(monkeypatch, tmp_path, capsys):
    assert run_command(failing(AssertionError()), ["a.py", "a", "b\udcff\udcfe"]) == 2
    expected = "command line: b\\udcff\\udcfe: expected text in UTF-8\n"
    assert capsys.readouterr().err == expected
    folder = tmp_path / "b\udcff"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert run_command(failing(AssertionError()), ["a.py"]) == 2
    assert capsys.readouterr().err.endswith("b\\udcff: expected a path in UTF-8\n")


@pytest.mark.parametrize(
    ("options", "is_terminal", "lines"), [((), True, 2), (("--quiet",), True, 0), ((), False, 0)]
)
def test_a_command_that_writes_nothing_for_long_shows_that_it_works(
    options, is_terminal, lines, monkeypatch, capsys
):
    """As one that imports on a busy machine; not after its own first word."""
    monkeypatch.setattr(process, "SILENT_SECONDS", 0.01)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    found = []

    def main(argv: Sequence[str]) -> int:
        while lines and len(found) < lines:
            found.extend(capsys.readouterr().err.splitlines())
        time.sleep(0 if lines else 0.05)
        print("result")
        time.sleep(0.05)  # one more may be on its way
        found.extend(capsys.readouterr().err.splitlines())
        time.sleep(0.05)
        return 0

    assert run_command(main, ["a.py", *options]) == 0
    assert bool(found) == bool(lines)
    assert all(line == "  working, 0 s" for line in found)
    assert capsys.readouterr() == ("", "")


def test_a_command_that_cannot_resume_names_no_command_to_run_again(capsys):
    assert run_command(failing(KeyboardInterrupt()), ["a.py"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


class Losing:
    """An object whose destructor is interrupted, so that Python drops the interrupt."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.process
def test_without_docstrings_which_ray_needs_nothing_starts():
    command = [sys.executable, "-OO", str(ROOT / "pipelines" / "sweep.py"), "--help"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("PYTHONOPTIMIZE=2, or python -OO: expected at most 1")
    assert ended.stderr.count("\n") == 1


def test_an_interrupt_that_a_library_drops_comes_again_and_one_on_its_way_does_not(
    monkeypatch, capfd
):
    """A callback of pydantic's, for example, whose exceptions it takes for an answer."""
    monkeypatch.setattr(process, "LOST_SECONDS", 0.05)
    monkeypatch.setattr(process, "ENDING_SECONDS", 0.1)
    ended = []

    def dropping(arguments: list[str]) -> int:
        with suppress(BaseException):
            signal.raise_signal(signal.SIGINT)
        time.sleep(30)
        return 0

    def handling(arguments: list[str]) -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            time.sleep(0.3)
            ended.append("whole")
        return 0

    started = time.monotonic()
    assert run_command(dropping, ["train.py"]) == 130
    assert time.monotonic() - started < 20
    assert capfd.readouterr().err == "interrupted\n"
    assert run_command(handling, ["train.py"]) == 130
    assert ended == ["whole"]
    *lines, last = capfd.readouterr().err.splitlines()
    assert last == "interrupted"
    assert set(lines) == {"interrupted: ending what runs, 0 s"}
    assert len(lines) > 1
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


@pytest.mark.process
def test_an_interrupt_amid_an_import_comes_after_that(tmp_path):
    """PyTorch's C++ code would end the process, and any may keep the lock of imports."""
    fake = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nprint('whole')\n"
    (tmp_path / "torch.py").write_text(fake)
    code = """
import sys, time
from pipelines.console.command import run_command
def main(arguments):
    import torch
    time.sleep(10)
    print("not interrupted")
sys.exit(run_command(main, ["train.py"]))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "whole\n", "interrupted\n")


def test_an_interrupt_that_python_drops_is_not_lost(capsys):
    before = sys.unraisablehook

    def work(_) -> int:
        Losing()
        time.sleep(5)
        return 0

    assert run_command(work, ["a.py"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert sys.unraisablehook is before


def test_what_becomes_of_an_interrupt_is_one(capsys):
    """As of a transaction that cannot be rolled back after it."""

    def work(_) -> int:
        try:
            raise KeyboardInterrupt
        finally:
            raise PipelineError("cannot be rolled back") from None

    assert run_command(work, ["a.py"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_command_gets_its_arguments_and_returns_its_code():
    given = []

    def main(argv: Sequence[str]) -> int:
        given.extend(argv)
        return 7

    assert run_command(main, ["a.py", "b", "c"]) == 7
    assert given == ["b", "c"]


def test_an_unexpected_error_keeps_its_traceback_without_secrets(capsys):
    error = FileNotFoundError(errno.ENOENT, "http://user:CANARY@host/", "y")
    assert run_command(failing(error), ["a.py"], resumes=True) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last):\n")
    assert shown.endswith("FileNotFoundError: [Errno 2] http://***@host/: 'y'\n")


def test_the_command_to_run_again_has_no_secrets(capsys):
    argv = ["sweep.py", "storage=s3://KEY:CAN/ARY@bucket"]
    assert run_command(failing(KeyboardInterrupt()), argv, resumes=True) == 130
    assert capsys.readouterr().err.endswith("python sweep.py storage=s3://***@bucket\n")


def test_sigterm_interrupts_a_command(capsys):
    def main(argv: Sequence[str]) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    assert run_command(main, ["a.py"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    "main",
    [lambda _: 0, failing(ConfigError("bad")), failing(KeyboardInterrupt())],
    ids=["done", "bad input", "interrupted"],
)
def test_the_handler_of_sigterm_is_restored(main):
    def handler(*_: object) -> None:
        """Of the process that runs the command."""

    before = signal.signal(signal.SIGTERM, handler)
    try:
        run_command(main, ["a.py"])
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_handler_of_sigterm_is_restored_after_an_unexpected_error():
    before = signal.getsignal(signal.SIGTERM)
    assert run_command(failing(ZeroDivisionError()), ["a.py"]) == 1
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_command_runs_in_a_thread_without_handlers_of_its_own():
    before = signal.getsignal(signal.SIGTERM)
    codes = []
    thread = threading.Thread(target=lambda: codes.append(run_command(lambda _: 3, ["a.py"])))
    thread.start()
    thread.join()
    assert codes == [3]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_handler_that_was_not_set_from_python_is_left(monkeypatch):
    installed = []
    monkeypatch.setattr(signal, "getsignal", lambda _: None)
    monkeypatch.setattr(signal, "signal", lambda *given: installed.append(given))
    assert run_command(lambda _: 3, ["a.py"]) == 3
    with handlers_restored(*SIGNALS) as settable:
        assert not settable
    assert installed == []


def test_a_wrong_option_is_bad_input_in_one_line(capsys):
    def main(argv: Sequence[str]) -> int:
        parser = Parser(prog="a.py")
        parser.add_argument("--number", type=int)
        parser.parse_args(argv)
        return 0

    assert run_command(main, ["a.py", "--number", "x"]) == 2
    assert capsys.readouterr().err == "--number: invalid int value: 'x'\n"


def test_garbage_is_searched_seldom_during_a_command_and_as_before_after_it():
    before, during = gc.get_threshold(), []
    gc.set_threshold(701, 11, 12)
    try:
        assert run_command(lambda _: during.append(gc.get_threshold()) or 0, ["a.py"]) == 0
        assert during == [GARBAGE_THRESHOLDS]
        assert gc.get_threshold() == (701, 11, 12)
    finally:
        gc.set_threshold(*before)


@pytest.mark.process
def test_no_garbage_is_searched_as_a_process_ends():
    code = """
from pipelines.console.command import run_command

class Garbage:
    def __del__(self):
        print("searched")

def main(argv):
    garbage = Garbage()
    garbage.itself = garbage
    return 0

run_command(main, ["a.py"])
"""
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert child.stdout == b""


SCRIPT = """
import sys
from pathlib import Path
from pipelines.console.command import run_command
from pipelines.console.progress import Progress

def main(argv):
    progress = Progress()
    for number in range(3):
        progress.log(f"line {number}" + 100_000 * ".")
        print(f"warning {number}", file=sys.stderr)
    with Path("stored").open("x") as file:
        file.write(str(file.fileno()))
    progress.result("the result", {})
    return 0

sys.exit(run_command(main, ["a.py"]))
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("redirection", "code", "err"),
    [
        (">&-", 0, ["warning 0", "warning 1", "warning 2"]),
        ("2>&-", 0, []),
        ("<&- >&- 2>&-", 0, []),
        (
            ">/dev/full",
            1,
            ["warning 0", "warning 1", "warning 2", "standard output: No space left on device"],
        ),
        (">/dev/full 2>/dev/full", 1, []),
        ("2>/dev/full", 0, []),
        ("| head -1 >/dev/null", 0, ["warning 0", "warning 1", "warning 2"]),
    ],
)
def test_work_ends_and_is_stored_whatever_becomes_of_its_output(redirection, code, err, tmp_path):
    shell = f'"$0" -c "$1" {redirection}; exit ${{PIPESTATUS[0]}}'
    child = subprocess.run(
        ["bash", "-c", shell, sys.executable, SCRIPT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert (child.returncode, child.stderr.splitlines()) == (code, err)
    assert int((tmp_path / "stored").read_text()) > 2  # or what others print goes into the file


def test_what_the_output_cannot_encode_is_escaped(monkeypatch):
    data = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(data, "ascii"))
    assert run_command(lambda _: print("a \u2192 \ud800") or 0, ["a.py"]) == 0
    sys.stdout.flush()
    assert data.getvalue() == b"a \\u2192 \\ud800\n"


def test_output_that_was_closed_before_a_command_ends_nothing(monkeypatch):
    closed = io.StringIO()
    closed.close()
    for before in (None, closed):
        monkeypatch.setattr(sys, "stdout", before)
        assert run_command(lambda _: print("lost") or 0, ["a.py"]) == 0
        assert sys.stdout is before


def test_a_hangup_interrupts_a_command_unless_it_is_ignored(capsys):
    def main(argv: Sequence[str]) -> int:
        os.kill(os.getpid(), signal.SIGHUP)
        return 0

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        assert run_command(main, ["a.py"]) == 130
        assert capsys.readouterr().err == "interrupted\n"
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        assert run_command(main, ["a.py"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.process
@pytest.mark.parametrize("name", ["sweep", "train", "generate", "promote", "report", "clean"])
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_while_a_command_is_imported_is_one_line(name, number, tmp_path):
    (tmp_path / "argparse.py").write_text(
        f"import os, signal\nos.kill(os.getpid(), signal.{number})\nraise ImportError('late')\n"
    )
    command = [sys.executable, ROOT / "pipelines" / f"{name}.py"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    child = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (child.returncode, child.stdout, child.stderr) == (130, "", "interrupted\n")


@pytest.mark.process
@pytest.mark.parametrize(
    ("before", "main", "shown"),
    [
        ("", "0", ""),
        ("", "(_ for _ in ()).throw(KeyboardInterrupt)", "interrupted\n"),
        ("signal.signal(signal.SIGINT, signal.SIG_IGN)", "0", None),
    ],
    ids=["done", "interrupted", "ignored"],
)
def test_ctrl_c_at_the_end_of_the_process_is_one_line(before, main, shown):
    code = (
        "import atexit, os, signal, sys\n"
        "from pipelines.console import end_on_interrupt\n"
        "from pipelines.console.command import run_command\n"
        f"{before}\n"
        "end_on_interrupt()\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
        f"sys.exit(run_command(lambda _: {main}, sys.argv))"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    expected = (0, "") if shown is None else (130, f"{shown}interrupted\n")
    assert (child.returncode, child.stderr) == expected


@pytest.mark.process
def test_output_that_the_disk_does_not_take_is_one_line():
    code = (
        "import sys\n"
        "from pipelines.console.command import run_command\n"
        "sys.exit(run_command(lambda _: print('x') or 0, ['a.py']))"
    )
    with Path("/dev/full").open("w") as full:
        child = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (child.returncode, child.stderr) == (1, "standard output: No space left on device\n")


def test_help_that_the_disk_does_not_take_is_one_line(monkeypatch, capsys):
    def main(argv: Sequence[str]) -> int:
        Parser(prog="a.py").parse_args(argv)
        return 0

    assert run_command(main, ["a.py", "--help"]) == 0
    assert "usage: a.py" in capsys.readouterr().out
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run_command(main, ["a.py", "--help"]) == 1
    assert capsys.readouterr().err == "standard output: No space left on device\n"


@pytest.mark.process
def test_a_python_without_the_packages_is_one_line_that_names_one():
    """With -S it has those of the standard library only."""
    done = subprocess.run(
        [sys.executable, "-S", "pipelines/promote.py", "list"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{sys.executable} has no package rich: expected the project's")
    assert "make install" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.process
@pytest.mark.parametrize("command", sorted(p.name for p in (ROOT / "pipelines").glob("[!_]*.py")))
def test_a_python_without_this_project_is_one_line(command, tmp_path):
    """With -S it has no editable install."""
    folder = tmp_path / "pipelines"
    folder.mkdir()
    shutil.copy(ROOT / "pipelines" / command, folder)
    shutil.copytree(ROOT / "pipelines" / "console", folder / "console")
    done = subprocess.run(
        [sys.executable, "-S", folder / command], env={}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{sys.executable} has no package pipelines: expected the proj")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.process
def test_a_command_of_another_copy_of_the_project_does_not_run_with_the_installed_code(tmp_path):
    (tmp_path / "report.py").write_bytes((ROOT / "pipelines" / "report.py").read_bytes())
    (tmp_path / "link.py").symlink_to(ROOT / "pipelines" / "report.py")
    shown = []
    for name in ("report.py", "link.py"):
        done = subprocess.run(
            [sys.executable, tmp_path / name, "--help"],
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        shown.append((done.returncode, done.stdout[:6], done.stderr))
    line = f"{sys.executable} has {ROOT}/pipelines, not the package of {tmp_path}/report.py: expect"
    assert shown[0][:2] == (2, "")
    assert shown[0][2].startswith(line)
    assert shown[1] == (0, "usage:", "")


def test_a_package_that_is_missing_later_is_one_line_and_a_module_of_ours_a_traceback(capsys):
    assert run_command(failing(ModuleNotFoundError(name="ray.tune")), ["a.py"]) == 2
    assert "has no package ray:" in capsys.readouterr().err
    assert run_command(failing(ModuleNotFoundError(name="pipelines.none")), ["a.py"]) == 1
    assert "Traceback" in capsys.readouterr().err
