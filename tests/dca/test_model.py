import subprocess
import sys
from typing import get_args

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dca import ModelConfig, build_model
from dca.config import Residual
from dca.model import load_weights
from tests.dca import reference

KINDS = get_args(Residual)
LAST_K = [1, 2, 3, 9, None]
DEPTH = 4


def config_of(residual: str, last_k: int | None, **changes) -> ModelConfig:
    shape = {"dim": 24, "depth": DEPTH, "heads": 3, "vocab": 17}
    return ModelConfig(residual=residual, last_k=last_k, **{**shape, **changes})


def model_of(config: ModelConfig, *, spread: float = 0.0) -> torch.nn.Module:
    """A float64 model; `spread` moves every parameter away from its special start."""
    generator = torch.Generator().manual_seed(0)
    model = build_model(config, generator=generator).double()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(spread * noise)
    return model


def ids_of(config: ModelConfig, length: int = 11) -> torch.Tensor:
    return torch.randint(config.vocab, (2, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("last_k", LAST_K)
@pytest.mark.parametrize("residual", KINDS)
@pytest.mark.parametrize("grn_norm", [True, False])
def test_logits_and_gradients_equal_the_equations(residual, last_k, grn_norm):
    config = config_of(residual, last_k, grn_norm=grn_norm)
    model, ids = model_of(config, spread=0.3), ids_of(config)
    ours = model(ids)
    weights = {k: v.detach().clone().requires_grad_() for k, v in model.state_dict().items()}
    theirs = reference.logits(config, weights, ids)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    target = torch.randn(
        ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    (ours * target).sum().backward()
    (theirs * target).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad,
            weights[name].grad,
            rtol=1e-8,
            atol=1e-9,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize("length", [1, 4, 5, 11, 12])
@pytest.mark.parametrize("windows", [(4,), (1, 5, None), (None, 64)])
def test_windowed_attention_equals_the_masked_square(windows, length):
    config = config_of("dca", 2, attention_windows=windows)
    model, ids = model_of(config, spread=0.3), ids_of(config, length)
    expected = reference.logits(config, model.state_dict(), ids)
    torch.testing.assert_close(model(ids), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("last_k", LAST_K)
@pytest.mark.parametrize("residual", KINDS)
def test_a_retrofit_starts_as_the_transformer_it_was(residual, last_k):
    standard = model_of(config_of("standard", last_k), spread=0.3)
    model = model_of(config_of(residual, last_k), spread=0.3)
    load_weights(model, standard.state_dict())
    ids = ids_of(model.config)
    torch.testing.assert_close(model(ids), standard(ids), rtol=0, atol=1e-10)


def test_weights_of_another_mixture_or_shape_are_refused():
    model = build_model(config_of("dca", 2))
    deeper, shallower = (config_of("standard", 2, depth=DEPTH + n) for n in (1, -1))
    for other in (config_of("grn_v3", 2), deeper, shallower):
        with pytest.raises(RuntimeError):
            load_weights(model, build_model(other).state_dict())


@pytest.mark.parametrize("residual", [kind for kind in KINDS if kind != "standard"])
def test_with_w_at_zero_a_fresh_model_starts_as_the_transformer(residual):
    config = config_of(residual, 2, grn_init_std=0.0)
    model, standard = model_of(config), model_of(config_of("standard", 2))
    ids = ids_of(config)
    torch.testing.assert_close(model(ids), standard(ids), rtol=0, atol=1e-10)


@pytest.mark.parametrize("residual", KINDS)
def test_output_at_t_ignores_bytes_after_t(residual):
    model = model_of(config_of(residual, 2), spread=0.3)
    ids = ids_of(model.config)
    embedded = model.embed(ids).detach().requires_grad_()
    model.embed.forward = lambda _: embedded
    logits_btv = model(ids)
    position = 5
    (gradient,) = torch.autograd.grad(logits_btv[:, position].sum(), embedded)
    assert (gradient[:, position + 1 :] == 0).all()
    assert (gradient[:, : position + 1].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("std", [0.0, 0.01])
@pytest.mark.parametrize("last_k", [1, 2, None])
@pytest.mark.parametrize("residual", KINDS)
def test_every_parameter_gets_a_real_gradient_at_the_start(residual, last_k, std):
    config = config_of(residual, last_k, grn_init_std=std)
    model, ids = model_of(config), ids_of(config, length=32)
    torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
    for name, parameter in model.named_parameters():
        rows = parameter.grad.flatten(0, -2) if parameter.ndim > 1 else parameter.grad[None]
        used = rows if name != "embed.weight" else rows[ids.unique()]
        assert (used.abs().amax(-1) > 1e-9).all(), name


@pytest.mark.parametrize("last_k", LAST_K)
@pytest.mark.parametrize("residual", KINDS)
def test_parameter_and_flop_formulas_equal_the_counted_ones(residual, last_k):
    config = config_of(residual, last_k, attention_windows=(3, None))
    model, ids = build_model(config).double(), ids_of(config, length=12)
    assert config.parameter_count() == sum(p.numel() for p in model.parameters())
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(ids)
    assert counter.get_total_flops() == ids.numel() * config.flops_per_token(ids.shape[1])


@pytest.mark.parametrize("residual", ["standard", "dca"])
def test_compiled_by_pytorch_it_gives_the_same_logits_and_gradients(residual):
    config = config_of(residual, 2, depth=3, dim=48, attention_windows=(4, None))
    model, ids = model_of(config).float(), ids_of(config)
    results = []
    for _ in range(2):
        logits_btv = model(ids)
        gradients = torch.autograd.grad(logits_btv.square().mean(), list(model.parameters()))
        results.append([logits_btv, *gradients])
        model.compile()
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-5)


def test_the_blocks_share_one_compiled_program():
    """So that the time to compile does not grow with the depth."""
    model = model_of(config_of("dca", None, depth=6, dim=48)).float()
    graphs = []
    torch._dynamo.reset()
    model.compile(backend=lambda graph, _: graphs.append(graph) or graph)
    model(ids_of(model.config)).sum().backward()
    assert len(graphs) == 1


def test_a_model_compiled_as_a_whole_is_one_graph_with_the_same_logits():
    model = model_of(config_of("dca", 2, depth=3, dim=48)).float()
    ids = ids_of(model.config)
    whole = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(ids), model(ids), rtol=1e-4, atol=1e-5)


def test_importing_the_model_does_not_import_the_compiler():
    code = "import sys, dca; sys.exit('torch._dynamo.eval_frame' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_residual_kinds_start_from_the_same_matrices():
    standard, dca = (model_of(config_of(kind, 2)).state_dict() for kind in ("standard", "dca"))
    shared = [name for name in standard if "norm" not in name]
    assert len(shared) > DEPTH
    assert all(torch.equal(standard[name], dca[name]) for name in shared)


def test_no_weight_per_entry_feature_and_token_is_made():
    """Peak memory grows by the outputs of the mixing, not by entries x features x tokens."""
    config = config_of("dca", None, depth=12, dim=32, heads=2)
    model = build_model(config)
    ids = ids_of(config, length=64)
    largest = config.vocab * ids.numel()
    feed_forward = config.ff_mult * config.dim * ids.numel()
    with _Largest() as seen:
        model.double()(ids)
    assert seen.numel <= max(largest, feed_forward, config.heads * 2 * 64 * 64)


class _Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result
