"""A study as lines of text, for the last screen of a sweep: its table and its verdict."""

from collections.abc import Sequence

from pipelines.comparison.config import PROBE_ROUNDS
from pipelines.comparison.text import cost_cells, quality_cells
from pipelines.experiment import Experiment
from pipelines.experiment.smoke import SUFFIX
from pipelines.reporting.studies.commands import seeds_text, seeds_to_settle, with_seeds
from pipelines.reporting.studies.study import Study

SHOWN = (
    *("verdict", "difference (95 %)", "Holm p", "bits per byte", "seeds"),
    *("parameters", "step time", "time to quality"),
)
"""Columns of the table; the page has them all."""


def table_lines(study: Study) -> list[str]:
    """The arms beside the baseline: it, then the others, the best first."""
    found = study.comparison
    cells = [
        {"arm": row.arm, **quality_cells(found, row), **cost_cells(row)}
        for row in study.ordered_rows
    ]
    names = ["arm", *(name for name in SHOWN if any(line[name] for line in cells))]
    rows = [names, *([line[name] for name in names] for line in cells)]
    return [f"bits per byte of the test split beside {found.baseline}", *_aligned(rows)]


def settling_lines(study: Study, experiment: Experiment) -> list[str]:
    """What would tell more of the undecided arms, and that step times are too noisy to compare.

    Nothing with --smoke, which leaves two seeds and steps of microseconds.
    """
    if experiment.experiment.endswith(SUFFIX):
        return []
    found, present, lines = study.comparison, len(study.looks[-1]), []
    if noisy := found.noisy_times:
        arms = ", ".join(arm for arm, _ in noisy)
        lines.append(
            f"times     step times ({arms}) are too noisy to compare costs in time: {PROBE_ROUNDS} "
            "turns each; the report has the commands that measure again"
        )
    wanted = None if study.single_look else seeds_to_settle(found, present)
    if wanted:
        change = with_seeds(experiment, wanted)
        lines.append(f"settle    the same command with {change} would {seeds_text(found, wanted)}")
    return lines


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table, their columns as wide as their longest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)] for row in rows]
    return [f"  {'  '.join(row).rstrip()}" for row in padded]
