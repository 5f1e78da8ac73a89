"""How an experiment is read: from files and the changes of a command line, or from a store.

Used by the commands and the stages, and by the report for the experiments of earlier runs.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.comparison.config import ARM_KEY, SPACE_PREFIX, flat_changes, merge_arms
from pipelines.config.compose import Layer, folder_of, merge, read_layers
from pipelines.config.left_out import leave_out, without_keys
from pipelines.config.overrides import Change, read_changes
from pipelines.config.section import get_key, set_key
from pipelines.config.validation import validate
from pipelines.config.yaml_text import flatten
from pipelines.console.errors import ConfigError, Problem
from pipelines.console.options import is_change
from pipelines.console.text import nearest, one_line
from pipelines.data.config import with_whole_path, with_whole_paths
from pipelines.experiment.config import ARM_KEYS, FIELDS, NO_STUDY, Experiment, problems
from pipelines.experiment.smoke import shrink
from pipelines.search.space import FIXED
from pipelines.training.config import old_names, with_present_names

BY_DEFAULT = ("generate", "compare")
"""Sections of which the report of an earlier run may have defaults: it shows what they were."""
NEEDS_A_SPACE = ("sampler", "trials")
"""Keys of `search` that a file has for its space, and that mean nothing once changes have given all
searched keys a value: cmaes needs two of them, and a grid has no more trials than points."""
QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.yaml"


def load(
    arguments: Sequence[str],
    *,
    smoke: bool = False,
    grids: bool = False,
    left_out: Collection[str] = (),
) -> Experiment:
    """The experiment of a command line, [EXPERIMENT.yaml] [key=value ...]. Raises ConfigError.

    Args:
        arguments: Without a file it is experiments/quickstart.yaml; values are YAML.
        smoke: Whether to shrink it to a run of seconds.
        grids: Whether a key of model or train may have several values, key=a,b: the search is then
            the grid of these.
        left_out: Keys and sections of a file that the command does not read, valid or not.

    """
    files = [argument for argument in arguments if not is_change(argument)]
    if len(files) > 1 or "" in files:
        expected = "expected at most one experiment and key=value changes to it"
        message = f"{expected}, got {one_line(json.dumps(files))}"
        raise ConfigError(Problem(message, source="command line"))
    path = Path(files[0]) if files else QUICKSTART
    layers = []
    for source, data in read_layers(path):
        read = {key: value for key, value in data.items() if key not in left_out}
        layers.append(Layer(source, with_whole_paths(read, folder_of(Path(source)))))
    typed = read_changes([argument for argument in arguments if is_change(argument)])
    experiment = _changed(layers, [with_whole_path(change) for change in typed], grids=grids)
    if not smoke:
        return experiment
    try:
        return shrink(experiment)
    except ConfigError as error:  # the space does not fit the tiny sizes
        problems = (replace(problem, source="--smoke") for problem in error.problems)
        raise ConfigError(*problems) from None


def read_experiment(
    data: Mapping[str, Any], overrides: Sequence[str] = (), *, source: str
) -> Experiment:
    """The experiment of plain data with `key=value` changes. Raises ConfigError."""
    changes = [with_whole_path(change) for change in read_changes(overrides)]
    return _changed([Layer(source, data)], changes)


def read_stored(data: Mapping[str, Any], *, source: str) -> Experiment:
    """The experiment of an earlier run, whose search is not checked again. Raises ConfigError.

    It has run, perhaps with an older version, and a value of `generate` or `compare` that is now
    refused has its default: its report shows what there was.
    """
    present = with_present_names(data)
    try:
        return validate(Experiment, present, source=source)
    except ConfigError as error:
        refused = {tuple(problem.key.split(".")[:2]) for problem in error.problems}
        if not all(section in BY_DEFAULT for section, *_ in refused):
            raise
        kept = {
            name: {key: value for key, value in part.items() if (name, key) not in refused}
            if name in BY_DEFAULT and isinstance(part, Mapping)
            else part
            for name, part in present.items()
        }
        return validate(Experiment, kept, source=source)


def read_packaged(
    data: Mapping[str, Any], overrides: Sequence[str] = (), *, source: str
) -> Experiment:
    """The experiment of a packaged model, without the search. Raises ConfigError.

    The values are those of one trial, on which the search space need not be valid.
    """
    present = with_present_names(data)
    return read_experiment({**present, **NO_STUDY, "search": {}}, overrides, source=source)


def _changed(
    layers: Sequence[Layer], changes: Sequence[Change], *, grids: bool = False
) -> Experiment:
    data = merge(layers, dotted=Experiment.dotted)
    if arms := [layer.data["arms"] for layer in layers if "arms" in layer.data]:
        data["arms"] = merge_arms(arms)
    old = [one for layer in layers for one in _old_names(layer.data, layer.source)]
    given: dict[str, Any] = {}
    searched = set(_space(data))
    listed = {change.key for change in changes if change.is_list}
    base = lambda key: get_key(data, key, FIELDS.get(key))  # noqa: E731
    for change in _as_search(changes, grids=grids):
        set_key(given, change.key, change.value, dotted=Experiment.dotted)
        if change.key.partition(".")[0] == "arms":
            _change_arms(data, change)
            continue
        set_key(data, change.key, change.value, dotted=Experiment.dotted)
        if change.key.partition(".")[0] != "search":
            before = set(_space(data))
            for key, value in flatten({change.key: change.value}):
                leave_out(_space(data), key, value, base)
            _require_grid(listed & before - _space(data).keys(), change)
    if not any(change.key.startswith("search.try_first") for change in changes):
        _leave_out_of_points(data, searched - _space(data).keys())
    if searched and not _space(data) and "search" not in given:
        for name in NEEDS_A_SPACE:
            _search(data).pop(name, None)
    old += _old_names(given, "command line")
    try:
        experiment = validate(
            Experiment,
            with_present_names(data) if old else data,
            source=layers[-1].source,
            layers=[*layers, Layer("command line", given)],
            check=problems,
        )
    except ConfigError as error:
        found = _by_changes(error.problems, layers) if given else error.problems
        raise ConfigError(*old, *(_of_base(one, _space(data)) for one in found)) from None
    if old:
        raise ConfigError(*old)
    if grids:
        _require_use(experiment, changes)
    return experiment


def _by_changes(problems: Sequence[Problem], layers: Sequence[Layer]) -> list[Problem]:
    """The problems of files with changes: those that the files have not without them are of the
    changes, also where the key is one that a change does not agree with."""
    files = {layer.source for layer in layers}
    if not any(one.source in files for one in problems):
        return list(problems)
    before = set[str]()
    try:
        _changed(layers, [])
    except ConfigError as error:
        before = {one.key for one in error.problems}
    return [
        replace(one, source="command line")
        if one.source in files and one.key not in before
        else one
        for one in problems
    ]


def _of_base(problem: Problem, space: Mapping[str, Any]) -> Problem:
    """A problem of a searched key's own value, which no trial has, with that it must be valid."""
    if problem.key not in space:
        return problem
    message = f"{problem.message} (its own value, beside its range, must be valid, too)"
    return replace(problem, message=message)


