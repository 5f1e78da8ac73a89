"""One file in `dca` adds a residual kind or a whole model to every command, as people run them."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.pages import blocks, example, page, section
from tests.pipelines import forked

pytestmark = [pytest.mark.extended, pytest.mark.process]
ROOT = Path(__file__).parents[2]
MODEL = '''
"""A gated recurrent network, whose cache is its state."""
import torch
from torch import nn

from dca.model import LanguageModel
from dca.registry import architecture


class Memory:
    state = None


@architecture("gru")
class Recurrent(LanguageModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab, config.dim)
        self.cells = nn.GRU(config.dim, config.dim, config.depth, batch_first=True)
        self.head = nn.Linear(config.dim, config.vocab)

    def forward(self, ids_bt, cache=None):
        y_btd, state = self.cells(self.embed(ids_bt), cache.state if cache else None)
        if cache:
            cache.state = state
        return self.head(y_btd)

    def new_cache(self, *, batch, capacity):
        return Memory()

    def initialise(self, generator):
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1, generator=generator)
'''


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """The sources with two files more, of which one is an example of the docs; a working folder."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("dca", "pipelines", "experiments"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    kind = example("extending", "Add a residual kind", "python")
    (folder / "dca" / "residuals" / "embedding_again.py").write_text(kind)
    (folder / "dca" / "architectures" / "gru.py").write_text(MODEL)
    experiment = {
        "experiment": "tiny",
        "data": {"corpus": "files", "path": str(text)},
        "train": {"seq_len": 32, "batch_tokens": 128},
    }
    (folder / "tiny.yaml").write_text(json.dumps(experiment))
    return folder


def run(project: Path, *arguments: str) -> tuple[int, str, str]:
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    result = forked.run(
        [sys.executable, *arguments],
        without=["dca", "pipelines", "tests"],
        cwd=project,
        env={**environment, "PYTHONPATH": str(project)},
    )
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize("choice", ["model.residual=embedding_again", "model.architecture=gru"])
def test_what_a_file_adds_is_trained_packaged_and_writes_text(project, choice):
    arguments = ["pipelines/train.py", "tiny.yaml", "--smoke", choice]
    code, out, err = run(project, *arguments, "model.embedding_again.every=2")
    assert code == 0, err
    uri = next(line.split()[1] for line in out.splitlines() if line.startswith("model "))
    arguments = ["--model", uri, "--prompt", "the ", "--max-new-tokens", "8", "--temperature", "0"]
    code, out, err = run(project, "pipelines/generate.py", *arguments)
    assert code == 0, err
    assert out.startswith("the ")
    packages = project.glob("runs/**/code/dca")
    assert any((package / "architectures" / "gru.py").exists() for package in packages)


def test_the_tests_of_all_kinds_take_it_up_with_the_functions_of_the_page(project):
    kind = section(page("extending"), "Add a residual kind")
    _, equations, counts = blocks(kind, "python")
    shutil.copytree(ROOT / "tests" / "dca", project / "tests" / "dca")
    for name in ("tests/__init__.py", "pyproject.toml"):
        shutil.copy(ROOT / name, project / name)
    command = "-m pytest -p no:cacheprovider -o addopts= --noconftest -q tests/dca/test_kinds.py -k"
    chosen = "embedding_again and (equations or start)"
    code, out, _ = run(project, *command.split(), chosen)
    assert code == 1, out
    assert "embedding_again has no equations in tests/dca/reference.py" in out
    assert "embedding_again has no counts in tests/dca/counts.py" in out
    for name, function in (("reference", equations), ("counts", counts)):
        with (project / "tests" / "dca" / f"{name}.py").open("a") as file:
            file.write(f"\n\n{function}")
    code, out, _ = run(project, *command.split(), chosen)
    assert code == 0, out


CHECK = """
import json, sys
from pipelines.experiment import Experiment, load, reference
load(["tiny.yaml", "search.space.model.residual={choice: [dca, embedding_again]}"])
own = "search.space.model.embedding_again.every={int: [1, 3]}"
load(["tiny.yaml", "model.residual=embedding_again", own])
fields = Experiment.model_json_schema()["$defs"]["ModelConfig"]["properties"]
print(json.dumps({"names": fields["residual"]["enum"], "reference": reference()}))
load(["tiny.yaml", "model.residual=embeding_again", "model.architecture=gro",
      "model.embedding_again.every=0", "model.embedding_again.evry=1"])
"""


def test_its_name_is_valid_in_the_space_the_schema_the_reference_and_the_errors(project):
    _, out, err = run(project, "-c", CHECK)
    found = json.loads(out)
    assert "embedding_again" in found["names"]
    assert "`embedding_again`" in found["reference"]
    assert "| `model.embedding_again.every` | `1` | Blocks from one " in found["reference"]
    assert "model.residual: input should be" in err
    assert "did you mean embedding_again?" in err
    assert "did you mean gru?" in err
    assert (
        "model.embedding_again.evry: unknown key; did you mean model.embedding_again.every?" in err
    )
