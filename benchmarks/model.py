"""What Deep Cross Attention costs: training steps, memory, compilation and generation, compared.

python -m benchmarks.model [--only step ...] [--shape 24x512 ...] [--mode eager ...] [--rounds 15]
    [--rows dca zoo]

The rows of a group are in memory together and take one step per round, in an order drawn anew, so
that whatever else the machine does falls on all of them; ratios are of steps of the same round.
The rows `dca` are one group, all other residual kinds, `zoo`, a few with our standard each.
Tables go to stdout as Markdown, progress to stderr.
"""

import argparse
import gc
import importlib
import math
import os
import platform
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import streams
from benchmarks.gpu.mixing import mixing_tensors
from dca import ModelConfig, build_model, generate, registry
from pipelines.training.config import TrainConfig
from pipelines.training.device import autocast
from pipelines.training.optimizer import build_optimizer

Result = TypeVar("Result")
Writer = Callable[[], Tensor]

PARTS, MODES = ("memory", "step", "compile", "generate"), ("eager", "compiled")
VOCAB, HEADS, FF_MULT = 256, 8, 4
PROMPT_BYTES, NEW_BYTES = 128, 256
WARMUP_STEPS = 2
"""From the second on, the optimizer's state is in place while gradients are made."""
SLOW_ROUNDS = 5
"""Rounds of the writer that recomputes the whole context for every byte."""
COMPILABLE_DEPTH = 12
"""With more blocks the public full DCA compiles for many minutes."""
EMPTY = "-"

NOTES = """\
Medians; in brackets the interval of the median from order statistics, 95 % from 6 rounds on.
- `standard = 1`, `public = 1`: speed relative to our standard transformer and to the public model
  of the same kind, both in the same precision; `float32 = 1`: to the same model in float32. Paired
  by round.
- Peak memory: a process of its own makes the model, the optimizer and two steps; on a CPU its
  largest resident set less the one just before, eager only (a compiler would count too); on CUDA
  the allocator's maximum.
- Mixing: time over that of `standard`; in brackets the time in which memory copies the bytes that
  mixing must move in any case.
- Public: the package deep-cross-attention. Its k-DCA sees the first k and the last k entries and
  drops those between; ours sees the input, the sum of the older outputs and the last k. Its
  feed-forward has biases. Vocabulary, heads, optimizer, clipping and loss are the same.
- Public hyper_connections, frac, mhc: the package hyper-connections between our sublayers. Its mhc
  reads every stream by itself, ours all of them together."""

GENERATION_NOTES = f"""\
Greedy, batch 1: {NEW_BYTES} bytes after {PROMPT_BYTES}; {SLOW_ROUNDS} rounds without a cache.
Limit: memory reads the weights of our 2-DCA, of its embedding one row, once per byte."""


class LeftOut(Exception):
    """Why a row was not measured, in words for the table."""


@dataclass(frozen=True)
class Shape:
    """Size of a model and of its batch."""

    depth: int
    dim: int
    seq_len: int = 128
    batch: int = 8

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """DEPTHxDIM, with a batch of 1,024 bytes, or DEPTHxDIMxSEQxBATCH."""
        if text == "6x512":
            return cls(6, 512, seq_len=512, batch=2)
        return cls(*map(int, text.split("x")))

    def __str__(self) -> str:
        return f"{self.depth}x{self.dim}, {self.batch} x {self.seq_len}"

    @property
    def tokens(self) -> int:
        """Bytes of one step."""
        return self.batch * self.seq_len


