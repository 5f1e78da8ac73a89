"""Eight minutes on one GPU: are the CUDA paths right, and how fast are they?

    python -m benchmarks.check_gpu [--cpu | --write-curves]

Needs a checkout with torch (2.11 or newer), triton, einops, safetensors and numpy, and no network:
a machine with a GPU need have no more. Every part is printed when it ends, and all so far are
written to check_gpu.json in the folder $OUT, or build. A part that fails keeps no other from
running; the exit code is then 1. With --cpu, small models on the CPU in a few seconds: a test of
this script. The parts are in benchmarks/gpu.
"""

import argparse
import copy
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.check import (
    DEEP,
    FEW,
    KINDS,
    TINY,
    VOCAB,
    WIDE,
    Check,
    Failed,
    Shape,
    loss_of,
)
from benchmarks.gpu.curves import curves, write
from benchmarks.gpu.kernels import kernels
from benchmarks.gpu.steps import host_waits, memory, profile, steps
from dca import build_model, generate

ROOT = Path(__file__).parents[1]
MAX_ERROR = {"float32": 1e-3, "bfloat16": 0.4}
"""Of the loss and of any parameter's gradient, relative, by the type of the matrix products.
Rounding alone was 0.1 of a small gradient in bfloat16; of one that is missing it would be 1."""


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


def generation(check: Check) -> dict[str, float]:
    """Bytes per second of greedy text by a 2-DCA in float32, batch 1, and what memory allows.

    The limit: memory reads the weights, of the embedding one row, once per byte, as fast as it
    copies.
    """
    shape = Shape(24, 512, heads=8, batch=1, seq_len=128) if check.on_gpu else TINY
    model = build_model(shape.config("2-DCA")).to(check.device).eval()
    prompt_bt, new = check.random_ids(1, shape.seq_len), 256 if check.on_gpu else 8
    write_bytes = partial(generate, model, prompt_bt, temperature=0.0)
    write_bytes(max_new_tokens=8)
    speed = new / check.seconds(lambda: write_bytes(max_new_tokens=new))
    found = {"bytes_per_second": speed}
    if copied := check.machine("copy_terabytes_per_second"):
        numbers = shape.config("2-DCA").parameter_count() - (VOCAB - 1) * shape.dim
        limit = copied * 1e12 / (4 * numbers)
        found |= {"limit_by_memory": limit, "of_the_limit": speed / limit}
    return found


PARTS: dict[str, Callable[[Check], Any]] = {
    "machine": machine,
    "kernels against float64": kernels,
    "errors against float64": accuracy,
    "waits of the host in a step": host_waits,
    "curves beside the CPU's": curves,
    "memory beside the formula, 24x512": memory,
    "steps, eager, 24x512": partial(steps, shape=DEEP, rounds=12),
    "generation, 24x512": generation,
    "profile of a step, 2-DCA, 24x512": profile,
    "steps, compiled, 24x512": partial(steps, shape=DEEP, rounds=12, kinds=FEW, compiled=True),
    "steps, eager, 24x1024": partial(steps, shape=WIDE, rounds=7),
    "steps, compiled, 24x1024": partial(steps, shape=WIDE, rounds=7, kinds=FEW, compiled=True),
}


def main(argv: Sequence[str]) -> int:
    """Run all parts; 1 if one fails."""
    parser = argparse.ArgumentParser(description="Are the CUDA paths right, and how fast?")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--cpu", action="store_true", help="try this script, without a GPU")
    choice.add_argument(
        "--write-curves",
        action="store_true",
        help="train on the CPU, for ten minutes, what a GPU is compared with",
    )
    given = parser.parse_args(argv)
    cpu = given.cpu or given.write_curves
    if not cpu and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA GPU here; --cpu tries the script without one")
    device = torch.device("cpu" if cpu else "cuda")
    check = Check(device, Path(os.environ.get("OUT", ROOT / "build")))
    if given.write_curves:
        write(check)
        return 0
    for name, part in PARTS.items():
        check.run(name, part)
    return 1 if any("failed" in outcome for outcome in check.parts.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
