"""Sections of the page about where the results come from and what to run next."""

import time
from pathlib import Path
from typing import Any

from pipelines.console.text import counted
from pipelines.reporting.commands import (
    Command,
    config_file,
    config_path,
    next_commands,
    setup_lines,
)
from pipelines.reporting.page.content import Section, Table, TextFile
from pipelines.reporting.results import Results
from pipelines.reporting.studies.choices import choice_commands
from pipelines.reporting.studies.commands import study_commands
from pipelines.tracking.schema import PIPELINE_KIND, Provenance
from pipelines.tracking.uri import shown_tracking_uri


def lineage_section(results: Results) -> Section:
    """The runs, the data, the code and the hardware behind the results."""
    section = Section("lineage", "Lineage")
    if results.other_pipeline_count:
        section.paragraphs = [
            f"The experiment has {results.other_pipeline_count} other pipeline runs, of other "
            "configurations or of train.py. This page uses only their runs that repeat a "
            "configuration with another seed."
        ]
    rows = [*_result_rows(results), *_provenance_rows(results.lineage)]
    section.tables = tables = [Table("Origin of the results.", ["", ""], rows)]
    if results.promotions:
        tables.append(_champion_table(results))
    return section


def _champion_table(results: Results) -> Table:
    """Every move of the champion, the latest first."""
    rows = [
        [
            time.strftime("%Y-%m-%d %H:%M", time.localtime(move.seconds)),
            f"version {move.version}",
            "none" if move.previous is None else f"version {move.previous}",
            move.action,
            move.user,
            move.reason,
        ]
        for move in reversed(results.promotions)
    ]
    caption = f"Champions of {results.config.promote.model}, rollbacks too, the latest first."
    return Table(caption, ["when", "champion", "before", "how", "by", "reason"], rows)


def _result_rows(results: Results) -> list[tuple[str, str]]:
    stages = {PIPELINE_KIND: results.pipeline, **results.stages}
    runs = {name: run.info.run_id for name, run in stages.items()}
    if results.winner is not None:
        runs["winning trial's"] = results.trials.at[results.winner, "run_id"]
    model, version = results.config.promote.model, results.version
    return [
        ("experiment", f"{results.config.experiment} in {shown_tracking_uri()}"),
        *((f"{name} run", run_id) for name, run_id in runs.items()),
        ("model", results.model_uri or "none yet"),
        ("version", f"{model} {version}" if version else "none"),
        ("gate", results.version_tags.decision or "not decided"),
        ("champion now", f"{model} {results.champion}" if results.champion else "none"),
    ]


def _provenance_rows(lineage: dict[str, Any]) -> list[tuple[str, str]]:
    code, hardware = Provenance.of(lineage["provenance"]), lineage["hardware"]
    dirty = " and uncommitted changes" if code.dirty else ""
    processors = [
        str(hardware.get("processor", "unknown")),
        counted(hardware["cpus"], "CPU") if "cpus" in hardware else "? CPUs",
        *hardware.get("gpus", []),
    ]
    return [
        ("corpus", " ".join(lineage["corpus"].values())),
        ("commit", f"{code.commit or 'unknown'}{dirty}"),
        ("packages", code.packages_text),
        ("hardware", ", ".join(processors)),
        ("platform", str(hardware.get("platform", "unknown"))),
    ]


def next_section(results: Results) -> Section:
    """The next commands, and the configuration that they use."""
    setup = setup_lines()
    once = [Command("Once in a new shell", setup)] if setup else []
    compared = [*study_commands(results), *choice_commands(results)]
    return Section(
        "next",
        "What next",
        paragraphs=[
            f"Run the commands in {Path.cwd()}. {config_path(results)} is the configuration below, "
            f"with seed {results.experiment.seed}; it is also an artifact of the pipeline's run."
        ],
        commands=[*once, *compared, *next_commands(results)],
        file=TextFile(config_file(results.config), results.experiment.to_yaml()),
    )