@dataclass(frozen=True)
class Row:
    """A kind of model, of this project or of the public package."""

    residual: str
    options: tuple[tuple[str, Any], ...] = ()
    """Names and values in which it differs from the kind's defaults."""
    public: bool = False
    precision: str = "float32"

    @property
    def last_k(self) -> int | None:
        """Of a row of dca."""
        found: int | None = dict(self.options)["last_k"]
        return found

    def __str__(self) -> str:
        kind = " ".join([self.residual, *(f"{name}={value}" for name, value in self.options)])
        if self.residual == "dca":
            kind = f"{self.last_k}-DCA" if self.last_k else "full DCA"
        elif self.public and self.residual == "standard":
            kind = "GPT"
        words = ["public"] * self.public + [kind]
        return " ".join([*words, self.precision] if self.precision != "float32" else words)

    def theirs(self) -> "Row":
        """The public model of the same kind."""
        return replace(self, public=True)


def dca(last_k: int | None) -> Row:
    """A row of k-DCA; None: of full DCA."""
    return Row("dca", (("last_k", last_k),))


STANDARD, TWO, FULL = Row("standard"), dca(2), dca(None)
ROWS = [STANDARD, dca(1), TWO, FULL, STANDARD.theirs(), TWO.theirs(), FULL.theirs()]
VARIANTS = [
    Row("muddformer", (("norm", True),)),
    Row("hyper_connections", (("dynamic", False),)),
    Row("mhc", (("mix", "identity"),)),
    Row("attention_residuals", (("blocks", 8),)),
    Row("attention_residuals", (("heads", 4),)),
]
"""Of kinds whose options change what a step costs."""
ZOO = [Row(kind) for kind in registry.residual.names if kind not in ("standard", "dca")] + VARIANTS
ZOO_GROUP = 5
"""Rows of the zoo that are in memory together."""


def zoo_groups(device: torch.device) -> list[list[Row]]:
    """All kinds but the rows of dca, a few at a time, each time beside our standard.

    The last group has the kinds that a package has too, again, and the package's: beside these,
    which leave the memory in many pieces, ours are some percent slower.
    """
    precision = "bfloat16" if device.type == "cuda" else "float32"
    groups = [ZOO[start : start + ZOO_GROUP] for start in range(0, len(ZOO), ZOO_GROUP)]
    groups += [[row for kind in streams.KINDS for row in (Row(kind), Row(kind).theirs())]]
    return [[replace(row, precision=precision) for row in (STANDARD, *group)] for group in groups]


def rows_on(device: torch.device) -> list[Row]:
    """On a GPU all in bfloat16; on a CPU in float32, and two of them in bfloat16 besides."""
    halves = [replace(row, precision="bfloat16") for row in ROWS]
    return halves if device.type == "cuda" else [*ROWS, halves[0], halves[2]]


