"""What a process loads that imports a part of the pipeline."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process
ROOT = Path(__file__).parents[2]
DATA = sorted(
    f"pipelines.data.{path.stem}"
    for path in (ROOT / "pipelines" / "data").glob("[a-z]*.py")
    if path.stem != "download"  # imported when a file is to be downloaded
)


def loaded(*modules: str) -> set[str]:
    """The top-level modules of a fresh process that imports some of ours."""
    code = f"import sys, {', '.join(modules)}; print(*(name.split('.')[0] for name in sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(found.stdout.split())


def test_the_data_package_loads_no_library_of_downloads_and_shared_storage():
    assert not {"rich", "requests", "pyarrow", "ray", "mlflow", "optuna"} & loaded(*DATA)


@pytest.mark.parametrize("module", ["command", "errors", "options", "text", "updates"])
def test_what_every_command_imports_first_loads_no_library(module):
    assert not {"rich", "pydantic", "torch", "numpy"} & loaded(f"pipelines.console.{module}")


def test_an_experiment_is_read_without_the_libraries_that_run_it():
    heavy = {"torch", "numpy", "ray", "mlflow", "optuna", "pandas", "pyarrow", "matplotlib"}
    assert not heavy & loaded("pipelines.experiment")