def _require_grid(listed: Set[str], change: Change) -> None:
    """Raise ConfigError for a change that ends the grid over one of these keys: the file's space,
    in whose place it is, would be gone for nothing."""
    if listed:
        key = min(listed)
        message = f"expected one value or several, got {one_line(change.text)} as well"
        raise ConfigError(Problem(message, key, "command line"))


def _leave_out_of_points(data: Mapping[str, Any], keys: Set[str]) -> None:
    """Take keys that are no longer searched out of a file's points to try first."""
    points = _search(data).get("try_first")
    if keys and isinstance(points, list):
        _search(data)["try_first"] = without_keys(points, keys)


def _old_names(data: Mapping[str, Any], source: str) -> Iterator[Problem]:
    """A problem for each key of an earlier version, with its present name."""
    for key, present in old_names(data):
        yield Problem("it has another name now", key, source, present)


def _change_arms(data: dict[str, Any], change: Change) -> None:
    """Apply a change of all arms, of arms.NAME, or of a key of an arm that there is."""
    if change.key == "arms":
        data["arms"] = merge_arms([change.value])
        return
    if not isinstance(data.get("arms"), dict):
        data["arms"] = {}
    arms, found = data["arms"], ARM_KEY.fullmatch(change.key)
    if found is None:
        set_key(data, change.key, change.value, dotted=["arms"])
        return
    name, key = found.groups()
    if not isinstance(arms.get(name), dict):
        message = f"no such arm; a new one is arms.{name}={{...}}"
        where = f"command line: {one_line(change.text)}"
        raise ConfigError(Problem(message, source=where, nearest=nearest(name, arms)))
    arms[name] = {**dict(flat_changes(arms[name])), **dict(flat_changes({key: change.value}))}


