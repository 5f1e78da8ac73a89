import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from dca import ModelConfig, build_model
from dca.architectures import gpt
from dca.layers import causal_attention, rotary_table
from dca.model import load_weights
from tests.dca import reference
from tests.dca.models import (
    DEPTH,
    PARTS,
    TOGETHER,
    config_of,
    equal_the_equations,
    ids_of,
    model_of,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are small: a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("changes", [{"tied_embeddings": True}, *PARTS])
def test_options_of_the_model_equal_the_equations(changes):
    equal_the_equations(config_of("hyper_connections", **changes))


@pytest.mark.parametrize("length", [1, 4, 5, 11, 12])
@pytest.mark.parametrize("windows", [(4,), (1, 5, None), (None, 64)])
@pytest.mark.parametrize("residual", ["dca", "value_residual", "hyper_connections"])
def test_windowed_attention_equals_the_masked_square(residual, windows, length):
    config = config_of(residual, attention_windows=windows)
    model, ids = model_of(config, spread=0.3), ids_of(config, length)
    expected = reference.logits(config, model.state_dict(), ids)
    torch.testing.assert_close(model(ids), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("shape", [(2, 4, 4, 130, 32), (32, 4, 2, 7, 16), (1, 1, 1, 1, 8)])
def test_attention_in_bfloat16_and_its_gradients_are_right_to_a_rounding(shape):
    """Of a few numbers the roundings may all be large ones."""
    batch, heads, groups, length, features = shape
    rows = [
        torch.randn(batch, length, count, features).bfloat16().transpose(1, 2).requires_grad_()
        for count in (heads, groups, groups)
    ]
    exact = [x.detach().double().requires_grad_() for x in rows]
    mixed = causal_attention(*rows)
    mixed.backward(gradient := torch.randn_like(mixed))
    expected = F.scaled_dot_product_attention(*exact, is_causal=True, enable_gqa=heads > groups)
    expected.backward(gradient.double())
    pairs = [(x.grad, right.grad) for x, right in zip(rows, exact, strict=True)]
    for found, right in [(mixed, expected), *pairs]:
        assert found.dtype == torch.bfloat16
        assert (found - right).norm() <= 0.004 * right.norm() + 1e-9


def test_weights_of_another_mixture_or_shape_are_refused():
    model = build_model(config_of("dca"))
    deeper, shallower = (config_of("standard", depth=DEPTH + n) for n in (1, -1))
    parts = [config_of("standard", **part) for part in ({"kv_heads": 1}, {"activation": "swiglu"})]
    for other in (config_of("grn_v3"), deeper, shallower, *parts):
        with pytest.raises(RuntimeError):
            load_weights(model, build_model(other).state_dict())


def test_sublayers_of_hyper_connections_read_the_streams_in_turn():
    """Or streams that are equal at the start would stay so."""
    weights = model_of(config_of("hyper_connections", {"streams": 3})).state_dict()
    static = [value for name, value in weights.items() if name.endswith("static_nc")]
    assert [read.nonzero().tolist() for read in (s[:, 0] for s in static)] == [
        [[sublayer % 3]] for sublayer in range(2 * DEPTH)
    ]


@pytest.mark.process
@pytest.mark.parametrize(
    ("residual", "backend", "parts"),
    [
        ("dca", "aot_eager", TOGETHER),
        pytest.param("hyper_connections", "aot_eager", {}, marks=pytest.mark.extended),
        # more of the same; of the others test_kinds.py compares the logits
        pytest.param("standard", "aot_eager", {}, marks=pytest.mark.faults),
        pytest.param("value_residual", "aot_eager", TOGETHER, marks=pytest.mark.faults),
        pytest.param("attention_residuals", "aot_eager", {}, marks=pytest.mark.faults),
        # a minute of a C++ compiler
        pytest.param("dca", "inductor", {}, marks=pytest.mark.faults),
        pytest.param("dca", "inductor", TOGETHER, marks=pytest.mark.faults),
    ],
)
def test_compiled_by_pytorch_it_gives_the_same_logits_and_gradients(residual, backend, parts):
    shape = {"depth": 3, "dim": 48, "attention_windows": (4, None)}
    config = config_of(residual, **shape, **parts | {"zero_init": False})
    model, ids = model_of(config).float(), ids_of(config)
    results = []
    for _ in range(2):
        logits_btv = model(ids)
        gradients = torch.autograd.grad(logits_btv.square().mean(), list(model.parameters()))
        results.append([logits_btv, *gradients])
        model.compile(backend=backend)
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("residual", "programs"), [("dca", 1), ("mhc", 2), ("muddformer", 1)])
def test_the_blocks_share_one_compiled_program_or_one_for_each_sublayer(residual, programs):
    """So that the time to compile does not grow with the depth."""
    model = model_of(config_of(residual, depth=6, dim=48)).float()
    graphs = []
    torch._dynamo.reset()
    model.compile(backend=lambda graph, _: graphs.append(graph) or graph)
    model(ids_of(model.config)).sum().backward()
    assert len(graphs) == programs


@pytest.mark.process
def test_importing_the_model_does_not_import_the_compiler():
    code = "import sys, dca; sys.exit('torch._dynamo.eval_frame' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("part", ["attention", "ff"])
def test_dropout_keeps_the_mean_of_what_a_sublayer_writes(part):
    model = model_of(config_of("standard", dropout=0.25))
    sublayer = getattr(model.blocks[0], part)
    x = torch.randn(1, 1, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    inputs = ([x], rotary_table(x, 1, 8)) if part == "attention" else (x,)
    expected = sublayer.eval()(*inputs)
    torch.manual_seed(0)
    drawn = torch.cat([sublayer.train()(*inputs) for _ in range(100)])
    left = drawn != 0
    torch.testing.assert_close(drawn[left], (expected / 0.75).expand_as(drawn)[left])
    assert 0.2 < 1 - left.double().mean() < 0.3


def test_tied_embeddings_are_one_matrix_that_starts_logits_as_large_as_two():
    tied, untied = (config_of("dca", dim=96, vocab=256, tied_embeddings=t) for t in (True, False))
    ids = ids_of(tied, length=64)
    model = model_of(tied)
    matrices = [name for name, value in model.state_dict().items() if len(value) == 256]
    assert matrices == ["embed.weight"]
    assert untied.parameter_count() - tied.parameter_count() == 256 * 96
    ratio = model(ids).var() / model_of(untied)(ids).var()
    assert 0.7 < ratio < 1.4


def test_no_weight_per_entry_feature_and_token_is_made():
    """Peak memory grows by the outputs of the mixing, not by entries x features x tokens."""
    config = config_of("dca", {"last_k": None}, depth=12, dim=32, heads=2)
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


@pytest.mark.parametrize(
    ("windows", "before", "limit"), [((None,), 1, 8), ((4, 8, None), 1, 16), ((4,), 99, 99)]
)
def test_the_compiler_has_room_for_a_program_of_each_window(monkeypatch, windows, before, limit):
    monkeypatch.setattr(gpt, "compiler", SimpleNamespace(recompile_limit=before))
    compiled = []
    model = build_model(ModelConfig(dim=16, depth=4, heads=2, attention_windows=windows))
    for block in model.blocks:
        monkeypatch.setattr(block, "compile", lambda **given: compiled.append(given))
    model.compile(backend="eager")
    assert gpt.compiler.recompile_limit == limit
    assert compiled == 4 * [{"backend": "eager"}]
