"""Where a run's code and numbers come from: commit, user, versions of packages."""

import getpass
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

from pipelines.compat.mlflow import (
    COMMIT_TAG,
    LOCAL_SOURCE,
    SOURCE_NAME_TAG,
    SOURCE_TYPE_TAG,
    USER_TAG,
)
from pipelines.storage.project import ROOT
from pipelines.tracking.schema import COMMIT_VARIABLE, DIRTY_TAG, HOST_TAG, VERSION_PREFIX

CODE = ("dca", "pipelines", ":(exclude,glob)**/__pycache__/**")
"""What runs, as git's pathspecs: a change beside it, as to a note, changes no result."""
PACKAGES = ("torch", "ray", "mlflow", "optuna", "safetensors", "numpy")


def provenance() -> dict[str, str]:
    """The provenance tags of a new run. Starts git twice: call it once for many runs."""
    versions = {f"{VERSION_PREFIX}{name}": importlib.metadata.version(name) for name in PACKAGES}
    head = _git("rev-parse", "HEAD")
    commit = head or os.environ.get(COMMIT_VARIABLE)
    tags = {
        USER_TAG: user(),
        HOST_TAG: platform.node(),
        SOURCE_TYPE_TAG: LOCAL_SOURCE,
        SOURCE_NAME_TAG: "pipelines",
        f"{VERSION_PREFIX}python": platform.python_version(),
        **versions,
    }
    if commit:
        tags[COMMIT_TAG] = commit
    if head:
        tags[DIRTY_TAG] = str(bool(_git("status", "--porcelain", "--", *CODE))).lower()
    return tags


def this_process() -> str:
    """This process: its host, its id and its start, in which a later one of the id differs."""
    host = re.sub("[ ']", "-", platform.node()) or "unknown"  # runs are searched by it
    return f"{host} {os.getpid()} {_start_of(os.getpid())}"


def process_has_ended(text: str) -> bool:
    """Whether a process, as `this_process` described it, is of this host and runs no longer."""
    try:
        host, number, started = text.split()
        if host != this_process().split()[0]:
            return False
        return _start_of(int(number)) != int(started)
    except FileNotFoundError:
        return not _is_running(int(number))
    except (ValueError, OSError):
        return False


def _is_running(process: int) -> bool:
    """Whether there is such a process, of any user: /proc may show one's own only."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _start_of(process: int) -> int:
    """When a process began, in ticks since the machine started: no change of a clock moves it."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])


def user() -> str:
    """The name of the user that runs this process; the number of one who has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on
        return str(os.getuid())


def _git(*args: str) -> str:
    try:
        result = subprocess.run(
            ["git", *args], cwd=ROOT, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
