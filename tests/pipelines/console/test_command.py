import errno
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.console.command import run_command
from pipelines.console.errors import ConfigError, PipelineError


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("bad"), 2, "bad\n"),
        (PipelineError("failed"), 1, "failed\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/runs/x"), 1, "/runs/x: No space left"),
        (OSError(errno.EROFS, "Read-only file system"), 1, "disk: Read-only file system\n"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to go on:\n  python a"),
    ],
)
def test_a_foreseen_end_is_its_message_and_a_code(error, code, said, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["a.py", "b c"])

    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        run_command(main, resumes=True)
    assert end.value.code == code
    assert capsys.readouterr().err.startswith(said)


def test_an_unforeseen_error_keeps_its_traceback():
    with pytest.raises(FileNotFoundError):
        run_command(lambda: Path("/nowhere/at/all").unlink(), resumes=True)


def test_output_that_the_disk_does_not_take_is_one_line():
    code = (
        "from pipelines.console.command import run_command\n"
        "run_command(lambda: print('x'), resumes=False)"
    )
    with Path("/dev/full").open("w") as full:
        child = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (child.returncode, child.stderr) == (1, "disk: No space left on device\n")
