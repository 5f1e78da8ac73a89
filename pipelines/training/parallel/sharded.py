"""Training with a part of the model on each worker: PyTorch's fully_shard, also called FSDP2.

Each worker holds some rows of the matrices in blocks, with their gradients and the optimizer's
state; a block's matrices are gathered when it computes, and freed behind it. All other weights are
whole on every worker, as with DDP: embeddings, norms, and what a residual kind adds, which it reads
outside of `Block.forward`. Of a model of 24 blocks and a width of 1,024 they are 0.3 %.

The optimizer updates this worker's rows as ordinary tensors, which share memory with PyTorch's
DTensors: its fused kernels and Muon take no others.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from dca.block import Block, SublayerBlock
from pipelines.compat.torch import ignore_view_warning
from pipelines.training.device import rank_and_world
from pipelines.training.optimizer import block_matrices
from pipelines.training.parallel.matrices import held_rows
from pipelines.training.parallel.replicated import Replicated


class Sharded(Replicated):
    """Every worker holds and updates some rows of each matrix in blocks."""

    gathers_weights = True

    def __init__(self, models: Sequence[nn.Module], device: torch.device, precision: str) -> None:
        """Shard models, equal on all workers, over the workers of the process group, in place.

        With bfloat16 the matrices are converted before they are gathered, as autocast would convert
        them behind it; gradients are summed in float32. Weights that are loaded into the models
        afterwards, and states into the optimizer (`attach`), may be whole ones.
        """
        self.rank, self.world = rank_and_world()
        self.device = device
        self.mesh = init_device_mesh(device.type, (self.world,))
        self._parts: dict[nn.Parameter, nn.Parameter] = {}
        half = torch.bfloat16 if precision == "bfloat16" else None
        policy = MixedPrecisionPolicy(half, torch.float32, cast_forward_inputs=False)
        ignore_view_warning()
        for model in models:
            self._shard(model, policy)

    def _shard(self, model: nn.Module, policy: MixedPrecisionPolicy) -> None:
        matrices = set(block_matrices(model))
        whole = {weight for weight in model.parameters() if weight not in matrices}
        for module in (*gathered_modules(model), model):
            fully_shard(
                module,
                mesh=self.mesh,
                reshard_after_forward=True,
                mp_policy=policy,
                ignored_params=whole,
            )
        for weight in whole:
            weight.data = weight.data.to(self.device)
        for weight in model.parameters():
            if isinstance(weight, DTensor):
                with torch.no_grad():
                    self._parts[weight] = nn.Parameter(weight.to_local())
        model.register_load_state_dict_pre_hook(self._cut_weights)

    def forward_of(self, model: nn.Module) -> nn.Module:
        """The model, whose blocks gather their weights themselves."""
        return model

    @contextmanager
    def accumulating(self, forward: nn.Module) -> Iterator[None]:
        """A context in which gradients add up on each worker, as whole matrices in float32."""
        assert isinstance(forward, FSDPModule)
        forward.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            forward.set_requires_gradient_sync(True)

    def clip(self, model: nn.Module, max_norm: float) -> Tensor:
        """Give the optimizer its gradients, of whole weights the workers' mean; and clip them."""
        parts, whole = [], []
        for weight in model.parameters():
            if isinstance(weight, DTensor):
                part = self._parts[weight]
                part.grad, weight.grad = weight.grad.to_local(), None  # type: ignore[union-attr]
                parts.append(part)
            else:
                whole.append(weight)
        self._average([weight.grad for weight in whole if weight.grad is not None])
        squares = _norm(parts, self.device).square()
        dist.all_reduce(squares)
        norm = (squares + _norm(whole, self.device).square()).sqrt()
        nn.utils.clip_grads_with_norm_([*parts, *whole], max_norm, norm)
        return norm

    def _average(self, gradients: list[Tensor]) -> None:
        """Average gradients over the workers, in one exchange."""
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, mean in zip(gradients, flat.split(sizes), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def part(self, weight: nn.Parameter) -> nn.Parameter:
        """This worker's rows of a sharded weight, possibly none; all of another one."""
        return self._parts.get(weight, weight)

    def agree(self, answer: bool) -> bool:
        """Rank 0's: all gather the checkpoint that it writes."""
        found = torch.tensor(float(answer), device=self.device)
        dist.broadcast(found, src=0)
        return bool(found)

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Make an optimizer of `parts` take states of whole weights, and return sharded ones."""
        of_part = {part: weight for weight, part in self._parts.items()}
        parts = [part for group in optimizer.param_groups for part in group["params"]]
        sharded = {index: of_part[part] for index, part in enumerate(parts) if part in of_part}

        def change(states: dict[str, Any], by: Callable[[Tensor, Tensor], Tensor]) -> None:
            """Change the tensors of the weight's axes, but no count of steps."""
            for index, weight in sharded.items():
                state = states["state"].get(index, {})
                states["state"][index] = {
                    name: by(value, weight) if value.ndim == weight.ndim else value
                    for name, value in state.items()
                }

        optimizer.register_state_dict_post_hook(lambda _, states: change(states, self._as_sharded))
        optimizer.register_load_state_dict_pre_hook(
            lambda _, states: change(states, self._own_rows)
        )

    def gather(self, tensors: Mapping[str, Tensor], *, copies: bool) -> dict[str, Tensor]:
        """The whole tensors, on rank 0 in the memory of its CPU, one after the other."""
        found = {}
        for name, value in tensors.items():
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            if self.rank == 0:
                found[name] = whole.to("cpu", copy=copies and whole is value)
        return found

    def _cut_weights(
        self, module: nn.Module, weights: dict[str, Any], prefix: str, *_: Any
    ) -> None:
        """Replace whole weights that a model is about to load by this worker's rows."""
        for name, weight in module.named_parameters():
            value = weights.get(prefix + name)
            if not isinstance(weight, DTensor) or value is None or isinstance(value, DTensor):
                continue
            if value.shape == weight.shape:  # else it is refused as for any model
                weights[prefix + name] = self._as_sharded(self._own_rows(value, weight), weight)

    def _own_rows(self, value: Tensor, weight: Tensor) -> Tensor:
        """A copy of this worker's rows of a tensor that is like the whole weight."""
        first, last = held_rows(len(weight), self.rank, self.world)
        return value[first:last].to(self.device, copy=True)

    def _as_sharded(self, rows: Tensor, weight: Tensor) -> DTensor:
        """This worker's rows as a tensor like the weight."""
        return DTensor.from_local(
            *(rows, self.mesh, [Shard(0)]),
            run_check=False,
            shape=weight.shape,
            stride=weight.stride(),
        )


def gathered_modules(model: nn.Module) -> list[nn.Module]:
    """The modules whose matrices are gathered together: blocks, or sublayers that are called apart.

    A block of the latter kind would gather all its matrices for each of its sublayers.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    return [
        module
        for block in blocks
        for module in (
            (block.attention, block.ff) if isinstance(block, SublayerBlock) else (block,)
        )
    ]


def _norm(weights: Sequence[nn.Parameter], device: torch.device) -> Tensor:
    """The norm of all their gradients, a scalar on the device."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    return nn.utils.get_total_norm(gradients) if gradients else torch.zeros((), device=device)
