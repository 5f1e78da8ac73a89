"""What a process loads that imports a part of the pipeline, or runs a command."""

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
STAGES = sorted(
    f"pipelines.stages.{path.stem}"
    for path in (ROOT / "pipelines" / "stages").glob("[a-z]*.py")
    if path.stem != "recorded_training"  # imported when a model is trained
)
COMPUTING = {"torch", "ray", "optuna", "sklearn", "scipy.stats", "tensorboardX"}
"""Libraries that compute or search; MLflow itself loads numpy, pandas and scipy.sparse."""
LIBRARIES = COMPUTING | {"mlflow", "numpy", "pandas", "pyarrow", "matplotlib", "requests", "rich"}


def loaded(*modules: str) -> set[str]:
    """The modules of a fresh process that imports some of ours."""
    return ran(f"import {', '.join(modules)}")


def ran(code: str) -> set[str]:
    """The modules of a fresh process that runs some code."""
    found = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint('\\n', *sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(found.stdout.splitlines()[-1].split())


def test_the_data_package_loads_no_library_of_downloads_and_shared_storage():
    assert not {"rich", "requests", "pyarrow", "ray", "mlflow", "optuna"} & loaded(*DATA)


def test_what_every_command_imports_first_loads_no_library():
    names = [f"pipelines.console.{name}" for name in ("command", "errors", "options")]
    names += ["pipelines.console.text", "pipelines.console.updates"]
    assert not (LIBRARIES | {"pydantic"}) & loaded(*names)


@pytest.mark.parametrize("command", ["sweep", "train"])
def test_a_configuration_is_checked_and_printed_without_the_libraries_that_run_it(command):
    """A bad key, a text that is not there, and the configuration with a search over every kind, in
    one process."""
    code = f"""
from pipelines.{command} import main
from pipelines.console.errors import ConfigError
try:
    main(["model.dimm=3"])
except ConfigError as error:
    assert "did you mean model.dim" in str(error)
else:
    raise SystemExit("not refused")
try:
    main(["data.corpus=files", "data.path=/nonexistent/text"])
except ConfigError as error:
    assert "no such file" in str(error)
else:
    raise SystemExit("not refused")
main(["model.residual=hyper_connections", "--print-config"])
"""
    assert not (LIBRARIES - {"rich"}) & ran(code)


def test_what_shows_results_loads_nothing_that_computed_them():
    """Stages that are reused, the registry, the report; matplotlib only where a page is drawn."""
    shown = ["pipelines.sweep", "pipelines.promote", "pipelines.engine.dag", *STAGES]
    shown += ["pipelines.reporting.loading", "pipelines.registry.gate"]
    page = "pipelines.reporting.page.publish"
    modules = ran(
        f"import {', '.join(shown)}\nassert 'matplotlib' not in sys.modules\nimport {page}"
    )
    assert not (COMPUTING | {"matplotlib.pyplot"}) & modules
    assert {"mlflow", "matplotlib"} <= modules


def test_a_trial_loads_no_tracking_no_sampler_and_no_compiler():
    """Nor does the next one in the same process. Ray Tune itself loads pandas and pyarrow."""
    modules = ran("""
import dca.architectures.gpt, dca.residuals.dca
from pipelines.cluster.trial import Trial
trial = Trial.__new__(Trial)
trial._train = lambda **_: (row for row in ())
trial._results = trial._train()
assert trial.reset_config({"group": "a", "folder": "b", "values": {}, "key": None})
""")
    unneeded = {"mlflow", "optuna", "sklearn", "scipy", "matplotlib", "sqlalchemy"}
    assert not (unneeded | {"torch._dynamo", "torch._inductor", "sympy"}) & modules


def test_what_passes_messages_loads_no_pytorch():
    assert not {"torch", "mlflow", "optuna"} & loaded("pipelines.cluster.mailbox")
