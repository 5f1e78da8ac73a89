"""Parts of `make check-gpu` about training steps: their time, memory, waits, and a profile."""

from collections.abc import Iterator, Sequence
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.gpu.check import DEEP, FEW, KINDS, TINY, Check, Failed, Shape, Trainee
from benchmarks.gpu.mixing import mixing_tensors
from pipelines.training.memory import peak_bytes

GIB = 2**30
TOGETHER = 3
"""Kinds that are in memory beside the standard transformer while steps are timed."""
SECONDS = 10
"""Of timed steps of such a group, after which no further round begins."""
FEWEST_ROUNDS = 3
MOST_OF_FORMULA = 1.25
"""Peak memory over that by the formula, from which on the formula is wrong."""
PROFILED_ROWS = 20


def steps(
    check: Check,
    shape: Shape,
    rounds: int,
    kinds: Sequence[str] = tuple(KINDS),
    *,
    compiled: bool = False,
) -> dict[str, Any]:
    """Times of whole training steps, of a few kinds at a time beside the standard transformer.

    Each makes one step in a round, beginning with another one each time; its ratio and what its
    mixing takes are of steps of the same round.
    """
    if compiled:
        check.require_gpu()
    shape, rounds = (shape, rounds) if check.on_gpu else (TINY, 1)
    figures: dict[str, Any] = {}
    for group in groups_of(kinds):
        found = _times(check, shape, rounds, group, compiled=compiled)
        for kind, row in found.items():
            figures.setdefault(kind, row)
        if compiled:
            torch.compiler.reset()
    return figures


def groups_of(kinds: Sequence[str]) -> Iterator[list[str]]:
    """`standard` with a few others at a time."""
    others = [kind for kind in kinds if kind != "standard"]
    for first in range(0, max(1, len(others)), TOGETHER):
        yield ["standard", *others[first : first + TOGETHER]]


def _times(
    check: Check, shape: Shape, rounds: int, kinds: list[str], *, compiled: bool
) -> dict[str, Any]:
    """Figures of each of some kinds, by paired steps."""
    trainees = {kind: Trainee(check, shape, kind, compiled=compiled) for kind in kinds}
    first_steps = {kind: check.seconds(trainee.step) for kind, trainee in trainees.items()}
    for trainee in trainees.values():
        trainee.step()
    seconds: dict[str, list[float]] = {kind: [] for kind in trainees}
    for number in range(rounds):
        first = number % len(kinds)
        for kind in (*kinds[first:], *kinds[:first]):
            seconds[kind].append(check.seconds(trainees[kind].step))
        if number + 1 >= FEWEST_ROUNDS and sum(map(sum, seconds.values())) > SECONDS:
            break
    return {
        kind: {"first_step_seconds": first_steps[kind]}
        | _figures(check, trainee, seconds[kind], seconds["standard"])
        for kind, trainee in trainees.items()
    }


def _figures(
    check: Check, trainee: Trainee, seconds: list[float], standard: list[float]
) -> dict[str, Any]:
    """Time and ratios of a kind, beside what products of matrices and copies of memory reach."""
    step = median(seconds)
    figures = {
        "milliseconds": 1e3 * step,
        "rounds": len(seconds),
        "over_standard": median(a / b for a, b in zip(seconds, standard, strict=True)),
    }
    if teraflops := check.machine("bfloat16_teraflops"):
        figures["share_of_the_products_speed"] = trainee.flops() / step / 1e12 / teraflops
    copied = check.machine("copy_terabytes_per_second")
    mine = mixing_tensors(trainee.config)
    if copied and mine is not None and trainee.config.residual != "standard":
        plain = mixing_tensors(trainee.shape.config("standard")) or 0
        moved = (mine - plain) * trainee.shape.tokens * trainee.shape.dim * 2
        over = median(a - b for a, b in zip(seconds, standard, strict=True))
        figures["mixing_milliseconds"] = 1e3 * over
        figures["mixing_milliseconds_of_copying_as_much"] = 1e3 * moved / (copied * 1e12)
    return figures


def memory(check: Check) -> dict[str, dict[str, float]]:
    """Peak memory of a training step of each kind, beside the formula that trials are planned by.

    On a CPU the formula only, of a step that is made: no allocator records the peak.
    """
    shape, found = DEEP if check.on_gpu else TINY, {}
    for kind in KINDS:
        formula = peak_bytes(_as_training(shape, kind), on_gpu=True)  # type: ignore[arg-type]
        found[kind] = {"formula_gib": formula / GIB}
        if check.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if check.on_gpu else 0
        trainee = Trainee(check, shape, kind)
        trainee.step()
        trainee.step()
        if check.on_gpu:
            peak = torch.cuda.max_memory_allocated() - before
            found[kind] |= {"peak_gib": peak / GIB, "over_formula": peak / formula}
        del trainee
    above = [kind for kind, row in found.items() if row.get("over_formula", 0) > MOST_OF_FORMULA]
    if above:
        rows = {kind: found[kind] for kind in above}
        raise Failed(f"more than {MOST_OF_FORMULA} of the formula's memory: {rows}; all: {found}")
    return found


def _as_training(shape: Shape, kind: str) -> SimpleNamespace:
    """The parts of a TrainingRun that the formula reads, whose class needs more packages."""
    train = SimpleNamespace(
        optimizer="adamw",
        batch_tokens=shape.tokens,
        micro_batch_tokens=None,
        seq_len=shape.seq_len,
        eval_tokens=shape.seq_len,
        precision="bfloat16",
        ema_decay=None,
        activation_checkpointing=False,
        compile=False,
    )
    resources = SimpleNamespace(strategy="ddp", min_workers=1)
    return SimpleNamespace(model=shape.config(kind), train=train, resources=resources)


def profile(check: Check) -> list[str]:
    """What takes the time of a 2-DCA's step: a table of the operations that take longest.

    Also written as a text beside the results.
    """
    trainee = Trainee(check, DEEP if check.on_gpu else TINY, "2-DCA")
    trainee.step()
    with torch.profiler.profile() as profiled:
        trainee.step()
        check.synchronize()
    key = "self_device_time_total" if check.on_gpu else "self_cpu_time_total"
    table = profiled.key_averages().table(sort_by=key, row_limit=PROFILED_ROWS)
    lines = [line.rstrip() for line in table.splitlines()]
    check.folder.mkdir(parents=True, exist_ok=True)
    (check.folder / "profile.txt").write_text("\n".join(lines))
    return lines


def host_waits(check: Check) -> dict[str, str]:
    """Whole training steps of some kinds, in which the host must not wait for the GPU."""
    found = {}
    for kind in FEW:
        trainee = Trainee(check, Shape(6, 512, 8, 8, 128) if check.on_gpu else TINY, kind)
        ids_bt = check.random_ids(trainee.shape.batch, trainee.shape.seq_len + 1)
        trainee.step(ids_bt)
        with check.without_waits():
            trainee.step(ids_bt)
            trainee.step()
        found[kind] = "none"
    return found
