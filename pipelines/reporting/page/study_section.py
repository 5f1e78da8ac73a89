"""Sections of the page about a study: verdicts, what they cost and leave out, and figures."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from matplotlib.figure import Figure

from pipelines.comparison.config import PROBE_ROUNDS
from pipelines.comparison.statistics import LEVEL, SD_CONFIDENCE
from pipelines.comparison.table import Comparison, Row
from pipelines.comparison.text import (
    arm_sentence,
    cost_cells,
    power_text,
    quality_cells,
    sentence,
    tuning_cells,
)
from pipelines.console.text import counted, format_duration
from pipelines.experiment import Experiment
from pipelines.reporting import figures
from pipelines.reporting.page.content import Picture, Section, Table
from pipelines.reporting.page.study_setup import arms_table, rate_paragraphs, setup_paragraphs
from pipelines.reporting.results import Results
from pipelines.reporting.studies.study import Study

LEFT_OUT = (
    "The intervals and p-values are about the seeds alone: the order of the text and the weights "
    "at the start. They leave out how well the learning rate and the other searched keys were "
    "chosen (one search an arm), other texts, and other sizes and budgets."
)
COST = (
    "What each arm costs, beside the baseline. FLOPs are those of training. The step time is the "
    f"median of {PROBE_ROUNDS} ratios to the baseline's, measured in turns when nothing else of "
    "the study ran, and its 95 % interval. Tokens to quality: after which share of the baseline's "
    "tokens the arm is as good on the validation split as the baseline is at its end, the "
    "geometric mean over the pairs; none unless the arm is as good in every pair, which one that "
    "diverged is not. Time to quality: that times the step time, whose error is in its interval. "
    "At that point the learning rate of the arm is still high: a training planned for that length "
    "would be better by then, so these shares are rather too large."
)


def study_sections(results: Results) -> list[Section]:
    """The verdicts with their evidence; of an unfinished study, that there are none yet.

    Nothing if it is no study.
    """
    study, experiment = results.study, results.whole
    if experiment is None:
        return []
    section = Section("study", "Comparison of the arms")
    if study is None:
        ended, count = results.trainings
        section.paragraphs = [
            f"There is none yet: of {counted(count, 'training')} {ended} ended; when all have, the "
            "arms are compared. The same command goes on."
        ]
        return [section]
    rows = study.ordered_rows
    points = [arm_sentence(study.comparison, row) for row in rows if row.difference]
    section.points = points or [sentence(study.comparison)]
    section.paragraphs = [
        *_method(study, experiment),
        *setup_paragraphs(results, experiment),
        *rate_paragraphs(rows),
        *_marks(study, experiment),
        LEFT_OUT,
    ]
    arms = [arms_table(experiment)] if experiment.arms else []
    section.tables = [*_tables(study, rows, results.split), *arms]
    pictures = study_pictures(study, results.split)
    return [section, Section("arms", "The arms in figures", pictures=pictures)]


def _method(study: Study, experiment: Experiment) -> list[str]:
    """How the arms were trained and compared."""
    found, seeds = study.comparison, len(study.looks[-1])
    count = counted(seeds, "seed")
    trained = f"trained with {count} {_budget(study, experiment)}"
    if len(found.rows) == 1:
        return [f"The winner of the search was {trained}. Results are those of the test split."]
    return [
        f"{counted(len(found.rows), 'arm')}, each with a search of its own of "
        f"{counted(experiment.search.trial_count, 'trial')}, the best of which was {trained}. "
        f"A pair is the training of an arm and that of {found.baseline} with the same seed: the "
        "same text in the same order. Differences are of bits per byte of the test split, which "
        "took part in no choice; negative ones are better.",
        *_planned(study, experiment),
        f"An arm is better or worse if a paired t-test rejects that it is equal, after Holm's "
        f"correction for {counted(len(found.rows) - 1, 'arm')}, at the level {found.level:g}. "
        f"Undecided does not mean equal: see the intervals. {_looks(study)}",
        *_needed(found),
    ]


def _budget(study: Study, experiment: Experiment) -> str:
    """How long the arms were trained: with the steps of each, and patience, the bytes differ."""
    if experiment.budget == "time":
        return "for equal times"
    curves = [curve for arm in study.arms for curve in arm.curves.values() if curve.tokens]
    ends = [int(curve.tokens[-1]) for curve in curves]
    ends = ends or [experiment.fit_run().train.tokens]  # all diverged
    low, high = f"{min(ends):,}", f"{max(ends):,}"
    return f"on {low} bytes" if low == high else f"on {low} to {high} bytes"


def _planned(study: Study, experiment: Experiment) -> list[str]:
    baseline = study.comparison.baseline
    if baseline == experiment.baseline_arm:
        return []
    return [
        f"The baseline of the experiment is {experiment.baseline_arm}; the comparison with "
        f"{baseline} was asked for later, and its p-values do not count that."
    ]


def _looks(study: Study) -> str:
    """How the level is spent over the looks at the results."""
    counts = [len(seeds) for seeds in study.looks]
    if study.single_look:
        kept = "which is the only one" if len(counts) == 1 else "and no verdict counts after that"
        return f"The experiment promised a single look, at {counted(counts[0], 'seed')}, {kept}."
    if len(counts) == 1:
        return (
            f"This is the first look, at {counted(counts[0], 'seed')}; if seeds are added, later "
            f"looks share the rest of the level of {LEVEL:g}."
        )
    numbers = ", ".join(map(str, counts[:-1]))
    return (
        f"Verdicts were shown at {numbers} and now {counted(counts[-1], 'seed')}: the level of "
        f"{LEVEL:g} is spent over these looks."
    )


def _needed(found: Comparison) -> list[str]:
    """What the seeds needed by undecided arms mean."""
    if not any(row.seeds_needed for row in found.undecided):
        return []
    return [
        f"Seeds to find {found.smallest_difference:g}: so many would {power_text(found)}, if there "
        "is one. They are computed for the level of the next look, shared by the arms, and from "
        f"the upper {100 * SD_CONFIDENCE:g} % bound of the standard deviation of the pairs. A "
        "smaller difference may stay undecided."
    ]


def _marks(study: Study, experiment: Experiment) -> list[str]:
    """What is to be known of single arms."""
    rows, noisy = study.ordered_rows, study.comparison.noisy_times
    lost = [f"{row.arm} ({row.diverged})" for row in rows if row.diverged]
    found = []
    if noisy:
        arms = ", ".join(f"{arm} ({ends.low:.2f} to {ends.high:.2f})" for arm, ends in noisy)
        again = "; What next has the commands" if experiment.budget == "tokens" else ""
        found.append(
            f"The step times are too noisy to compare costs in time: the 95 % interval of {arms} "
            f"is wider than 10 % to a side. Each is of {PROBE_ROUNDS} turns. They can be measured "
            f"again on a machine that does nothing else{again}."
        )
    if lost:
        found.append(
            f"Trainings diverged of {', '.join(lost)}. They are in no mean; an arm that diverges "
            "where the baseline does not is never called better."
        )
    return found


def study_pictures(study: Study, split: str) -> list[Picture]:
    """The figures that the study has the numbers for.

    `split` is the text on which the searches compare their trials.
    """
    several = len(study.arms) > 1
    timed = any(study.seconds_of_token(arm) is not None for arm in study.arms)
    rated = any(arm.rates for arm in study.arms)
    base = study.comparison.baseline
    drawn: dict[str, tuple[bool, Callable[[Study], Figure]]] = {
        "forest": (several, figures.forest),
        "study_curves": (any(arm.curves for arm in study.arms), figures.study_curves),
        "quality_and_time": (several and timed, figures.quality_and_time),
        "rate_curves": (rated, partial(figures.rate_curves, split=split)),
    }
    captions = {
        "forest": f"Each arm's difference from {base} on the test split, pair by pair, with its "
        "mean and intervals: of this arm alone, and of all arms together. The verdicts are those "
        "of the Holm test.",
        "study_curves": "Validation, the mean over the seeds and the range from the lowest to the "
        "highest seed. Time is that of the steps alone, as it was measured in turns.",
        "quality_and_time": "The test split: below the line an arm is better than the baseline, "
        "right of it its steps take longer. Bars are 95 % intervals.",
        "rate_curves": "The best trial with each learning rate of an arm's search, on the "
        f"{split} split; the ring is its best, a cross at the top diverged.",
    }
    return [
        Picture(name, draw(study), captions[name], _alt(name))
        for name, (is_drawn, draw) in drawn.items()
        if is_drawn
    ]


def _alt(name: str) -> str:
    return {
        "forest": "Paired differences of the arms with their intervals.",
        "study_curves": "Mean learning curves of the arms.",
        "quality_and_time": "Differences of the arms against their step times.",
        "rate_curves": "Results of the arms' searches against the learning rate.",
    }[name]


def _tables(study: Study, rows: Sequence[Row], split: str) -> list[Table]:
    found = study.comparison
    quality = _table(
        "Quality on the test split: the baseline, then the best first. The verdict is that of the "
        "Holm test; the 95 % intervals show the size of the difference. The sign-flip test assumes "
        "no distribution; with few seeds its smallest possible p-value is over the level.",
        rows,
        lambda row: quality_cells(found, row),
    )
    cost = _table(COST, rows, lambda row: cost_cells(row) | _time(study, row))
    tuning = _table(
        f"The searches, on the {split} split: the best learning rate, and how much is lost on "
        "average over the rates tried (sensitivity, in bits per byte).",
        rows,
        tuning_cells,
    )
    return [table for table in (quality, cost, tuning) if len(table.columns) > 1]


def _time(study: Study, row: Row) -> dict[str, str]:
    """The time of one training."""
    seconds = study.seconds_of_token(study.arm(row.arm))
    spent = seconds and seconds * arm_tokens(study, row.arm)
    return {"one training": format_duration(spent) if spent else ""}


def arm_tokens(study: Study, name: str) -> int:
    """Tokens of one training of an arm; 0 if none has ended."""
    ends = [curve.tokens[-1] for curve in study.arm(name).curves.values() if curve.tokens]
    return int(max(ends, default=0))


def _table(caption: str, rows: Sequence[Row], cells: Callable[[Row], Mapping[str, str]]) -> Table:
    """A row for each arm; a column that none has a value in is left out."""
    texts = [cells(row) for row in rows]
    names = [name for name in texts[0] if any(text[name] for text in texts)]
    lines = [
        [row.arm, *(text[name] for name in names)] for row, text in zip(rows, texts, strict=True)
    ]
    numbers = {place for place, name in enumerate(names, 1) if name != "verdict"}
    return Table(caption, ["arm", *names], lines, numbers)
