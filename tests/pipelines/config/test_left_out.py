"""What a change of a key leaves of a search."""

import pytest

from pipelines.config.left_out import leave_out, without_keys

MHC = "model.mhc"


def space(**conditions: dict) -> dict:
    """Dimensions of these keys, with `__` for a dot, and their conditions."""
    return {
        key.replace("__", "."): {"choice": [1, 2], "when": of} for key, of in conditions.items()
    }


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("model.residual", "mhc", [f"{MHC}.streams", f"{MHC}.steps", "train.evals"]),
        ("model.residual", "dca", ["train.evals"]),
        # one that applies with the given value of an option of the same kind stays
        (f"{MHC}.streams", 2, ["model.residual", f"{MHC}.steps", "train.evals"]),
        (f"{MHC}.streams", 1, ["model.residual", "train.evals"]),
        ("train.evals", 3, ["model.residual", f"{MHC}.streams", f"{MHC}.steps"]),
    ],
)
def test_keys_that_apply_with_another_value_drop_out_and_others_stay(key, value, expected):
    searched = space(
        model__residual={},
        model__mhc__streams={"model.residual": "mhc"},
        model__mhc__steps={f"{MHC}.streams": 2},
        train__evals={},
    )
    leave_out(searched, key, value)
    assert list(searched) == expected


def test_what_is_left_of_a_key_that_drops_out_goes_by_the_value_of_the_base():
    """An option of the same kind drops out with it, whatever the base has."""
    conditions = {"model__mhc__streams": {"model.residual": "mhc"}}
    for name, stays in (("model__mhc__steps", False), ("train__evals", True)):
        searched = space(**conditions, **{name: {f"{MHC}.streams": 2}})
        leave_out(searched, "model.residual", "dca", lambda key: 2)
        assert list(searched) == ([name.replace("__", ".")] if stays else [])
        searched = space(**conditions, **{name: {f"{MHC}.streams": 2}})
        leave_out(searched, "model.residual", "dca", lambda key: 1)
        assert searched == {}


def test_what_is_no_dimension_is_left_for_its_check():
    searched = {"a.b": 3, "a.c": {"when": "x"}, "a.d": None}
    leave_out(searched, "a.b", 1)
    assert searched == {"a.c": {"when": "x"}, "a.d": None}


def test_points_are_without_the_keys_and_each_is_there_once():
    points = [{"a": 1, "b": 2}, {"a": 2, "b": 2}, {"a": 3}, "no point", {}]
    assert without_keys(points, {"a"}) == [{"b": 2}, "no point"]
    assert points[0] == {"a": 1, "b": 2}
