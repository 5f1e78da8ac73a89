"""report: the results of the sweep on one screen, and as an HTML page."""

from dataclasses import dataclass
from pathlib import Path

from pipelines.engine.results import StageResults
from pipelines.engine.stage import Context, Stage
from pipelines.experiment import Experiment
from pipelines.registry.results import Sampled
from pipelines.reporting.screen import screen_lines
from pipelines.tracking.schema import SAMPLES_FILE, SCREEN_FILE


@dataclass(frozen=True)
class Reported:
    """Nothing: the page and the screen are what the report leaves."""


def report(context: Context[Experiment], needs: StageResults) -> Reported:
    """Write the page and print the screen; both are artifacts of the pipeline's run.

    The screen is printed even if the page cannot be written.
    """
    from pipelines.reporting.loading import results_of
    from pipelines.reporting.page.publish import publish  # with matplotlib

    page = None
    try:
        with context.progress.working("report: drawing the figures"):
            page = publish(results_of(context.store, context.pipeline_run))
    finally:
        _show(context, needs, page)
    return Reported()


def _show(context: Context[Experiment], needs: StageResults, page: Path | None) -> None:
    lines = screen_lines(
        context.config,
        needs,
        context.store.read_text(needs[Sampled].run_id, SAMPLES_FILE),
        page=page,
        storage=context.storage,
        script=context.invocation.script,
    )
    text = "\n".join(lines)
    context.progress.result(text, needs.to_json())
    context.store.log_text(context.pipeline_run, text, SCREEN_FILE)


STAGE = Stage(
    name="report",
    result=Reported,
    run=report,
    depends_on=("corpus", "search", "select", "fit", "evaluate", "register", "promote", "sample"),
    cached=False,
)
