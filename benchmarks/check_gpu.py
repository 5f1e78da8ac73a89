"""Eight minutes on one GPU: are the CUDA paths right, and how fast are they?

    PYTHONPATH=. python benchmarks/check_gpu.py [--cpu]

Needs dca and tests/dca of a checkout with torch, triton, einops, numpy and pytest, and nothing of
the pipeline: a machine with a GPU need have no more. Every part is printed when it ends, and all
so far are written to check_gpu.json in the folder $OUT, or build. A part that fails keeps no other
from running; the exit code is then 1. With --cpu, small models on the CPU in a few seconds: a test
of this script.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dca import ModelConfig, build_model, generate, registry
from dca.model import LanguageModel

ROOT = Path(__file__).parents[1]
KERNEL_TESTS = "tests/dca/mix_triton_cases.py"
KERNEL_TESTS_SECONDS = 150
PAPERS = ("standard", "dca")
"""Kinds with rows of their own below."""
KINDS: dict[str, dict[str, Any]] = {
    "standard": {"residual": "standard"},
    "1-DCA": {"dca": {"last_k": 1}},
    "2-DCA": {"dca": {"last_k": 2}},
    "full DCA": {"dca": {"last_k": None}},
    **{kind: {"residual": kind} for kind in registry.residual.names if kind not in PAPERS},
    "muddformer, norm": {"residual": "muddformer", "muddformer": {"norm": True}},
    "attention_residuals, 8 groups": {
        "residual": "attention_residuals",
        "attention_residuals": {"blocks": 8},
    },
    "attention_residuals, 4 heads": {
        "residual": "attention_residuals",
        "attention_residuals": {"heads": 4},
    },
    "hyper_connections, static": {
        "residual": "hyper_connections",
        "hyper_connections": {"dynamic": False},
    },
}
FEW = ("standard", "2-DCA", "full DCA")
"""Kinds that are timed compiled and at the larger width: the others take too long."""
MAX_ERROR = {"float32": 1e-3, "bfloat16": 0.4}
"""Of the loss and of any parameter's gradient, relative, by the type of the matrix products.
Rounding alone was 0.1 of a small gradient in bfloat16; of one that is missing it would be 1."""
VOCAB = 256
PROFILED_ROWS = 20


class Skipped(Exception):
    """Why a part does not apply to the device."""


class Failed(Exception):
    """What is wrong, with the figures."""


@dataclass(frozen=True)
class Shape:
    """Size of a model and of its batch."""

    depth: int
    dim: int
    heads: int
    batch: int
    seq_len: int

    def config(self, kind: str) -> ModelConfig:
        """The model of this size and a kind."""
        size = {"depth": self.depth, "dim": self.dim, "heads": self.heads, "vocab": VOCAB}
        return ModelConfig(**{**size, **KINDS[kind]})


TINY = Shape(2, 32, heads=2, batch=2, seq_len=32)
"""In place of every other shape on the CPU."""


@dataclass
class Check:
    """A run on one device, and the results of its parts so far."""

    device: torch.device
    folder: Path
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether it is the real check, on CUDA."""
        return self.device.type == "cuda"

    def require_gpu(self) -> None:
        """Raise Skipped on a CPU."""
        if not self.on_gpu:
            raise Skipped("needs a GPU")

    def synchronize(self) -> None:
        """Wait until the GPU has done what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, action: Callable[[], object], repeats: int = 1) -> float:
        """Seconds of one of some repeats of an action, until the device has done it."""
        self.synchronize()
        started = time.perf_counter()
        for _ in range(repeats):
            action()
        self.synchronize()
        return (time.perf_counter() - started) / repeats

    def random_ids(self, batch: int, length: int) -> Tensor:
        """Random bytes [b, t] on the device."""
        return torch.randint(VOCAB, (batch, length), device=self.device)

    def autocast(self, *, enabled: bool = True) -> torch.autocast:
        """Matrix products in bfloat16."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def run(self, name: str, part: Callable[["Check"], Any]) -> None:
        """Run one part, print its result or why there is none, and write all so far."""
        outcome: dict[str, Any] = {}
        started = time.perf_counter()
        try:
            outcome["result"] = part(self)
        except Skipped as reason:
            outcome["skipped"] = str(reason)
        except Exception as error:  # the other parts may work
            traceback.print_exc()
            lines = str(error).splitlines() or [""]
            outcome["failed"] = f"{type(error).__name__}: {lines[0]}"
        outcome["seconds"] = round(time.perf_counter() - started, 1)
        self.parts[name] = outcome
        print(f"{name}: {json.dumps(outcome)}", flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "check_gpu.json").write_text(json.dumps(self.parts, indent=1))


