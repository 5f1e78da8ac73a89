"""What a search without arms says about the values of a choice: the best trial of each, compared.

Used by the leaderboard of the page and by its commands. A search has one seed, with whose results
its trials were chosen: that says which value may be better, and other seeds how surely.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pipelines.comparison.config import MAX_ARMS
from pipelines.comparison.table import Arm, Comparison, compare
from pipelines.console.errors import ConfigError
from pipelines.console.text import format_value
from pipelines.reporting.commands import Command, experiment_change, seeds_after, sweep_command
from pipelines.reporting.results import INACTIVE, Results
from pipelines.reporting.statistics import python_value

SEEDS = 5
"""With which the best trials are to be trained."""
WITHOUT_SEARCH = {
    **{"search.space": {}, "search.sampler.name": "random", "search.scheduler.name": "none"},
    **{"search.trials": 1, "search.try_first": [], "search.warm_start": []},
    "search.second_objective": None,
}
"""Changes of an experiment whose values are all given."""


@dataclass(frozen=True)
class ChoiceAnswer:
    """The values of one searched key."""

    key: str
    trials: dict[str, int]
    """The best complete trial of each value, by the value as text, in the order of the choice."""
    comparison: Comparison
    """Of train.best_metric, paired over the seeds that all of them have, with the first value.
    Those of the search do not count where there are others."""


def choice_answers(results: Results) -> list[ChoiceAnswer]:
    """Of each key with a choice that applies to all trials, if two values have complete trials."""
    complete = results.trials[results.trials["state"] == "complete"]
    found = []
    for key, dimension in results.config.search.space.items():
        if dimension.choice is None or (results.trials[key] == INACTIVE).any():
            continue
        trials = {}
        for value in dimension.choice:
            same = complete[complete[key].map(repr) == repr(value)]
            if len(same):
                trials[format_value(value, digits=None)] = int(same["bits_per_byte"].idxmin())
        if len(trials) > 1:
            found.append(ChoiceAnswer(key, trials, _compare(results, trials)))
    return found


def choice_commands(results: Results) -> Iterator[Command]:
    """The command for each answer that makes a study of it, with seeds that chose no trial."""
    if not results.whole:
        yield from filter(None, (choice_command(results, one) for one in choice_answers(results)))


def choice_command(results: Results, answer: ChoiceAnswer) -> Command | None:
    """That of one answer; of more values than a study may have arms, it compares the best.

    None if they make no study: not every value can be the name of an arm, and the best trials of
    two may be the same model.
    """
    config, bits = results.config, results.trials["bits_per_byte"]
    best = sorted(answer.trials, key=lambda value: bits[answer.trials[value]])[:MAX_ARMS]
    trials = {value: number for value, number in answer.trials.items() if value in best}
    name = f"{config.experiment}-{answer.key.rpartition('.')[2]}"
    changes = {
        "arms": {value: _values(results, number) for value, number in trials.items()},
        "seeds": list(islice(seeds_after(config.seed), SEEDS)),
        **WITHOUT_SEARCH,
    }
    try:
        config.replace({"experiment": name, **changes}, explain=False)
    except ConfigError:
        return None
    which = "the values" if len(best) == len(answer.trials) else f"{MAX_ARMS} values"
    purpose = f"Compare the best trials of {which} of {answer.key} over {SEEDS} other seeds"
    texts = {key: one if isinstance(one, str) else json.dumps(one) for key, one in changes.items()}
    given = [f"{key}={text}" for key, text in texts.items()]
    return Command(purpose, [sweep_command(results, experiment_change(name), *given)])


def _values(results: Results, number: int) -> dict[str, Any]:
    """The searched values of a trial that applied."""
    row = results.trials.loc[number]
    return {key: python_value(row[key]) for key in results.keys if row[key] != INACTIVE}


def _compare(results: Results, trials: dict[str, int]) -> Comparison:
    by_value = {value: _bits(results, number) for value, number in trials.items()}
    shared = set.intersection(*(set(bits) for bits in by_value.values()))
    others = shared - {results.config.seed} or shared
    arms = [
        Arm(value, {seed: bits[seed] for seed in others}, parameters=_parameters(results, number))
        for (value, bits), number in zip(by_value.items(), trials.values(), strict=True)
    ]
    smallest = results.config.compare.smallest_difference
    return compare(arms, arms[0].name, [others], smallest_difference=smallest)


def _bits(results: Results, number: int) -> dict[int, float | None]:
    """Bits per byte of a trial's configuration by seed."""
    runs = results.completed_runs
    same = runs[runs["configuration"] == results.trials.at[number, "configuration"]]
    return dict(zip(same["seed"].map(int), same["bits_per_byte"].map(float), strict=True))


def _parameters(results: Results, number: int) -> int | None:
    count = python_value(results.trials.at[number, "parameters"])
    return int(count) if isinstance(count, int | float) else None
