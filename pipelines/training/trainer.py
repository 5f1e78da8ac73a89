"""A training run in progress: model, optimizer and history, from one evaluation to the next."""

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from dca import build_model
from dca.model import LanguageModel, load_weights
from pipelines.console.errors import DivergedError, PipelineError
from pipelines.data.batches import Batches, open_bytes
from pipelines.data.splits import TrainValSplits
from pipelines.storage.remote import Folder
from pipelines.training import checkpoint
from pipelines.training.checkpoint import Snapshot
from pipelines.training.config import TrainingRun
from pipelines.training.device import (
    peak_flops,
    peak_memory_bytes,
    pick_device,
    rank_and_world,
    reset_peak_memory,
    resolve_precision,
)
from pipelines.training.evaluation import bits_per_byte
from pipelines.training.history import (
    GRAD_NORM,
    LEARNING_RATE,
    MFU,
    PEAK_MEMORY,
    SECONDS,
    STEP,
    TIME,
    TOKENS,
    TOKENS_PER_SECOND,
    TRAIN_BITS,
    VAL_BITS,
    Row,
    best_row,
    finished,
)
from pipelines.training.initial_weights import read_initial_weights
from pipelines.training.optimizer import build_optimizer
from pipelines.training.parallel import share
from pipelines.training.schedule import learning_rate_at
from pipelines.training.step import OptimizerStep


