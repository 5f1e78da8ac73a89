"""AdamW and Muon with their parameter groups, the update, and the average of the weights.

Muon is the one of Jordan et al. (https://kellerjordan.github.io/posts/muon), scaled as in arXiv
2502.16982; torch.optim.Muon computes the same of a matrix that is not cut into parts, always in
bfloat16, one matrix after the other, and reads on the host whether to update.

Axes: n matrices of one shape, r rows, c columns, r <= c.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import chain
from math import sqrt
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dca import ModelConfig
from dca.block import Block
from dca.layers import Attention, FeedForward
from dca.model import LanguageModel
from pipelines.compat.torch import FOUND_INF, FUSED_DEVICES, AdamW, step_unless, update_ema
from pipelines.training.config import TrainConfig
from pipelines.training.device import multiplies_bfloat16, rank_and_world
from pipelines.training.parallel.matrices import RowExchange
from pipelines.training.parallel.replicated import Replicated

MUON_MOMENTUM = 0.95
MUON_RMS = 0.2
"""Root mean square of an update over the learning rate: AdamW's, see arXiv 2502.16982."""
NEWTON_SCHULZ_STEPS, NEWTON_SCHULZ_EPS = 5, 1e-7
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of x, x^3 and x^5: they take singular values to between 0.7 and 1.2 in 5 steps."""
MIN_BFLOAT16_ROWS = 128
"""Rows from which bfloat16 is faster on a CPU with instructions for it: 2.1 to 3.2 times with 128
to 512 rows on an EPYC of 2023, 1.1 to 1.3 times with 64."""
MOMENTUM = "momentum"
PARTS = "parts"
"""Key of a group that Muon updates: of each matrix the rows of its parts."""
EXCHANGE = "exchange"
"""Key of such a group where each worker holds some rows of the matrices: how whole ones meet."""


def build_optimizer(
    model: nn.Module, config: TrainConfig, sharing: Replicated | None = None
) -> AdamW:
    """AdamW, fused where the device supports it; `lr_multiplier` scales a group's learning rate.

    It updates what this worker holds of the weights: all of them unless `sharing` gives parts.

    With train.optimizer = muon it leaves the matrices of the blocks to Muon. Only the matrices of
    linear layers have weight decay. It would pull the weights of residual connections from 1 to 0,
    and norm gains and embeddings towards 0.
    """
    parts = block_matrices(model) if config.optimizer == "muon" else {}
    linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    own = [(rate, _named(model, name)) for name, rate in _learning_rates(model).items()]
    grouped = {id(weight) for weight in [*linear, *chain(*(weights for _, weights in own))]}
    others = [weight for weight in model.parameters() if id(weight) not in grouped]
    decaying = {"lr_multiplier": 1.0, "weight_decay": config.weight_decay}
    groups = [
        {"params": [weight for weight in linear if weight not in parts], **decaying},
        {"params": [*parts], PARTS: [*parts.values()], **decaying},
        {"params": others, "lr_multiplier": 1.0, "weight_decay": 0.0},
        *({"params": found, "lr_multiplier": rate, "weight_decay": 0.0} for rate, found in own),
    ]
    used: list[dict[str, Any]] = [group for group in groups if group["params"]]
    sharing = sharing or Replicated()
    for group in used:
        weights, group["params"] = group["params"], [*map(sharing.part, group["params"])]
        if PARTS in group and group["params"][0] is not weights[0]:
            shapes = [(len(weight), weight.shape[1]) for weight in weights]
            group[EXCHANGE] = RowExchange(shapes, group[PARTS], *rank_and_world())
    betas = (config.beta1, config.beta2)
    fused = next(model.parameters()).device.type in FUSED_DEVICES
    kind = Muon if parts else AdamW
    return kind(used, lr=config.learning_rate, betas=betas, fused=fused)


def block_matrices(model: nn.Module) -> dict[Tensor, tuple[int, ...]]:
    """The matrices of linear layers in blocks, each with the rows of the parts it is stacked of."""
    found: dict[Tensor, tuple[int, ...]] = {}
    for block in model.modules():
        if isinstance(block, Block):
            linear = [module for module in block.modules() if isinstance(module, nn.Linear)]
            found |= {module.weight: (len(module.weight),) for module in linear}
            for module in block.modules():
                if isinstance(module, Attention):
                    found[module.qkv.weight] = module.qkv_rows
                if isinstance(module, FeedForward):
                    found[module.up.weight] = module.up_rows
    return found


def _learning_rates(model: nn.Module) -> dict[str, float]:
    """Those of a residual kind's parameters, by name: see `Block.learning_rates`."""
    block = next((module for module in model.modules() if isinstance(module, Block)), None)
    return block.learning_rates(model.config) if block and isinstance(model, LanguageModel) else {}


