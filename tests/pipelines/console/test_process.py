"""What a command changes of its process is put back, and nothing else."""

import getpass
import logging
import os
import pwd
import signal
import sys
import warnings
from pathlib import Path

import pytest

from pipelines.compat import mlflow
from pipelines.compat.ray import THREADS
from pipelines.console.command import run_command
from pipelines.console.process import (
    LOGGERS,
    process_restored,
    user_named,
    warnings_of_libraries,
)


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


def test_warnings_of_libraries_are_no_errors_by_python_options(monkeypatch):
    monkeypatch.setattr(sys, "warnoptions", ["error"])
    monkeypatch.setenv("PYTHONWARNINGS", "err::UserWarning,ignore::FutureWarning,error")
    warnings.resetwarnings()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.simplefilter("error")
    before = list(warnings.filters)

    def main(argv):
        assert "error" not in [one[0] for one in warnings.filters]
        assert os.environ["PYTHONWARNINGS"] == "ignore::FutureWarning"
        warnings.filterwarnings("ignore", message="added by a library")
        assert not logging.getLogger("matplotlib.font_manager").isEnabledFor(logging.WARNING)
        return 0

    assert run_command(main, ["a.py"]) == 0
    assert os.environ["PYTHONWARNINGS"] == "err::UserWarning,ignore::FutureWarning,error"
    assert warnings.filters[1:] == before
    assert logging.getLogger("matplotlib").level == logging.NOTSET


def test_errors_that_a_program_makes_of_warnings_itself_stay_errors(monkeypatch):
    monkeypatch.setattr(sys, "warnoptions", [])
    warnings.simplefilter("error")
    with warnings_of_libraries(), pytest.raises(UserWarning):
        warnings.warn("ours", UserWarning, stacklevel=1)


def test_a_user_whom_the_system_does_not_know_has_a_name_and_a_home(monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    with user_named():
        assert "HOME" not in os.environ  # the system knows it
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    with pytest.raises((KeyError, OSError)):
        getpass.getuser()
    with user_named():
        assert getpass.getuser() == str(os.getuid())
        assert not Path.home().exists()
    assert "HOME" not in os.environ
    monkeypatch.setenv("USER", "ana")
    monkeypatch.setenv("HOME", "/home/ana")
    with user_named():
        assert (getpass.getuser(), Path.home()) == ("ana", Path("/home/ana"))
    assert os.environ["HOME"] == "/home/ana"


@pytest.mark.parametrize("given", [None, "7"])
def test_a_command_has_the_short_waits_of_threads_that_the_user_has_not_set(given, monkeypatch):
    (name,) = THREADS
    monkeypatch.delenv(name, raising=False)
    if given:
        monkeypatch.setenv(name, given)
    found = []
    assert run_command(lambda _: found.append(os.environ[name]) or 0, ["a.py"]) == 0
    assert found == [given or THREADS[name]]
    assert os.environ.get(name) == given
