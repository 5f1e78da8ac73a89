"""The interface of language models of any architecture; building one and loading its weights.

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
    """`ids_bt` (integers below vocab) to `logits_btv`; position t depends on the ids up to t.

    An architecture is a subclass, registered by name in a file of dca/architectures.
    """

    activation_checkpointing = False
    """Whether training recomputes the activations inside `run` instead of keeping them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, ids_bt: Tensor, cache: Any = None) -> Tensor:
        """[b, t] to [b, t, v].

        With a cache, `ids_bt` continues the text in the cache and is added to it: first the whole
        prompt, then one position at a time. Raises ValueError for ids that do not fit the cache.
        """
        raise NotImplementedError

    def new_cache(self, *, batch: int, capacity: int) -> Any:
        """An empty cache for texts of up to `capacity` positions."""
        raise NotImplementedError

    def initialise(self, generator: torch.Generator | None) -> None:
        """Draw the weights, with no other generator than this."""
        raise NotImplementedError

    def run(self, part: Callable[..., Any], *arguments: Any) -> Any:
        """part(*arguments), kept or recomputed in the backward pass; it must be a pure function."""
        if not self.activation_checkpointing or not torch.is_grad_enabled():
            return part(*arguments)
        random = self.config.dropout > 0  # the same features are dropped again
        return checkpoint(part, *arguments, use_reentrant=False, preserve_rng_state=random)


def build_model(config: ModelConfig, *, generator: torch.Generator | None = None) -> LanguageModel:
    """A model with random weights drawn by the generator; None: by PyTorch's default one."""
    model: LanguageModel = registry.architecture[config.architecture](config)
    model.initialise(generator)
    return model


def load_weights(model: LanguageModel, weights: Mapping[str, Tensor]) -> None:
    """Load a model's weights; those of a `standard` one fit a model of any residual kind.

    Such a model computes the same function until it is trained: the parameters that its kind adds
    have the values of `Block.plain_start`, and its norms are copies of the one norm. Raises
    RuntimeError for weights of another shape, and for a kind that cannot start so.
    """
    given = dict(weights)
    standard = replace(model.config, residual="standard").meta_model().state_dict()
    if given.keys() == standard.keys():
        plain = registry.residual[model.config.residual].plain_start(model.config)
        if plain is None:
            raise RuntimeError(f"{model.config.residual} cannot start as the plain transformer")
        start = build_model(plain).state_dict()
        for name in start.keys() - given.keys():
            first = re.sub(r"norms\.\d+", "norms.0", name)
            given[name] = given.get(first, start[name])
    model.load_state_dict(given)
