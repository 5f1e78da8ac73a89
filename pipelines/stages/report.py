"""report: the results of the sweep as an HTML page; and on one screen, however far it got."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipelines.compat.mlflow_errors import store_errors
from pipelines.console.errors import BlockedError, PipelineError
from pipelines.console.text import first_line
from pipelines.engine.results import StageResults, from_json
from pipelines.engine.stage import Context, Stage
from pipelines.experiment import Experiment
from pipelines.registry.results import Compared, Fitted, Sampled
from pipelines.reporting.screen import screen_lines
from pipelines.reporting.studies.study import Study
from pipelines.search.results import Searched, Selected
from pipelines.tracking.schema import MEASURED_FILE, SAMPLES_FILE, SCREEN_FILE


@dataclass(frozen=True)
class Reported:
    """The written page."""

    page: str
    """Its path."""


def report(context: Context[Experiment], needs: StageResults) -> Reported:
    """Write the page; its files are artifacts of the pipeline's run."""
    from pipelines.reporting.loading import results_of
    from pipelines.reporting.page.publish import publish  # with matplotlib

    with context.progress.waiting("report: drawing the figures", stage="report"):
        return Reported(str(publish(results_of(context.store, context.pipeline_run))))


def show_results(
    context: Context[Experiment], results: StageResults, error: BaseException | None
) -> None:
    """Print the results of a sweep as the last word, and store them as an artifact.

    Of one that has failed, or was interrupted, they are those from before the error, from a search
    on; what keeps them from being shown whole does not replace that error.
    """
    if error is None:
        try:
            chosen = _chosen(context, results)
        except _unreadable():
            _show(context, results, None, _samples(context, results))
            raise
        _show(context, results, chosen, _samples(context, results))
    elif len(results.all(Searched)) + len(results.all(Fitted)):
        with suppress(*_unreadable()):
            blocked = isinstance(error, BlockedError)
            samples = _samples(context, results)
            _show(context, results, results.get(Selected), samples, blocked=blocked)


def _unreadable() -> tuple[type[Exception], ...]:
    """Errors of what the last words are read from."""
    return (*store_errors(), PipelineError, OSError)


def _show(
    context: Context[Experiment],
    results: StageResults,
    chosen: Selected | None,
    samples: str,
    *,
    blocked: bool = False,
) -> None:
    page = results.get(Reported)
    lines = screen_lines(
        context.config,
        results,
        samples,
        chosen=chosen,
        page=Path(page.page) if page else None,
        storage=context.storage,
        script=context.invocation.script,
        study=_study(context, results),
        blocked=blocked,
    )
    text = "\n".join(lines)
    context.progress.result(text, results.to_json())
    context.store.log_text(context.pipeline_run, text, SCREEN_FILE)


def _chosen(context: Context[Experiment], results: StageResults) -> Selected | None:
    """The winner, also of a search after which nothing was asked for."""
    from pipelines.stages.select import select

    if results.get(Searched) is None:
        return None
    return results.get(Selected) or select(context, results)


def _study(context: Context[Experiment], results: StageResults) -> Study | None:
    """The table of a study, without which its verdict is shown all the same."""
    if compared := results.get(Compared):
        with suppress(*_unreadable()):
            return from_json(Study, context.store.read_text(compared.run_id, MEASURED_FILE))
    return None


def _samples(context: Context[Experiment], results: StageResults) -> str:
    """What the champion wrote, or in one line why it cannot be read."""
    sampled = results.get(Sampled)
    try:
        return context.store.read_text(sampled.run_id, SAMPLES_FILE) if sampled else ""
    except _unreadable() as error:
        return f"(no samples: {first_line(error)})"


STAGE = Stage(
    name="report",
    result=Reported,
    run=report,
    depends_on=(
        *("corpus", "search", "select", "fit", "evaluate", "compare"),
        *("register", "promote", "sample"),
    ),
    cached=False,
)
