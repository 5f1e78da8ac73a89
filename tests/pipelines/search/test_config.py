"""The limits of a search's configuration: its ranges, its points and its budgets."""

import math

import pytest

from pipelines.search.config import (
    Dimension,
    SamplerConfig,
    SchedulerConfig,
    SearchConfig,
    search_problems,
)
from tests.sections import fields, shipped_fields


@pytest.mark.parametrize("section", [SamplerConfig, SchedulerConfig, SearchConfig, Dimension])
def test_defaults_and_limits_are_those_of_the_shipped_schema(section):
    own, shipped = fields(section), shipped_fields(section)
    for key in ("space", "when"):  # the schema for editors lists their keys
        for one in (own.get(key, {}), shipped.get(key, {})):
            one.pop("propertyNames", None)
            one.pop("additionalProperties", None)
    assert own == shipped


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "expected exactly one of"),
        ({"int": (1, 2), "choice": [1]}, "expected exactly one of"),
        ({"int": (2, 2)}, r"expected low < high, got \[2, 2\]"),
        ({"uniform": (3.0, 2.0)}, r"expected low < high, got \[3.0, 2.0\]"),
        ({"log_uniform": (1.0, 1.0)}, "expected low < high"),
        ({"log_uniform": (0.0, 1.0)}, "expected low > 0, got 0"),
        ({"choice": []}, "expected at least one value"),
        (
            {"choice": [[1], 2]},
            r"choice.0\n  Value error, expected true, false, null, a number or a",
        ),
        ({"choice": [math.nan]}, "expected true, false, null, a number or a text, got NaN"),
        ({"uniform": ("1e-3", 1.0)}, 'expected a number, got "1e-3"'),
        ({"uniform": (True, 2.0)}, "expected a number, got true"),
    ],
)
def test_a_range_is_of_one_kind_and_not_empty(given, expected):
    with pytest.raises(ValueError, match=expected):
        Dimension(**given)


def test_ranges_of_each_kind_are_valid():
    for given in ({"int": (-1, 0)}, {"uniform": (0.0, 1e-9)}, {"log_uniform": (1e-300, 1.0)}):
        assert Dimension(**given).model_dump(exclude_defaults=True) == given
    assert Dimension(choice=[None]).choice == [None]


def test_a_short_range_is_tried_whole_and_a_wide_one_at_its_ends():
    assert Dimension(int=(1, 100)).examples == [*range(1, 101)]
    assert Dimension(int=(1, 101)).examples == [1, 101]
    assert Dimension(choice=[True, None]).examples == [True, None]
    assert Dimension(uniform=(0.0, 1.0)).examples == [0.0, 1.0]
    assert Dimension(log_uniform=(0.1, 1.0)).examples == [0.1, 1.0]


def test_a_grid_has_every_integer_and_choice_and_no_real_numbers():
    assert Dimension(int=(2, 4)).grid == range(2, 5)
    assert Dimension(choice=["a"]).grid == ["a"]
    assert Dimension(uniform=(0.0, 1.0)).grid is None


@pytest.mark.parametrize(
    ("dimension", "inside", "outside"),
    [
        (Dimension(int=(1, 3)), [1, 2, 3], [0, 4, 2.0, True, "2", None]),
        (Dimension(uniform=(1, 3)), [1, 1.0, 2.5, 3], [0.999, 3.001, True, "2", None]),
        (Dimension(log_uniform=(0.5, 2.0)), [0.5, 1, 2.0], [0.4, 2.1, False]),
        (Dimension(choice=[1, "a", None, True]), [1, "a", None, True], [1.0, "b", False, 0]),
        (Dimension(choice=[0.5]), [0.5], [1, 0]),
    ],
)
def test_a_range_contains_its_ends_and_values_of_its_type(dimension, inside, outside):
    assert [value for value in inside if not dimension.contains(value)] == []
    assert [value for value in outside if dimension.contains(value)] == []


def config(**values) -> SearchConfig:
    return SearchConfig.model_validate(values, strict=False)


TWO = {"model.depth": {"int": [1, 3]}, "model.residual": {"choice": ["standard", "dca"]}}


def test_a_grid_has_its_points_as_trials_and_other_searches_eight():
    assert config().trial_count == config(space=TWO).trial_count == 8
    grid = config(space=TWO, sampler={"name": "grid"})
    assert grid.grid_size == grid.trial_count == 6
    assert config(space=TWO, sampler={"name": "grid"}, trials=4).trial_count == 4
    assert list(grid.grid_points)[:3] == [
        {"model.depth": 1, "model.residual": "standard"},
        {"model.depth": 1, "model.residual": "dca"},
        {"model.depth": 2, "model.residual": "standard"},
    ]
    real = {**TWO, "train.beta2": {"uniform": [0.0, 0.5]}}
    assert config(space=real).grid_size == 6


@pytest.mark.parametrize(
    ("tokens", "seconds", "within"),
    [(99, 9.9, True), (100, 0, False), (0, 10, False), (101, 11, False)],
)
def test_a_budget_is_spent_when_it_is_reached(tokens, seconds, within):
    assert config(max_tokens=100, max_seconds=10).within_budget(tokens, seconds) == within
    assert config().within_budget(10**30, 1e30)
    assert config(max_tokens=100).within_budget(99, 1e30)
    assert config(max_seconds=10).within_budget(10**30, 9)


