"""Stores that earlier versions of the project made, used with today's commands.

stores/version_0.tar.xz was made at commit 430fcc7, in /srv/store, by `sweep.py tiny.yaml` and
`sweep.py tiny.yaml fit.tokens=2048`: four trials, two of them pruned and one failed; version 1 is
the champion, version 2 was kept out by the gate. Checkpoints and PNG files were left out.
"""

import html
import json
import re
import sqlite3
import sys
import tarfile
from pathlib import Path

import pytest

from pipelines import promote, report, sweep, train
from tests.pipelines import forked
from tests.pipelines.packages import isolated_forked, timed_forked
from tests.pipelines.stored import move_database

pytestmark = [pytest.mark.extended, pytest.mark.process]
ARCHIVE = Path(__file__).parent / "stores" / "version_0.tar.xz"
PLACE = "/srv/store"
"""Where it was made: its database has absolute paths."""
KEPT = "kept version 1: 5.6653 against 0.9060 bits per byte of version 1 on the same test bytes"
READ_MODELS = """
import mlflow, os, pandas
from pipelines.generate import main

sampling = {"max_new_tokens": 40, "temperature": 0.8, "top_k": 40, "seed": 28}
options = [f"--{name.replace('_', '-')}={value}" for name, value in sampling.items()]

def generate(model):
    main([f"--model={model}", "--prompt=the ", "--json", *options])

def serve():
    model = mlflow.pyfunc.load_model("models:/tiny@champion")
    texts = model.predict(pandas.DataFrame({"prompt": ["the "]}), params=sampling)
    print(texts.iloc[0].to_json(), flush=True)

for read in (lambda: generate("tiny@champion"), lambda: generate("tiny/2"), serve):
    if os.fork() == 0:
        read()
        os._exit(0)
    assert os.wait()[1] == 0
"""
"""Each model in a process of its own, in which the `dca` of its package is imported."""


@pytest.fixture
def old_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the store, moved there."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    database = tmp_path / "mlflow.db"
    move_database(database, PLACE, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    isolated_forked(monkeypatch)
    return tmp_path


def tables(page: str) -> list[list[list[str]]]:
    """The tables of an HTML page: rows of cells."""
    return [
        [
            [html.unescape(re.sub(r"<[^>]+>", "", cell)) for cell in cells(row, "t[hd]")]
            for row in cells(table, "tr")
        ]
        for table in cells(page, "table")
    ]


def cells(text: str, tag: str) -> list[str]:
    return re.findall(rf"<{tag}\b.*?</{tag}>", text, re.S)


def artifact(folder: Path, name: str) -> str:
    """The text of the newest artifact of that name."""
    (*_, newest) = sorted(folder.glob(f"runs/artifacts/*/artifacts/{name}"), key=made)
    return newest.read_text()


def made(artifact: Path) -> float:
    """When an artifact's run began."""
    with sqlite3.connect("mlflow.db") as database:
        sql = "select start_time from runs where artifact_uri like ?"
        (time,) = database.execute(sql, [f"%/{artifact.parents[1].parent.name}/%"]).fetchone()
    return float(time)


def test_versions_and_champions_are_listed_and_change(old_store, capsys):
    def run(*arguments: str) -> str:
        assert promote.main([*arguments, "--model", "tiny"]) == 0
        return capsys.readouterr().out

    newest, first = json.loads(run("list", "--json"))
    assert (first["version"], first["aliases"]) == (1, ["champion"])
    assert (newest["version"], newest["aliases"]) == (2, ["challenger"])
    assert newest["lineage"]["provenance"]["mlflow.source.git.commit"].startswith("430fcc7")
    assert "kept version 1" in run("list")
    assert "no champion" in run("history")
    assert '"train.tokens"' in run("compare", "1", "2", "--json")
    assert KEPT in run("promote", "2")
    assert "version 2 promoted: forced: because" in run("promote", "2", "--force", "because")
    assert "version 1 is champion, instead of version 2" in run("rollback")
    actions = [row["action"] for row in json.loads(run("history", "--json"))]
    assert actions == ["promoted", "forced", "rolled back"]


def test_its_models_write_and_are_served_as_they_were(old_store):
    child = forked.run([sys.executable, "-c", READ_MODELS], without=["dca"])
    assert child.returncode == 0, child.stderr
    champion, other, served = map(json.loads, child.stdout.splitlines())
    assert champion["text"] == artifact(old_store, "samples.txt")
    assert served["text"] == champion["text"]
    assert other["text"].startswith("the ")
    assert other["text"] != champion["text"]


def test_its_report_has_the_figures_of_the_report_of_then(old_store, capsys):
    then = artifact(old_store, "report/report.html")
    assert report.main(["tiny"]) == 0
    page = Path(capsys.readouterr().out.strip()).read_text()
    assert KEPT in page
    *compared, lineage = tables(then)
    assert len(compared) == 5
    assert lineage[0] == ["", ""]  # it has paths and is not compared
    for header, *rows in compared:
        assert rows in [found[1:] for found in tables(page)], header


def test_a_version_is_trained_again(old_store, capsys):
    assert train.main(["--from-version", "tiny/1"]) == 0
    found = re.search(r"validation (\S+) bits per byte", capsys.readouterr().out)
    assert found is not None
    assert float(found[1]) == pytest.approx(0.7975, rel=0.01)


def test_a_sweep_beside_it_starts_anew_with_the_reason(old_store, monkeypatch, capsys):
    timed_forked(monkeypatch)
    assert sweep.main(["tiny.yaml", "fit.tokens=2048", "--dry-run"]) == 0
    plan, *_ = capsys.readouterr().out.partition("\n\n")
    stages = {
        name: (state, reason)
        for name, state, reason in (line.split(maxsplit=2) for line in plan.splitlines())
        if name in sweep.STAGE_NAMES
    }
    assert {state for state, _ in stages.values()} == {"run"}
    assert stages["search"][1] == "the earlier result is of store schema 0, this is 1"
    assert list(stages) == [one for one in sweep.STAGE_NAMES if one not in ("probe", "compare")]
