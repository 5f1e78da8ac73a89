"""Ends what is left of a Ray cluster of this machine once its command was killed.

    python pipelines/cluster/local/watcher.py COMMAND

where COMMAND is the id of the command's process. Ray's processes end by themselves, but where the
machine is busy some try to reach one that is gone for a minute. Used by `connect`.
"""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil

GRACE_SECONDS = 8
"""In which Ray's processes should have ended by themselves."""


def start_watcher() -> "subprocess.Popen[bytes]":
    """Start it for this process."""
    return subprocess.Popen(
        [sys.executable, "-P", __file__, str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the command
    )


def _cluster_processes(command: str) -> list[psutil.Process]:
    """Those that write to a log of the command's clusters, whose folders have its id in their
    names. Other marks, as the command line and the environment, Ray overwrites. A log is read by
    others, as `tail -f`."""
    log, found = re.compile(rf"/session_[^/]*_{command}/"), []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            files = process.open_files()
            if any(log.search(file.path) and getattr(file, "mode", "") != "r" for file in files):
                found.append(process)
    return found


if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    command = sys.argv[1]
    while os.getppid() == int(command):
        time.sleep(0.5)
    left = _cluster_processes(command)  # now: the next command removes the logs of ended ones
    time.sleep(GRACE_SECONDS)
    for process in left:
        with suppress(psutil.Error):
            process.kill()
