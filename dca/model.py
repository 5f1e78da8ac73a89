"""What a language model is, whichever architecture: bytes in, logits out; made, loaded, continued.

Axes: b batch, t time, v vocabulary.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dca import registry
from dca.config import ModelConfig


class LanguageModel(nn.Module):
    """`ids_bt` (integers below vocab) to `logits_btv`; position t sees the ids up to t.

    A whole model is a subclass, registered by name in a file of dca/architectures.
    """

    activation_checkpointing = False
    """Whether training computes the activations inside `run` again instead of keeping them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, ids_bt: Tensor, cache: Any = None) -> Tensor:
        """[b, t] to [b, t, v].

        With a cache, `ids_bt` continues what the cache has read, and is read into it: the whole
        prompt into an empty cache, then one position at a time. Raises ValueError for what does not
        fit the cache.
        """
        raise NotImplementedError

    def new_cache(self, *, batch: int, capacity: int) -> Any:
        """An empty cache for texts of up to `capacity` positions."""
        raise NotImplementedError

    def initialise(self, generator: torch.Generator | None) -> None:
        """Draw the weights, with this generator alone."""
        raise NotImplementedError

    def run(self, part: Callable[..., Any], *arguments: Any) -> Any:
        """part(*arguments), kept or computed again in the backward pass; it must be a function."""
        if not self.activation_checkpointing or not torch.is_grad_enabled():
            return part(*arguments)
        random = self.config.dropout > 0  # the same features are left out again
        return checkpoint(part, *arguments, use_reentrant=False, preserve_rng_state=random)


def build_model(config: ModelConfig, *, generator: torch.Generator | None = None) -> LanguageModel:
    """A freshly initialised model."""
    model: LanguageModel = registry.architecture[config.architecture](config)
    model.initialise(generator)
    return model


def load_weights(model: LanguageModel, weights: Mapping[str, Tensor]) -> None:
    """Load a model's weights; those of a `standard` one retrofit a model of any residual kind.

    The retrofitted model computes the same function until it is trained: what its kind adds is as
    at the start, without randomness, and its norms are copies of the one norm. Raises RuntimeError
    for weights of another shape.
    """
    given = dict(weights)
    with torch.device("meta"):
        standard = build_model(replace(model.config, residual="standard")).state_dict()
    if given.keys() == standard.keys():
        start = build_model(replace(model.config, grn_init_std=0.0)).state_dict()
        for name in start.keys() - given.keys():
            first = re.sub(r"norms\.\d+", "norms.0", name)
            given[name] = given.get(first, start[name])
    model.load_state_dict(given)