@dataclass(frozen=True)
class Case:
    """A row at a shape, eager or compiled."""

    row: Row
    shape: Shape
    mode: str = "eager"

    @property
    def config(self) -> ModelConfig:
        """Our model of this kind and size."""
        config = ModelConfig(
            dim=self.shape.dim,
            depth=self.shape.depth,
            heads=HEADS,
            ff_mult=FF_MULT,
            vocab=VOCAB,
            residual=self.row.residual,
        )
        options = dict(self.row.options)
        return config.with_options(**options) if options else config

    def __str__(self) -> str:
        return f"{self.shape}, {self.mode}, {self.row}"

    def build(self) -> Any:
        """The model; raises LeftOut if the package it comes from is not installed."""
        if not self.row.public:
            return build_model(self.config)
        if self.row.residual in streams.KINDS:
            extra(streams.PACKAGE)
            return streams.build_streams(self.config)
        package, dim, depth = extra("deep_cross_attention"), self.shape.dim, self.shape.depth
        size = {"num_tokens": VOCAB, "dim": dim, "depth": depth, "ff_expansion_factor": FF_MULT}
        heads = {"heads": HEADS, "dim_head": dim // HEADS}
        if self.row.residual == "standard":
            return package.GPT(**size, **heads)
        return package.DCAGPT(**size, **heads, past_layers_k=self.row.last_k or depth)

    def of(self, row: Row) -> "Case":
        """Another row at the same shape and mode."""
        return replace(self, row=replace(row, precision=self.row.precision))


class Trainee:
    """A model, its optimizer and one batch of random bytes."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.device, self.config, self.precision = device, TrainConfig(), case.row.precision
        self.model = case.build().to(device)
        self.optimizer = build_optimizer(self.model, self.config)
        size = (case.shape.batch, case.shape.seq_len + 1)
        self.ids_bt = torch.randint(VOCAB, size, device=device)
        if case.mode == "compiled":
            # Past its limit of recompilations Dynamo would quietly go on in eager mode.
            torch._dynamo.config.fail_on_recompile_limit_hit = True
            if case.row.public:
                self.model(self.ids_bt[:, :-1])  # keeps its positions: compiled once, not twice
            self.model.compile(**({"isolate_recompiles": True} if case.row.public else {}))

    def step(self) -> None:
        """A whole training step: forward, backward, clipping, update."""
        with autocast(self.device, self.precision):
            logits_btv = self.model(self.ids_bt[:, :-1])
            loss = F.cross_entropy(logits_btv.flatten(0, 1).float(), self.ids_bt[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @classmethod
    def warm(cls, case: Case, device: torch.device) -> "Trainee":
        """One that has made the steps that are not timed."""
        trainee = cls(case, device)
        for _ in range(WARMUP_STEPS):
            trainee.step()
        return trainee


class Bench:
    """One run on one device: what was measured, and what was not and why."""

    def __init__(self, device: torch.device, rounds: int) -> None:
        self.device, self.rounds = device, rounds
        self.read, self.copy = bandwidth(device)
        self.seconds: dict[Hashable, list[float]] = {}
        self.peaks: dict[Case, int] = {}
        self.failures: dict[Hashable, str] = {}

    def measure_peaks(self, cases: Sequence[Case]) -> None:
        """Peak bytes of each case's training, in a fresh process."""
        for case in cases:
            if case.mode == "eager" or self.device.type == "cuda":
                key = ("memory", case)
                peak = self.attempt(key, in_fresh_process, peak_bytes, case, self.device)
                self.peaks |= {case: peak} if peak else {}

    def measure_steps(self, cases: Sequence[Case], *, slow: bool) -> None:
        """Seconds of each round's step; all cases are in memory together."""

        def warm(case: Case) -> Trainee:
            hard = case.mode == "compiled" and case.shape.depth > COMPILABLE_DEPTH
            theirs = case.of(FULL.theirs())
            if hard and case == theirs and not slow:
                raise LeftOut("left out: compiles for many minutes; --slow")
            return Trainee.warm(case, self.device)

        for case in cases:  # standard is in every group, and its rounds are of one
            self.seconds.pop(case, None)
        trainees = {case: self.attempt(case, warm, case) for case in cases}
        self.alternate({case: trainee.step for case, trainee in trainees.items() if trainee})
        del trainees
        gc.collect()
        torch._dynamo.reset()

    def measure_generation(self, shape: Shape, prompt: int, new: int) -> None:
        """Seconds for `new` bytes after a prompt, batch 1, of each writer."""
        ids_bt = torch.randint(VOCAB, (1, prompt), device=self.device)

        def warm(name: str) -> Writer:
            write = WRITERS[name](shape, self.device, ids_bt, new)
            assert write().shape == (1, prompt + new), name
            return write

        writers = {name: self.attempt(name, warm, name) for name in WRITERS}
        self.alternate({name: write for name, write in writers.items() if write})

    def alternate(self, actions: Mapping[Any, Callable[[], object]]) -> None:
        """Time each action once in each round, in a new order each."""
        rng = random.Random(0)
        for number in range(self.rounds):
            progress(f"round {number + 1}/{self.rounds}")
            keys = [key for key in actions if number < SLOW_ROUNDS or key != UNCACHED]
            for key in rng.sample(keys, len(keys)):
                self.seconds.setdefault(key, []).append(timed(actions[key], self.device))

    def attempt(self, key: Hashable, function: Callable[..., Result], *args: Any) -> Result | None:
        """The function's result; of a failure the reason, under this key."""
        progress(": ".join(map(str, key)) if isinstance(key, tuple) else str(key))
        try:
            return function(*args)
        except Exception as error:  # whatever stopped this row, the others are still measured
            kind = "" if isinstance(error, LeftOut) else f"failed: {type(error).__name__}: "
            line = (str(error).strip() or "no message").splitlines()[0]
            self.failures[key] = f"{kind}{line}".replace("|", "/")[:160]
            progress(f"  {self.failures[key]}")
            return None

    def step_table(self, cases: Sequence[Case]) -> str:
        """A line per case, with its figures or the reason why there are none."""
        heads = ["shape, batch", "mode", "model", "parameters", "ms per step", "tokens/s"]
        heads += ["standard = 1", "public = 1", "float32 = 1", "mixing, ms", "peak MiB"]
        lines = []
        for case in cases:
            names = [str(case.shape), case.mode, str(case.row), parameter_cell(case)]
            step, rate = self.failures.get(case, EMPTY), EMPTY
            if mine := self.seconds.get(case):
                step = f"{1e3 * median(mine):,.1f}"
                rate = f"{case.shape.tokens / median(mine):,.0f}"
            single = replace(case, row=replace(case.row, precision="float32"))
            others = (case.of(STANDARD), case.of(case.row.theirs()), single)
            speeds = [self.speed(case, other) for other in others]
            peak = self.failures.get(("memory", case), EMPTY)
            if case in self.peaks:
                peak = f"{self.peaks[case] / 2**20:,.0f}"
            lines.append([*names, step, rate, *speeds, self.mixing(case), peak])
        return markdown(heads, lines)

    def speed(self, mine: Hashable, other: Hashable) -> str:
        """How many times as fast as the other, by pairs of the same round."""
        if mine == other or not {mine, other} <= self.seconds.keys():
            return EMPTY
        pairs = zip(self.seconds[mine], self.seconds[other], strict=False)
        middle, low, high = median_interval([b / a for a, b in pairs])
        return f"{middle:.2f} [{low:.2f}, {high:.2f}]"

    def mixing(self, case: Case) -> str:
        """Milliseconds over the standard transformer's, and the minimum that memory allows."""
        standard = case.of(STANDARD)
        if case.row.public or case == standard or not {case, standard} <= self.seconds.keys():
            return EMPTY
        pairs = zip(self.seconds[case], self.seconds[standard], strict=True)
        over = median(a - b for a, b in pairs)
        mine, plain = mixing_tensors(case.config), mixing_tensors(standard.config)
        if mine is None or plain is None:
            return f"{1e3 * over:,.1f}"
        numbers = (mine - plain) * case.shape.tokens * case.shape.dim
        bound = numbers * getattr(torch, case.row.precision).itemsize / self.copy
        return f"{1e3 * over:,.1f} [{1e3 * bound:,.1f}]"

    def compilation_table(self, case: Case) -> str:
        """Seconds of the first step with an empty cache on disk, then with that cache filled."""
        cells = []
        with tempfile.TemporaryDirectory() as cache:
            for key in (("empty cache", case), ("filled cache", case)):
                arguments = (first_step_seconds, case, self.device, cache)
                seconds = self.attempt(key, in_fresh_process, *arguments)
                cells.append(f"{seconds:.1f}" if seconds else self.failures[key])
        heads = ["shape, batch", "model", "first step, s: empty cache", "new process, filled cache"]
        return markdown(heads, [[str(case.shape), str(case.row), *cells]])

    def generation_table(self, shape: Shape, new: int) -> str:
        """A line per writer, with its figures or the reason why there are none."""
        weights = Case(TWO, shape).config.parameter_count() - VOCAB * shape.dim
        limit = self.read / (weights * compute_dtype(self.device).itemsize)
        lines = []
        for name in WRITERS:
            rate, share = self.failures.get(name, EMPTY), EMPTY
            if mine := self.seconds.get(name):
                rate = f"{new / median(mine):,.1f}"
                share = f"{new / median(mine) / limit:.1%}"
            speed = self.speed(CACHED, name)
            lines.append([f"{shape.depth}x{shape.dim}", name, rate, speed, share])
        heads = ["shape", "model", "tokens/s", "ours, this = 1"]
        return markdown([*heads, f"of the limit, {limit:,.0f} tokens/s"], lines)


def peak_bytes(case: Case, device: torch.device) -> int:
    """Peak memory of model, optimizer and two steps; to be called in a process of its own."""
    small = Shape(1, 8 * HEADS, seq_len=8, batch=1)
    Trainee(replace(case, shape=small), device).step()  # what is imported late is not the model's
    torch._dynamo.reset()  # or a second size would be compiled for any size
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        Trainee.warm(case, device)
        return torch.cuda.max_memory_allocated()
    before = _resident_bytes("VmRSS")
    Trainee.warm(case, device)
    return _resident_bytes("VmHWM") - before


def _resident_bytes(field: str) -> int:
    """Linux's account of this process; ru_maxrss would begin at the parent's peak."""
    (kibibytes,) = re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kibibytes) * 1024


