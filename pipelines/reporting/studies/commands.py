"""The commands that a report shows of a study: how to repeat it, and which seeds to add.

Used by the page and the screen.
"""

import json
import shlex
from collections.abc import Iterator
from itertools import islice

from pipelines.comparison.config import MAX_SEEDS
from pipelines.comparison.table import Comparison
from pipelines.comparison.text import power_text
from pipelines.experiment import Experiment
from pipelines.reporting.commands import Command, experiment_change, seeds_after, sweep_command
from pipelines.reporting.results import Results
from pipelines.reporting.studies.study import Study
from pipelines.search.config import MAX_TRIALS, Dimension
from pipelines.storage.project import command_line, script
from pipelines.tracking.schema import PROBE_KIND

FIRST_SEEDS = 5
"""Of a study with too few seeds to say how many it needs."""
WIDER = 2
"""Factor by which a range of learning rates is widened."""
LEARNING_RATE = "train.learning_rate"


def study_commands(results: Results) -> Iterator[Command]:
    """What adds seeds to a study, repeats it, and compares it otherwise; nothing if it is none."""
    experiment, study = results.whole, results.study
    if experiment is None:
        return
    if study is None:
        yield Command("Go on with the study", [sweep_command(results)])
        return
    wanted = None if study.single_look else seeds_to_settle(study.comparison, len(study.looks[-1]))
    if wanted:
        seeds = with_seeds(experiment, wanted)
        purpose = (
            f"Add seeds until there are {wanted}, which would "
            f"{seeds_text(study.comparison, wanted)}; only what is missing is trained"
        )
        yield Command(purpose, [sweep_command(results, seeds)])
    if study.comparison.noisy_times and experiment.budget == "tokens":
        yield _measure_again(results)
    if changes := _wider(results, experiment, study):
        purpose = "Search a wider range of learning rates; the trials that there are stay"
        yield Command(purpose, [sweep_command(results, *changes)])
    purpose = "Run the whole study; what is done is reused, or computed again with --fresh"
    yield Command(purpose, [sweep_command(results)])
    yield Command(
        "Repeat it with other seeds, as an experiment of its own",
        [
            sweep_command(
                results, experiment_change(f"{experiment.experiment}-2"), _other_seeds(experiment)
            )
        ],
    )
    if study.others:
        other = study.others[0].name
        arguments = (experiment.experiment, "--baseline", other)
        purpose = "Compare the arms with another baseline; nothing is trained"
        yield Command(purpose, [command_line(script("report.py"), *arguments)])


def _measure_again(results: Results) -> Command:
    """Deletes the stored step times, which the next sweep measures again.

    Nothing else is computed again: no training depends on them with a budget of tokens.
    """
    runs = [run.info.run_id for run in results.store.find(PROBE_KIND)]
    purpose = (
        "Measure the step times again, on a machine that does nothing else: delete the stored "
        "ones, and run the study; nothing is trained again"
    )
    deleted = [shlex.join(["mlflow", "runs", "delete", "--run-id", run]) for run in runs]
    return Command(purpose, [*deleted, sweep_command(results)])


def seeds_to_settle(found: Comparison, present: int) -> int | None:
    """Seeds that would tell more of the undecided arms; None if none is, or there are as many.

    That is the number that finds the smallest difference that matters. Arms that need more seeds
    than an experiment may have do not count: their spread may be known better with a few more. Nor
    do arms whose verdict divergence blocks, which no seeds change.
    """
    if len(found.rows) > 1 and not found.decidable:
        return None
    needed = [row.seeds_needed for row in found.decidable if row.seeds_needed]
    wanted = max((n for n in needed if n <= MAX_SEEDS), default=FIRST_SEEDS)
    return wanted if present < wanted else None


def seeds_text(found: Comparison, wanted: int) -> str:
    """What so many seeds would do, after "would"."""
    if len(found.rows) == 1:
        return "make the interval narrower"
    estimated = [row for row in found.decidable if row.seeds_needed]
    known = [row.arm for row in estimated if row.seeds_needed and row.seeds_needed <= wanted]
    if not known:
        return f"show {'better ' if estimated else ''}how many are needed"
    of = "" if len(known) == len(found.undecided) else f" of {', '.join(known)}"
    return power_text(found) + of


def with_seeds(experiment: Experiment, count: int) -> str:
    """The change of the experiment's seeds to so many, those that there are among them."""
    seeds = experiment.seeds
    if not isinstance(seeds, list):
        return f"seeds={count}"
    more = (n for n in range(2 * count + 1) if n not in (*seeds, experiment.tuning_seed))
    return f"seeds={json.dumps([*seeds, *(next(more) for _ in range(count - len(seeds)))])}"


def _other_seeds(experiment: Experiment) -> str:
    """As many seeds as there are, and others."""
    used = {*experiment.replicate_seeds, experiment.tuning_seed}
    found = (n for n in seeds_after(max(experiment.replicate_seeds)) if n not in used)
    return f"seeds={json.dumps(list(islice(found, len(experiment.replicate_seeds))))}"


def _wider(results: Results, experiment: Experiment, study: Study) -> list[str]:
    """The changes that widen the range of learning rates of all arms beyond the ends at which an
    arm has its best, and add trials; none where arms have ranges of their own."""
    ends = {arm.rates.at_end for arm in study.arms if arm.rates}
    dimension = experiment.search.space.get(LEARNING_RATE)
    own = any(key.endswith(LEARNING_RATE) for keys in experiment.arms.values() for key in keys)
    if dimension is None or own or not ends - {None}:
        return []
    values = _widened(dimension, low="lowest" in ends, high="highest" in ends)
    if not values:
        return []
    added = len(values.get("choice", [])) - len(dimension.choice or [])
    return [f"search.space.{LEARNING_RATE}={json.dumps(values)}", *_more_trials(results, added)]


def _more_trials(results: Results, added: int) -> Iterator[str]:
    """The changes that let a search whose space is widened run more trials: those that there are
    lie in the wider space too, and count.

    A grid has at least a point for each of the rates that are added; without a number of trials it
    has all its points.
    """
    search = results.config.search
    count, is_grid = max(search.trial_count, len(results.trials)), search.sampler.name == "grid"
    if search.trials is not None or not is_grid:
        yield f"search.trials={min(count + (added if is_grid else count), MAX_TRIALS)}"
    for name in ("max_tokens", "max_seconds"):
        if limit := getattr(search, name):
            yield f"search.{name}={2 * limit}"


def _widened(dimension: Dimension, *, low: bool, high: bool) -> dict[str, list[float]]:
    """A dimension of learning rates with one more at an end, or a wider range."""
    if dimension.choice is not None:
        rates = sorted(value for value in dimension.choice if isinstance(value, int | float))
        lower, higher = [rates[0] / WIDER] * low, [rates[-1] * WIDER] * high
        return {"choice": [*lower, *rates, *higher]}
    for kind in ("log_uniform", "uniform"):
        if ends := getattr(dimension, kind):
            return {kind: [ends[0] / WIDER**low, ends[1] * WIDER**high]}
    return {}
