"""Sections of the page about the search: importance, history, curves, pruning and failures."""

from functools import partial

from pipelines.compat.mlflow import FINISHED
from pipelines.console.text import counted, format_duration
from pipelines.reporting import figures
from pipelines.reporting.importance import MIN_BEST, MIN_TRIALS, Importance
from pipelines.reporting.page.cells import share_cell, values_text
from pipelines.reporting.page.content import Picture, Section, Table, picture_section
from pipelines.reporting.results import Results
from pipelines.reporting.statistics import at_equal_tokens, pruning_savings
from pipelines.tracking.schema import PIPELINE_KIND, REASON_TAG

NO_TRIALS = "There are no trials."


def importance_section(results: Results, known: Importance) -> Section:
    """The share of the variance that each key explains."""
    section = Section("importance", "Importance of the hyperparameters")
    if known.obstacle and not (known.shares["share"] > 0).any() and not known.best:
        section.paragraphs = [f"No importance can be computed: {known.obstacle}."]
        return section
    section.paragraphs = [
        f"Optuna's fANOVA: a random forest predicts bits per byte after {known.tokens:,} bytes, "
        "which all of these trials reached, from the searched keys. A key's share is the part of "
        "the forest's variance that this key explains by itself; interactions of keys explain the "
        "rest. A conditional key is evaluated among the trials in which it applied."
    ]
    section.pictures = [
        Picture(
            "importance",
            figures.importances(results, known),
            "The share of the variance between trials that each key explains.",
            f"Bars of importance; the largest is {known.shares.index[0]}.",
        )
    ]
    caption = (
        f"Importance; n/a with fewer than {MIN_TRIALS} trials, with equal results, or where no "
        "other key varied."
    )
    rows = [
        [key, share_cell(row["share"]), f"{int(row['trials'])}"]
        for key, row in known.shares.iterrows()
    ]
    headers = ["key", "share", "trials"]
    if known.best:
        section.paragraphs.append(
            "Beside it Optuna's PED-ANOVA, which is made for trials of samplers that learn and for "
            "conditional keys: of what distinguishes the best trials (a tenth, at least "
            f"{MIN_BEST}) from all at the same bytes, the share of each key by itself."
        )
        headers.append("share of the best")
        rows = [[*row, share_cell(known.best.get(row[0], 0.0))] for row in rows]
    section.tables = [Table(caption, headers, rows, {*range(1, len(headers))})]
    return section


def history_section(results: Results) -> Section:
    """The results in the order of the trials."""
    return picture_section(
        "history",
        "History of the search",
        partial(figures.history, results),
        caption="Result of each trial; an open triangle was stopped early, at a smaller budget.",
        alt="Bits per byte by trial number, and the best complete trial so far.",
        missing=NO_TRIALS if results.trials.empty else "",
    )


def parallel_section(results: Results) -> Section:
    """All searched keys at once."""
    return picture_section(
        "parallel",
        "Parallel coordinates",
        partial(figures.parallel, results),
        caption="One line per trial through its values; n/a where a key did not apply. The dashed "
        "line is the winner.",
        alt=f"Parallel coordinates of {', '.join(results.keys)} and bits per byte.",
        missing=_missing_values(results),
    )


def slices_section(results: Results) -> Section:
    """Each searched key by itself."""
    return picture_section(
        "slices",
        "Slices",
        partial(figures.slices, results),
        caption="Each searched key by itself; the ring is the winner.",
        alt=f"Bits per byte against each of {', '.join(results.keys)}.",
        missing=_missing_values(results),
    )


def _missing_values(results: Results) -> str:
    _, values = at_equal_tokens(results)
    if results.keys and not values.empty:
        return ""
    return "Nothing was searched, or no trial has a result."


def curves_section(results: Results) -> Section:
    """Learning curves of the trials and the fit."""
    return picture_section(
        "curves",
        "Learning curves",
        partial(figures.curves, results),
        caption="Validation bits per byte against steps, bytes and seconds of training (without "
        "pauses). The best three trials and the fit are named, the others grey.",
        alt="Three panels of learning curves, of every trial and the fit.",
        missing="There is no evaluation yet." if results.curves.empty else "",
    )


def pruning_section(results: Results) -> Section:
    """The training that early stopping saved."""
    section = picture_section(
        "pruning",
        "Savings by early stopping",
        partial(figures.pruning, results),
        caption="Bytes that each trial was trained on.",
        alt="One bar per trial, longest first; hatched is what pruning saved.",
        missing=NO_TRIALS if results.trials.empty else "",
    )
    if not results.trials.empty:
        section.paragraphs = [_savings_sentence(results)]
    return section


def _savings_sentence(results: Results) -> str:
    savings = pruning_savings(results)
    if not savings.trials:
        return f"No trial was stopped early (scheduler {results.config.search.scheduler.name})."
    return (
        f"Of {counted(len(results.trials), 'trial')} {savings.trials} "
        f"{'was' if savings.trials == 1 else 'were'} stopped early. This saved "
        f"{savings.tokens:,} bytes of training, {100 * savings.share:.0f} % of the budgets of all "
        f"complete and pruned trials, or about {format_duration(savings.seconds)} of training "
        "time, summed over the trials at the pace of each."
    )


def failures_section(results: Results) -> Section:
    """Failed and unfinished trials and stages."""
    section = Section("failures", "Failures")
    bad = results.trials[results.trials["state"].isin(["failed", "unfinished"])]
    rows = [
        [f"trial {number}", row["state"], row["reason"] or "-", values_text(results, row)]
        for number, row in bad.iterrows()
    ]
    stages = results.instances or results.stages
    for name, run in {PIPELINE_KIND: results.pipeline, **stages}.items():
        if run.info.status != FINISHED and (reason := run.data.tags.get(REASON_TAG)):
            rows.append([name, run.info.status.lower(), reason, ""])
    if not rows:
        section.paragraphs = ["None: no trial or stage failed or is unfinished."]
        return section
    caption = "Failed, and not finished yet. A failed trial has no result and no rank."
    section.tables = [Table(caption, ["what", "state", "reason", "values"], rows)]
    return section
