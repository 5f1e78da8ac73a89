"""A real sweep as users see it: MLflow's pages and the report in a browser, and the notebooks."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from selenium.webdriver.common.by import By

from pipelines.experiment import load
from pipelines.reporting.learned_weights import OUT
from pipelines.reporting.loading import load_results
from pipelines.reporting.mixing import read_mixing
from pipelines.tracking.schema import STAGE_TAG
from pipelines.tracking.store import Run, Store
from tests.pages import OF_A_SWEEP, PAGES, blocks
from tests.pipelines.browser import CHROMIUM, DRIVER, PHONE_WIDTH, WIDTH, Browser
from tests.pipelines.commands import ROOT, Folder, free_port, start_and_wait, stop
from tests.pipelines.forked import Command
from tests.pipelines.local_tune import LocalTune

ROW = "//div[@role='row' and .//a[{}]]"
"""The XPath of a run's row on the runs page, by what its link is."""
WRITTEN = ("runs", "reports", "tiny", "report.html")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
REPORT = (
    *("summary", "leaderboard", "importance", "history", "parallel", "slices", "curves", "pruning"),
    *("failures", "winner", "mixing", "samples", "lineage", "next"),
)
"""Sections of the report, which has all of them in any state of a sweep."""
SEARCHED = ("train.learning_rate", "model.residual", "model.dca.last_k", "val_bits_per_byte")


@pytest.fixture(scope="module")
def swept(finished: Folder, tmp_path_factory) -> Folder:
    """A finished sweep over residual kinds with mixtures."""
    folder = finished.copy(tmp_path_factory.mktemp("report") / "copy")
    screen = (folder.path / "screen.txt").read_text()
    path = Path(re.findall(r"^report +(.*)$", screen, re.M)[-1])
    assert finished.path.joinpath(*WRITTEN).samefile(path)
    return folder


@pytest.fixture(scope="module")
def page(swept: Folder, tmp_path_factory) -> Path:
    """The report's page, after the winner was trained with a second seed."""
    written = swept.path.joinpath(*WRITTEN)
    before = written.read_text()
    with pytest.MonkeyPatch.context() as patch:
        LocalTune(tmp_path_factory.mktemp("tune"), patch)
        code, _, err = swept.run("train.py", "--from-version", "1", "seed=1")
    assert code == 0, err
    code, out, err = swept.run("report.py", "tiny")
    assert (code, out.strip()) == (0, str(written)), err
    assert written.read_text() != before
    return written


@pytest.fixture(scope="module")
def store(swept: Folder) -> Store:
    return swept.store()


@pytest.fixture(scope="module")
def pipeline(store: Store) -> Run:
    """The sweep's pipeline run; train.py has one, too."""
    searched = STAGE_TAG.format("search")
    (run,) = [run for run in store.find("pipeline") if searched in run.data.tags]
    return run


def test_the_files_of_the_report_are_artifacts_of_the_pipelines_run(store, pipeline, page):
    names = {
        run.info.run_id: {
            file.path for file in store.client.list_artifacts(run.info.run_id, "report")
        }
        for run in store.find("pipeline")
    }
    found = names.pop(pipeline.info.run_id)
    expected = {"leaderboard", "history", "parallel", "slices", "curves", "pruning", "mixing"}
    assert {f"report/{name}.png" for name in expected} <= found
    assert {"report/report.html", "report/tiny.yaml"} <= found
    assert list(names.values()) == [set()]


def test_the_page_has_the_evidence_for_the_winner_and_how_to_reproduce_it(store, page):
    text = re.sub(r"<svg.*?</svg>", "", page.read_text(), flags=re.S)
    (fit,) = store.find("fit")
    assert "version 1 promoted: " in text
    assert f"python {ROOT}/pipelines/train.py --from-version dca-gpt/1 seed=$seed" in text
    assert fit.info.run_id in text
    assert len(re.findall(r"<td>[A-Z]</td><td>[^<]*</td><td class=\"number\">2</td>", text)) == 1


def test_the_configuration_beside_the_page_is_the_one_that_was_run(swept, page):
    beside = load([str(page.with_name("tiny.yaml"))])
    resolved = "train.precision=float32"  # of auto, on the processors of this small a model
    assert beside == load([str(swept.path / "tiny.yaml"), resolved])


