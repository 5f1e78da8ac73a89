"""A version made with another `dca` than today's, and a folder with planted modules: the commands
run it with its own code, from anywhere."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import generate
from pipelines.engine.code import read_sources
from pipelines.registry import package
from pipelines.registry.package import load_model, runs_here
from pipelines.registry.score import score
from pipelines.registry.versions import Registry
from pipelines.storage.project import ROOT
from pipelines.tracking.models import model_id_of
from tests.pipelines.packages import log_untrained

pytestmark = pytest.mark.process
OPTIONS = ["--model=tiny/1", "--prompt=the ", "--max-new-tokens=20", "--json"]


@pytest.fixture
def changed(store, experiment) -> str:
    """The id of a model, tiny/1, whose `dca` has one byte more in a comment than ours."""
    sources = read_sources()
    sources["dca/sampling.py"] += b"#"
    run, uri = log_untrained(store, experiment, sources=sources)
    Registry(store.client, "tiny").register(uri, run, {})
    return model_id_of(uri)


def test_a_version_runs_with_its_own_code_from_a_folder_with_planted_modules(
    store, changed, tmp_path, capfd, monkeypatch
):
    """Also in a process that has imported our `dca`, as a notebook has."""
    folder = tmp_path / "working"
    folder.mkdir()
    for name in ("torch", "mlflow", "numpy", "safetensors", "dca", "pipelines", "einops"):
        (folder / f"{name}.py").write_text("open('planted', 'w')\nraise SystemExit('planted')")
    monkeypatch.chdir(folder)
    assert "dca" in sys.modules
    assert not runs_here(package.fetch_model(store.models, changed, tmp_path / "copy"))
    assert generate.main(OPTIONS) == 0
    out, err = capfd.readouterr()
    row = json.loads(out)
    assert row["text"].startswith("the ")
    assert row["model"] in err
    script = [sys.executable, str(ROOT / "pipelines" / "generate.py"), *OPTIONS]
    alone = subprocess.run(script, capture_output=True, text=True)
    assert alone.stdout == out, alone.stderr
    text = tmp_path / "text"
    text.write_bytes(bytes(range(32, 127)) * 3)
    assert score(store.models, changed, text).text_bytes == 285
    assert not Path("planted").exists()


@pytest.mark.extended
def test_a_version_with_its_own_code_writes_in_the_encoding_of_the_stream(changed, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    assert generate.main(["--model=tiny/1", "--prompt=caf\u00e9", "--max-new-tokens=0"]) == 0
    assert written.getvalue() == b"caf\xe9\n"


def test_where_our_code_is_the_package_s_it_runs_in_this_process(
    store, experiment, tmp_path, capsys, monkeypatch
):
    _, uri = log_untrained(store, experiment)
    folder = package.fetch_model(store.models, model_id_of(uri), tmp_path / "copy")
    assert runs_here(folder)
    assert load_model(folder).dca is sys.modules["dca"]