def loss_of(model: nn.Module, ids_bt: Tensor) -> Tensor:
    """Mean cross-entropy of the next byte, of float32 logits as in training (or float64)."""
    logits_btv = model(ids_bt[:, :-1])
    wide = torch.promote_types(logits_btv.dtype, torch.float32)
    return F.cross_entropy(logits_btv.flatten(0, 1).to(wide), ids_bt[:, 1:].flatten())


def machine(check: Check) -> dict[str, Any]:
    """Versions, and what the GPU can do: products of matrices and copies of memory."""
    name = torch.cuda.get_device_name() if check.on_gpu else "CPU"
    size, copied = (8192, 2**30) if check.on_gpu else (64, 2**20)
    a = torch.randn(size, size, device=check.device, dtype=torch.bfloat16)
    source = torch.zeros(copied, device=check.device, dtype=torch.uint8)
    target = torch.empty_like(source)
    seconds = {}
    for key, action in {"product": lambda: a @ a, "copy": lambda: target.copy_(source)}.items():
        check.seconds(action, 3)
        seconds[key] = check.seconds(action, 10)
    return {
        "device": name,
        "torch": torch.__version__,
        "bfloat16_teraflops": 2 * size**3 / seconds["product"] / 1e12,
        "copy_terabytes_per_second": 2 * copied / seconds["copy"] / 1e12,
    }


def kernels(check: Check) -> str:
    """The tests of the Triton kernels, compiled: pytest's last line."""
    check.require_gpu()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", KERNEL_TESTS],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        timeout=KERNEL_TESTS_SECONDS,
    )
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-3000:])
        raise Failed(f"{KERNEL_TESTS}: {(done.stdout.strip() or 'no output').splitlines()[-1]}")
    return done.stdout.strip().splitlines()[-1]


def accuracy(check: Check) -> dict[str, Any]:
    """The largest relative errors of loss and gradients against float64 on the CPU."""
    shape = Shape(7, 128, heads=4, batch=3, seq_len=64) if check.on_gpu else TINY
    errors = {}
    for kind in KINDS:
        seeded = torch.Generator().manual_seed(0)
        model = build_model(shape.config(kind), generator=seeded)
        reference = copy.deepcopy(model).double()
        model.to(check.device)
        ids_bt = torch.randint(VOCAB, (shape.batch, shape.seq_len + 1), generator=seeded)
        expected = loss_of(reference, ids_bt)
        expected.backward()
        for name in MAX_ERROR:
            model.zero_grad()
            with check.autocast(enabled=name == "bfloat16"):
                loss = loss_of(model, ids_bt.to(check.device))
            loss.backward()
            of_loss = relative_error(loss, expected)
            errors[f"{kind}, {name}"] = [of_loss, gradient_error(model, reference)]
    wrong = {k: e for k, e in errors.items() if not max(e) <= MAX_ERROR[k.rpartition(", ")[2]]}
    if wrong:
        raise Failed(f"relative errors of loss and gradients: {wrong}, expected {MAX_ERROR}")
    return errors


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference over that of the expected values."""
    difference = found.detach().cpu().double() - expected.detach()
    return (difference.norm() / expected.detach().norm()).item()


def gradient_error(model: nn.Module, reference: nn.Module) -> float:
    """The largest relative error of a parameter's gradient; those that are zero do not count."""
    pairs = zip(model.parameters(), reference.parameters(), strict=True)
    return max(
        relative_error(ours.grad, theirs.grad)
        for ours, theirs in pairs
        if ours.grad is not None and theirs.grad is not None and theirs.grad.norm() > 1e-7
    )


class Trainee:
    """A model and its optimizer, which train on new random bytes in each step."""

    def __init__(self, check: Check, shape: Shape, kind: str, *, compiled: bool = False) -> None:
        self.check, self.shape, self.config = check, shape, shape.config(kind)
        self.model: LanguageModel = build_model(self.config).to(check.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-4, fused=True)
        if compiled:
            self.model.compile()

    def step(self) -> None:
        """A whole training step: forward, backward, clipping, update."""
        ids_bt = self.check.random_ids(self.shape.batch, self.shape.seq_len + 1)
        with self.check.autocast():
            loss = loss_of(self.model, ids_bt)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def flops(self) -> float:
        """FLOPs of the matrix products of one step."""
        tokens = self.shape.batch * self.shape.seq_len
        return 3.0 * self.config.flops_per_token(self.shape.seq_len) * tokens


