"""report: what was found, where it is and what to run next: one screen, and one HTML page."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from pipelines.console.text import format_duration
from pipelines.engine.stage import Context, Outputs, Stage
from pipelines.experiment import Experiment
from pipelines.reporting.findings import findings_of
from pipelines.reporting.page import publish
from pipelines.stages.sample import FILE
from pipelines.tracking.uri import tracking_uri


def report(context: Context[Experiment], needs: Mapping[str, Outputs]) -> Outputs:
    """Print the report and write the page; both are kept with the pipeline's run."""
    with context.progress.working("report: drawing"):
        page = publish(findings_of(context.store, context.pipeline_run))
    text = "\n".join(
        [
            *_found(context, needs),
            *_front(context, needs),
            "",
            *_bits_per_byte(needs),
            "",
            context.store.read_text(needs["sample"]["run_id"], FILE),
            "",
            *_next(context, needs, page),
        ]
    )
    context.store.log_text(context.pipeline_run, text, "report.txt")
    context.progress.result(text, needs)
    return {}


def _found(context: Context[Experiment], needs: Mapping[str, Outputs]) -> list[str]:
    """The search, its winner, the fit and the gate, a line each."""
    states = needs["search"]["trials"]
    trials = ", ".join(f"{count} {state}" for state, count in states.items() if count)
    chosen, fit, gate = needs["select"], needs["fit"], needs["promote"]
    values = (
        ", ".join(f"{key}={value}" for key, value in chosen["values"].items()) or "the defaults"
    )
    return [
        f"{context.config.experiment}: {sum(states.values())} trials ({trials})",
        f"winner   trial {chosen['trial']}, {chosen['objective']:.4f} bits per byte: {values}",
        f"trained  {fit['parameters']:,} parameters on {fit['tokens']:,} bytes with "
        f"{fit['workers']} workers in {format_duration(fit['seconds'])}, "
        f"validation {fit['val_bits_per_byte']:.4f} bits per byte",
        f"gate     version {needs['register']['version']} {gate['decision']}",
    ]


def _front(context: Context[Experiment], needs: Mapping[str, Outputs]) -> list[str]:
    """The trials that none beats in both objectives, if there are two."""
    second = context.config.search.second_objective
    if second is None:
        return []
    rows = needs["select"]["front"]
    return [
        "",
        f"bits per byte against {second.replace('_', ' ')}: no trial is better in both",
        *(f"  {bits:8.4f}  {value:13,.0f}  trial {number}" for number, bits, value in rows),
    ]


def _bits_per_byte(needs: Mapping[str, Outputs]) -> list[str]:
    """The candidate among the compressors, best first."""
    tested = needs["evaluate"]
    version = needs["register"]["version"]
    rows = {**tested["baselines"], f"version {version}": tested["test_bits_per_byte"]}
    size = needs["corpus"]["bytes"]["test"]
    title = f"bits per byte of the test split ({size:,} bytes of {needs['corpus']['name']})"
    return [
        title,
        *(f"  {bits:6.3f}  {name}" for name, bits in sorted(rows.items(), key=lambda row: row[1])),
    ]


def _next(context: Context[Experiment], needs: Mapping[str, Outputs], page: Path) -> list[str]:
    """Commands that go on from here."""
    name, uri, champion = needs["promote"]["model"], tracking_uri(), needs["promote"]["champion"]
    model = name if champion is not None else f"{name}/{needs['register']['version']}"
    return [
        f"champion  models:/{name}@champion (version {champion})"
        if champion is not None
        else f"champion  none yet; python {context.invocation.script('promote.py')} promote VERSION decides again",
        f"runs      {uri}, experiment {context.config.experiment}",
        f"files     {context.storage}",
        f"report    {page}",
        "next      mlflow ui" if uri.startswith("sqlite") else f"next      open {uri}",
        f"          python {context.invocation.script('generate.py')} --model {model} "
        f"--prompt {shlex.quote(context.config.generate.prompts[0])}",
    ]


STAGE = Stage(
    name="report",
    run=report,
    depends_on=("corpus", "search", "select", "fit", "evaluate", "register", "promote", "sample"),
    cached=False,
)