class Trainer:
    """A training run in progress. `loop.train` drives it."""

    def __init__(
        self,
        run: TrainingRun,
        splits: TrainValSplits,
        folder: Folder,
        log: Callable[[str], None],
        key: str | None = None,
    ) -> None:
        """Build the model and load the newest intact checkpoint in `folder`, if there is one.

        Checkpoints are signed with the key, if there is one.
        """
        self.config, self.folder, self.log, self.key = run.train, folder, log, key
        self.checkpoint_seconds = run.failures.checkpoint_seconds
        self.rank, self.world = rank_and_world()
        self.device = pick_device()
        beside = self.device.type == "cuda"
        self.writer = checkpoint.CheckpointWriter(folder, key, beside=beside)
        torch.set_num_threads(run.resources.cpus_per_worker)
        self.model = _new_model(run)
        self.average = copy.deepcopy(self.model) if self.config.ema_decay else None
        models = [self.model] if self.average is None else [self.model, self.average]
        precision = resolve_precision(self.config.precision, run.model.dim, self.device)
        self.sharing = share(run.resources.strategy, models, self.device, precision)
        self.optimizer = build_optimizer(self.model, self.config, self.sharing)
        self.sharing.attach(self.optimizer)
        self.eval_model = self.average or self.model
        self.config_digest = config_digest(run)
        self.step, self.history, self.seconds = 0, list[Row](), 0.0
        self.rows_emitted = 0
        self.last_finite_loss = "none yet"
        self._load()
        reset_peak_memory(self.device)
        self.last_save = time.monotonic()
        if self.config.compile:
            for model in {self.model, self.eval_model}:
                model.compile()
        sequences = self.config.batch_tokens // self.config.seq_len
        batches = Batches(open_bytes(splits.train), self.config.seq_len, sequences, run.seed)
        parts = (self.model, self.optimizer, self.average)
        self.make_step = OptimizerStep(run, *parts, batches, self.sharing)
        micro = self.make_step.micro_tokens
        if micro != (self.config.micro_batch_tokens or self.config.batch_tokens):
            log(f"forward passes of {micro:,} bytes: more do not fit the memory of the GPU")
        self.utilisation = utilisation_of(run, self.device, self.world)
        self.validation = open_bytes(splits.validation)

    def _load(self) -> None:
        """Take the state from a checkpoint, else the weights from `train.start_from` if given."""
        found = self._resume()
        if found is None:
            if self.config.start_from:
                load_weights(self.model, read_initial_weights(self.config.start_from))
                self.eval_model.load_state_dict(self.model.state_dict())
            return
        self.step, self.history, self.seconds = found.step, found.history, found.seconds
        if not finished(self.history, self.config):
            self.log(f"resumes from step {self.step}/{self.config.steps}")

    def _resume(self) -> Snapshot | None:
        """Rank 0, which holds the folder's lock, chooses the checkpoint; others load the same."""
        load = partial(
            checkpoint.resume,
            *(self.folder, self.model, self.optimizer, self.config_digest, self.log),
            average=self.average,
            key=self.key,
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
        """Rows not returned before, up to the last evaluation."""
        eval_ends = [i for i, row in enumerate(self.history, 1) if VAL_BITS in row]
        start, self.rows_emitted = self.rows_emitted, max(eval_ends, default=0)
        return self.history[start : self.rows_emitted]

    def train_to_next_evaluation(self) -> None:
        """Train, evaluate and save; also save before the evaluation when a checkpoint is due.

        Raises DivergedError if the gradient or the validation loss is not finite.
        """
        end = next(step for step in self.config.eval_steps if step > self.step)
        while self.step < end:
            stop = min(end, self.step + self.config.log_every_steps)
            self.history.append(self._train_until(stop))
            self.writer.check()
            due = time.monotonic() > self.last_save + self.checkpoint_seconds
            if self.step < end and self.sharing.agree(due):
                self._save()
        bits = bits_per_byte(
            self.eval_model,
            self.validation,
            seq_len=self.config.seq_len,
            tokens=self.config.eval_tokens,
            precision=self.make_step.precision,
        )
        if not math.isfinite(bits):  # the last update diverged: no gradient was computed after it
            raise DivergedError(f"diverged at step {self.step}: validation is not finite")
        self.history[-1][VAL_BITS] = bits
        self._save()

    def _save(self) -> None:
        self.last_save = time.monotonic()
        tensors = checkpoint.collect_tensors(self.model, self.optimizer, self.average)
        tensors = self.sharing.gather(tensors, copies=self.writer.beside)
        if self.rank != 0:
            return
        has_evaluation = any(VAL_BITS in row for row in self.history)
        best = int(best_row(self.history, self.config.best_metric)[STEP]) if has_evaluation else 0
        snapshot = Snapshot(self.step, self.history, best, self.seconds, self.config_digest)
        self.writer.write(tensors, snapshot)

    def close(self) -> None:
        """Release what this process has for the run; the last checkpoint is then in its place.

        Raises StorageError if that one cannot be written.
        """
        self.make_step.close()
        self.writer.close()

    def _train_until(self, stop: int) -> Row:
        """Train to step `stop`; the host waits for the device once, at the end."""
        started, first = time.perf_counter(), self.step
        nats, finite_steps, non_finite = torch.zeros((3,), device=self.device).unbind()
        while self.step < stop:
            loss, norm = self.make_step(self.step, non_finite)
            nats += loss
            finite_steps += 1 - non_finite
            self.step += 1
        if self.world > 1:
            dist.all_reduce(nats)
            nats /= self.world
        count = stop - first
        bits = nats.item() / (count * math.log(2))
        if int(finite_steps) < count:  # the updates from the first such gradient on were not made
            raise DivergedError(
                f"diverged at step {first + int(finite_steps) + 1}: the gradient is not finite "
                f"(last good training loss: {self.last_finite_loss})"
            )
        self.last_finite_loss = f"{bits:.3f} bits per byte"
        return self._row(bits, norm, count, time.perf_counter() - started)

    def _row(self, bits: float, norm: Tensor, steps: int, seconds: float) -> Row:
        """The row of the history after the last `steps` steps, which took `seconds`."""
        self.seconds += seconds
        speed = steps * self.config.batch_tokens / seconds
        return {
            STEP: self.step,
            TIME: time.time(),
            TOKENS: self.step * self.config.batch_tokens,
            TRAIN_BITS: bits,
            LEARNING_RATE: learning_rate_at(self.step - 1, self.config),
            GRAD_NORM: norm.item(),
            TOKENS_PER_SECOND: speed,
            **self.utilisation(speed),
            SECONDS: self.seconds,
            PEAK_MEMORY: peak_memory_bytes(self.device),
        }


def _new_model(run: TrainingRun) -> LanguageModel:
    """The model with random weights that are a function of the seed only."""
    generator = torch.Generator().manual_seed(run.seed)
    model = build_model(run.model, generator=generator)
    model.activation_checkpointing = run.train.activation_checkpointing
    return model


def config_digest(run: TrainingRun) -> str:
    """32 hex digits that stand for a run's parameters: a folder is resumed only with the same."""
    return hashlib.sha256(json.dumps(run.identity).encode()).hexdigest()[:32]


def utilisation_of(run: TrainingRun, device: torch.device, workers: int) -> Callable[[float], Row]:
    """A function from tokens per second to the metric `mfu`, as PaLM defines it.

    That is the FLOPs that the model needs, without what is computed twice, over the peak of all
    workers' devices (arXiv 2204.02311, appendix B). It returns no metric if the peak is unknown.
    """
    peak = peak_flops(device)
    if peak is None:
        return lambda _: {}
    share = 3 * run.model.flops_per_token(run.train.seq_len) / (workers * peak)
    return lambda tokens_per_second: {MFU: share * tokens_per_second}
