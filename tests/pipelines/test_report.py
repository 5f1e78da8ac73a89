"""The report of a real sweep, as people get it."""

import re

import pytest

from pipelines.reporting.findings import findings
from pipelines.reporting.mixing import OUT, mixing
from pipelines.runtime.config import load
from tests.pipelines.commands import EXPERIMENT, Folder

SMALL = EXPERIMENT.replace("tokens: 65536", "tokens: 8192").replace("131072", "8192")


@pytest.fixture(scope="module")
def swept(tmp_path_factory, text) -> tuple[Folder, str]:
    """A sweep whose winner is of DCA and was trained with a second seed, and its page."""
    folder = Folder(
        tmp_path_factory.mktemp("report"), text, SMALL.replace("workers: 2", "workers: 1")
    )
    residual = "search.space.model.residual={choice: [dca, grn_v2]}"
    code, out, err = folder.run("sweep.py", "tiny.yaml", residual)
    assert code == 0, err
    page = re.search(r"^report +(.*)$", out, re.M)[1]
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
    arguments = [
        str(folder.path / "tiny.yaml"),
        "search.space.model.residual={choice: [dca, grn_v2]}",
    ]
    assert beside == load(arguments)


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