def _require_use(experiment: Experiment, changes: Sequence[Change]) -> None:
    """Raise ConfigError for a value or a range of the command line in whose place every arm has its
    own."""
    given = (
        (key, value, change.is_list or key.startswith(SPACE_PREFIX))
        for change in changes
        for key, value in flat_changes({change.key: change.value})
    )
    for key, value, is_range in given:
        name = key.removeprefix(SPACE_PREFIX)
        own = [_has_own(arm, name, value, is_range=is_range) for arm in experiment.arms.values()]
        if own and all(own):
            expected = f"{SPACE_PREFIX}{name}=RANGE" if is_range else f"{name}=VALUE"
            message = f"every arm has a value or range of its own; expected arms.NAME.{expected}"
            raise ConfigError(Problem(message, key, "command line"))


def _has_own(arm: Mapping[str, Any], key: str, value: Any, *, is_range: bool) -> bool:
    """Whether the changes of an arm leave no use for the experiment's value, or range, of a key.

    Null has one in place of a range that no arm searches, since all have values: it is refused.
    """
    own = f"{SPACE_PREFIX}{key}"
    if is_range:
        return own in arm or (key in arm and value is not None)
    return key in arm or bool((found := arm.get(own)) and not found.get("when"))


def _as_search(changes: Sequence[Change], *, grids: bool) -> list[Change]:
    """The same changes, with several values of a key as a dimension of a grid search.

    A grid replaces the file's space and what belongs to it, but not its scheduler and limits.
    """
    if grids:
        changes = [c._replace(is_list=False) if c.key == "seeds" else c for c in changes]
    if not any(change.is_list for change in changes):
        return list(changes)
    grid_search = [
        Change("search.space", {}),
        Change("search.sampler.name", "grid"),
        Change("search.trials", None),
        Change("search.try_first", []),
        Change("search.warm_start", []),
    ]
    return [*grid_search, *(_dimension(c, grids) if c.is_list else c for c in changes)]


def _dimension(change: Change, grids: bool) -> Change:
    """Several values of a key as a dimension. Raises ConfigError if they are none of a grid."""
    keys = ARM_KEYS if grids else []
    where = f"command line: {one_line(change.text)}"
    if found := ARM_KEY.fullmatch(change.key):
        name, key = found.groups()
        message = (
            f"expected one value; a range is arms.{name}.{SPACE_PREFIX}{key}={{choice: [...]}}"
        )
        raise ConfigError(Problem(message, source=where))
    if change.key not in keys:
        quotes = "text with a comma needs quotes"
        if grids and change.key in FIXED:
            message = f"cannot be searched: trials would no longer be comparable; {quotes}"
            raise ConfigError(Problem(message, f"{SPACE_PREFIX}{change.key}", "command line"))
        message = (
            "a comma list is a grid, for sweep.py, over a key of model or train; a list needs "
            f"brackets, {quotes}"
        )
        raise ConfigError(Problem(message, source=where, nearest=nearest(change.key, keys)))
    if any(isinstance(value, list | dict) for value in change.value):
        message = "expected a number, a word or null between commas"
        raise ConfigError(Problem(message, source=where))
    distinct = {(isinstance(value, bool), value) for value in change.value}  # 0 is 0.0
    if len(distinct) < len(change.value):
        raise ConfigError(Problem("expected each value once", source=where))
    return Change(f"search.space.{change.key}", {"choice": change.value})


def _search(data: Mapping[str, Any]) -> dict[str, Any]:
    search = data.get("search")
    return search if isinstance(search, dict) else {}


def _space(data: Mapping[str, Any]) -> dict[str, Any]:
    space = _search(data).get("space")
    return space if isinstance(space, dict) else {}
