"""Small models of every residual kind, for the tests of the kinds and of the model."""

from dataclasses import fields
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import torch

from dca import ModelConfig, build_model, registry
from dca.model import LanguageModel
from dca.options import Range
from tests.dca import reference

KINDS = registry.residual.names
PARTS: list[dict[str, Any]] = [
    *({"qk_norm": True}, {"kv_heads": 1}, {"activation": "relu2"}, {"activation": "swiglu"}),
    *({"logit_softcap": 2.0}, {"zero_init": True}),
]
"""What the blocks of every kind may have, part by part, and, of each field the last, together."""
TOGETHER = {name: value for part in PARTS for name, value in part.items()}
DEPTH = 4
MORE: dict[str, list[dict[str, Any]]] = {
    "dca": [{"last_k": 1}, {"last_k": DEPTH}, {"last_k": 9}, {"last_k": None, "norm": False}],
    "hyper_connections": [{"streams": 1, "dynamic": False}],
    "frac": [{"parts": 4, "dynamic": False}],
    "mhc": [{"streams": 2, "start": "uniform", "mix": "identity"}],
    "attention_residuals": [{"blocks": 1}, {"blocks": 3, "heads": 4}, {"blocks": 5}],
    "laurel": [{"rank": 1}],
}
"""Options of a kind to test besides those that `variants` finds."""


def variants(kind: str) -> list[dict[str, Any]]:
    """Options of a kind to test: the defaults, other values of one option each, and MORE.

    Of integers it takes a neighbour, of choices each other one. Floats are varied in OTHER_FLOATS.
    Options that the kind does not read change nothing, which a test of their own requires.
    """
    found: list[dict[str, Any]] = [{}]
    section, unread = registry.residual.section(kind), registry.residual.unread(kind)
    for name, annotation, default in options_of(kind):
        if f"{section}.{name}" not in unread:
            found += [{name: value} for value in others(annotation, default)]
    return found + MORE.get(kind, [])


def together(given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fewer options to test, which together have each value of the given ones."""
    found: list[dict[str, Any]] = [{}]
    for own in sorted(given, key=len, reverse=True):
        new = {k: v for k, v in own.items() if all(k not in one or one[k] != v for one in found)}
        place = next((one for one in found[1:] if not new.keys() & one.keys()), None)
        if place is None:
            found.append(place := {})
        place |= new
    return [one for at, one in enumerate(found) if one or not at]


def others(annotation: Any, default: Any, limits: tuple[Range, ...] = ()) -> list[Any]:
    """Values of an option's type besides its default, within its limits; of floats none."""
    while get_origin(annotation) is Annotated:
        limits += tuple(one for one in annotation.__metadata__ if isinstance(one, Range))
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        return [value for part in get_args(annotation) for value in others(part, default, limits)]
    if get_origin(annotation) is Literal:
        return [value for value in get_args(annotation) if value != default]
    if annotation is bool:
        return [not default]
    if annotation is int:
        near = [3, 1] if default is None else [default + 1, default - 1]
        return [value for value in near if all(value in one for one in limits)][:1]
    return [None] if annotation is type(None) and default is not None else []


def other_float(annotation: Any, default: float) -> float:
    """Another value of an option that is a float, within its limits."""
    limits = [one for one in annotation.__metadata__ if isinstance(one, Range)]
    edges = [edge for one in limits for edge in (one.ge, one.gt, one.le, one.lt)]
    near = [default / 2, default + 0.5, *((default + e) / 2 for e in edges if e is not None)]
    return next(x for x in near if x != default and all(x in one for one in limits))


def options_of(kind: str) -> list[tuple[str, Any, Any]]:
    """The name, type and default of each option of a kind."""
    section = registry.residual.section(kind)
    found = fields(registry.residual.options[section]) if section else ()
    return [(one.name, one.type, one.default) for one in found]


CASES = [(kind, own) for kind in KINDS for own in variants(kind)]
"""Every kind with each of its options to test: for what an option's value may break by itself."""
COMBINED = [(kind, own) for kind in KINDS for own in together(variants(kind))]
"""Every kind with its defaults, and with combinations that have each value of its options."""


def _other_floats(kind: str) -> dict[str, Any]:
    """Another value of each option of a kind that is a float."""
    floats = [one for one in options_of(kind) if isinstance(one[2], float)]
    return {name: other_float(annotation, default) for name, annotation, default in floats}


OTHER_FLOATS = [(kind, own) for kind in KINDS if (own := _other_floats(kind))]
"""Kinds with other values of all their options that are floats, together."""


def config_of(kind: str, own: dict[str, Any] | None = None, **changes: Any) -> ModelConfig:
    """A small model of a kind, with options of its own."""
    shape = {"dim": 24, "depth": DEPTH, "heads": 3, "vocab": 17}
    options = {registry.residual.section(kind): own} if own else {}
    return ModelConfig(residual=kind, **{**shape, **options, **changes})


def model_of(config: ModelConfig, *, spread: float = 0.0) -> LanguageModel:
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


def equal_the_equations(config: ModelConfig, *, length: int = 11) -> None:
    """Require the logits and every gradient of the equations in float64."""
    model, ids = model_of(config, spread=0.3), ids_of(config, length)
    ours = model(ids)
    weights = {k: v.detach().clone().requires_grad_() for k, v in model.state_dict().items()}
    theirs = reference.logits(config, weights, ids)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    generator = torch.Generator().manual_seed(2)
    target = torch.randn(ours.shape, dtype=torch.float64, generator=generator)
    (ours * target).sum().backward()
    (theirs * target).sum().backward()
    for name, parameter in model.named_parameters():
        grad = weights[name].grad
        assert parameter.grad is not None, f"{name} has no gradient in the model"
        assert grad is not None, f"{name} has no gradient in the equations"
        scale = float(grad.abs().max())
        torch.testing.assert_close(
            parameter.grad,
            grad,
            rtol=1e-9,
            atol=1e-9 * scale + 1e-12,
            msg=lambda m, n=name: f"{n}: {m}",
        )
