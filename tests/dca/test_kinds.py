"""What holds for every residual kind: a new one is tested by being registered.

It needs its equations in reference.py and its counts in counts.py. Its options are varied one by
one, see `models.variants`, or for what costs much and compares a model with itself, in combinations
that have each of their values.
"""

import math
import sys
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Literal

import pytest
import torch
from torch.nn import functional as F

from dca import ModelConfig, build_model, registry
from dca.block import OUT, Block
from dca.model import load_weights
from dca.options import Range
from dca.residuals import mhc
from pipelines.reporting.learned_weights import learned_weights
from tests.dca import reference
from tests.dca.counts import counts_by_hand
from tests.dca.models import (
    CASES,
    COMBINED,
    DEPTH,
    KINDS,
    OTHER_FLOATS,
    TOGETHER,
    config_of,
    equal_the_equations,
    ids_of,
    model_of,
    options_of,
    other_float,
    others,
)


def _named(part: Any) -> str:
    return str(part or "defaults")


each_case = pytest.mark.parametrize(("kind", "own"), CASES, ids=_named)
each_combination = pytest.mark.parametrize(("kind", "own"), COMBINED, ids=_named)
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are small: a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_epsilon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms whose epsilon has no effect: some kinds start as the transformer but for it."""
    for kind in KINDS:
        registry.residual[kind]
    for name, module in list(sys.modules.items()):
        if name.startswith("dca.") and hasattr(module, "NORM_EPS"):
            monkeypatch.setattr(module, "NORM_EPS", 1e-30)


def plain_start(config: ModelConfig) -> ModelConfig:
    plain = registry.residual[config.residual].plain_start(config)
    if plain is None:
        pytest.skip("this kind does not start as the transformer")
    return plain


@pytest.mark.parametrize(("kind", "own"), CASES + OTHER_FLOATS, ids=_named)
def test_logits_and_gradients_equal_the_equations(kind, own):
    equal_the_equations(config_of(kind, own))


def trained(config: ModelConfig) -> list[Any]:
    """All that an option may change: parameters at the start, their learning rates, the logits."""
    start, model = model_of(config), model_of(config, spread=0.3)
    rates = registry.residual[config.residual].learning_rates(config)
    names = [name for name, _ in start.named_parameters()]
    used = {n: rate for n in names for own, rate in rates.items() if n.endswith(f".{own}")}
    values = [value.flatten().tolist() for value in start.state_dict().values()]
    return [names, values, used, model(ids_of(config)).flatten().tolist()]


@pytest.mark.extended
@each_kind
def test_the_options_that_a_kind_reads_are_those_that_change_what_is_trained(kind):
    section, default = registry.residual.section(kind), trained(config_of(kind))
    unread = registry.residual.unread(kind)
    for name, annotation, value in options_of(kind):
        is_float = isinstance(value, float)
        other = other_float(annotation, value) if is_float else others(annotation, value)[0]
        changed = trained(config_of(kind, {name: other}))
        assert (changed == default) == (f"{section}.{name}" in unread), name


@pytest.mark.extended
@each_case
def test_the_values_that_options_are_resolved_to_compute_exactly_the_same(kind, own):
    config = config_of(kind, own)
    if resolve := getattr(config.options, "resolved", None):
        resolved = config.with_options(**resolve(config))
        assert resolve(resolved) == resolve(config)
        assert trained(resolved) == trained(config)


@pytest.mark.parametrize(
    ("annotation", "default", "expected"),
    [
        (Annotated[int, Range(ge=1)], 1, [2]),
        (Annotated[int, Range(ge=1, le=4)], 4, [3]),
        (Annotated[int, Range(ge=1)] | None, None, [3]),
        (Annotated[int, Range(ge=1, le=2)] | None, None, [1]),
        (Annotated[int, Range(ge=1)] | None, 5, [6, None]),
        (bool, True, [False]),
        (Literal["a", "b", "c"], "b", ["a", "c"]),
        (Annotated[float, Range(ge=0)], 0.5, []),
    ],
)
def test_options_are_varied_within_their_limits(annotation, default, expected):
    assert others(annotation, default) == expected


@pytest.mark.parametrize(
    ("limits", "default", "expected"),
    [
        (Range(gt=0), 10.0, 5.0),
        (Range(ge=-4, le=4), 0.0, 0.5),
        (Range(ge=1.0), 1.0, 1.5),
        (Range(ge=0.8, le=1.2), 1.0, 0.9),
        (Range(ge=0.8, le=1.0), 1.0, 0.9),
    ],
)
def test_floats_are_varied_within_their_limits(limits, default, expected):
    assert other_float(Annotated[float, limits], default) == pytest.approx(expected)


@pytest.mark.extended
@pytest.mark.parametrize("windows", [(None,), (4, 7, None)])
@each_kind
def test_with_all_parts_together_they_equal_the_equations(kind, windows):
    shape = {"heads": 6, "kv_heads": 2, "attention_windows": windows}
    equal_the_equations(config_of(kind, **{**TOGETHER, **shape}))


@pytest.mark.extended
@each_combination
def test_in_float32_with_kernels_gradients_are_those_of_the_equations(kind, own):
    config = config_of(kind, own, dim=192, heads=2, depth=3)
    model = model_of(config, spread=0.05).float()
    ids = ids_of(config)
    weights = {k: v.detach().double().requires_grad_() for k, v in model.state_dict().items()}
    model(ids).square().mean().backward()
    reference.logits(config, weights, ids).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        scale = weights[name].grad.abs().max()
        assert (parameter.grad - weights[name].grad).abs().max() < 1e-4 * scale + 1e-7, name


@pytest.mark.parametrize(("kind", "own"), OTHER_FLOATS, ids=_named)
def test_with_other_floats_it_starts_as_the_transformer(no_epsilon, kind, own):
    """An option for a parameter's first value needs a `plain_start`."""
    config = plain_start(config_of(kind, own))
    ids, standard = ids_of(config), config_of("standard")
    torch.testing.assert_close(model_of(config)(ids), model_of(standard)(ids), rtol=0, atol=1e-10)


