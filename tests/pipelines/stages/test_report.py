import pytest

from pipelines.console.progress import Progress
from pipelines.engine.results import StageResults
from pipelines.engine.stage import Context, Invocation
from pipelines.registry.results import Sampled
from pipelines.stages import report
from tests.pipelines.reporting.test_screen import RESULTS
from tests.pipelines.stored import Made, store_sweep


@pytest.fixture
def context(store, experiment, tmp_path, monkeypatch) -> Context:
    """Of a stored sweep without a search space."""
    monkeypatch.chdir(tmp_path)
    pipeline = store_sweep(store, experiment, [Made({}, [3, 2])], winner=0)
    store.log_text(pipeline, "def generated", "samples.txt")
    invocation = Invocation(("pipelines/sweep.py",), Progress())
    return Context(experiment, tmp_path / "runs", store, invocation, pipeline)


def needs(context: Context) -> StageResults:
    return StageResults(RESULTS | {"sample": Sampled(context.pipeline_run)})


def test_the_screen_is_printed_and_is_an_artifact_beside_the_page(context, capsys):
    assert report.STAGE.run(context, needs(context)) == report.Reported()
    text = context.store.read_text(context.pipeline_run, "report.txt")
    assert text in capsys.readouterr().out
    page = context.storage / "reports" / "tiny" / "report.html"
    assert f"report    {page}" in text
    assert page.is_file()


def test_the_screen_is_printed_even_if_the_page_cannot_be_written(context, capsys):
    folder = context.storage / "reports"
    folder.write_text("not a folder")
    with pytest.raises(OSError, match="reports"):
        report.STAGE.run(context, needs(context))
    out = capsys.readouterr().out
    assert "gate     version 3 promoted: the first" in out
    assert "report  " not in out
