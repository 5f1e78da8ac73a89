import itertools
import math

import pytest
import torch

from dca import build_model
from pipelines.training.config import TrainConfig, TrainingRun
from pipelines.training.optimizer import build_optimizer, update, update_average
from pipelines.training.schedule import learning_rate_at


def test_only_linear_matrices_decay(run):
    model = build_model(run.model)
    decayed, *groups = build_optimizer(model, run.train).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert decayed["weight_decay"] == run.train.weight_decay
    assert {group["weight_decay"] for group in groups} == {0}
    kept = [[names[id(p)].rpartition(".")[2] for p in group["params"]] for group in groups]
    assert [set(kinds) for kinds in kept] == [{"weight"}, {"b_ond"}, {"w_od"}]
    assert not any("norm" in names[id(p)] or "embed" in names[id(p)] for p in decayed["params"])
    assert len(names) == len(decayed["params"]) + sum(len(kinds) for kinds in kept)


def schedule(run: TrainingRun, steps: int = 100, **values) -> list[float]:
    """The learning rate of every step, as a share of the peak."""
    changes = {f"train.{key}": value for key, value in values.items()}
    train: TrainConfig = run.replace({"train.tokens": 256 * steps, **changes}).train
    return [learning_rate_at(step, train) / train.learning_rate for step in range(steps)]


def test_the_schedule_warms_up_and_follows_a_cosine(run):
    shares = schedule(run)
    assert shares[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert shares[10] == 1
    middle = 0.5 * (1 + math.cos(math.pi * 35 / 89))
    assert shares[45] == pytest.approx(0.1 + 0.9 * middle)
    assert shares[-1] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(shares[10:]))


def test_the_inverse_square_root_falls_from_the_end_of_the_warmup(run):
    shares = schedule(run, schedule="inverse_sqrt")
    assert shares[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert shares[39] == pytest.approx(math.sqrt(10 / 40))
    assert shares[-1] == pytest.approx(math.sqrt(10 / 100))
    assert all(a > b for a, b in itertools.pairwise(shares[9:]))


def test_warmup_stable_decay_is_flat_until_its_decay(run):
    shares = schedule(run, schedule="wsd", decay_fraction=0.25, final_learning_rate_fraction=0)
    assert shares[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert shares[10:75] == [1] * 65
    assert shares[75:] == pytest.approx([1 - n / 25 for n in range(1, 26)])
    assert schedule(run, schedule="wsd")[-21:-18] == pytest.approx([1, 0.955, 0.91])
    assert schedule(run, schedule="wsd")[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["cosine", "inverse_sqrt", "wsd"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("warmup", [0.01, 0.5])
def test_a_schedule_of_few_steps_stays_between_nothing_and_the_peak(run, name, steps, warmup):
    halves = {"decay_fraction": 0.5} if name == "wsd" else {}
    shares = schedule(run, steps, schedule=name, evals=1, warmup_fraction=warmup, **halves)
    assert all(0 < share <= 1 for share in shares)


def test_an_average_of_few_weights_forgets_the_first_ones_and_then_decays(run):
    model, average = (torch.nn.Linear(1, 1).requires_grad_(False) for _ in range(2))
    expected = float(average.weight)
    for step in range(100):
        torch.nn.init.constant_(model.weight, step)
        update_average(average, model, step, 0.8)
        keep = min(0.8, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * step
        assert float(average.weight) == pytest.approx(expected, rel=1e-5)
        assert float(model.weight) == step
    assert float(average.weight) == pytest.approx(99 - 0.8 / 0.2, rel=1e-3)


@pytest.mark.parametrize("fused", [True, False])
def test_a_bad_gradient_is_not_applied_with_or_without_a_fused_kernel(fused):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=fused)
    weight.grad = torch.ones(2)
    update(optimizer, torch.tensor(1.0))
    assert weight.tolist() == [1, 1]
    update(optimizer, torch.tensor(0.0))
    assert weight.tolist() == pytest.approx([0.899, 0.899])


def test_a_device_without_a_fused_kernel_gets_the_plain_one(run):
    model = build_model(run.model)
    assert build_optimizer(model, run.train).defaults["fused"]
    assert not build_optimizer(model.to("meta"), run.train).defaults["fused"]
