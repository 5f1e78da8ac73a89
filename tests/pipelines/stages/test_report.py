import pytest

from pipelines.console.errors import BlockedError, PipelineError
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


def results(context: Context, *stages: str) -> StageResults:
    found = RESULTS | {"sample": Sampled(context.pipeline_run)}
    return StageResults({name: found[name] for name in stages or found})


def test_the_page_is_written_and_the_screen_names_it_and_is_an_artifact(context, capsys):
    found = report.STAGE.run(context, results(context))
    page = context.storage / "reports" / "tiny" / "report.html"
    assert found == report.Reported(str(page))
    assert page.is_file()
    every = RESULTS | {"sample": Sampled(context.pipeline_run), "report": found}
    report.show_results(context, StageResults(every), None)
    text = context.store.read_text(context.pipeline_run, "report.txt")
    assert text in capsys.readouterr().out
    assert "def generated" in text
    assert f"report    {page}" in text


def test_a_failure_after_the_fit_loses_no_result(context, capsys, monkeypatch):
    stages = ("corpus", "search", "select", "fit", "evaluate", "register", "promote")
    report.show_results(context, results(context, *stages), PipelineError("full"))
    out = capsys.readouterr().out
    assert "gate     version 3 promoted: the first" in out
    assert "report  " not in out
    monkeypatch.setattr(type(context.store), "log_text", failing)
    report.show_results(
        context, results(context, *stages), PipelineError("full")
    )  # the error is that of the stage
    assert "version 3" in capsys.readouterr().out
    report.show_results(context, results(context, "corpus"), PipelineError("full"))
    assert capsys.readouterr().out == ""


def test_what_a_search_has_found_is_the_last_word_of_a_fit_that_fails(context, capsys):
    for stages, winner in ((("corpus", "search"), False), (("corpus", "search", "select"), True)):
        for error in (PipelineError("full"), KeyboardInterrupt()):
            report.show_results(context, results(context, *stages), error)
            out = capsys.readouterr().out
            assert "tiny: 3 trials (2 complete, 1 pruned)" in out
            assert ("winner" in out) == winner


def test_a_failure_of_the_report_loses_no_text(context, capsys):
    stages = ("corpus", "search", "select", "fit", "evaluate", "register", "promote", "sample")
    for error in (PipelineError("full"), KeyboardInterrupt()):
        report.show_results(context, results(context, *stages), error)
        assert "def generated" in capsys.readouterr().out


def test_a_decision_that_would_fail_again_is_not_advised(context, capsys):
    """A promotion without --force failed as the sweep had, after a minute."""
    stages = ("corpus", "search", "select", "fit", "evaluate", "register")
    advised = []
    for error in (PipelineError("full"), BlockedError("the champion is gone")):
        report.show_results(context, results(context, *stages), error)
        out = capsys.readouterr().out
        assert "gate     version 3 not decided" in out
        advised.append("promote.py promote" in out)
    assert advised == [True, False]
    assert "champion  not decided: nothing can be compared with the present one; see the" in out


def test_what_cannot_be_read_at_the_end_keeps_no_result_from_the_screen(
    context, capsys, monkeypatch
):
    monkeypatch.setattr(type(context.store), "read_text", failing)
    report.show_results(context, results(context), None)
    out = capsys.readouterr().out
    assert "gate     version 3 promoted: the first" in out
    assert "(no samples: the store is away)" in out
    monkeypatch.setattr("pipelines.stages.select.select", failing)
    with pytest.raises(PipelineError, match="the store is away"):
        report.show_results(context, results(context, "corpus", "search"), None)
    assert "tiny: 3 trials (2 complete, 1 pruned)" in capsys.readouterr().out


def failing(*_: object) -> None:
    raise PipelineError("the store is away")
