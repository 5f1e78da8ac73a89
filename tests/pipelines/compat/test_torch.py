"""Behaviour of PyTorch that is not documented: each test fails when a new version changes it."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from dca import ModelConfig, build_model
from dca.compat import CPU_TARGETS, SkipInitialisation
from pipelines.compat.ray import THREADS
from pipelines.compat.torch import FUSED_DEVICES, MOMENTS, AdamW, step_unless, update_ema
from pipelines.training import memory
from pipelines.training.optimizer import Muon

COMPILER = ("torch._dynamo", "torch._inductor", "sympy")


@pytest.mark.parametrize("fused", [True, False])
def test_the_optimizer_that_does_not_import_the_compiler_is_pytorchs(fused):
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(5, 3, generator=generator), torch.randn(4, generator=generator)]
    gradients = [[torch.randn(w.shape, generator=generator) for w in start] for _ in range(4)]
    trained = []
    for kind in (AdamW, torch.optim.AdamW):
        weights = [nn.Parameter(w.clone()) for w in start]
        groups = [{"params": weights[:1], "weight_decay": 0.1}, {"params": weights[1:]}]
        optimizer = kind(groups, lr=0.1, fused=fused)
        for step, gradient in enumerate(gradients):
            if step == 2:  # a new one goes on from the state of the first
                state = optimizer.state_dict()
                optimizer = kind(groups, lr=0.7, fused=fused)
                optimizer.load_state_dict(state)
            for weight, values in zip(weights, gradient, strict=True):
                weight.grad = values.clone()
            optimizer.step()
            optimizer.zero_grad()
            assert weights[0].grad is None
        trained.append([*weights, *optimizer.state_dict()["state"][0].values()])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*trained, strict=True))
    assert not torch.equal(trained[0][0], start[0])


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_of_one_matrix_the_update_is_that_of_pytorchs_muon(shape):
    """Which computes in bfloat16: within 1 % of the way that the weights have gone."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours = nn.Parameter(start.clone())
    muon = Muon([{"params": [ours], "parts": [shape[:1]]}], lr=0.1, weight_decay=0.3)
    theirs = nn.Parameter(start.clone())
    other = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        muon.step()
        other.step()
    assert (ours - theirs).norm() < 0.01 * (theirs - start).norm()


OPTIMIZE = f"""
import sys, torch
from pipelines.training.optimizer import Muon
weight, matrix = (torch.nn.Parameter(torch.ones(shape)) for shape in (2, (2, 2)))
groups = [{{"params": [weight]}}, {{"params": [matrix], "parts": [(2,)]}}]
optimizer = Muon(groups, fused=True)  # which is an AdamW
weight.grad, matrix.grad = torch.ones(2), torch.ones(2, 2)
optimizer.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
print(*[name for name in {COMPILER} if name in sys.modules])
"""
COUNT = f"""
import sys
from dca import ModelConfig, build_model, registry
from dca.model import load_weights
for name in registry.residual.names:
    config = ModelConfig(dim=16, depth=2, heads=2, residual=name)
    config.parameter_count()
    model = build_model(config)
    load_weights(model, model.state_dict())
    print(*[f"{{name}}:{{module}}" for module in {COMPILER} if module in sys.modules])
"""


@pytest.mark.process
def test_no_compiler_is_imported_by_what_does_not_compile():
    command = [sys.executable, "-c", COUNT + OPTIMIZE]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout.split()) == (0, []), result.stderr


def test_a_fused_kernel_skips_its_update_where_the_attribute_is_1():
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.0, fused=True)
    weight.grad = torch.ones(2)
    step_unless(optimizer, torch.tensor(1.0))
    assert weight.tolist() == [1, 1]
    (state,) = optimizer.state.values()
    assert int(state["step"]) == 0
    step_unless(optimizer, torch.tensor(0.0))
    assert weight.tolist() == pytest.approx([0.9, 0.9])
    assert int(state["step"]) == 1


def test_the_devices_are_among_those_that_pytorch_has_a_fused_kernel_for():
    assert {*FUSED_DEVICES} <= {*_get_fused_kernels_supported_devices()}


def test_adamw_keeps_two_moments_of_each_parameter_and_a_step():
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], fused=True)
    weight.grad = torch.ones(3)
    optimizer.step()
    (state,) = optimizer.state.values()
    assert state.keys() == {"step", *MOMENTS}
    assert all(state[name].shape == weight.shape for name in MOMENTS)
    assert len(MOMENTS) + 2 == memory.STATE_COPIES  # weight and gradient besides


def test_the_average_is_updated_in_place_with_its_decay():
    average, weights = [torch.zeros(2)], [torch.ones(2)]
    update_ema(average, weights, 0.75)
    assert average[0].tolist() == pytest.approx([0.25, 0.25])
    assert weights[0].tolist() == [1, 1]


def test_an_average_of_parameters_has_no_graph():
    average, model = nn.Linear(2, 2), nn.Linear(2, 2)
    update_ema(average.parameters(), model.parameters(), 0.0)
    assert torch.equal(average.weight, model.weight)
    assert average.weight.is_leaf


@pytest.mark.parametrize(
    "draw",
    [
        nn.init.normal_,
        nn.init.uniform_,
        nn.init.kaiming_uniform_,
        lambda tensor: nn.init.normal_(tensor=tensor, std=0.5),
    ],
)
def test_initial_values_are_left_out_in_the_context_and_drawn_outside_of_it(draw):
    before = torch.full((3, 4), 7.0)
    with SkipInitialisation():
        assert draw(before) is before
    assert (before == 7).all()
    draw(before)
    assert not (before == 7).all()


def test_the_flops_of_a_matrix_product_are_counted_on_the_meta_device():
    """Two per multiply-add, of every linear layer and of attention over the whole square."""
    config = ModelConfig(dim=16, depth=1, heads=2, residual="standard")
    linear = 16 * (3 * 16 + 16 + 2 * 4 * 16 + 256)
    attention = 2 * 8 * 16
    assert config.flops_per_token(8) == 2 * (linear + attention)


def test_the_names_of_the_processors_capabilities_are_known():
    known = {"DEFAULT", "NO AVX", "SVE256", "VSX", "Z VECTOR", *CPU_TARGETS}
    assert torch.backends.cpu.get_cpu_capability() in known


def test_the_limit_of_recompilations_is_the_compilers():
    from torch.compiler import config

    limit, windows = config.recompile_limit, (*range(1, 20), None)
    try:
        build_model(ModelConfig(dim=16, depth=1, heads=2, attention_windows=windows)).compile()
        assert config.recompile_limit == torch._dynamo.config.recompile_limit == 4 * 20 + 4
    finally:
        config.recompile_limit = limit


WAIT = """
import os, time, torch
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # as if other processes had the other ones
torch.set_num_threads(2)
numbers = torch.ones(1 << 18)
for count in (5, 50):
    start = time.process_time()
    for _ in range(count):
        numbers.add_(1)
print(time.process_time() - start)
"""


@pytest.mark.extended
@pytest.mark.process
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="PyTorch knows that it has one core")
def test_threads_that_wait_take_no_core_from_others():
    plain = {k: v for k, v in os.environ.items() if k not in (*THREADS, "OMP_WAIT_POLICY")}
    spinning, sleeping = (
        float(subprocess.check_output([sys.executable, "-c", WAIT], env=environment))
        for environment in (plain, {**plain, **THREADS})
    )
    assert spinning > 5 * sleeping
