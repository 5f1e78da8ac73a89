import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from dca import ModelConfig, build_model, registry
from dca.architectures import gpt
from dca.layers import rotary_table
from dca.model import load_weights
from dca.residuals.dca import stack_entries
from tests.dca import reference

KINDS = registry.residual.names
LAST_K = [1, 2, 3, 9, None]
PARTS = [
    *({"qk_norm": True}, {"kv_heads": 1}, {"activation": "relu2"}, {"activation": "swiglu"}),
    *({"logit_softcap": 2.0}, {"zero_init": True}),
]
"""What the blocks of every kind may have, part by part, and, of each field the last, together."""
TOGETHER = {name: value for part in PARTS for name, value in part.items()}
DEPTH = 4


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are small: a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config_of(residual: str, last_k: int | None, **changes) -> ModelConfig:
    shape = {"dim": 24, "depth": DEPTH, "heads": 3, "vocab": 17}
    own = {"last_k": last_k, **changes.pop("dca", {})}
    return ModelConfig(residual=residual, dca=own, **{**shape, **changes})


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
@pytest.mark.parametrize("norm", [True, False])
def test_logits_and_gradients_equal_the_equations(residual, last_k, norm):
    equal_the_equations(config_of(residual, last_k, dca={"norm": norm}))


def equal_the_equations(config: ModelConfig) -> None:
    """Require the logits and every gradient of the equations in float64."""
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


@pytest.mark.parametrize(
    "changes", [{"tied_embeddings": True}, {"hyper_connections": {"streams": 1}}, *PARTS]
)
def test_options_of_the_model_equal_the_equations(changes):
    equal_the_equations(config_of("hyper_connections", 2, **changes))


@pytest.mark.parametrize("windows", [(None,), (4, 7, None)])
@pytest.mark.parametrize("residual", KINDS)
def test_all_parts_together_equal_the_equations(residual, windows):
    shape = {"heads": 6, "kv_heads": 2, "attention_windows": windows}
    equal_the_equations(config_of(residual, 2, **{**TOGETHER, **shape}))


@pytest.mark.parametrize("length", [1, 4, 5, 11, 12])
@pytest.mark.parametrize("windows", [(4,), (1, 5, None), (None, 64)])
@pytest.mark.parametrize("residual", ["dca", "value_residual", "hyper_connections"])
def test_windowed_attention_equals_the_masked_square(residual, windows, length):
    config = config_of(residual, 2, attention_windows=windows)
    model, ids = model_of(config, spread=0.3), ids_of(config, length)
    expected = reference.logits(config, model.state_dict(), ids)
    torch.testing.assert_close(model(ids), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("last_k", "parts"), [*((k, {}) for k in LAST_K), (2, TOGETHER)])
@pytest.mark.parametrize("residual", KINDS)
def test_a_retrofit_starts_as_the_transformer_it_was(residual, last_k, parts):
    standard = model_of(config_of("standard", last_k, **parts), spread=0.3)
    model = model_of(config_of(residual, last_k, **parts), spread=0.3)
    load_weights(model, standard.state_dict())
    ids = ids_of(model.config)
    torch.testing.assert_close(model(ids), standard(ids), rtol=0, atol=1e-10)


def test_weights_of_another_mixture_or_shape_are_refused():
    model = build_model(config_of("dca", 2))
    deeper, shallower = (config_of("standard", 2, depth=DEPTH + n) for n in (1, -1))
    parts = [
        config_of("standard", 2, **part) for part in ({"kv_heads": 1}, {"activation": "swiglu"})
    ]
    for other in (config_of("grn_v3", 2), deeper, shallower, *parts):
        with pytest.raises(RuntimeError):
            load_weights(model, build_model(other).state_dict())


@pytest.mark.parametrize("residual", [kind for kind in KINDS if kind != "standard"])
def test_with_w_at_zero_a_fresh_model_starts_as_the_transformer(residual):
    config = config_of(residual, 2, dca={"init_std": 0.0})
    model, standard = model_of(config), model_of(config_of("standard", 2))
    ids = ids_of(config)
    torch.testing.assert_close(model(ids), standard(ids), rtol=0, atol=1e-10)


def test_sublayers_of_hyper_connections_read_the_streams_in_turn():
    """Or streams that are equal at the start would stay so."""
    weights = model_of(
        config_of("hyper_connections", 2, hyper_connections={"streams": 3})
    ).state_dict()
    static = [value for name, value in weights.items() if name.endswith("static_nc")]
    assert [read.nonzero().tolist() for read in (s[:, 0] for s in static)] == [
        [[sublayer % 3]] for sublayer in range(2 * DEPTH)
    ]


