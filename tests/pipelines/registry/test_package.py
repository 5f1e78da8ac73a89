import subprocess
import sys

import pytest

from pipelines.storage.project import ROOT

IMPORTS = """
import sys
import pipelines.generate
import pipelines.registry.package, pipelines.registry.resolve, pipelines.registry.score
import pipelines.tracking.client, pipelines.tracking.models
print(sorted(name for name in sys.modules if name.split(".")[0] == "dca"))
"""


@pytest.mark.process
def test_what_loads_a_package_imports_no_dca_but_the_package_s_own():
    """Else a version made with other sources than today's could not be loaded."""
    child = subprocess.run(
        [sys.executable, "-c", IMPORTS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert child.stdout == "[]\n"
