"""The changes that an arm of a study may make."""

import pytest

from pipelines.comparison.config import change_problems

KEYS, FIXED = ["model.dim", "train.learning_rate"], ["train.tokens"]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"model.dim": 8, "search.space.train.learning_rate": {"choice": [1]}}, []),
        ({"train.tokens": 1}, ["train.tokens: expected once, for all arms"]),
        ({"model.dimm": 8}, ["model.dimm: expected a key of model, train or search.space"]),
        ({"dim": 8}, ["dim: expected a key of model, train or search.space"]),
        (
            {"model.dim": 8, "search.space.model.dim": {"choice": [1]}},
            ["search.space.model.dim: expected one of model.dim and its range"],
        ),
    ],
)
def test_an_arm_changes_a_key_of_model_and_train_or_its_range(changes, found):
    problems = [f"{one.key}: {one.message}" for one in change_problems(changes, KEYS, fixed=FIXED)]
    assert [text.startswith(start) for text, start in zip(problems, found, strict=True)] == [
        True for _ in found
    ]


def test_the_nearest_key_of_the_same_name_is_suggested():
    (problem,) = change_problems({"dim": 8}, KEYS, fixed=FIXED)
    assert problem.nearest == "model.dim"