@pytest.mark.parametrize("parts", [{}, TOGETHER, {**TOGETHER, "attention_windows": (6,)}])
@pytest.mark.parametrize("residual", KINDS)
def test_output_at_t_ignores_bytes_after_t(residual, parts):
    model = model_of(config_of(residual, 2, **parts), spread=0.3)
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
def test_every_parameter_gets_a_real_gradient_in_the_first_two_steps(residual, last_k, std):
    """In the first one, but for the scales of hyper-connections, which are factors of W = 0."""
    config = config_of(residual, last_k, dca={"init_std": std})
    model, ids = model_of(config), ids_of(config, length=32)
    without = set()
    for _ in range(2):
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
        missing = {n for n, p in model.named_parameters() if not has_gradient(n, p, ids)}
        without = without & missing if without else missing
        assert all(name.endswith("scale_c") for name in missing)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(parameter.grad.sign(), alpha=-1e-3)
    assert without == set()


@pytest.mark.parametrize("residual", KINDS)
def test_with_zero_init_blocks_write_nothing_at_first_and_all_of_them_learns(residual):
    config = config_of(residual, 2, zero_init=True)
    model, ids = model_of(config), ids_of(config, length=32)
    drawn = model_of(config_of(residual, 2)).state_dict()
    for name, weight in model.state_dict().items():
        written = name.endswith(("attention.out.weight", "ff.down.weight"))
        assert torch.equal(weight, torch.zeros_like(weight) if written else drawn[name])
    expected = model.head(model.norm(model.embed(ids)))
    torch.testing.assert_close(model(ids), expected, rtol=1e-4, atol=1e-5)
    without = set(dict(model.named_parameters()))
    for _ in range(5):  # outputs first, then what they read, then what needs unequal streams
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
        without -= {n for n, p in model.named_parameters() if has_gradient(n, p, ids)}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(parameter.grad.sign(), alpha=-1e-3)
    assert without == set()


def has_gradient(name: str, parameter: torch.Tensor, ids: torch.Tensor) -> bool:
    """In every row; of an embedding, in those that were used, unless it is the head as well."""
    rows = parameter.grad.flatten(0, -2) if parameter.ndim > 1 else parameter.grad[None]
    used = rows if name != "embed.weight" else rows[ids.unique()]
    return bool((used.abs().amax(-1) > 1e-9).all())


def counts_by_hand(config: ModelConfig, seq_len: int) -> tuple[int, int]:
    """Parameters, and matrix-product FLOPs of a token, from the shapes of the equations."""
    d, n, depth = config.dim, config.hyper_connections.streams, config.depth
    streams = 3 if config.residual == "dca" else 1
    windows = [config.window(t) or seq_len for t in range(1, depth + 1)]
    seen = sum(min(seq_len, 2 * window) for window in windows)
    heads = 2 * config.heads + 2 * (config.kv_heads or config.heads)  # of q and out, of k and v
    matrices = heads * d // config.heads * d + 2 * config.ff_mult * d * d  # with swiglu 3 * 2 / 3
    parameters = depth * (matrices + (streams + 1) * d) + d
    parameters += (1 if config.tied_embeddings else 2) * config.vocab * d
    flops = depth * 2 * matrices + 4 * seen * d + 2 * d * config.vocab
    if config.residual == "value_residual":
        parameters += 2 * (depth - 1)
    if config.residual == "hyper_connections":
        parameters += 2 * depth * ((n + 2) * (n + d) + 3)
        flops += 2 * depth * 2 * n * (n + 2) * d
    if config.residual in ("grn_v1", "grn_v2", "grn_v3", "dca"):
        for block, outputs in enumerate([streams] * depth + [1], 1):
            entries = stack_entries(config, block)
            has_w = config.residual in ("grn_v3", "dca") and entries > 1
            width = 1 if config.residual == "grn_v1" else d
            parameters += outputs * (entries * width + has_w * d)
            flops += outputs * 2 * has_w * entries * d
    return parameters, flops


@pytest.mark.parametrize(
    ("last_k", "changes"),
    [*((k, {}) for k in LAST_K), *((2, part) for part in [{"tied_embeddings": True}, *PARTS])],
)
@pytest.mark.parametrize("residual", KINDS)
def test_parameters_and_flops_are_those_of_the_equations(residual, last_k, changes):
    shape = {"attention_windows": (3, None), "hyper_connections": {"streams": 3}}
    config = config_of(residual, last_k, **shape, **changes)
    counted = config.parameter_count(), config.flops_per_token(12)
    assert counted == counts_by_hand(config, 12)
    assert counted[0] == sum(p.numel() for p in build_model(config).parameters())


