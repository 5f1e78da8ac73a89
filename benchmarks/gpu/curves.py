"""The part of `make check-gpu` that trains: the device's curves beside those of a CPU.

Wrong gradients, random numbers or updates change a curve that each kernel's own test may not show.
curves.json holds, for two kinds and some seeds, the mean losses of each 25 of 300 steps on a CPU,
in float32; `python -m benchmarks.check_gpu --write-curves` writes it, after a change of what is
trained.
"""

import json
import platform
from functools import lru_cache
from math import sqrt
from pathlib import Path
from statistics import mean, variance
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.check import VOCAB, Check, Failed, Shape, Trainee

FILE = Path(__file__).with_name("curves.json")
SHAPE = Shape(6, 128, heads=4, batch=8, seq_len=64)
KINDS = ("standard", "2-DCA")
SEEDS = 4
STEPS, WINDOW = 300, 25
"""Steps of a curve, and of each mean in it."""
MOST_SPREADS = 3
LEARNING_RATE, WARMUP_STEPS = 2e-3, 20
WORDS, TEXT_BYTES = 400, 400_000


@lru_cache
def text() -> Tensor:
    """Made-up words, the frequent ones short, each followed by few others: bytes [n].

    NumPy promises the numbers of RandomState for all versions; no file and no network is needed.
    """
    draw = np.random.RandomState(0)
    letters = np.frombuffer(b"etaoinshrdlu", np.uint8)
    words = [letters[draw.randint(len(letters), size=2 + i // 80)] for i in range(WORDS)]
    followers = draw.zipf(1.3, size=(WORDS, 8)) % WORDS
    chosen, word, length = [], 0, 0
    while length < TEXT_BYTES:
        word = followers[word, draw.randint(8)] if draw.rand() < 0.8 else draw.randint(WORDS)
        chosen += [words[word], np.frombuffer(b" ", np.uint8)]
        length += len(words[word]) + 1
    return torch.from_numpy(np.concatenate(chosen).astype(np.int64))


def curve(
    check: Check, kind: str, seed: int, *, bfloat16: bool = False, count: int = STEPS
) -> list[float]:
    """Mean losses, in nats a byte, of each 25 of some steps; the seed draws weights and batches."""
    trainee = Trainee(check, SHAPE, kind, generator=torch.Generator().manual_seed(seed))
    corpus, draw = text(), np.random.RandomState(seed)
    window = torch.arange(SHAPE.seq_len + 1)
    losses = []
    for step in range(count):
        for group in trainee.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS)
        starts = torch.from_numpy(draw.randint(len(corpus) - len(window), size=SHAPE.batch))
        ids_bt = corpus[starts[:, None] + window].to(check.device)
        losses.append(trainee.step(ids_bt, bfloat16=bfloat16))
    found = torch.stack(losses).tolist()
    return [mean(found[first : first + WINDOW]) for first in range(0, count, WINDOW)]


def curves(check: Check) -> dict[str, Any]:
    """Curves of the first seed, in float32 and in bfloat16, beside the CPU's of that seed.

    Their mean distance has to be below the standard deviation of the CPU's seeds, which the points
    share, and no point may be three of them away: rounding alone, `standard` in bfloat16 on the
    CPU, was 0.3 of it on average and 1.1 at most. On a CPU the first point of one kind in float32:
    whether the file is that of this code.
    """
    stored = json.loads(FILE.read_text())["curves"]
    found: dict[str, Any] = {}
    wrong = []
    for kind in KINDS if check.on_gpu else KINDS[-1:]:
        for bfloat16 in (False, True) if check.on_gpu else (False,):
            count = STEPS if check.on_gpu else WINDOW
            ours = curve(check, kind, 0, bfloat16=bfloat16, count=count)
            spread = sqrt(mean(variance(points) for points in zip(*stored[kind], strict=True)))
            pairs = zip(ours, stored[kind][0], strict=False)
            shares = [abs(own - cpu) / spread for own, cpu in pairs]
            name = f"{kind}, {'bfloat16' if bfloat16 else 'float32'}"
            found[name] = {
                "last_loss": ours[-1],
                "mean_difference_over_spread": mean(shares),
                "largest_difference_over_spread": max(shares),
            }
            equal = mean(shares) <= 1 and max(shares) <= MOST_SPREADS  # neither if not a number
            wrong += [] if equal else [name]
    if wrong:
        raise Failed(f"not the curve of {FILE.name}: {', '.join(wrong)}; all: {found}")
    return found


def write(check: Check) -> None:
    """Train all seeds on this device, a CPU, and write the file."""
    found = {kind: [curve(check, kind, seed) for seed in range(SEEDS)] for kind in KINDS}
    rounded = {kind: [[round(x, 5) for x in points] for points in found[kind]] for kind in found}
    made = {"torch": torch.__version__, "processor": platform.machine(), "vocab": VOCAB}
    FILE.write_text(json.dumps({"made": made, "curves": rounded}) + "\n")
