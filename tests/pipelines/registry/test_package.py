import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
from safetensors import SafetensorError

from pipelines.console.errors import ConfigError, StorageError
from pipelines.registry.package import local_folder
from pipelines.storage.project import ROOT
from tests.pipelines.packages import log_untrained

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


@pytest.mark.parametrize("file", ["MLmodel", "model.safetensors"])
def test_a_folder_that_has_the_name_of_a_model_is_one_only_with_a_model_in_it(
    tmp_path, monkeypatch, file
):
    """The clone of this project is `dca-gpt`, as its registered model."""
    monkeypatch.chdir(tmp_path)
    for name in ("3", "dca-gpt/1", "a/b/c"):
        Path(name).mkdir(parents=True)
    assert [local_folder(name) for name in ("3", "dca-gpt", "dca-gpt/1", "none")] == 4 * [None]
    for path in ("./3", str(tmp_path / "3"), "a/b/c"):
        assert local_folder(path) == Path(path)
    Path("3", file).touch()
    assert local_folder("3") == Path("3")
    with pytest.raises(ConfigError, match=r"^\./4: no such folder$"):
        local_folder("./4")


def test_weights_for_which_there_is_no_room_are_one_line_with_the_place(
    store, experiment, monkeypatch
):
    def fail(*_) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(StorageError, match=r"/model\.safetensors: cannot be written: .*No space"):
        log_untrained(store, experiment)
