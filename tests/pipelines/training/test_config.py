"""The limits of a training's configuration, and what is computed from it."""

import pytest

from pipelines.console.errors import ConfigError
from pipelines.training.config import (
    SCHEDULE_OPTIONS,
    FailuresConfig,
    FitConfig,
    Resources,
    TrainConfig,
    TrainingRun,
    old_names,
    with_present_names,
)
from tests.sections import fields, shipped_fields


@pytest.mark.parametrize("section", [Resources, TrainConfig, FitConfig, FailuresConfig])
def test_defaults_and_limits_are_those_of_the_shipped_schema(section):
    assert fields(section) == shipped_fields(section)


def problem(run: TrainingRun, **changes) -> str:
    """What is wrong with a run with other values; empty if nothing is."""
    try:
        run.replace({key.replace("__", "."): value for key, value in changes.items()})
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"resources__workers": [2, 2]}, ""),
        ({"resources__workers": [3, 2]}, "workers: expected [min, max], got [3, 2]"),
        ({"resources__gpus_per_worker": 0.5}, ""),
        ({"resources__gpus_per_worker": 1}, ""),
        ({"resources__gpus_per_worker": 2.0}, ""),
        ({"resources__gpus_per_worker": 1.5}, "expected a whole number above 1, got 1.5"),
        ({"train__batch_tokens": 64}, ""),
        ({"train__batch_tokens": 65}, "expected a multiple of seq_len = 32, got 65"),
        ({"train__micro_batch_tokens": 64}, ""),
        ({"train__micro_batch_tokens": 256}, ""),
        ({"train__micro_batch_tokens": 96}, "that divides batch_tokens = 256, got 96"),
        ({"train__micro_batch_tokens": 16}, "expected a multiple of seq_len = 32 that"),
        ({"train__tokens": 256}, ""),
        ({"train__tokens": 255}, "expected at least one step of batch_tokens = 256, got 255"),
        ({"train__schedule": "inverse_sqrt"}, ""),
        (
            {"train__schedule": "inverse_sqrt", "train__warmup_fraction": 0},
            "expected more than 0 with schedule = inverse_sqrt",
        ),
        ({"train__warmup_fraction": 0}, ""),
        ({"train__schedule": "wsd", "train__warmup_fraction": 0.8}, ""),
        (
            {"train__schedule": "wsd", "train__warmup_fraction": 0.85},
            "expected at most 1 together with warmup_fraction = 0.85, got 0.2",
        ),
        (
            {
                "train__schedule": "wsd",
                "train__warmup_fraction": 0.5,
                "train__decay_fraction": 0.75,
            },
            "warmup_fraction = 0.5, got 0.75",
        ),
        ({"train__warmup_fraction": 0.85}, ""),
        ({"resources__workers": 8}, ""),
        ({"resources__workers": 3}, "expected a multiple of workers x seq_len = 3 x 32, got 256"),
        ({"resources__workers": [3, 8]}, ""),
        ({"resources__workers": [1, 9]}, "for each of resources.workers = 9, got 256"),
        ({"resources__gpus_per_worker": 5e-324}, "expected 0 or at least 0.0001, got 5e-324"),
        ({"resources__gpus_per_worker": 0.0001}, ""),
        ({"model__vocab": 255}, "expected 256, one for each byte, got 255"),
    ],
)
def test_what_does_not_go_together_is_refused(run, changes, expected):
    found = problem(run, **changes)
    assert expected in found
    assert bool(found) == bool(expected)


def test_the_fit_needs_a_step_of_a_batch_that_its_workers_share(run):
    train = run.train
    FitConfig().check(train)
    FitConfig(tokens=256).check(train)
    with pytest.raises(ValueError, match=r"fit.tokens: .*train.batch_tokens = 256, got 255"):
        FitConfig(tokens=255).check(train)
    with pytest.raises(ValueError, match="expected a multiple of workers x seq_len = 3"):
        FitConfig(resources=Resources(workers=3)).check(train)


