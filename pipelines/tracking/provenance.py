"""The tracking store: MLflow's experiments, runs, artifacts and logged models.

A run is found by what it is (tags `dca.kind` and `dca.key`), never by its name or by the order of
events, so that a command that was killed finds its own work again. Whoever needs the store while it
is locked or away waits for it; histories are written behind the back of the training.
"""

import getpass
import importlib.metadata
import os
import platform
import subprocess
from functools import cache
from pathlib import Path

from pipelines.tracking.schema import COMMIT

PACKAGES = ("torch", "ray", "mlflow", "optuna", "safetensors", "numpy")


@cache
def provenance() -> dict[str, str]:
    """Tags that say where a run's code and numbers come from, asked for once."""
    versions = {f"version.{name}": importlib.metadata.version(name) for name in PACKAGES}
    git = _git("rev-parse", "HEAD")
    named = git or os.environ.get(COMMIT)
    commit = {"mlflow.source.git.commit": named} if named else {}
    dirty = {"git.dirty": str(bool(_git("status", "--porcelain"))).lower()} if git else {}
    return {
        "mlflow.user": getpass.getuser(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": "pipelines",
        "version.python": platform.python_version(),
        **versions,
        **commit,
        **dirty,
    }


def _git(*args: str) -> str:
    here = Path(__file__).parent
    try:
        result = subprocess.run(
            ["git", *args], cwd=here, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