@pytest.mark.process
@pytest.mark.parametrize(
    ("residual", "backend", "parts"),
    [
        *[("standard", "aot_eager", {}), ("dca", "aot_eager", TOGETHER)],
        *[("value_residual", "aot_eager", TOGETHER), ("hyper_connections", "aot_eager", {})],
        # a minute of a C++ compiler
        pytest.param("dca", "inductor", {}, marks=pytest.mark.faults),
        pytest.param("dca", "inductor", TOGETHER, marks=pytest.mark.faults),
    ],
)
def test_compiled_by_pytorch_it_gives_the_same_logits_and_gradients(residual, backend, parts):
    shape = {"depth": 3, "dim": 48, "attention_windows": (4, None)}
    config = config_of(residual, 2, **shape, **parts | {"zero_init": False})
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
def test_the_blocks_share_one_compiled_program():
    """So that the time to compile does not grow with the depth."""
    model = model_of(config_of("dca", None, depth=6, dim=48)).float()
    graphs = []
    torch._dynamo.reset()
    model.compile(backend=lambda graph, _: graphs.append(graph) or graph)
    model(ids_of(model.config)).sum().backward()
    assert len(graphs) == 1


@pytest.mark.parametrize("parts", [{}, TOGETHER])
def test_a_model_compiled_as_a_whole_is_one_graph_with_the_same_logits(parts):
    model = model_of(config_of("dca", 2, depth=3, dim=48, **parts), spread=0.1).float()
    ids = ids_of(model.config)
    whole = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(whole(ids), model(ids), rtol=1e-4, atol=1e-5)


@pytest.mark.process
def test_importing_the_model_does_not_import_the_compiler():
    code = "import sys, dca; sys.exit('torch._dynamo.eval_frame' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("residual", KINDS)
def test_residual_kinds_start_from_the_same_matrices(residual):
    standard, other = (model_of(config_of(kind, 2)).state_dict() for kind in ("standard", residual))
    shared = [name for name in standard if "norm" not in name]
    assert len(shared) > DEPTH
    assert all(torch.equal(standard[name], other[name]) for name in shared)


@pytest.mark.parametrize("residual", KINDS)
def test_activations_computed_again_give_the_same_gradients_from_less_memory(residual):
    """Bit for bit, with dropout; bytes are those of the tensors kept for the backward pass."""
    config = config_of(residual, 2, dropout=0.2, depth=6)
    model, ids = model_of(config), ids_of(config, length=64)
    results, kept_bytes = [], []
    for model.activation_checkpointing in (False, True):
        torch.manual_seed(0)
        storages: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor, storages=storages) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(ids).square().mean()
        kept_bytes.append(sum(storage.nbytes() for storage in storages.values()))
        results.append(torch.autograd.grad(loss, list(model.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert kept_bytes[1] < kept_bytes[0] / 3


@pytest.mark.parametrize("residual", KINDS)
@pytest.mark.parametrize("dim", [24, 32])
def test_under_autocast_to_bfloat16_gradients_are_those_of_float32_but_for_rounding(residual, dim):
    """Mixed by the kernel (32) and without it; activations computed again give the same bits."""
    config = config_of(residual, 2, dim=dim, heads=2)
    model = build_model(config, generator=torch.Generator().manual_seed(0))
    ids_bt, found = ids_of(config), []
    for enabled, again in ((False, False), (True, False), (True, True)):
        model.activation_checkpointing = again
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = model(ids_bt).float().logsumexp(-1).square().mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
        found.append(torch.cat([one.flatten() for one in gradients]))
    single, half, again = found
    assert half.dtype == torch.float32
    assert torch.equal(half, again)
    assert 0 < (half - single).norm() < 0.05 * single.norm()


@pytest.mark.parametrize("residual", KINDS)
def test_dropout_leaves_features_out_in_training_alone(residual):
    config = config_of(residual, 2, dropout=0.5)
    model, without = model_of(config), model_of(config_of(residual, 2))
    ids = ids_of(config)
    seen = [model(ids) for _ in range(2)]
    assert not torch.equal(*seen)
    assert torch.equal(model.eval()(ids), without(ids))


@pytest.mark.parametrize("part", ["attention", "ff"])
def test_dropout_keeps_the_mean_of_what_a_sublayer_writes(part):
    model = model_of(config_of("standard", 2, dropout=0.25))
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
    tied, untied = (
        config_of("dca", 2, dim=96, vocab=256, tied_embeddings=t) for t in (True, False)
    )
    ids = ids_of(tied, length=64)
    model = model_of(tied)
    matrices = [name for name, value in model.state_dict().items() if len(value) == 256]
    assert matrices == ["embed.weight"]
    assert untied.parameter_count() - tied.parameter_count() == 256 * 96
    ratio = model(ids).var() / model_of(untied)(ids).var()
    assert 0.7 < ratio < 1.4


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