def _named(model: nn.Module, own_name: str) -> list[nn.Parameter]:
    """The parameters that their modules call so."""
    found = model.named_parameters()
    return [weight for name, weight in found if name.rpartition(".")[2] == own_name]


class Muon(AdamW):
    """Muon for the groups with `parts`, AdamW for the others."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As any optimizer's: AdamW's expects a step in the state of every parameter."""
        torch.optim.Optimizer.__setstate__(self, state)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters, and release the gradients of the matrices."""
        skip: Tensor | None = getattr(self, FOUND_INF, None)
        if skip is not None and skip.device.type == "cpu":  # to read it is no wait
            skip = skip if skip else None
        for group in self.param_groups:
            if PARTS in group:
                self._update_matrices(group, skip)
        super().step(closure)

    def _update_matrices(self, group: dict[str, Any], skip: Tensor | None) -> None:
        """One step of a group; where `skip` is 1 nothing changes, and the host does not read it."""
        updates: list[Tensor] = []
        factor: float | Tensor = 1.0 if skip is None else 1 - skip
        for weight in group["params"]:
            gradient = weight.grad if skip is None else weight.grad.where(skip == 0, 0)
            if MOMENTUM not in self.state[weight]:
                self.state[weight][MOMENTUM] = torch.zeros_like(weight)
            momentum = self.state[weight][MOMENTUM]
            momentum.lerp_(gradient, (1 - MUON_MOMENTUM) * factor)
            weight.mul_(1 - group["lr"] * group["weight_decay"] * factor)
            updates.append(gradient.lerp(momentum, MUON_MOMENTUM))
            weight.grad = None
        found = _of_rows if EXCHANGE in group else _of_wholes
        for part, change, longer in found(group, updates):
            size = -group["lr"] * MUON_RMS * sqrt(longer)
            if skip is None:
                part.add_(change, alpha=size)
            else:
                part.add_(change * (size * factor))


Changes = Iterator[tuple[Tensor, Tensor, int]]
"""Parts of weights, what each is changed by, and the longer side of the matrix that it is of."""


def _of_wholes(group: dict[str, Any], updates: list[Tensor]) -> Changes:
    """Of matrices that every worker holds."""
    parts = [
        *zip(
            chain(*(w.split(rows) for w, rows in zip(group["params"], group[PARTS], strict=True))),
            chain(*(u.split(rows) for u, rows in zip(updates, group[PARTS], strict=True))),
            strict=True,
        )
    ]
    changes = _orthogonalise_all([update for _, update in parts], _orthogonalise_together)
    for (part, _), change in zip(parts, changes, strict=True):
        yield part, change, max(part.shape)


def _of_rows(group: dict[str, Any], updates: list[Tensor]) -> Changes:
    """Of matrices whose rows are spread over the workers."""
    exchange: RowExchange = group[EXCHANGE]
    changes = _orthogonalise_all(exchange.to_owners(updates), orthogonalise)
    for part, place, change in exchange.to_holders(changes, updates[0]):
        yield group["params"][part.matrix][place], change, max(part.shape)


def _orthogonalise_all(
    matrices: list[Tensor], together: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Matrices of any shapes made orthogonal, those of one shape `together`."""
    by_shape: dict[torch.Size, list[int]] = {}
    wide = [matrix if len(matrix) <= matrix.shape[1] else matrix.mT for matrix in matrices]
    for index, matrix in enumerate(wide):
        by_shape.setdefault(matrix.shape, []).append(index)
    found = dict[int, Tensor]()
    for indices in by_shape.values():
        changes = together(torch.stack([wide[index] for index in indices]))
        found |= zip(indices, changes, strict=True)
    return [
        found[index] if wide[index] is matrix else found[index].mT
        for index, matrix in enumerate(matrices)
    ]