@each_case
def test_a_fresh_model_starts_as_the_transformer(no_epsilon, kind, own):
    for depth in (1, 2, 5):
        config = plain_start(config_of(kind, own, depth=depth))
        ours, expected = model_of(config)(ids_of(config)), fresh_transformer(depth)
        torch.testing.assert_close(
            ours, expected, rtol=0, atol=1e-10, msg=lambda m, d=depth: f"depth {d}: {m}"
        )


@cache
def fresh_transformer(depth: int) -> torch.Tensor:
    """Its logits, with norms whose epsilon has no effect."""
    config = config_of("standard", depth=depth)
    with torch.no_grad():
        return model_of(config)(ids_of(config))


@pytest.mark.parametrize("parts", [{}, TOGETHER])
@each_kind
def test_a_retrofit_starts_as_the_transformer_it_was(no_epsilon, kind, parts):
    config = config_of(kind, **parts)
    plain_start(config)
    standard = model_of(config_of("standard", **parts), spread=0.3)
    model = model_of(config, spread=0.3)
    load_weights(model, standard.state_dict())
    ids = ids_of(config)
    torch.testing.assert_close(model(ids), standard(ids), rtol=0, atol=1e-10)


@pytest.mark.parametrize("parts", [{}, TOGETHER, {**TOGETHER, "attention_windows": (6,)}])
@each_kind
def test_output_at_t_ignores_bytes_after_t(kind, parts):
    model = model_of(config_of(kind, **parts), spread=0.3)
    ids = ids_of(model.config)
    embedded = model.embed(ids).detach().requires_grad_()
    model.embed.forward = lambda _: embedded
    logits_btv = model(ids)
    position = 5
    (gradient,) = torch.autograd.grad(logits_btv[:, position].sum(), embedded)
    assert (gradient[:, position + 1 :] == 0).all()
    assert (gradient[:, : position + 1].abs().sum(-1) > 0).all()


@pytest.mark.extended
@each_case
def test_no_row_of_a_parameter_is_without_effect(kind, own):
    """A vector that changes nothing, wherever the model is, is left out of it."""
    model, ids = model_of(config_of(kind, own), spread=0.2), ids_of(config_of(kind), length=32)
    step(model, ids)
    assert not {n for n, p in model.named_parameters() if not has_gradient(n, p, ids)}


@each_case
def test_every_parameter_gets_a_gradient_in_the_first_steps(kind, own):
    """In the first, but for factors of parameters that start at zero, or of equal streams."""
    assert without_gradient(model_of(config_of(kind, own)), steps=3) == set()