def first_step_seconds(case: Case, device: torch.device, cache: str) -> float:
    """Seconds of the first step, compilation included; wants a process of its own."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    return timed(Trainee(case, device).step, device)


def in_fresh_process(function: Callable[..., Result], *args: Any) -> Result:
    """The function's result, from a new interpreter."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def timed(action: Callable[[], object], device: torch.device) -> float:
    """Seconds until the action's work on the device is done."""
    finish = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    finish()
    started = time.perf_counter()
    action()
    finish()
    return time.perf_counter() - started


def bandwidth(device: torch.device) -> tuple[float, float]:
    """Bytes per second of reading and of copying (reads plus writes), the best of 20 each."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    read = min(timed(source.sum, device) for _ in range(20))
    copy = min(timed(lambda: target.copy_(source), device) for _ in range(20))
    return source.nbytes / read, 2 * source.nbytes / copy


def our_writer(shape: Shape, device: torch.device, ids_bt: Tensor, new: int) -> Writer:
    """Our 2-DCA."""
    model = Case(TWO, shape).build().to(device, compute_dtype(device)).eval()
    return lambda: generate(model, ids_bt, max_new_tokens=new, temperature=0)


def public_writer(shape: Shape, device: torch.device, ids_bt: Tensor, new: int) -> Writer:
    """The public 2-DCA: it has no cache, so the whole context again for every byte."""
    model = Case(TWO.theirs(), shape).build().to(device, compute_dtype(device)).eval()

    @torch.inference_mode()
    def write() -> Tensor:
        text_bt = ids_bt
        for _ in range(new):
            text_bt = torch.cat([text_bt, model(text_bt)[:, -1:].argmax(-1)], dim=1)
        return text_bt

    return write


def llama_writer(shape: Shape, device: torch.device, ids_bt: Tensor, new: int) -> Writer:
    """A Llama of Hugging Face with the number of parameters of our 2-DCA, within 1 %."""
    transformers = extra("transformers")
    wanted, d = Case(TWO, shape).config.parameter_count(), shape.dim
    others = shape.depth * (4 * d * d + 2 * d) + 2 * VOCAB * d + d
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=d,
        num_hidden_layers=shape.depth,
        num_attention_heads=HEADS,
        intermediate_size=round((wanted - others) / (shape.depth * 3 * d)),
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,  # no byte ends the text
        pad_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config).to(device, compute_dtype(device)).eval()
    assert abs(model.num_parameters() / wanted - 1) < 0.01, (model.num_parameters(), wanted)
    seen_bt = torch.ones_like(ids_bt)
    options = {"max_new_tokens": new, "do_sample": False, "use_cache": True}

    @torch.inference_mode()
    def write() -> Tensor:
        return model.generate(ids_bt, attention_mask=seen_bt, **options)

    return write


CACHED, UNCACHED = "2-DCA, cached", "public 2-DCA, uncached"
WRITERS = {CACHED: our_writer, UNCACHED: public_writer, "Llama, cached": llama_writer}


def compute_dtype(device: torch.device) -> torch.dtype:
    """Of a writer's weights."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def extra(name: str) -> Any:
    """A package that only this benchmark needs."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise LeftOut(f"left out: no package {error.name}; pip install -e '.[bench]'") from error


def parameter_cell(case: Case) -> str:
    """Trainable numbers, of a model made without memory."""
    try:
        with torch.device("meta"):
            weights = case.build().parameters()
    except LeftOut:
        return EMPTY
    return f"{sum(weight.numel() for weight in weights if weight.requires_grad):,}"


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and the order statistics around it that hold the true one 95 times in 100.

    Of fewer than 6 values no two do: the smallest and the largest.
    """
    ordered, n, rank = sorted(values), len(values), 0
    while 2 * sum(math.comb(n, i) for i in range(rank + 2)) <= 0.05 * 2**n:
        rank += 1
    return median(ordered), ordered[rank], ordered[n - 1 - rank]


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *lines])


