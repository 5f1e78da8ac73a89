"""The state of the process that a command changes, put back at its end.

Used by every command, so that the next one in the same process starts as in one of its own.
"""

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.compat import mlflow, ray

LOGGERS = (mlflow.LOGGER, *ray.LOGGERS)
"""Whose levels the commands set."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ray and Tune install handlers of their own for these."""


@contextmanager
def process_restored() -> Iterator[None]:
    """Put back after a block the environment, the handlers of signals, the levels of loggers and
    the filters of MLflow's warnings. Also a decorator of a command's `main`.

    Other filters stay: libraries add them only once, when they are first imported.
    """
    environment = dict(os.environ)
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    filters = list(warnings.filters)
    with handlers_restored(*SIGNALS):
        try:
            yield
        finally:
            _restore_environment(environment)
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            warnings.filters[:] = [  # type: ignore[index]
                one for one in warnings.filters if one in filters or not mlflow.is_filter(one)
            ]


@contextmanager
def handlers_restored(*numbers: int) -> Iterator[bool]:
    """Put the handlers of signals back after a block; yields whether they may be set.

    Only the main thread may set any, and none can be put back that was not set from Python.
    """
    if threading.current_thread() is not threading.main_thread():
        yield False
        return
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield None not in handlers.values()
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)


def _restore_environment(before: dict[str, str]) -> None:
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)