def test_a_trial_may_be_stopped_after_its_grace(searched):
    batch = searched.train.batch_tokens
    assert searched.train.eval_steps == [4, 8, 12, 16]
    for evaluations, steps in ((1, 4), (2, 8), (4, 16), (9, 16)):
        task = searched.replace({"search.scheduler.grace_evals": evaluations}).search_task()
        assert task.grace_tokens == steps * batch


REAL = {"train.beta2": {"uniform": [0.0, 0.5]}}
WHEN = {"model.dca.last_k": {"choice": [1], "when": {"model.residual": "dca"}}}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"space": TWO}, []),
        *(({"space": WHEN, "sampler": {"name": name}}, []) for name in ("tpe", "random")),
        (
            {"space": WHEN, "sampler": {"name": "qmc"}},
            [
                (
                    "search.sampler.name",
                    "qmc does not support conditional keys, but model.dca.last_k",
                )
            ],
        ),
        ({"space": REAL, "sampler": {"name": "grid"}}, [("search.space.train.beta2", "choice or")]),
        (
            {"space": {**TWO, **REAL}, "sampler": {"name": "cmaes"}},
            [("search.space.model.residual", "cmaes does not support choice")],
        ),
        (
            {"space": REAL, "sampler": {"name": "cmaes"}},
            [("search.sampler.name", "cmaes needs two searched keys or more, got 1")],
        ),
        (
            {"space": {**REAL, "model.depth": {"int": [1, 3]}}, "sampler": {"name": "cmaes"}},
            [],
        ),
        ({"space": TWO, "sampler": {"name": "grid"}, "trials": 6}, []),
        (
            {"space": TWO, "sampler": {"name": "grid"}, "trials": 7},
            [("search.trials", "expected null or at most 6, the points of the grid")],
        ),
        (
            {"space": {**TWO, **REAL}, "sampler": {"name": "grid"}, "trials": 9},
            [("search.space.train.beta2", "a grid has no real numbers")],
        ),
        (
            {"space": TWO, "scheduler": {"name": "median"}},
            [],
        ),
        (
            {
                "space": {"train.batch_tokens": {"choice": [256]}},
                "scheduler": {"name": "median"},
            },
            [("search.scheduler.name", "median compares trials at equal tokens")],
        ),
        ({"space": {"train.batch_tokens": {"choice": [256]}}}, []),
        (
            {"space": TWO, "second_objective": "parameters"},
            [("search.scheduler.name", "got asha, which compares by one")],
        ),
        (
            {"space": TWO, "second_objective": "parameters", "scheduler": {"name": "none"}},
            [],
        ),
        (
            {
                "space": {**REAL, "model.depth": {"int": [1, 3]}},
                "second_objective": "parameters",
                "scheduler": {"name": "none"},
                "sampler": {"name": "cmaes"},
            },
            [("search.sampler.name", "cmaes supports one objective")],
        ),
        ({"space": TWO, "warm_start": ["a"]}, []),
        (
            {"space": TWO, "warm_start": ["a"], "sampler": {"name": "random"}},
            [("search.warm_start", "random does not learn: expected tpe, gp or cmaes")],
        ),
        ({"space": TWO, "try_first": [{"model.depth": 3}]}, []),
        (
            {"space": TWO, "try_first": [{"model.depth": 4}]},
            [("search.try_first.0.model.depth", "expected a value of its range, got 4")],
        ),
        (
            {"space": TWO, "try_first": [{"model.depht": 3}]},
            [("search.try_first.0", "model.depht is not searched")],
        ),
        ({"space": TWO, "try_first": [{"model.depth": 3}] * 2, "trials": 2}, []),
        (
            {"space": TWO, "try_first": [{"model.depth": 3}] * 2, "trials": 1},
            [("search.try_first", "expected at most search.trials = 1 point")],
        ),
        (
            {"space": TWO, "try_first": [{"model.depth": 3}], "sampler": {"name": "grid"}},
            [("search.try_first", "expected none with a grid")],
        ),
        ({"space": WHEN | TWO, "try_first": [{"model.dca.last_k": 1}]}, []),
        (
            {"space": WHEN | TWO, "try_first": [{"model.dca.last_k": 1, "model.residual": "dca"}]},
            [],
        ),
        (
            {
                "space": WHEN | TWO,
                "try_first": [{"model.dca.last_k": 1, "model.residual": "standard"}],
            },
            [
                (
                    "search.try_first.0.model.dca.last_k",
                    'not searched with model.residual = "standard"',
                )
            ],
        ),
    ],
)
def test_what_a_search_cannot_do_together_is_a_problem(values, expected):
    found = list(search_problems(config(**values)))
    assert [problem.key for problem in found] == [key for key, _ in expected]
    for problem, (_, message) in zip(found, expected, strict=True):
        assert message in problem.message


def test_a_point_of_an_unknown_key_names_the_nearest():
    (problem,) = search_problems(config(space=TWO, try_first=[{"model.depht": 3}]))
    assert problem.nearest == "model.depth"
