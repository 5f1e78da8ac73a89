"""report: the results of the sweep on one screen, and as an HTML page."""

from collections.abc import Mapping
from pathlib import Path

from pipelines.engine.stage import Context, Outputs, Stage
from pipelines.experiment import Experiment
from pipelines.reporting.loading import results_of
from pipelines.reporting.page.publish import publish
from pipelines.reporting.screen import screen_lines
from pipelines.tracking.schema import SAMPLES_FILE

SCREEN_FILE = "report.txt"
"""Artifact of the pipeline's run: the screen as text."""


def report(context: Context[Experiment], needs: Mapping[str, Outputs]) -> Outputs:
    """Write the page and print the screen; both are artifacts of the pipeline's run.

    The screen is printed even if the page cannot be written.
    """
    page = None
    try:
        with context.progress.working("report: drawing the figures"):
            page = publish(results_of(context.store, context.pipeline_run))
    finally:
        _show(context, needs, page)
    return {}


def _show(context: Context[Experiment], needs: Mapping[str, Outputs], page: Path | None) -> None:
    lines = screen_lines(
        context.config,
        needs,
        context.store.read_text(needs["sample"]["run_id"], SAMPLES_FILE),
        page=page,
        storage=context.storage,
        script=context.invocation.script,
    )
    text = "\n".join(lines)
    context.progress.result(text, needs)
    context.store.log_text(context.pipeline_run, text, SCREEN_FILE)


STAGE = Stage(
    name="report",
    run=report,
    depends_on=("corpus", "search", "select", "fit", "evaluate", "register", "promote", "sample"),
    cached=False,
)
