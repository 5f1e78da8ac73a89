"""Folders that Ray clusters of this machine have left behind; used by clean.py.

Each cluster writes its logs and sockets to a folder of its own, which it never removes.
"""

import os
import re
from pathlib import Path

import psutil

from pipelines.cluster.connection import session_folder
from pipelines.compat.ray import SESSIONS


def ended_sessions() -> list[Path]:
    """The user's own session folders whose command and all its processes have ended.

    A cluster that is being started has a folder, named after its command, before any process.
    """
    folders = [path for path in sorted(session_folder().glob(SESSIONS)) if _is_own(path)]
    if not folders:
        return []
    commands = (" ".join(process.info["cmdline"] or []) for process in _processes())
    running = {name for command in commands for name in re.findall(r"session_[\d_-]+", command)}
    return [path for path in folders if path.name not in running and not _command_runs(path)]


def _command_runs(path: Path) -> bool:
    """Whether the process runs whose number ends a session's name."""
    number = path.name.rpartition("_")[2]
    return number.isdecimal() and psutil.pid_exists(int(number))


def _is_own(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and path.lstat().st_uid == os.getuid()


def _processes() -> list[psutil.Process]:
    return list(psutil.process_iter(["cmdline"]))
