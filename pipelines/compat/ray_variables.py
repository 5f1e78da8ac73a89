"""Which environment variables of the user Ray and Tune cannot read.

Used by pipelines.cluster.connection before Ray is imported: at some of these Ray ends the process
without a word, at others it or Tune fails in the middle of a command.
"""

import math
import os
import subprocess
import sys

from pipelines.compat.ray import ENVIRONMENT, LOCAL_ENVIRONMENT, TOKEN_VARIABLES, USAGE

WHOLE = (
    *("RAY_AIR_FULL_TRACEBACKS", "RAY_CHDIR_TO_TRIAL_DIR", "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD"),
    *(
        "RAY_ROTATION_BACKUP_COUNT",
        "RAY_ROTATION_MAX_BYTES",
        "RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE",
    ),
    *("RAY_RUNTIME_ENV_LOG_TO_DRIVER_ENABLED", "RAY_gcs_server_port_wait_time_s"),
    *("RAY_USAGE_STATS_PROMPT_ENABLED", "RAY_USAGE_STATS_REPORT_INTERVAL_S"),
    "RAY_worker_register_timeout_seconds",
    *("TUNE_DISABLE_DATED_SUBDIR", "TUNE_DISABLE_SIGINT_HANDLER"),
    *("TUNE_DISABLE_STRICT_METRIC_CHECKING", "TUNE_FORCE_TRIAL_CLEANUP_S"),
    *("TUNE_FUNCTION_THREAD_TIMEOUT_S", "TUNE_MAX_LEN_IDENTIFIER", "TUNE_MAX_PENDING_TRIALS_PG"),
    *("TUNE_PRINT_ALL_TRIAL_ERRORS", "TUNE_RESTORE_RETRY_NUM", "TUNE_RESULT_BUFFER_LENGTH"),
)
REAL = (
    *("RAY_MEMORY_MONITOR_ERROR_THRESHOLD", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"),
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S",
    *("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"),
    *("TUNE_GLOBAL_CHECKPOINT_S", "TUNE_RESULT_BUFFER_MAX_TIME_S", "TUNE_RESULT_BUFFER_MIN_TIME_S"),
    *("TUNE_STATE_REFRESH_PERIOD", "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S"),
    *("TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S", "TUNE_WARN_THRESHOLD_S"),
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S_AUTOSCALER",
    "TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S",
)
"""What Ray and Tune read as numbers in Python, after they are imported; nothing lists the types."""
AUTO = ("TUNE_GLOBAL_CHECKPOINT_S", "TUNE_MAX_PENDING_TRIALS_PG")
"""Those that may be `auto` instead."""
MIN = {"RAY_worker_register_timeout_seconds": 1}
"""With less Ray waits without an end as it starts, deaf to signals."""
REFUSED = ("RAY_AIR_LOCAL_CACHE_DIR", "RAY_STORAGE", "TUNE_RESULT_DIR")
"""What Tune refuses to start with."""
JSON = ("RAY_OVERRIDE_LABELS", "RAY_OVERRIDE_RESOURCES")
TEXTS = (*TOKEN_VARIABLES, "RAY_ADDRESS", "RAY_CLIENT_MODE", "RAY_TMPDIR")
"""Variables of Ray with any text: those of this project, and one that Ray sets itself."""
MAX_DIGITS = 10
"""Of whole numbers that any setting of Ray's can be, but those in JSON."""
READ = (
    "import ray.dag; from ray._private.resource_and_label_spec import ResourceAndLabelSpec as Spec;"
    "Spec().resolve(is_head=True, node_ip_address='127.0.0.1')"
)
"""Code that reads the settings of Ray: those of its library in C++, and those in JSON."""


def unreadable_variables() -> dict[str, str]:
    """The user's variables that Ray or Tune cannot read, and what is expected of each."""
    found = {name: _expected(name, value) for name, value in os.environ.items()}
    if wrong := {name: expected for name, expected in found.items() if expected}:
        return wrong
    return dict.fromkeys(_refused(), "a value of the setting's type, or none")


def own_variables() -> list[str]:
    """Names of the user's variables for Ray, which may be why it does not start."""
    defaults = {**USAGE, **ENVIRONMENT, **LOCAL_ENVIRONMENT}
    return sorted(
        name
        for name, value in os.environ.items()
        if name.startswith("RAY_") and name not in TEXTS and defaults.get(name) != value
    )


def _expected(name: str, value: str) -> str:
    """What is expected in place of a value; empty if it can be read, or is no number."""
    if name in REFUSED:
        return "none: Tune refuses to start with it" if value else ""
    if name not in WHOLE + REAL or (name in AUTO and value == "auto"):
        return ""
    expected = "a whole number" if name in WHOLE else "a number"
    expected += f" of at least {MIN[name]}" if name in MIN else " or auto" * (name in AUTO)
    try:
        number = int(value) if name in WHOLE else float(value)
    except ValueError:
        return expected
    return expected if number < MIN.get(name, -math.inf) else ""


def _refused() -> list[str]:
    """The variables with which Ray cannot be imported, or not read its resources.

    Tried in processes of their own, where there are such variables: a second each. A small whole
    number can be read as any type.
    """
    given = [
        name
        for name in own_variables()
        if name in JSON or not (os.environ[name].isdecimal() and len(os.environ[name]) < MAX_DIGITS)
    ]
    if not given or _can_be_read(given) or not _can_be_read([]):
        return []
    return [name for name in given if not _can_be_read([name])] or given


def _can_be_read(names: list[str]) -> bool:
    """Whether Ray can be imported, and read its resources, with no others of its variables."""
    own = own_variables()
    kept = {k: v for k, v in os.environ.items() if k in names or k not in own}
    code, nowhere = [sys.executable, "-c", READ], subprocess.DEVNULL
    return not subprocess.run(
        code, env=kept, stdin=nowhere, stdout=nowhere, stderr=nowhere
    ).returncode
