"""What a command changes of its process is put back, and nothing else."""

import logging
import os
import signal
import warnings

import pytest

from pipelines.compat import mlflow
from pipelines.console.process import LOGGERS, process_restored


@pytest.fixture(autouse=True)
def own_filters():
    with warnings.catch_warnings():
        yield


def test_the_environment_levels_handlers_and_mlflows_filters_are_those_of_before(monkeypatch):
    monkeypatch.setenv("DCA_TEST_KEPT", "before")
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    handler = signal.getsignal(signal.SIGUSR1)
    with process_restored():
        os.environ["DCA_TEST_KEPT"] = "changed"
        os.environ["DCA_TEST_ADDED"] = "new"
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        mlflow.ignore_warnings()
        warnings.filterwarnings("ignore", message="of a library")
    assert os.environ["DCA_TEST_KEPT"] == "before"
    assert "DCA_TEST_ADDED" not in os.environ
    assert {name: logging.getLogger(name).level for name in LOGGERS} == levels
    assert signal.getsignal(signal.SIGUSR1) is handler
    assert not [one for one in warnings.filters if mlflow.is_filter(one)]
    assert [one for one in warnings.filters if getattr(one[1], "pattern", "") == "of a library"]


def test_a_filter_of_mlflow_that_was_there_before_stays():
    mlflow.ignore_warnings()
    with process_restored():
        mlflow.ignore_warnings()
    assert [one for one in warnings.filters if mlflow.is_filter(one)]


def test_a_variable_that_was_removed_is_there_again(monkeypatch):
    monkeypatch.setenv("DCA_TEST_KEPT", "before")
    with pytest.raises(ValueError, match="ends"), process_restored():
        del os.environ["DCA_TEST_KEPT"]
        raise ValueError("ends")
    assert os.environ["DCA_TEST_KEPT"] == "before"