@pytest.mark.extended
@each_kind
def test_with_zero_init_blocks_write_nothing_at_first_and_all_of_them_learns(no_epsilon, kind):
    config = config_of(kind, zero_init=True)
    model, ids = model_of(config), ids_of(config, length=32)
    drawn = model_of(config_of(kind)).state_dict()
    for name, weight in model.state_dict().items():
        written = name.endswith(("attention.out.weight", "ff.down.weight"))
        assert torch.equal(weight, torch.zeros_like(weight) if written else drawn[name])
    expected = model.head(model.norm(model.embed(ids)))
    torch.testing.assert_close(model(ids), expected, rtol=1e-4, atol=1e-5)
    # outputs first, then what they read, then what needs unequal streams
    assert without_gradient(model, steps=5) == set()


def without_gradient(model: torch.nn.Module, *, steps: int) -> set[str]:
    """Parameters of which no row has a gradient in any of the first steps."""
    ids = ids_of(model.config, length=32)
    without = set(dict(model.named_parameters()))
    for _ in range(steps):
        step(model, ids)
        moved = {n: p for n, p in model.named_parameters() if p.grad is not None}
        without -= {n for n, p in moved.items() if p.grad.abs().max() > 1e-9}
        if not without:
            break
        with torch.no_grad():
            for parameter in moved.values():
                parameter.add_(parameter.grad.sign(), alpha=-1e-3)
    return without


def step(model: torch.nn.Module, ids: torch.Tensor) -> None:
    model.zero_grad()
    F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()


def has_gradient(name: str, parameter: torch.Tensor, ids: torch.Tensor) -> bool:
    """In every row; of an embedding, in those that were used, unless it is the head as well."""
    if parameter.grad is None:
        return False
    rows = parameter.grad.flatten(0, -2) if parameter.ndim > 1 else parameter.grad[None]
    used = rows if name != "embed.weight" else rows[ids.unique()]
    return bool((used.abs().amax(-1) > 1e-9).all())


@each_combination
def test_cached_logits_equal_the_uncached(kind, own):
    equal_with_a_cache(config_of(kind, own), prompt=1)


@each_kind
def test_with_all_parts_together_cached_logits_equal_the_uncached(kind):
    parts = {**TOGETHER, "zero_init": False, "attention_windows": (4, None)}
    equal_with_a_cache(config_of(kind, **parts), prompt=6)


