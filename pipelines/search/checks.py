"""What is wrong with a search that the types of its fields do not show.

The space is checked as a space, and each of its points as one training run.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from graphlib import CycleError
from itertools import islice

from pipelines.config.yaml_text import flatten
from pipelines.console.errors import ConfigError, Problem
from pipelines.console.text import nearest, quote_value
from pipelines.search.config import Choice, Dimension, SearchConfig, condition_order
from pipelines.training.config import TrainingRun

RUN_KEYS = list(dict(flatten(TrainingRun().model_dump(mode="json"))))
"""Keys that one training run reads."""
TRAINING_KEYS = [key for key in RUN_KEYS if key.startswith(("model.", "train."))]
"""Of these, the ones that say what is trained and how: all but the fixed ones can be searched."""
FIXED = {
    *("train.start_from", "train.tokens", "train.seq_len", "train.evals", "train.eval_tokens"),
    *("train.best_metric", "train.patience", "train.log_every_steps"),
}
"""Keys that make trials comparable, and so cannot be searched."""
MAX_CHECKED_POINTS = 1000
"""Points of a grid that are checked before it begins."""
LEARNING_SAMPLERS = ("tpe", "gp", "cmaes")


def space_problems(space: Mapping[str, Dimension], base: TrainingRun) -> Iterator[Problem]:
    """What is wrong with the dimensions, each tried on the base."""
    try:
        condition_order(space)
    except CycleError as error:
        yield Problem(f"cyclic `when` conditions: {' -> '.join(error.args[1])}", "search.space")
    for key, dimension in space.items():
        where = f"search.space.{key}"
        if not key.startswith(("model.", "train.")):
            message = "expected a key of model or train"
            yield Problem(message, where, nearest=nearest(key, RUN_KEYS))
        elif key in FIXED:
            yield Problem("cannot be searched: trials would no longer be comparable", where)
        elif key not in RUN_KEYS:
            message = "no such configuration key"
            yield Problem(message, where, nearest=nearest(key, RUN_KEYS))
        else:
            yield from _dimension_problems(key, dimension, base)


def _dimension_problems(key: str, dimension: Dimension, base: TrainingRun) -> Iterator[Problem]:
    where = f"search.space.{key}"
    wrong = list(_condition_problems(key, dimension.when, base))
    met = {} if wrong else dimension.when
    points = ({**met, key: value} for value in dimension.examples)
    yield from (_within(where, problem) for problem in _invalid_point(base, points))
    yield from (_within(f"{where}.when", problem) for problem in wrong)


def _condition_problems(
    key: str, when: Mapping[str, Choice], base: TrainingRun
) -> Iterator[Problem]:
    for other, wanted in when.items():
        if other not in RUN_KEYS:
            message = f"{other} is no configuration key of a training run"
            yield Problem(message, nearest=nearest(other, RUN_KEYS))
        elif other == key:
            yield Problem("a key cannot depend on itself")
        else:
            yield from _invalid_point(base, [{other: wanted}])


def _within(where: str, problem: Problem) -> Problem:
    """A problem of a training run as one of the key that leads to it."""
    message = f"{problem.key}: {problem.message}" if problem.key else problem.message
    return replace(problem, key=where, message=message)


def search_problems(search: SearchConfig) -> Iterator[Problem]:
    """What a sampler, a scheduler and the points to try first cannot do together."""
    yield from _sampler_problems(search)
    yield from _scheduler_problems(search)
    if search.warm_start and search.sampler.name not in LEARNING_SAMPLERS:
        message = f"{search.sampler.name} does not learn: expected tpe, gp or cmaes"
        yield Problem(message, "search.warm_start")
    if search.try_first and search.sampler.name == "grid":
        yield Problem("expected none with a grid, which has its own order", "search.try_first")
    if len(search.try_first) > search.trial_count:
        message = f"expected at most search.trials = {search.trial_count} points"
        yield Problem(message, "search.try_first")
    for index, point in enumerate(search.try_first):
        yield from _point_problems(search.space, point, f"search.try_first.{index}")


def _sampler_problems(search: SearchConfig) -> Iterator[Problem]:
    sampler, where = search.sampler.name, "search.sampler.name"
    for key, dimension in search.space.items():
        if dimension.when and sampler not in ("tpe", "random"):
            message = f"{sampler} does not support conditional keys, but {key} has a `when`"
            yield Problem(f"{message}; expected tpe, random", where)
        if sampler == "grid" and dimension.grid is None:
            message = "expected choice or int: a grid has no real numbers"
            yield Problem(message, f"search.space.{key}")
        if sampler == "cmaes" and dimension.choice is not None:
            message = "expected numbers: cmaes does not support choice"
            yield Problem(message, f"search.space.{key}")
    if sampler == "cmaes" and len(search.space) < 2:
        yield Problem(f"cmaes needs two searched keys or more, got {len(search.space)}", where)
    if sampler == "grid" and search.trial_count > search.grid_size:
        message = f"expected null or at most {search.grid_size}, the points of the grid"
        yield Problem(message, "search.trials")
    if search.second_objective and sampler == "cmaes":
        message = "cmaes supports one objective: expected tpe, gp, qmc, random or grid"
        yield Problem(message, where)


def _scheduler_problems(search: SearchConfig) -> Iterator[Problem]:
    name, where = search.scheduler.name, "search.scheduler.name"
    if name == "median" and "train.batch_tokens" in search.space:
        message = (
            "median compares trials at equal tokens: expected asha or none where "
            "train.batch_tokens is searched"
        )
        yield Problem(message, where)
    if search.second_objective and name != "none":
        message = f"expected none with search.second_objective, got {name}, which compares by one"
        yield Problem(message, where)


def listed_point_problems(search: SearchConfig, base: TrainingRun) -> Iterator[Problem]:
    """The first point of a grid, or to be tried first, whose values do not go together."""
    grid = search.sampler.name == "grid"
    points = search.grid_points if grid else search.try_first
    where = "search.space" if grid else "search.try_first"
    for problem in _invalid_point(base, islice(points, MAX_CHECKED_POINTS)):
        message = f"invalid point of the search space: {problem.key}: {problem.message}"
        yield replace(problem, key=where, message=message)


def _point_problems(
    space: Mapping[str, Dimension], point: Mapping[str, Choice], where: str
) -> Iterator[Problem]:
    for key, value in point.items():
        if key not in space:
            yield Problem(f"{key} is not searched", where, nearest=nearest(key, space))
            continue
        if not space[key].contains(value):
            message = f"expected a value of its range, got {quote_value(value)}"
            yield Problem(message, f"{where}.{key}")
        for other, wanted in space[key].when.items():
            if point.get(other, wanted) != wanted:
                message = f"not searched with {other} = {quote_value(point[other])}"
                yield Problem(message, f"{where}.{key}")


def _invalid_point(base: TrainingRun, points: Iterable[Mapping[str, Choice]]) -> Iterator[Problem]:
    """What is wrong with the first invalid one of some points, the base being as it is."""
    # Without the list, on which no searched key depends: it would be read again for every value.
    model = replace(base.model, attention_windows=(None,))
    bare = base.model_copy(update={"model": model})
    for point in points:
        try:
            bare.replace(point)
        except ConfigError as error:
            yield error.problems[0]
            return
