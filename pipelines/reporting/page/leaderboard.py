"""The leaderboard of the page: trials, the Pareto front, and configurations with several seeds."""

from pipelines.comparison.text import arm_sentence, quality_cells
from pipelines.console.text import format_value
from pipelines.reporting import figures
from pipelines.reporting.page.cells import bits_cell, count_cell, seed_cells
from pipelines.reporting.page.content import Picture, Section, Table
from pipelines.reporting.results import Results
from pipelines.reporting.statistics import CONFIDENCE, ranking
from pipelines.reporting.studies.choices import ChoiceAnswer, choice_answers, choice_command
from pipelines.reporting.summary import repeated_configurations

MAX_ROWS = 50
"""Rows of the table; a longer one names the number of all trials."""
INTERVAL = f"{100 * CONFIDENCE:.0f} % interval"


def leaderboard_section(results: Results) -> Section:
    """The best trials with their values, and what was repeated with several seeds."""
    section = Section("leaderboard", "Leaderboard")
    if results.trials.empty:
        section.paragraphs = ["There are no trials."]
    else:
        section.pictures = _pictures(results)
        answers = [] if results.whole else choice_answers(results)
        section.paragraphs = tuple(_choice_sentence(results, one) for one in answers)
        section.tables = [
            _trial_table(results),
            *(_choice_table(one, results.split) for one in answers),
        ]
    rows = repeated_configurations(results)
    if not rows:
        section.paragraphs = [
            *section.paragraphs,
            "No configuration was trained with more than one seed yet, so there are no intervals; "
            "the commands under What next train with more.",
        ]
        return section
    section.pictures = [*section.pictures, _seed_picture(results)]
    section.tables = [*section.tables, _seed_table(results, rows)]
    return section


def _pictures(results: Results) -> list[Picture]:
    best = Picture(
        "leaderboard",
        figures.leaderboard(results),
        f"The best trials, on the {results.split} split. A filled dot used its whole budget.",
        "Bits per byte of the best trials, best first.",
    )
    second = results.config.search.second_objective
    if not second:
        return [best]
    front = Picture(
        "front",
        figures.pareto_front(results),
        "The line joins the Pareto front: the trials that are not dominated.",
        f"Bits per byte against {second.replace('_', ' ')}; the Pareto front is joined.",
    )
    return [best, front]


def _trial_table(results: Results) -> Table:
    table, second = ranking(results), results.config.search.second_objective
    more = f", the best {MAX_ROWS} of {len(table)}" if len(table) > MAX_ROWS else ""
    columns = ["trial", "state", "bits per byte", *([second.replace("_", " ")] if second else [])]
    columns += ["n", "mean", INTERVAL, "bytes", "parameters", *results.keys]
    rows = [
        [
            *(f"{number}{' (winner)' if number == results.winner else ''}", row["state"]),
            bits_cell(row["bits_per_byte"]),
            *([count_cell(row["second"])] if second else []),
            *seed_cells(row["n"], row["mean"], row["low"], row["high"]),
            *map(count_cell, (row["tokens"], row["parameters"])),
            *(format_value(row[key]) for key in results.keys),
        ]
        for number, row in table.head(MAX_ROWS).iterrows()
    ]
    caption = (
        f"Trials{more}: those that used their whole budget, then the deepest. Bits per byte are "
        f"those of the {results.split} split. n is the number of seeds that a configuration was "
        "trained with at this budget; one seed gives no interval."
    )
    return Table(caption, columns, rows, set(range(2, len(columns))))


def _choice_sentence(results: Results, answer: ChoiceAnswer) -> str:
    """What is known of the values of a choice, the first one being that of the others' baseline."""
    found = answer.comparison
    known = [arm_sentence(found, row) for row in found.rows if row.difference]
    more = " One seed decides nothing" if found.looks[-1] < 2 else ""
    if more:
        given = choice_command(results, answer) is not None
        more += ": the command under What next trains with more." if given else "."
    return f"{answer.key}: {' '.join(known)}{more}"


def _choice_table(answer: ChoiceAnswer, split: str) -> Table:
    found = answer.comparison
    texts = [
        {
            answer.key: row.arm,
            "trial": str(answer.trials[row.arm]),
            **quality_cells(found, row),
            "parameters": "" if row.parameters is None else count_cell(row.parameters),
        }
        for row in found.rows
    ]
    names = [name for name in texts[0] if any(text[name] for text in texts)]
    rows = [[text[name] for name in names] for text in texts]
    caption = (
        f"The best complete trial of each value of {answer.key}, paired with that of "
        f"{found.baseline} over the seeds that all of them were trained with; the seed of the "
        f"search counts only without others. On the {split} split."
    )
    return Table(caption, names, rows, set(range(1, len(names))))


def _seed_picture(results: Results) -> Picture:
    return Picture(
        "seeds",
        figures.seeds(results),
        f"Configurations that were trained with several seeds, on the {results.split} split.",
        "The results of each repeated configuration, their mean and the t-interval.",
    )


def _seed_table(results: Results, rows: list[tuple[str, str, int, float, float, float]]) -> Table:
    return Table(
        f"The same as numbers, bits per byte of the {results.split} split: trials, fits and runs "
        "of train.py that differ in nothing but the seed.",
        ["", "configuration", "n", "mean", INTERVAL],
        [[letter, text, *seed_cells(*rest)] for letter, text, *rest in rows],
        {2, 3, 4},
    )
