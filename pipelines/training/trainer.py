"""The training loop: plain PyTorch, knowing neither Tune nor Train.

It resumes by itself from what it finds in its folder and yields what happened; whoever drives it
stops it by asking for no more. With a process group it trains data-parallel; the group is the
launcher's affair.
"""

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from dca import build_model
from dca.model import load_weights
from pipelines.console.errors import PipelineError
from pipelines.data.batches import Batches, open_bytes
from pipelines.data.splits import TrainValSplits
from pipelines.storage.remote import Folder
from pipelines.training import checkpoint
from pipelines.training.checkpoint import Snapshot
from pipelines.training.config import TrainingRun
from pipelines.training.device import (
    autocast,
    forget_peak_memory,
    peak_flops,
    peak_memory_bytes,
    pick_device,
)
from pipelines.training.evaluation import bits_per_byte, rank_and_world, to_ids
from pipelines.training.history import Row, best_row, finished
from pipelines.training.initial_weights import read_initial_weights
from pipelines.training.optimizer import build_optimizer, update, update_average
from pipelines.training.schedule import learning_rate_at


class DivergedError(PipelineError):
    """The gradient or the loss was no longer finite; the update was not made."""


class Trainer:
    """A training run between two evaluations."""

    def __init__(
        self,
        config: TrainingRun,
        corpus: TrainValSplits,
        folder: Folder,
        say: Callable[[str], None],
    ) -> None:
        self.config, self.folder = config.train, folder
        self.checkpoint_seconds = config.failures.checkpoint_seconds
        self.rank, self.world = rank_and_world()
        self.device = pick_device()
        torch.set_num_threads(config.resources.cpus_per_worker)
        generator = torch.Generator().manual_seed(config.seed)
        self.model = build_model(config.model, generator=generator).to(self.device)
        self.model.activation_checkpointing = self.config.activation_checkpointing
        self.dropout, self.seed = config.model.dropout, config.seed
        self.optimizer = build_optimizer(self.model, self.config)
        self.average = copy.deepcopy(self.model) if self.config.ema_decay else None
        self.evaluated = self.average or self.model
        self.key = hashlib.sha256(json.dumps(config.params).encode()).hexdigest()[:32]
        found = self._resume(say)
        if found is None and self.config.start_from:
            load_weights(self.model, read_initial_weights(self.config.start_from))
            self.evaluated.load_state_dict(self.model.state_dict())
        forget_peak_memory(self.device)
        self.step, self.history, self.seconds = 0, list[Row](), 0.0
        self.told = 0  # rows handed out
        self.last_good = "none yet"
        self.saved = time.monotonic()
        if found is not None:
            self.step, self.history, self.seconds = found.step, found.history, found.seconds
            if not finished(self.history, self.config):
                say(f"goes on from step {self.step}/{self.config.steps}")
        if self.config.compile:
            for model in {self.model, self.evaluated}:
                model.compile()
        self.forward: nn.Module = self.model
        if self.world > 1:
            self.forward = DistributedDataParallel(self.model)
        sequences = self.config.batch_tokens // self.config.seq_len
        data = open_bytes(corpus.train)
        self.utilisation = utilisation_of(config, self.device, self.world)
        self.batches = Batches(data, self.config.seq_len, sequences, config.seed)
        self.validation = open_bytes(corpus.validation)

    def _resume(self, say: Callable[[str], None]) -> Snapshot | None:
        """Rank 0, which is alone in the folder, finds the checkpoint; the others load the same."""
        load = partial(
            checkpoint.resume,
            *(self.folder, self.model, self.optimizer, self.key, say),
            average=self.average,
        )
        found = load() if self.rank == 0 else None
        if self.world == 1:
            return found
        step = torch.tensor(found.step if found else 0, device=self.device)
        dist.broadcast(step, src=0)
        if self.rank != 0 and step:
            found = load(step=int(step))
            if found is None:
                raise PipelineError(f"{self.folder}: rank {self.rank} cannot read step {step}")
        return found

    def new_rows(self) -> list[Row]:
        """Rows not handed out yet, up to the last evaluation."""
        evaluated = [i for i, row in enumerate(self.history, 1) if "val_bits_per_byte" in row]
        start, self.told = self.told, max(evaluated, default=0)
        return self.history[start : self.told]

    def train_to_next_evaluation(self) -> None:
        """Train, evaluate, write a checkpoint, and others on the way when they are due."""
        end = next(step for step in self.config.eval_steps if step > self.step)
        while self.step < end:
            stop = min(end, self.step + self.config.log_every_steps)
            self.history.append(self._train_until(stop))
            if self.step < end and time.monotonic() > self.saved + self.checkpoint_seconds:
                self._save()
        bits = bits_per_byte(
            self.evaluated,
            self.validation,
            seq_len=self.config.seq_len,
            tokens=self.config.eval_tokens,
        )
        if not math.isfinite(bits):  # the last update was the bad one: no gradient followed it
            raise DivergedError(f"diverged at step {self.step}: validation is not finite")
        self.history[-1]["val_bits_per_byte"] = bits
        self._save()

    def _save(self) -> None:
        self.saved = time.monotonic()
        if self.rank != 0:
            return
        evaluated = any("val_bits_per_byte" in row for row in self.history)
        best = int(best_row(self.history, self.config.best_metric)["step"]) if evaluated else 0
        snapshot = Snapshot(self.step, self.history, best, self.seconds, self.key)
        checkpoint.save(self.folder, self.model, self.optimizer, snapshot, self.average)

    def _train_until(self, stop: int) -> Row:
        """Train to step `stop`; looks at the device once, at the end."""
        started, first = time.perf_counter(), self.step
        nats, good, bad = torch.zeros((3,), device=self.device).unbind()
        while self.step < stop:
            rate = learning_rate_at(self.step, self.config)
            loss, norm = self._one_step(rate, bad)
            nats += loss
            good += 1 - bad
            self.step += 1
        if self.world > 1:
            dist.all_reduce(nats)
            nats /= self.world
        count = stop - first
        bits = nats.item() / (count * math.log(2))
        if int(good) < count:
            raise DivergedError(
                f"diverged at step {first + int(good) + 1}: the gradient is not finite "
                f"(last good training loss: {self.last_good})"
            )
        self.last_good = f"{bits:.3f} bits per byte"
        seconds = time.perf_counter() - started
        self.seconds += seconds
        speed = count * self.config.batch_tokens / seconds
        return {
            "step": stop,
            "time": time.time(),
            "tokens": stop * self.config.batch_tokens,
            "train_bits_per_byte": bits,
            "learning_rate": rate,
            "grad_norm": norm.item(),
            "tokens_per_second": speed,
            **self.utilisation(speed),
            "seconds": self.seconds,
            "peak_memory_bytes": peak_memory_bytes(self.device),
        }

    def _one_step(self, learning_rate: float, bad: Tensor) -> tuple[Tensor, Tensor]:
        """One optimizer step; returns this worker's mean loss and the global gradient norm.

        `bad` becomes 1 at the first gradient that is not finite, and stays: from then on the fused
        optimizer skips its updates on the device, so no step has to wait for the host to look.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * learning_rate
        ids = to_ids(self.batches(self.step, self.rank, self.world), self.device)
        if self.dropout:  # a resumed run leaves out the same features, and no state is kept
            torch.manual_seed(step_seed(self.seed, self.step, self.rank))
        loss = self._backward(ids)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        torch.maximum(bad, (~torch.isfinite(norm)).to(bad.dtype), out=bad)
        update(self.optimizer, bad)
        if self.average is not None and self.config.ema_decay:
            update_average(self.average, self.model, self.step, self.config.ema_decay)
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norm

    def _backward(self, ids: Tensor) -> Tensor:
        """Accumulate the gradient of the mean loss of [sequences, t + 1] ids, part by part.

        Workers may have more sequences or fewer: the mean over the workers is that of the batch.
        """
        micro_tokens = self.config.micro_batch_tokens or self.config.batch_tokens
        parts = ids.split(micro_tokens // self.config.seq_len)
        total = torch.zeros((), device=self.device)
        mean_sequences = self.config.batch_tokens / self.config.seq_len / self.world
        for number, part in enumerate(parts, 1):
            with self._no_sync(number < len(parts)), autocast(self.device):
                logits_btv = self.forward(part[:, :-1])
                loss = F.cross_entropy(logits_btv.flatten(0, 1).float(), part[:, 1:].flatten())
                loss = loss * (len(part) / mean_sequences)
                loss.backward()
            total += loss.detach()
        return total

    def _no_sync(self, accumulating: bool) -> AbstractContextManager[None]:
        """Gradients of several workers are averaged once a step, after its last part."""
        if accumulating and isinstance(self.forward, DistributedDataParallel):
            return self.forward.no_sync()
        return nullcontext()


def step_seed(seed: int, step: int, rank: int) -> int:
    """Of the random numbers of one step, other ones for every rank."""
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()[:8])


def utilisation_of(
    config: TrainingRun, device: torch.device, workers: int
) -> Callable[[float], Row]:
    """From bytes per second to model FLOPs utilisation as PaLM defines it (arXiv 2204.02311,
    appendix B): what the model needs, nothing that is computed twice, over what all workers'
    devices could do. Nothing where that is not known."""
    peak = peak_flops(device)
    if peak is None:
        return lambda _: {}
    share = 3 * config.model.flops_per_token(config.train.seq_len) / (workers * peak)
    return lambda tokens_per_second: {"mfu": share * tokens_per_second}