def test_the_fit_has_its_own_budget_or_that_of_a_trial(run):
    assert FitConfig().values(run.train)["train.tokens"] == 4096
    resources = Resources(workers=(1, 4), strategy="fsdp")
    found = FitConfig(tokens=512, resources=resources).values(run.train)
    assert found["train.tokens"] == 512
    assert found["resources"] == {
        **{"workers": (1, 4), "strategy": "fsdp"},
        **{"cpus_per_worker": 1, "gpus_per_worker": 0},
    }


def test_a_range_of_workers_has_two_ends():
    one, some = Resources(workers=3), Resources(workers=(2, 5))
    assert (one.min_workers, one.max_workers, one.workers_text) == (3, 3, "3")
    assert (some.min_workers, some.max_workers, some.workers_text) == (2, 5, "2 to 5")
    assert Resources(workers=(4, 4)).workers_text == "4"


def test_a_started_step_is_not_cut_and_evaluations_are_spread_evenly(run):
    def steps(tokens: int, evals: int) -> tuple[int, list[int]]:
        train = run.replace({"train.tokens": tokens, "train.evals": evals}).train
        return train.steps, train.eval_steps

    assert steps(256, 4) == (1, [1])
    assert steps(257, 4) == (2, [1, 2])
    assert steps(2560, 3) == (10, [3, 6, 10])
    assert steps(2560, 10) == (10, [*range(1, 11)])


def test_shares_that_are_null_have_the_values_of_the_documentation(run):
    assert (run.train.final_share, run.train.decay_share) == (0.1, 0.2)
    given = {"train.final_learning_rate_fraction": 0.0, "train.decay_fraction": 0.5}
    train = run.replace({"train.schedule": "wsd", **given}).train
    assert (train.final_share, train.decay_share) == (0.0, 0.5)


def test_options_of_some_schedules_are_fields():
    assert {key.removeprefix("train.") for key in SCHEDULE_OPTIONS} <= set(TrainConfig.model_fields)


def test_the_parameters_of_a_run_are_dotted(run):
    params = run.params
    assert params["train.learning_rate"] == 1e-2
    assert params["seed"] == 0
    assert not [key for key in params if key.startswith(("resources", "failures"))]


def test_names_of_earlier_versions_are_read_as_the_present_ones_wherever_they_are():
    old = {
        "model": {"dim": 8, "last_k": 3, "hyper_streams": 2},
        "train": {"grn_b_rate": 5.0, "tokens": 1},
        "search": {"space": {"model.last_k": {"int": [1, 2], "when": {"model.grn_norm": True}}}},
        "arms": {"a": {"train.grn_w_rate": 0.5}},
        "search.try_first": [{"model.last_k": 1}],
    }
    present = with_present_names(old)
    assert present == {
        "model": {
            "dim": 8,
            "dca": {"last_k": 3, "b_rate": 5.0},
            "hyper_connections": {"streams": 2},
        },
        "train": {"tokens": 1},
        "search": {
            "space": {"model.dca.last_k": {"int": [1, 2], "when": {"model.dca.norm": True}}}
        },
        "arms": {"a": {"model.dca.w_rate": 0.5}},
        "search.try_first": [{"model.dca.last_k": 1}],
    }
    assert with_present_names(present) == present
    assert dict(old_names(old)).keys() == {
        "model.last_k",
        "model.hyper_streams",
        "train.grn_b_rate",
        "search.space.model.last_k",
        "search.space.model.last_k.when.model.grn_norm",
        "arms.a.train.grn_w_rate",
    }
    assert not list(old_names(present))


def test_options_of_other_residual_kinds_are_no_part_of_what_a_run_is():
    run = TrainingRun().replace({"model.residual": "dca"})
    other = run.replace({"model.hyper_connections.streams": 2})
    own = run.replace({"model.dca.last_k": 1})
    assert run.params.keys() == other.params.keys()
    assert run.params != other.params
    assert run.identity == other.identity != own.identity
