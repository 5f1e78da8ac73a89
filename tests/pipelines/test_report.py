"""The report of a real sweep, and the notebooks on it, as people get them."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from pipelines.reporting.findings import findings
from pipelines.reporting.mixing import OUT, mixing
from pipelines.runtime.config import load
from tests.pipelines.commands import EXPERIMENT, ROOT, Folder

CHANGES = {
    "tokens: 65536": "tokens: 8192",
    "131072": "8192",
    "workers: 2": "workers: 1",
    "[standard, dca]": "[dca, grn_v2]",
}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def swept(tmp_path_factory, text) -> tuple[Folder, str]:
    """A sweep whose winner is of DCA and was trained with a second seed, and its page."""
    experiment = EXPERIMENT
    for old, new in CHANGES.items():
        experiment = experiment.replace(old, new)
    folder = Folder(tmp_path_factory.mktemp("report"), text, experiment)
    code, out, err = folder.run("sweep.py", "tiny.yaml")
    assert code == 0, err
    page = re.findall(r"^report +(.*)$", out, re.M)[-1]
    assert (folder.path / "runs" / "reports" / "tiny" / "report.html").samefile(page)
    code, _, err = folder.run("train.py", "--from-version", "1", "seed=1")
    assert code == 0, err
    code, out, err = folder.run("report.py", "tiny")
    assert (code, out.strip()) == (0, page), err
    return folder, page


def test_the_files_of_the_report_are_artifacts_of_the_pipelines_run(swept):
    folder, _ = swept
    store = folder.store()
    names = [
        {file.path for file in store.client.list_artifacts(run.info.run_id, "report")}
        for run in store.find("pipeline")
    ]
    (found,) = [one for one in names if one]
    expected = {"leaderboard", "history", "parallel", "slices", "curves", "pruning", "mixing"}
    assert {f"report/{name}.png" for name in expected} <= found
    assert {"report/report.html", "report/tiny.yaml"} <= found


def test_the_page_tells_how_sure_the_win_is_and_how_to_reproduce_it(swept):
    folder, path = swept
    page = re.sub(r"<svg.*?</svg>", "", open(path).read(), flags=re.S)  # noqa: SIM115,PTH123
    (fit,) = folder.store().find("fit")
    assert "version 1 promoted: " in page
    assert "python pipelines/train.py --from-version dca-gpt/1 seed=$seed" in page
    assert fit.info.run_id in page
    assert len(re.findall(r"<td>[A-Z]</td><td>[^<]*</td><td class=\"number\">2</td>", page)) == 1


def test_the_configuration_beside_the_page_is_the_one_that_was_run(swept):
    folder, path = swept
    beside = load([path.replace("report.html", "tiny.yaml")])
    assert beside == load([str(folder.path / "tiny.yaml")])


def test_the_learned_weights_are_those_of_the_packaged_model(swept, monkeypatch):
    folder, _ = swept
    folder.store()
    monkeypatch.chdir(folder.path)
    found = mixing(findings("tiny"))
    table = found.weights
    heads = {"q", "k", "v"} if "k" in set(table["output"]) else {"all"}
    assert set(table["output"]) == heads | {OUT}
    assert set(table["layer"]) == {"1", "2", OUT}
    assert found.bytes_read > 0
    assert table["added"].notna().all()
    assert (table["b"] - 1).abs().max() > 1e-4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_what_running_it_leaves(path):
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert cells
    assert not any(cell.outputs or cell.execution_count or cell.metadata for cell in cells)


EXPERIMENTS = {"01_quickstart": "tiny.yaml", "02_analyse_sweep": "tiny", "03_inside_dca": "tiny"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_on_the_finished_sweep(path, swept):
    folder, _ = swept
    store = folder.store()
    before = {kind: len(store.find(kind)) for kind in ("search", "trial", "fit")}
    shown, text = executed(path, folder)
    assert shown >= {"01_quickstart": 2, "02_analyse_sweep": 5, "03_inside_dca": 1}[path.stem]
    assert {
        "01_quickstart": "search    reused",
        "02_analyse_sweep": "python pipelines/train.py --from-version dca-gpt/1 seed=$seed",
        "03_inside_dca": "embedding",
    }[path.stem] in text
    assert {kind: len(store.find(kind)) for kind in before} == before


def executed(path: Path, folder: Folder) -> tuple[int, str]:
    """How many figures a notebook shows on a folder's sweep, and its text outputs."""
    environment = {k: v for k, v in folder.environment.items() if k != "PYTEST_CURRENT_TEST"}
    environment |= {"DCA_FOLDER": str(folder.path), "DCA_EXPERIMENT": EXPERIMENTS[path.stem]}
    notebook = nbformat.read(path, 4)
    client = NotebookClient(notebook, timeout=240, kernel_name="python3")
    client.execute(env=environment)
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    shown = sum("image/png" in out.get("data", {}) for out in outputs)
    return shown, "".join(out.get("text") or str(out.get("data", "")) for out in outputs)
