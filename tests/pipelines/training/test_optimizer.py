import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from dca import build_model, registry
from pipelines.training import optimizer as module
from pipelines.training.config import TrainConfig, TrainingRun
from pipelines.training.optimizer import (
    MatrixWork,
    Muon,
    build_optimizer,
    matrix_work,
    orthogonalise,
    update,
    update_average,
)
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


@pytest.mark.parametrize("residual", registry.residual.names)
def test_muon_takes_the_matrices_of_the_blocks_and_adamw_what_it_takes_without_muon(run, residual):
    run = run.replace({"model.residual": residual})
    sizes = {"model.heads": 4, "model.kv_heads": 1, "model.activation": "swiglu"}
    run, d = run.replace(sizes), run.model.dim
    model, hidden = build_model(run.model), run.model.ff_dim
    parts = {"qkv": (d, d // 4, d // 4), "out": (d,), "up": (hidden, hidden), "down": (d,)}
    names = {weight: name.split(".")[-2:] for name, weight in model.named_parameters()}
    plain = build_optimizer(model, run.train)
    muon = build_optimizer(model, run.replace({"train.optimizer": "muon"}).train)
    (matrices,) = [group for group in muon.param_groups if "parts" in group]
    for weight, rows in zip(matrices["params"], matrices["parts"], strict=True):
        kind, _ = names.pop(weight)
        assert rows == parts[kind]
        assert sum(rows) == len(weight)
    assert not parts.keys() & {kind for kind, _ in names.values()}
    for weight in names:
        mine, without = (
            {k: v for k, v in group.items() if k != "params"}
            for optimizer in (muon, plain)
            for group in optimizer.param_groups
            if any(weight is one for one in group["params"])
        )
        assert mine == without
    assert matrices["weight_decay"] == run.train.weight_decay


def muon_of(weight: Tensor, rows: tuple[int, ...], **options) -> tuple[nn.Parameter, Muon]:
    parameter = nn.Parameter(weight.clone())
    return parameter, Muon([{"params": [parameter], "parts": [rows], **options}], lr=0.1)


@pytest.mark.parametrize("rows", [(8, 8, 8), (8, 4, 4)])
def test_a_stacked_matrix_is_updated_as_its_parts_are(rows):
    generator = torch.Generator().manual_seed(0)
    start, *gradients = torch.randn(3, sum(rows), 8, generator=generator)
    whole, optimizer = muon_of(start, rows)
    parts = [muon_of(part, (len(part),)) for part in start.split(rows)]
    for gradient in gradients:
        whole.grad = gradient
        optimizer.step()
        for (part, own), change in zip(parts, gradient.split(rows), strict=True):
            part.grad = change
            own.step()
    assert torch.allclose(whole, torch.cat([part for part, _ in parts]), atol=1e-6)
    single, optimizer = muon_of(start, (sum(rows),))
    single.grad = gradients[0]
    optimizer.step()
    assert not torch.allclose(single, whole, atol=1e-2)


@pytest.mark.parametrize("shape", [(64, 64), (16, 256), (256, 16)])
def test_an_update_of_muon_is_as_large_as_one_of_adamw(shape):
    """0.2 of the learning rate, its root mean square: so that one learning rate fits both."""
    weight, optimizer = muon_of(torch.zeros(shape), shape[:1], weight_decay=0.0)
    weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.2 * 0.1, rel=0.25)


@pytest.mark.parametrize(
    ("native", "rows", "dtype"),
    [
        (False, 128, torch.float32),
        (True, 128, torch.bfloat16),
        (True, 127, torch.float32),
    ],
)
def test_updates_are_orthogonal_in_the_type_that_the_processor_multiplies_faster(
    monkeypatch, native, rows, dtype
):
    monkeypatch.setattr(module, "multiplies_bfloat16", lambda _: native)
    x_nrc = torch.randn(2, rows, 192, generator=torch.Generator().manual_seed(0))
    found = orthogonalise(1e3 * x_nrc)
    assert found.dtype == dtype
    values = torch.linalg.svdvals(found.float())
    assert 0.6 < values.min() < values.max() < 1.3
    assert (orthogonalise(torch.zeros(1, rows, 192)) == 0).all()


def test_what_muon_takes_is_counted_by_its_matrices(run):
    d, depth = run.model.dim, run.model.depth
    square = 4 * d**3 + 2 * d**3  # of a Newton-Schulz step: two products with x, one of x x^T
    wide = 16 * d**3 + 2 * d**3
    flops = 5 * depth * (4 * square + 2 * wide)
    assert matrix_work(run.model) == MatrixWork(12 * d**2 * depth, flops)


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
        update_average(average.parameters(), model.parameters(), step, 0.8)
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


@pytest.mark.parametrize("fused", [True, False])
def test_muon_skips_a_bad_gradient_and_leaves_its_momentum(fused):
    """As for AdamW: the host need not read whether the gradient is finite."""
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(2, 4, 4, generator=generator)
    ended = []
    for bad in (None, torch.full((4, 4), math.nan)):
        weight = nn.Parameter(torch.ones(4, 4))
        optimizer = Muon([{"params": [weight], "parts": [(4,)]}], lr=0.1, fused=fused)
        for gradient in (gradients[0], bad, gradients[1]):
            if gradient is not None:
                weight.grad = gradient.clone()
                update(optimizer, torch.tensor(float(gradient is bad)))
                weight.grad = None
        ended.append(weight)
    assert torch.equal(*ended)
    assert ended[0].isfinite().all() and not torch.equal(ended[0], torch.ones(4, 4))


def test_a_device_without_a_fused_kernel_gets_the_plain_one(run):
    model = build_model(run.model)
    assert build_optimizer(model, run.train).defaults["fused"]
    assert not build_optimizer(model.to("meta"), run.train).defaults["fused"]
