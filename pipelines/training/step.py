"""One optimizer step: its batch, gradients, clipping, update, average of the weights."""

import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.data.batches import Batches, Bytes
from pipelines.training.config import TrainingRun
from pipelines.training.device import (
    autocast,
    free_memory_bytes,
    rank_and_world,
    resolve_precision,
)
from pipelines.training.evaluation import to_ids
from pipelines.training.memory import micro_tokens_that_fit
from pipelines.training.optimizer import update, update_average
from pipelines.training.parallel import Replicated
from pipelines.training.schedule import learning_rate_at


class OptimizerStep:
    """Makes the steps of one training run; with several workers, this worker's part of each."""

    def __init__(
        self,
        run: TrainingRun,
        model: nn.Module,
        optimizer: torch.optim.AdamW,
        average: nn.Module | None,
        batches: Batches,
        sharing: Replicated,
    ) -> None:
        """`average` is the averaged model that follows `model`, if the run keeps one.

        `sharing` is how the workers share both, and the gradients.
        """
        self.config, self.seed, self.dropout = run.train, run.seed, run.model.dropout
        self.model, self.optimizer, self.average = model, optimizer, average
        self.batches = batches
        self.rank, self.world = rank_and_world()
        self.device = next(model.parameters()).device
        self.precision = resolve_precision(run.train.precision, run.model.dim, self.device)
        self.sharing, self.forward = sharing, sharing.forward_of(model)
        self.micro_tokens = self._micro_tokens(run)
        self.ahead = None
        if self.device.type == "cuda":
            self.ahead = BatchesAhead(self._read, self.device, run.train.steps)

    def __call__(self, step: int, non_finite: Tensor) -> tuple[Tensor, Tensor]:
        """Make step `step` (from 0); return this worker's loss and the global gradient norm.

        The loss is this worker's contribution: its mean over the workers is the batch's mean loss.

        `non_finite`, a scalar on the device, becomes 1 at the first gradient that is not finite and
        stays 1: the fused optimizer then skips this and all later updates on the device, so that no
        step has to wait for the host.
        """
        learning_rate = learning_rate_at(step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr_multiplier"] * learning_rate
        ids = to_ids(self._read(step), self.device) if self.ahead is None else self.ahead(step)
        if self.dropout:  # a resumed run drops the same features, and no generator state is stored
            torch.manual_seed(step_seed(self.seed, step, self.rank))
        loss = self._backward(ids)
        norm = self.sharing.clip(self.model, self.config.grad_clip)
        torch.maximum(non_finite, (~torch.isfinite(norm)).to(non_finite.dtype), out=non_finite)
        update(self.optimizer, non_finite)
        if self.average is not None and self.config.ema_decay:
            average, weights = map(self.sharing.parts, (self.average, self.model))
            update_average(average, weights, step, self.config.ema_decay)
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norm

    def close(self) -> None:
        """End the thread that reads batches, if there is one."""
        if self.ahead is not None:
            self.ahead.close()

    def _read(self, step: int) -> Bytes:
        """This worker's sequences of a step."""
        return self.batches(step, self.rank, self.world)

    def _micro_tokens(self, run: TrainingRun) -> int:
        """Bytes of a forward pass: as configured, or on a GPU as many as fit its memory."""
        given = run.train.micro_batch_tokens
        there = free_memory_bytes(self.device, run.resources.gpus_per_worker)
        if given is not None or there is None:
            return given or run.train.batch_tokens
        found = micro_tokens_that_fit(run, there)
        if self.world == 1:
            return found
        fewest = torch.tensor(found, device=self.device)  # fsdp gathers weights in each of them
        dist.all_reduce(fewest, op=dist.ReduceOp.MIN)
        return int(fewest)

    def _backward(self, ids: Tensor) -> Tensor:
        """Accumulate the gradient of the mean loss of [sequences, t + 1] ids in micro-batches.

        Workers may have unequal numbers of sequences: the mean over the workers is that of the
        batch. They exchange gradients in the last micro-batch.
        """
        micro_batches = self._micro_batches(ids)
        total = torch.zeros((), device=self.device)
        mean_sequences = self.config.batch_tokens / self.config.seq_len / self.world
        with autocast(self.device, self.precision):
            for number, (micro_bt, counted) in enumerate(micro_batches, 1):
                last = number == len(micro_batches)
                with nullcontext() if last else self.sharing.accumulating(self.forward):
                    logits_btv = self.forward(micro_bt[:, :-1]).flatten(0, 1).float()
                    loss = F.cross_entropy(logits_btv, micro_bt[:, 1:].flatten())
                    loss = loss * (counted / mean_sequences)
                    loss.backward()
                total += loss.detach()
        return total

    def _micro_batches(self, ids: Tensor) -> list[tuple[Tensor, int]]:
        """The parts of this worker's ids, each with the number of its sequences that count.

        Where the weights are shared all workers gather them in every pass. So one with fewer
        sequences makes as many passes as the others, the last ones over some that do not count.
        """
        size = self.micro_tokens // self.config.seq_len
        found = [(part, len(part)) for part in ids.split(size)]
        if self.sharing.gathers_weights:
            largest = -(-self.config.batch_tokens // self.config.seq_len // self.world)
            found += [(found[0][0], 0)] * (-(-largest // size) - len(found))
        return found


class BatchesAhead:
    """The ids of a step on the device; meanwhile a thread prepares those of the next one.

    Used by OptimizerStep on a GPU, which computes while the host reads; on a CPU the thread would
    take the time of the step itself.
    """

    def __init__(self, read: Callable[[int], Bytes], device: torch.device, steps: int) -> None:
        """For the batches that `read` returns for a step, of `steps`; only one thread calls it."""
        self._read, self._steps = read, steps
        self._device, self._stream = device, None
        if device.type == "cuda":  # a thread begins with the first GPU, whichever this one has
            self._device = torch.device("cuda", torch.cuda.current_device())
            self._stream = torch.cuda.Stream(self._device)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._next: tuple[int, Future[Tensor]] | None = None

    def __call__(self, step: int) -> Tensor:
        """Ids [b, t + 1] of a step, from 0; raises what reading them raised."""
        ahead, self._next = self._next, None
        found = ahead[1] if ahead and ahead[0] == step else self._pool.submit(self._load, step)
        ids_bt = found.result()
        if self._stream is not None:  # the GPU waits for the copy; its memory is kept for the step
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            ids_bt.record_stream(current)
        if step + 1 < self._steps:
            self._next = step + 1, self._pool.submit(self._load, step + 1)
        return ids_bt

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(cancel_futures=True)

    def _load(self, step: int) -> Tensor:
        with torch.cuda.stream(self._stream):  # none: no other stream
            return to_ids(self._read(step), self._device)


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of the random numbers of one step on one rank."""
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()[:8])
