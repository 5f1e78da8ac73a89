"""Where a run's code and numbers come from: commit, user, versions of packages."""

import getpass
import importlib.metadata
import os
import platform
import re
import subprocess
from contextlib import suppress
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
COUNTED_TOGETHER = Path("/proc/self/ns/pid")
"""A link that is the same for the processes of a machine, or of one of its containers."""
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


def this_host() -> str:
    """The host in what `this_process` returns, without the processes that are counted together."""
    return re.sub("[ ']", "-", platform.node()) or "unknown"  # runs are searched by it


def this_process() -> str:
    """This process: its host, its id and its start, in which a later one of the id differs.

    Containers may share the name of a host, and each counts processes of its own: of which its id
    is one follows a #.
    """
    space = ""
    with suppress(OSError):  # an older kernel
        space = re.sub(r"\D+", "#", str(COUNTED_TOGETHER.readlink())).rstrip("#")
    return f"{this_host()}{space} {os.getpid()} {_start_of(os.getpid())}"


def is_here(text: str) -> bool:
    """Whether a process, as `this_process` described it, is among those that are counted here.

    Earlier versions described it without a #.
    """
    place = text.partition(" ")[0]
    return place in (this_host(), this_process().partition(" ")[0])


def process_has_ended(text: str) -> bool:
    """Whether a process, as `this_process` described it, is of this host and runs no longer."""
    try:
        _, number, started = text.split()
        return is_here(text) and _start_of(int(number)) != int(started)
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