def equal_with_a_cache(config: ModelConfig, *, prompt: int) -> None:
    model, ids = model_of(config, spread=0.1), ids_of(config, length=9)
    cache = model.new_cache(batch=2, capacity=9)
    with torch.inference_mode():
        pieces = [model(ids[:, :prompt], cache)]
        pieces += [model(ids[:, t : t + 1], cache) for t in range(prompt, 9)]
    torch.testing.assert_close(torch.cat(pieces, 1), model(ids), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("depth", [2, pytest.param(DEPTH, marks=pytest.mark.faults)])
@each_case
def test_parameters_and_flops_are_those_of_the_equations(kind, own, depth):
    counted_as_by_hand(config_of(kind, own, depth=depth))


@pytest.mark.extended
@each_kind
def test_with_other_parts_parameters_and_flops_are_those_of_the_equations(kind):
    parts = {"attention_windows": (3, None), "kv_heads": 1, "activation": "swiglu"}
    counted_as_by_hand(config_of(kind, **parts, depth=3))


def counted_as_by_hand(config: ModelConfig) -> None:
    found = {"parameters": config.parameter_count(), "FLOPs": config.flops_per_token(12)}
    by_hand = dict(zip(found, counts_by_hand(config, 12), strict=True))
    assert found == by_hand
    assert found["parameters"] == sum(p.numel() for p in build_model(config).parameters())


@pytest.mark.extended
@each_combination
def test_what_a_kind_keeps_for_the_backward_pass_is_what_it_says(kind, own):
    """Never less by more than a twentieth of everything kept; the parts of the estimate that were
    fitted to processes may be more."""
    config = config_of(kind, own, dim=192)
    found = kept_per_token(config)
    expected = kept_per_token(config_of("standard", dim=192)) + registry.residual[kind].kept(config)
    assert 0.95 * found < expected < 1.35 * found


@cache
def kept_per_token(config: ModelConfig) -> float:
    """Numbers kept of one more token, in multiples of dim."""
    model = build_model(config)
    found = [kept(model, ids_of(config, length))[0] for length in (16, 32)]
    return (found[1] - found[0]) / (2 * 16 * 4 * config.dim)


def kept(model: torch.nn.Module, ids: torch.Tensor) -> tuple[int, torch.Tensor]:
    """The bytes that are kept for the backward pass, parameters not counted, and the loss."""
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(ids).square().mean()
    for parameter in model.parameters():
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(storage.nbytes() for storage in storages.values()), loss


@pytest.mark.extended
@each_combination
def test_activations_computed_again_give_the_same_gradients_from_less_memory(kind, own):
    """Bit for bit, with dropout."""
    config = config_of(kind, own, dropout=0.2, depth=6)
    model, ids = model_of(config), ids_of(config, length=32)
    results, sizes = [], []
    for model.activation_checkpointing in (False, True):
        torch.manual_seed(0)
        size, loss = kept(model, ids)
        sizes.append(size)
        results.append(torch.autograd.grad(loss, list(model.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert sizes[1] < sizes[0] / 2.5


@pytest.mark.extended
@pytest.mark.parametrize("dim", [24, 96])
@each_kind
def test_under_autocast_to_bfloat16_gradients_are_those_of_float32_but_for_rounding(kind, dim):
    """Mixed by the kernel (96) and without it; activations computed again give the same bits."""
    config = config_of(kind, dim=dim, heads=2, depth=3)
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


@each_kind
def test_dropout_leaves_features_out_in_training_only(kind):
    config = config_of(kind, dropout=0.5)
    model, without = model_of(config), model_of(config_of(kind))
    ids = ids_of(config)
    seen = [model(ids) for _ in range(2)]
    assert not torch.equal(*seen)
    assert torch.equal(model.eval()(ids), without(ids))


@each_case
def test_what_a_model_reads_has_a_name_and_a_place_in_every_layer(kind, own):
    """And is what it says over all layers: a place has one name, a mixture each entry once."""
    model = model_of(config_of(kind, own), spread=0.1).float()
    rows = learned_weights(model, ids_of(model.config))
    shown = registry.residual[kind].readings is not Block.readings
    assert bool(rows) == shown, f"{kind} should show what it reads by its `readings`, or have none"
    assert {row["layer"] for row in rows} <= {*map(str, range(1, DEPTH + 1)), OUT}
    places: dict[int, set[str]] = {}
    for row in rows:
        places.setdefault(row["place"], set()).add(row["entry"])
        assert math.isfinite(row["b"] + row["spread"] + row["added"])
    assert all(len(names) == 1 for names in places.values())
    each = [(row["layer"], row["output"], row["entry"]) for row in rows]
    assert len(set(each)) == len(each)
    assert any(row["b"] + row["added"] not in (0.0, 1.0) for row in rows) == shown


@each_case
def test_kinds_start_from_the_same_matrices(kind, own):
    standard, other = (
        model_of(config_of(k, o)).state_dict() for k, o in (("standard", {}), (kind, own))
    )
    shared = [name for name in standard if "norm" not in name]
    assert len(shared) > DEPTH
    assert all(torch.equal(standard[name], other[name]) for name in shared)


@each_case
def test_learning_rates_are_of_parameters_that_exist(kind, own):
    config = config_of(kind, own)
    rates: dict[str, Any] = registry.residual[kind].learning_rates(config)
    names = {name.rpartition(".")[2] for name, _ in build_model(config).named_parameters()}
    common = {
        n.rpartition(".")[2] for n, _ in build_model(config_of("standard")).named_parameters()
    }
    assert all(rate > 0 for rate in rates.values())
    assert not rates.keys() & common
    if kind not in ("grn_v1", "grn_v2"):  # which have no w
        assert rates.keys() <= names


@pytest.mark.extended
@pytest.mark.slow
@each_kind
def test_a_model_compiled_as_a_whole_is_one_graph_with_the_same_logits(kind, monkeypatch):
    monkeypatch.setattr(mhc, "SINKHORN_DIVISIONS", 3)  # of 39: each is traced, and all are alike
    model = model_of(config_of(kind, depth=1, dim=48), spread=0.1).float()
    ids = ids_of(model.config)
    torch._dynamo.reset()  # or programs of other kinds count
    whole = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(whole(ids), model(ids), rtol=1e-4, atol=1e-5)
