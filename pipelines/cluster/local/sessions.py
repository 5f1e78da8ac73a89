"""Folders that Ray clusters of this machine have left behind.

Used by clean.py, and by sweep.py and train.py at their start.

Each cluster writes its logs and sockets to a folder of its own, which it never removes.
"""

import os
import re
import shutil
import socket
import stat
import tempfile
from pathlib import Path

import psutil

from pipelines.cluster.connection import session_folder
from pipelines.compat.ray import SESSIONS
from pipelines.storage.scratch import abandoned_folders


def ended_sessions() -> list[Path]:
    """The user's own session folders whose command and all its processes have ended.

    A cluster that is being started has a folder, named after its command, before any process. One
    of another container has the folder, but processes that only its sockets show.
    """
    folders = [path for path in sorted(session_folder().glob(SESSIONS)) if _is_own(path)]
    if not folders:
        return []
    commands = (" ".join(process.info["cmdline"] or []) for process in _processes())
    running = {name for command in commands for name in re.findall(r"session_[\d_-]+", command)}
    return [path for path in folders if path.name not in running and _has_ended(path)]


def remove_leftovers() -> None:
    """Delete what killed commands of this user have left on this machine: temporary folders, and
    those of Ray clusters that have ended."""
    for path in [*abandoned_folders(Path(tempfile.gettempdir())), *ended_sessions()]:
        shutil.rmtree(path, ignore_errors=True)


def _has_ended(session: Path) -> bool:
    """Whether neither the command in a session's name runs nor a process behind its sockets."""
    number = session.name.rpartition("_")[2]
    if not number.isdecimal() or psutil.pid_exists(int(number)):
        return False
    return not any(_answers(path) for path in (session / "sockets").glob("*"))


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        try:
            client.connect(str(path))
        except BlockingIOError:  # it is too busy to accept those that wait already
            return True
        except OSError:
            return False
    return True


def _is_own(path: Path) -> bool:
    try:
        status = path.lstat()
    except FileNotFoundError:  # another command has just deleted it
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def _processes() -> list[psutil.Process]:
    return list(psutil.process_iter(["cmdline"]))
