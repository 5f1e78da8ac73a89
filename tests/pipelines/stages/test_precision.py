"""What `train.precision: auto` and `fit.compile: null` become before anything starts."""

import pytest
import torch

from pipelines.experiment import Experiment
from pipelines.stages import resolve_compile, resolve_precision
from pipelines.training.config import Resources

GPU, CPU = Resources(gpus_per_worker=1), Resources()


@pytest.fixture(autouse=True)
def native(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})


def experiment(**values) -> Experiment:
    keys = {key.replace("__", "."): value for key, value in values.items()}
    return Experiment(experiment="x").replace(keys)


@pytest.mark.parametrize(
    ("width", "choice", "resources", "expected"),
    [
        (512, None, [CPU, CPU], "bfloat16"),
        (64, None, [CPU], "float32"),
        (512, [64, 512], [CPU], "float32"),
        (64, [256, 512], [CPU], "bfloat16"),
        (512, [128, 512], [CPU], "bfloat16"),
        (64, None, [GPU, GPU], "bfloat16"),
        (64, None, [GPU, CPU], "float32"),
    ],
)
def test_all_trainings_have_the_precision_of_the_smallest_width(width, choice, resources, expected):
    space = {"model.dim": {"choice": choice}} if choice else {}
    given = experiment(model__dim=width, model__heads=4, search__space=space)
    resolved = resolve_precision(given, *resources)
    assert resolved.train.precision == expected
    assert resolved.training_run().params["train.precision"] == expected
    assert resolve_precision(resolved, GPU) == resolved


def test_what_is_given_stays_and_the_arms_have_one(monkeypatch):
    arms = {"a": {}, "b": {"train.precision": "bfloat16"}, "c": {"train.precision": "auto"}}
    arms["c"]["train.learning_rate"] = 1e-3
    resolved = resolve_precision(experiment(arms=arms, model__dim=512), CPU)
    assert [arm.train.precision for arm in resolved.by_arm.values()] == 3 * ["bfloat16"]
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    resolved = resolve_precision(experiment(arms=arms, model__dim=512), CPU)
    found = [arm.train.precision for arm in resolved.by_arm.values()]
    assert found == ["float32", "bfloat16", "float32"]
    small = {"a": {}, "b": {"model.dim": 64}}
    monkeypatch.undo()
    resolved = resolve_precision(experiment(arms=small, model__dim=512), CPU)
    assert resolved.train.precision == "float32"


LONG = {"train__tokens": 10_000 * 2048}
ON_GPUS = {"fit__resources": {"gpus_per_worker": 1}}


def test_a_long_fit_on_gpus_is_compiled_and_no_trial():
    resolved = resolve_compile(experiment(**LONG, **ON_GPUS))
    assert resolved.fit_run().train.compile
    assert not resolved.training_run().train.compile
    assert resolve_compile(resolved) == resolved
    longer = experiment(train__tokens=2048, fit__tokens=10_000 * 2048, **ON_GPUS)
    assert resolve_compile(longer).fit_run().train.compile


@pytest.mark.parametrize(
    "values",
    [
        LONG,
        {"train__tokens": 9_999 * 2048, **ON_GPUS},
        {**LONG, **ON_GPUS, "fit__tokens": 2048},
        {**LONG, **ON_GPUS, "fit__compile": False},
        {**LONG, **ON_GPUS, "seeds": 2},
        {**LONG, **ON_GPUS, "search__space": {"train.compile": {"choice": [True, False]}}},
    ],
    ids=["on CPUs", "too short", "too short a fit", "not wanted", "a study", "searched"],
)
def test_another_fit_is_not_compiled_by_itself(values):
    given = experiment(**values)
    assert resolve_compile(given) == given
    assert not given.fit_run().train.compile
    if given.fit.compile is None:
        assert given.fit_run({"train.compile": True}).train.compile
    else:
        assert not given.fit_run({"train.compile": True}).train.compile