def processor() -> str:
    """The CPU's name, and the cores that this process may use."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{found[1] if found else platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def hardware(device: torch.device, read: float, copy: float) -> str:
    """What was measured on, and how fast its memory is."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{processor()}, {torch.get_num_threads()} threads"
    memory = f"memory reads {read / 1e9:,.1f} GB/s and copies {copy / 1e9:,.1f} GB/s"
    return f"{name}, torch {torch.__version__}; {memory}."


def progress(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the chosen parts and print them."""
    options = _options(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench(device, options.rounds)
    print(hardware(device, bench.read, bench.copy), flush=True)
    modes = [(shape, mode) for shape in options.shape for mode in options.mode]
    groups = []
    for shape, mode in modes:
        rows = [rows_on(device)] if "dca" in options.rows else []
        rows += zoo_groups(device) if "zoo" in options.rows and mode == "eager" else []
        groups += [[Case(row, shape, mode) for row in group] for group in rows]
    cases = [case for group in groups for case in group]
    if "memory" in options.only:
        bench.measure_peaks([*dict.fromkeys(cases)])
    if {"memory", "step"} & set(options.only):
        for group in groups:  # a line as soon as it is measured: the run is long
            if "step" in options.only:
                bench.measure_steps(group, slow=options.slow)
            table = bench.step_table(group).split("\n", 2)
            print("\n".join(table[2:] if group is not groups[0] else ["", *table]), flush=True)
        print(f"\n{NOTES}", flush=True)
    if "compile" in options.only:
        full = rows_on(device)[ROWS.index(FULL)]
        deepest = max(options.shape, key=lambda shape: shape.depth)
        print(f"\n{bench.compilation_table(Case(full, deepest, 'compiled'))}", flush=True)
    if "generate" in options.only:
        shallowest = min(options.shape, key=lambda shape: shape.depth)
        bench.measure_generation(shallowest, PROMPT_BYTES, NEW_BYTES)
        print(f"\n{bench.generation_table(shallowest, NEW_BYTES)}\n\n{GENERATION_NOTES}")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What Deep Cross Attention costs.")
    shapes = [Shape.parse("6x512"), Shape.parse("24x512")]
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts (all)")
    parser.add_argument(
        "--shape",
        nargs="+",
        type=Shape.parse,
        default=shapes,
        metavar="DEPTHxDIM[xSEQxBATCH]",
        help="sizes; the deepest is compiled, the shallowest generates (6x512 24x512)",
    )
    parser.add_argument("--mode", nargs="+", choices=MODES, default=MODES, help="of steps (both)")
    parser.add_argument(
        "--rows", nargs="+", choices=("dca", "zoo"), default=("dca", "zoo"), help="kinds (both)"
    )
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each row (15)")
    parser.add_argument("--slow", action="store_true", help="leave out nothing for its slowness")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
