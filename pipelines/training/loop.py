"""The training loop: plain PyTorch, knowing neither Tune nor Train.

It resumes by itself from what it finds in its folder and yields what happened; whoever drives it
stops it by asking for no more. With a process group it trains data-parallel; the group is the
launcher's affair.
"""

import faulthandler
import hashlib
import json
import math
import re
import resource
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from functools import partial
from operator import itemgetter
from pathlib import Path

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from dca import build_model
from dca.model import load_weights
from pipelines.runtime.config import Config, run_params
from pipelines.runtime.errors import PipelineError, StorageError
from pipelines.training import checkpoint
from pipelines.training.checkpoint import Row, Snapshot
from pipelines.training.data import Batches, Development, open_bytes
from pipelines.training.evaluation import autocast, bits_per_byte, rank_and_world, to_ids
from pipelines.training.optimizer import build_optimizer, learning_rate_at
from pipelines.training.start import read_start

LINUX_PEAK = Path("/proc/self/status")
LOCK_SECONDS = 60
"""How long the process before this one, killed or cut off, may take to let go of its folder."""


class Diverged(PipelineError):
    """The gradient or the loss was no longer finite; the update was not made."""


def train(
    config: Config, corpus: Development, folder: Path, say: Callable[[str], None]
) -> Generator[list[Row]]:
    """Train `config.model` on the corpus, yielding new rows of the history at each evaluation.

    Resumes from `folder` if it holds a checkpoint; the first rows are then the whole history, so
    that a reader who missed some gets them. A checkpoint is written before its rows are yielded.
    In a process group every rank must iterate; only rank 0 writes. `say` hears what a person should
    know. Raises Diverged with the step, StorageError if a checkpoint cannot be written.
    """
    with _alone_in(folder):
        run = _Run(config, corpus, folder, say)
        if rows := run.new_rows():
            yield rows
        while run.step < config.train.steps:
            run.train_to_next_evaluation()
            yield run.new_rows()


def watched(run: Generator[list[Row]], seconds: int | None) -> Generator[list[Row]]:
    """`run`, in a process that ends itself if the next rows take longer than that.

    Also if it hangs outside Python: the clock is a thread of C. Whoever supervises the process
    starts it again.
    """
    with closing(run):
        while True:
            if seconds is not None:
                faulthandler.dump_traceback_later(seconds, exit=True)
            try:
                rows = next(run, None)
            finally:
                faulthandler.cancel_dump_traceback_later()
            if rows is None:
                return
            yield rows


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """One process writes into a folder: the one before may not have noticed its end yet."""
    if rank_and_world()[0] != 0:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock").acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise PipelineError(f"{folder}: another process trains here") from None
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error}") from error
    with lock:
        yield


def best_row(history: Iterable[Row], metric: str) -> Row:
    """The evaluated row (it has a checkpoint) with the smallest metric; the earliest of equals."""
    return min((row for row in history if "val_bits_per_byte" in row), key=itemgetter(metric))


class _Run:
    """A training run between two evaluations."""

    def __init__(
        self, config: Config, corpus: Development, folder: Path, say: Callable[[str], None]
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
        self.key = hashlib.sha256(json.dumps(run_params(config)).encode()).hexdigest()[:32]
        found = self._resume(say)
        if found is None and self.config.start_from:
            load_weights(self.model, read_start(self.config.start_from))
        _forget_peak_memory(self.device)
        self.step, self.history, self.seconds = 0, list[Row](), 0.0
        self.told = 0  # rows handed out
        self.last_good = "none yet"
        self.saved = time.monotonic()
        if found is not None:
            self.step, self.history, self.seconds = found.step, found.history, found.seconds
            if self.step < self.config.steps:
                say(f"goes on from step {self.step}/{self.config.steps}")
        if self.config.compile:
            self.model.compile()
        self.forward: nn.Module = self.model
        if self.world > 1:
            self.forward = DistributedDataParallel(self.model)
        sequences = self.config.batch_tokens // self.config.seq_len
        data = open_bytes(corpus.train)
        self.batches = Batches(data, self.config.seq_len, sequences, config.seed)
        self.validation = open_bytes(corpus.validation)

    def _resume(self, say: Callable[[str], None]) -> Snapshot | None:
        """Rank 0, which is alone in the folder, finds the checkpoint; the others load the same."""
        load = partial(checkpoint.resume, self.folder, self.model, self.optimizer, self.key, say)
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
            self.model,
            self.validation,
            seq_len=self.config.seq_len,
            tokens=self.config.eval_tokens,
        )
        if not math.isfinite(bits):  # the last update was the bad one: no gradient followed it
            raise Diverged(f"diverged at step {self.step}: validation is not finite")
        self.history[-1]["val_bits_per_byte"] = bits
        self._save()

    def _save(self) -> None:
        self.saved = time.monotonic()
        if self.rank != 0:
            return
        evaluated = any("val_bits_per_byte" in row for row in self.history)
        best = int(best_row(self.history, self.config.best_metric)["step"]) if evaluated else 0
        snapshot = Snapshot(self.step, self.history, best, self.seconds, self.key)
        checkpoint.save(self.folder, self.model, self.optimizer, snapshot)

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
            raise Diverged(
                f"diverged at step {first + int(good) + 1}: the gradient is not finite "
                f"(last good training loss: {self.last_good})"
            )
        self.last_good = f"{bits:.3f} bits per byte"
        seconds = time.perf_counter() - started
        self.seconds += seconds
        return {
            "step": stop,
            "time": time.time(),
            "tokens": stop * self.config.batch_tokens,
            "train_bits_per_byte": bits,
            "learning_rate": rate,
            "grad_norm": norm.item(),
            "tokens_per_second": count * self.config.batch_tokens / seconds,
            "seconds": self.seconds,
            "peak_memory_bytes": _peak_memory_bytes(self.device),
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
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]  # read by the fused kernel
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norm

    def _backward(self, ids: Tensor) -> Tensor:
        """Accumulate the gradient of the mean loss of [sequences, t + 1] ids, part by part."""
        micro_tokens = self.config.micro_batch_tokens or self.config.batch_tokens
        parts = ids.split(micro_tokens // self.config.seq_len)
        total = torch.zeros((), device=self.device)
        for number, part in enumerate(parts, 1):
            with self._no_sync(number < len(parts)), autocast(self.device):
                logits_btv = self.forward(part[:, :-1])
                loss = F.cross_entropy(logits_btv.flatten(0, 1).float(), part[:, 1:].flatten())
                loss = loss * (len(part) / len(ids))
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


def pick_device() -> torch.device:
    """The accelerator of this process, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _peak_memory_bytes(device: torch.device) -> int:
    """Most memory held since the run began: by tensors on an accelerator, else by the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if LINUX_PEAK.exists() and (peak := re.search(r"VmHWM:\s*(\d+) kB", LINUX_PEAK.read_text())):
        return 1024 * int(peak[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _forget_peak_memory(device: torch.device) -> None:
    """A process that is used again reports the peak of this run and not that of an earlier one."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif LINUX_PEAK.exists():
        with suppress(OSError):  # a container may forbid it: the peak is then the process's
            LINUX_PEAK.with_name("clear_refs").write_text("5")