def steps(
    check: Check,
    shape: Shape,
    rounds: int,
    kinds: Sequence[str] = tuple(KINDS),
    *,
    compiled: bool = False,
) -> dict[str, Any]:
    """Times of whole training steps; each kind makes one in a round, beginning with another."""
    if compiled:
        check.require_gpu()
    shape, rounds = (shape, rounds) if check.on_gpu else (TINY, 2)
    trainees = {kind: Trainee(check, shape, kind, compiled=compiled) for kind in kinds}
    figures: dict[str, dict[str, Any]] = {}
    for kind, trainee in trainees.items():
        if check.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        figures[kind] = {"first_step_seconds": check.seconds(trainee.step)}
        trainee.step()
        if check.on_gpu:  # the weights of all kinds are in it
            figures[kind]["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    seconds: dict[str, list[float]] = {kind: [] for kind in trainees}
    for number in range(rounds):
        first = number % len(kinds)
        for kind in (*kinds[first:], *kinds[:first]):
            seconds[kind].append(check.seconds(trainees[kind].step))
    peak = check.parts.get("machine", {}).get("result", {}).get("bfloat16_teraflops")
    for kind, trainee in trainees.items():
        ratios = [a / b for a, b in zip(seconds[kind], seconds["standard"], strict=True)]
        step_seconds = median(seconds[kind])
        figures[kind] |= {"milliseconds": 1e3 * step_seconds, "over_standard": median(ratios)}
        if peak:
            used = trainee.flops() / step_seconds / 1e12
            figures[kind]["share_of_the_products_speed"] = used / peak
    return figures


def profile(check: Check) -> list[str]:
    """What takes the time of a 2-DCA's step: a table of the operations that take longest."""
    trainee = Trainee(check, Shape(24, 512, 8, 64, 512) if check.on_gpu else TINY, "2-DCA")
    trainee.step()
    with torch.profiler.profile() as profiled:
        trainee.step()
        check.synchronize()
    key = "self_device_time_total" if check.on_gpu else "self_cpu_time_total"
    table = profiled.key_averages().table(sort_by=key, row_limit=PROFILED_ROWS)
    return [line.rstrip() for line in table.splitlines()]


def host_waits(check: Check) -> str:
    """Forward and backward pass, without a wait of the host for the GPU."""
    check.require_gpu()
    model = build_model(Shape(6, 512, heads=8, batch=8, seq_len=128).config("2-DCA"))
    model.to(check.device)
    ids_bt = check.random_ids(8, 129)

    def passes() -> None:
        with check.autocast():
            loss = loss_of(model, ids_bt)
        loss.backward()

    passes()
    torch.cuda.set_sync_debug_mode("error")
    try:
        passes()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


def generation(check: Check) -> dict[str, float]:
    """Bytes per second of greedy text by a 2-DCA in float32, batch 1."""
    shape = Shape(24, 512, heads=8, batch=1, seq_len=128) if check.on_gpu else TINY
    model = build_model(shape.config("2-DCA")).to(check.device).eval()
    prompt_bt, new = check.random_ids(1, shape.seq_len), 256 if check.on_gpu else 8
    write = partial(generate, model, prompt_bt, temperature=0.0)
    write(max_new_tokens=8)
    return {"bytes_per_second": new / check.seconds(lambda: write(max_new_tokens=new))}


PARTS: dict[str, Callable[[Check], Any]] = {
    "machine": machine,
    "Triton kernels": kernels,
    "errors against float64": accuracy,
    "steps, eager, 24x512": partial(steps, shape=Shape(24, 512, 8, 64, 512), rounds=15),
    "steps, compiled, 24x512": partial(
        steps, shape=Shape(24, 512, 8, 64, 512), rounds=15, kinds=FEW, compiled=True
    ),
    "steps, eager, 24x1024": partial(
        steps, shape=Shape(24, 1024, 16, 16, 1024), rounds=10, kinds=FEW
    ),
    "profile of a step, 2-DCA, 24x512": profile,
    "waits of the host in a step": host_waits,
    "generation, 24x512": generation,
}


def main(argv: Sequence[str]) -> int:
    """Run all parts; 1 if one fails."""
    parser = argparse.ArgumentParser(description="Are the CUDA paths right, and how fast?")
    parser.add_argument("--cpu", action="store_true", help="try this script, without a GPU")
    cpu = parser.parse_args(argv).cpu
    if not cpu and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA GPU here; --cpu tries the script without one")
    device = torch.device("cpu" if cpu else "cuda")
    check = Check(device, Path(os.environ.get("OUT", ROOT / "build")))
    for name, part in PARTS.items():
        check.run(name, part)
    return 1 if any("failed" in outcome for outcome in check.parts.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
