"""The types of Ray's and Tune's variables are those with which their code reads them."""

import re
from pathlib import Path

import pytest
import ray
from ray.train import constants
from ray.train.v2._internal import constants as train_constants
from ray.tune.constants import TUNE_ENV_VARS

from pipelines.cluster.connection import ray_session
from pipelines.compat import ray_variables as compat
from pipelines.console.errors import ConfigError

NUMBER = re.compile(r"(int|float)\(\s*os\.(?:environ\.get|getenv)\(\s*[\"]?(\w+)")
DRIVER = [
    *("tune/**/*.py", "air/_internal/*.py", "train/v2/_internal/execution/**/*.py"),
    *(
        "train/v2/_internal/callbacks/*.py",
        "train/v2/_internal/exceptions.py",
        "train/_internal/*.py",
    ),
    *("_private/*.py", "_common/usage/*.py"),
]
"""Files of Ray that run in a command's process, or in one for a training."""
AT_IMPORT = {"ray_constants.py"}
"""Which are read as Ray is imported: a process tries it."""


def test_every_number_that_a_command_reads_is_one_here():
    found: dict[str, set[str]] = {"int": set(), "float": set()}
    for path in (path for pattern in DRIVER for path in Path(ray.__file__).parent.glob(pattern)):
        if path.name in AT_IMPORT or "test" in str(path):
            continue
        for kind, given in NUMBER.findall(path.read_text()):
            name = getattr(train_constants, given, getattr(constants, given, given))
            found[kind] |= {str(name)} if str(name).startswith(("RAY_", "TUNE_")) else set()
    in_other_processes = {"RAY_WORKER_TIMEOUT_S", "RAY_RAYLET_PID"}
    assert found["int"] - in_other_processes == {
        *set(compat.WHOLE) - {"TUNE_MAX_PENDING_TRIALS_PG", *compat.MIN}
    }
    assert found["float"] == set(compat.REAL) - {"TUNE_GLOBAL_CHECKPOINT_S"}
    assert set(compat.AUTO) <= TUNE_ENV_VARS


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("TUNE_MAX_PENDING_TRIALS_PG", "abc", "a whole number or auto"),
        ("TUNE_MAX_PENDING_TRIALS_PG", "1.5", "a whole number or auto"),
        ("TUNE_MAX_PENDING_TRIALS_PG", "", "a whole number or auto"),
        ("TUNE_GLOBAL_CHECKPOINT_S", "soon", "a number or auto"),
        ("TUNE_RESULT_DIR", "/tmp", "none: Tune refuses to start with it"),
        ("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "x", "a number"),
        ("RAY_worker_register_timeout_seconds", "-1", "a whole number of at least 1"),
        ("RAY_worker_register_timeout_seconds", "0", "a whole number of at least 1"),
        ("RAY_AIR_FULL_TRACEBACKS", "true", "a whole number"),
    ],
)
def test_a_value_of_another_type_is_named_before_anything_starts(
    monkeypatch, name, value, expected
):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as raised, ray_session():
        pass
    assert str(raised.value) == f"{name}={value}: Ray cannot read it; expected {expected}"


def test_values_that_can_be_read_are_taken(monkeypatch):
    good = {"TUNE_MAX_PENDING_TRIALS_PG": "auto", "TUNE_RESULT_DIR": "", "RAY_ADDRESS": "auto"}
    for name, value in (good | {"TUNE_WARN_THRESHOLD_S": "1e3", "RAY_x": "12"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(compat, "_can_be_read", lambda _: False)  # no process is needed
    assert compat.unreadable_variables() == {}
    assert "RAY_ADDRESS" not in compat.own_variables()


@pytest.mark.extended
@pytest.mark.process
def test_a_variable_that_ends_rays_process_is_named_before_it_is_imported(monkeypatch):
    wrong = {
        "RAY_memory_usage_threshold": "abc",
        "RAY_CGRAPH_get_timeout": "soon",
        "RAY_LOG_MONITOR_MAX_OPEN_FILES": "abc",
        "RAY_OVERRIDE_RESOURCES": "{bad",
        "RAY_OVERRIDE_LABELS": "5",
    }
    for name, value in (wrong | {"RAY_num_workers_soft_limit": "7"}).items():
        monkeypatch.setenv(name, value)
    expected = "Ray cannot read it; expected a value of the setting's type, or none"
    with pytest.raises(ConfigError) as raised, ray_session():
        pass
    shown = {str(problem) for problem in raised.value.problems}
    assert shown == {f"{name}={value}: {expected}" for name, value in wrong.items()}
    for name in wrong:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"a": 1}')
    assert compat.unreadable_variables() == {}
    assert "RAY_num_workers_soft_limit" in compat.own_variables()