def test_the_learned_weights_are_those_of_the_packaged_model(swept, store, monkeypatch):
    monkeypatch.chdir(swept.path)
    mixing = read_mixing(load_results("tiny"))
    table = mixing.weights
    heads = {"q", "k", "v"} if "k" in set(table["output"]) else {"all"}
    assert set(table["output"]) == heads | {OUT}
    assert set(table["layer"]) == {"1", "2", OUT}
    assert mixing.bytes_read > 0
    assert table["added"].notna().all()
    assert (table["b"] - 1).abs().max() > 1e-4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path):
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert cells
    assert not any(cell.outputs or cell.execution_count or cell.metadata for cell in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_on_the_finished_sweep(path, swept, store, page):
    before = {kind: len(store.find(kind)) for kind in ("search", "trial", "fit")}
    shown, text = executed(path, swept)
    assert shown >= {"01_quickstart": 2, "02_analyse_sweep": 5, "03_inside_dca": 1}[path.stem]
    assert {
        "01_quickstart": "search    reused",
        "02_analyse_sweep": "pipelines/train.py --from-version dca-gpt/1 seed=$seed",
        "03_inside_dca": "embedding",
    }[path.stem] in text
    assert {kind: len(store.find(kind)) for kind in before} == before


EXAMPLES = {
    f"{path.stem}-{number}": code
    for path in PAGES
    for number, code in enumerate(blocks(path.read_text(), "python"))
    if any(mark in code for mark in OF_A_SWEEP)
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_of_the_docs_runs_on_the_finished_sweep(name, swept):
    script = swept.path / f"{name}.py"
    script.write_text(EXAMPLES[name].replace('"quickstart"', '"tiny"'))
    example = Command(script, [], swept.path, swept.environment)
    out, err = example.communicate(timeout=240)
    assert example.returncode == 0, err
    assert out


@pytest.mark.extended
def test_the_analysis_of_a_study_has_its_verdict(studied: Folder):
    (path,) = (path for path in NOTEBOOKS if path.stem == "02_analyse_sweep")
    shown, text = executed(path, studied)
    verdict = (studied.path / "screen.txt").read_text().splitlines()[-1]
    assert verdict.removeprefix("verdict   ") in text
    assert "| dca-2 |" in text
    assert shown >= 4 + 5


def executed(path: Path, folder: Folder) -> tuple[int, str]:
    """How many figures a notebook shows on a folder's sweep, and its text outputs.

    The first one is run by a kernel of Jupyter. The others are by IPython in a process that has
    their libraries in memory: the outputs are the same.
    """
    environment = {k: v for k, v in folder.environment.items() if k != "PYTEST_CURRENT_TEST"}
    environment |= {"DCA_FOLDER": str(folder.path), "DCA_EXPERIMENT": "tiny"}
    environment["DCA_FILE"] = str(folder.path / "tiny.yaml")
    if path.stem == "01_quickstart":
        notebook = nbformat.read(path, 4)
        NotebookClient(notebook, timeout=240, kernel_name="python3").execute(env=environment)
        outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
        shown = sum("image/png" in out.get("data", {}) for out in outputs)
        return shown, "".join(out.get("text") or str(out.get("data", "")) for out in outputs)
    process = Command("-c", [IPYTHON, str(path)], folder.path, environment)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    shown, text = json.loads(out.splitlines()[-1])
    return shown, text


IPYTHON = """
import json, sys
import nbformat
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

shell, shown, text = InteractiveShell.instance(), 0, ""
shell.enable_gui = lambda gui=None: None  # which matplotlib's inline figures need not
for cell in nbformat.read(sys.argv[1], 4).cells:
    if cell.cell_type == "code":
        with capture_output() as captured:
            result = shell.run_cell(cell.source)
        result.raise_error()
        outputs = [output.data for output in captured.outputs]
        if result.result is not None:
            outputs.append(shell.display_formatter.format(result.result)[0])
        shown += sum("image/png" in output for output in outputs)
        text += captured.stdout + "".join(map(str, outputs))
print(json.dumps([shown, text]))
"""


@pytest.fixture(scope="module")
def address(swept: Folder) -> Iterator[str]:
    """Address of MLflow's UI on the sweep's store."""
    port = free_port()
    arguments = ["server", "--port", str(port), "--workers", "1"]
    arguments += ["--backend-store-uri", f"sqlite:///{swept.path}/mlflow.db"]
    server = start_and_wait(arguments, f"http://127.0.0.1:{port}/health", swept.path)
    yield f"http://127.0.0.1:{port}"
    stop(server)


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    if not (CHROMIUM and DRIVER):
        pytest.skip("no chromium and chromedriver: apt-get install chromium chromium-driver")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.driver.quit()


def row(name: str) -> str:
    """The XPath of a run's row on the runs page."""
    return ROW.format(f"normalize-space(.)='{name}'")


def rows(browser: Browser) -> list[str]:
    """The names on the runs page, from top to bottom."""
    found = browser.wait("//div[@role='row' and .//a[contains(@href, '/runs/')]]")
    found.sort(key=lambda element: int(element.get_attribute("row-index")))
    return [element.find_element(By.TAG_NAME, "a").text for element in found]


def unfold(browser: Browser, row: str) -> None:
    browser.click(f"{row}//button[contains(@data-component-id, 'runnamecellrenderer')]")


def test_the_runs_page_nests_the_trials_under_their_search_and_compares_them(
    browser, address, store, pipeline
):
    browser.open(f"{address}/#/experiments/{store.experiment_id}/runs")
    browser.wait(row("tiny pipeline"))
    names = [run.info.run_name for run in store.find("pipeline")]
    assert sorted(rows(browser)) == sorted(names)
    assert len(set(names)) == len(names)
    unfold(browser, ROW.format(f"contains(@href, '{pipeline.info.run_id}')"))
    browser.wait(row("tiny fit"))
    assert "tiny trial 0" not in rows(browser)
    unfold(browser, row("tiny search"))
    browser.wait(row("tiny trial 0"))
    names, trials = rows(browser), [f"tiny trial {number}" for number in (3, 2, 1, 0)]
    assert names[names.index("tiny search") :] == ["tiny search", *trials]
    browser.picture("runs")
    for name in trials:
        browser.click(f"{row(name)}//input[contains(@aria-label, 'row selection')]")
    browser.click("//button[normalize-space(.)='Compare']")
    axes = [f"//*[name()='text' and text()='{name}']" for name in SEARCHED]
    for axis in axes:
        browser.wait(axis)
    browser.picture("compare")
    assert "Comparing 4 Runs" in browser.text


def test_a_search_has_a_description_and_the_study(browser, address, store):
    (search,) = store.find("search")
    page = f"{address}/#/experiments/{store.experiment_id}/runs/{search.info.run_id}"
    browser.open(page)
    shown = ("Trials of 163,840 bytes", "best_val_bits_per_byte", "files training")
    assert browser.missing(*shown) == []
    browser.picture("search")
    browser.open(f"{page}/artifacts")
    assert browser.missing("study.db") == []


def test_the_registry_shows_the_champion_and_where_it_comes_from(browser, address, store, pipeline):
    browser.open(f"{address}/#/models/dca-gpt")
    shown = ("@ champion", "Version 1", "pipelines/generate.py --model dca-gpt")
    assert browser.missing(*shown) == []
    browser.picture("registry")
    browser.open(f"{address}/#/models/dca-gpt/versions/1")
    assert browser.missing("@ champion", "bits per byte of the test split") == []
    (search,), (fit,) = store.find("search"), store.find("fit")
    for text, run in {"search": search, "fit": fit, "pipeline": pipeline}.items():
        links = [a.get_attribute("href") for a in browser.wait(f"//a[normalize-space(.)='{text}']")]
        assert any(link.endswith(f"/runs/{run.info.run_id}") for link in links), links
    browser.picture("version")
    browser.open(browser.wait("//a[normalize-space(.)='search']")[0].get_attribute("href"))
    assert browser.missing("tiny search", "train.learning_rate") == []


def test_the_models_page_has_its_results_and_its_version(browser, address, store):
    (fit,) = store.find("fit")
    (output,) = fit.outputs.model_outputs
    browser.open(f"{address}/#/experiments/{store.experiment_id}/models/{output.model_id}")
    results = ("test_bits_per_byte", "best_val_bits_per_byte", "tiny evaluate", "files test")
    assert browser.missing(*results, "dca-gpt") == []
    assert "Not registered" not in browser.text
    browser.picture("model")


def test_the_report_is_complete_and_has_no_errors(browser, store, pipeline, tmp_path):
    folder = store.client.download_artifacts(pipeline.info.run_id, "report", tmp_path)
    browser.errors()  # of MLflow's pages
    for name, width in {"report": WIDTH, "report-phone": PHONE_WIDTH}.items():
        browser.open((Path(folder) / "report.html").as_uri(), width=width)
        for section in REPORT:
            browser.wait(f"//*[@id='{section}']")
        assert browser.errors() == []
        browser.picture(name)
        assert browser.overflow() <= 0


@pytest.mark.extended
def test_the_report_of_a_study_is_complete_and_has_no_errors(browser, studied):
    browser.errors()
    path = studied.path.joinpath(*WRITTEN)
    for name, width in {"study": WIDTH, "study-phone": PHONE_WIDTH}.items():
        browser.open(path.as_uri(), width=width)
        for section in ("study", "arms", *REPORT):
            browser.wait(f"//*[@id='{section}']")
        assert len(browser.wait("//section[@aria-labelledby='arms']//figure")) == 4
        assert browser.errors() == []
        browser.picture(name)
        assert browser.overflow() <= 0