def _orthogonalise_together(x_nrc: Tensor) -> Tensor:
    """`orthogonalise`, of which every worker makes a share and gets the others' results.

    Besides the time this keeps the workers' weights equal where their processors round differently.
    """
    rank, world = rank_and_world()
    if world == 1:
        return orthogonalise(x_nrc)
    count = -(-len(x_nrc) // world)
    own_nrc, share_nrc = x_nrc[rank * count :][:count], torch.zeros_like(x_nrc[:count])
    if len(own_nrc):
        share_nrc[: len(own_nrc)] = orthogonalise(own_nrc)
    whole_nrc = x_nrc.new_empty(world * count, *x_nrc.shape[1:])
    dist.all_gather_into_tensor(whole_nrc, share_nrc)
    return whole_nrc[: len(x_nrc)]


def orthogonalise(x_nrc: Tensor) -> Tensor:
    """The nearest matrices with orthonormal rows, roughly: by Newton-Schulz steps."""
    fast = multiplies_bfloat16(x_nrc.device)
    wide = x_nrc.device.type != "cpu" or x_nrc.shape[1] >= MIN_BFLOAT16_ROWS
    norm_n11 = x_nrc.norm(dim=(1, 2), keepdim=True).clamp(min=NEWTON_SCHULZ_EPS)
    x_nrc = (x_nrc / norm_n11).to(torch.bfloat16 if fast and wide else x_nrc.dtype)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram_nrr = x_nrc @ x_nrc.mT
        power_nrr = torch.baddbmm(gram_nrr, gram_nrr, gram_nrr, beta=b, alpha=c)
        x_nrc = torch.baddbmm(x_nrc, power_nrr, x_nrc, beta=a)
    return x_nrc


class MatrixWork(NamedTuple):
    """What Muon's part of a step takes."""

    numbers: int
    """In the matrices that it updates."""
    flops: float
    """Of its matrix products."""


@lru_cache
def matrix_work(model: ModelConfig) -> MatrixWork:
    """What Muon takes for a model, counted on the meta device."""
    shapes = list(_part_shapes(model))
    products = sum(2 * r * r * c + r**3 for r, c in shapes)  # of multiply-adds
    return MatrixWork(sum(r * c for r, c in shapes), 2.0 * NEWTON_SCHULZ_STEPS * products)


def _part_shapes(model: ModelConfig) -> Iterator[tuple[int, int]]:
    for weight, rows in block_matrices(model.meta_model()).items():
        yield from (tuple(sorted((count, weight.shape[1]))) for count in rows)  # type: ignore[misc]


def update(optimizer: torch.optim.AdamW, non_finite: Tensor) -> None:
    """One step, unless `non_finite` is 1.

    A fused kernel reads it on the device, so that the host need not wait. On other devices (a TPU)
    the host reads it: one transfer a step.
    """
    if optimizer.defaults["fused"]:
        step_unless(optimizer, non_finite)
    elif not non_finite:
        optimizer.step()


def update_average(
    average: Iterable[Tensor], weights: Iterable[Tensor], step: int, decay: float
) -> None:
    """Add the weights after step `step` (from 0) to their exponential moving average.

    The decay grows as min(decay, (1 + step) / (10 + step)), as in TensorFlow's
    ExponentialMovingAverage: the random weights at the start lose their share within a few steps,
    and a run that is short compared with 1 / (1 - decay) still averages about its last tenth.
    PyTorch's AveragedModel would start with the first weights at full decay.
    """
    keep = min(decay, (1 + step) / (10 + step))
    update_ema(average, weights, keep)
