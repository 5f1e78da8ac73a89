"""How soon DCA reaches the quality of a plain transformer, both trained on the same bytes.

python -m benchmarks.quality --text FILE [--until tune] [--seeds 5] [--rounds 20]

The rows are the transformer of plain.py, the public package's DCA in the same script, and ours. The
first two have a tuned learning rate and batch, chosen with a seed that is not compared; ours have
those of the plain transformer, and what OURS changes. Bits per byte after so many bytes
depend on no clock: `train` may run beside other work, and takes hours. Every finished training is
kept in quality.json beside this file, until the settings or the code that it depends on change.
`time` lets all rows train in turns, a few steps each, with the machine to itself. Tables go to
stdout as Markdown, progress to stderr, and the mean curves to build/quality/curves.png.
"""

import argparse
import hashlib
import json
import math
import random
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from benchmarks import plain
from benchmarks.model import LeftOut, extra, markdown, processor, progress
from benchmarks.plain import Point
from pipelines.comparison import time_to_quality as quality
from pipelines.comparison.statistics import median_interval, paired
from pipelines.comparison.time_to_quality import Curve, TimeToQuality
from pipelines.comparison.values import Ratio
from pipelines.console.errors import ConfigError, DivergedError
from pipelines.data.batches import Batches, open_bytes
from pipelines.data.splits import TrainValSplits, measure_corpus, train_val_splits, write_splits
from pipelines.engine.code import digest_without_imports, imported_modules
from pipelines.experiment import Experiment, read_experiment
from pipelines.storage.files import move_into_place
from pipelines.training.device import pick_device
from pipelines.training.history import SECONDS, TOKENS, VAL_BITS
from pipelines.training.loop import threads_restored, train

PARTS = ("tune", "train", "time")
"""In this order; each needs those before it."""
KEPT_FILE = Path(__file__).with_suffix(".json")
"""Finished trainings, by row, what it changes in BASE, and seed."""
SCRATCH = Path("build/quality")
THREADS, TEXT_BYTES = 2, 4_000_000
BASE: dict[str, Any] = {
    "experiment": "quality",
    "model": {"dim": 128, "depth": 8, "heads": 4},
    "train": {
        **{"tokens": 2_048_000, "seq_len": 256, "batch_tokens": 1024, "precision": "float32"},
        **{"evals": 32, "eval_tokens": 32_768},
    },
    "resources": {"cpus_per_worker": THREADS},
}
DCA = {"model.residual": "dca", "model.dca.last_k": 2}
MUON = {**DCA, "train.optimizer": "muon", "train.learning_rate": 1.1e-2, "train.batch_tokens": 2048}
BFLOAT16 = {**MUON, "train.precision": "bfloat16"}
KEPT = {**BFLOAT16, "model.zero_init": True, "train.warmup_fraction": 0.03}
"""Ours with all that the trials in docs/results.md kept."""
HALF, SHORT = 1_024_000, 1_280_000
"""Bytes of the trainings of a tuning, and of one that is planned to end sooner than the others."""
PLAIN, PUBLIC = "plain transformer", "public 2-DCA"
SCRIPTED: dict[str, Callable[[Experiment], nn.Module]] = {
    PLAIN: lambda base: plain.GPT(base.model, base.train.seq_len),
    PUBLIC: lambda base: public_dca(base),
}
"""Rows that plain.py trains."""
OURS: dict[str, dict[str, Any]] = {
    "ours, standard": {"model.residual": "standard"},
    "ours, 2-DCA": DCA,
    "2-DCA, Muon": MUON,
    "2-DCA, Muon, bfloat16": BFLOAT16,
    "all that was kept": KEPT,
    "all that was kept, fewer bytes": {**KEPT, "train.tokens": SHORT},
}
"""Rows of the training loop, with what each changes in the plain transformer's values."""
DATA, BATCHES = "pipelines.data.", "pipelines.data.batches"
COMPUTING = ("pipelines.training.step", "pipelines.training.evaluation", BATCHES)
"""Modules that, with a row's own and what they import, decide what a training computes."""
START = (2e-3, 1024)
"""Learning rate and bytes of a step that tuning starts from, and the second row's from its best."""
TUNING = {"train.tokens": HALF, "train.evals": 1}
"""What a tuning changes in BASE."""
TUNING_SEED = 1000
TIMED_BYTES, WARMUP_ROUNDS = 8192, 2
"""Bytes that a row trains on in each round, at least one step, and rounds that are not counted."""
EMPTY = "-"


def public_dca(base: Experiment) -> nn.Module:
    """The public package's model of the same size; raises LeftOut if it is not installed."""
    model = base.model
    return extra("deep_cross_attention").DCAGPT(
        num_tokens=model.vocab,
        dim=model.dim,
        depth=model.depth,
        heads=model.heads,
        dim_head=model.dim // model.heads,
        ff_expansion_factor=model.ff_mult,
        past_layers_k=DCA["model.dca.last_k"],
    )


class Training(NamedTuple):
    """A finished training of one row and seed."""

    parameters: int
    curve: Curve
    """Bytes read and bits per byte, to its end or until it diverged."""
    tokens: int
    """Bytes of the whole training."""

    @property
    def final_bits(self) -> float:
        """Bits per byte at its end; infinite if it diverged."""
        read, bits = self.curve
        return bits[-1] if read and read[-1] == self.tokens else math.inf

    def bits_at(self, read: float) -> float:
        """Bits per byte after so many bytes, or at an earlier end; infinite if it diverged."""
        bits = np.interp(read, self.curve.tokens, quality.running_median(self.curve.bits))
        return float(bits) if math.isfinite(self.final_bits) else math.inf


Values = Mapping[str, Any]
"""Changes of BASE, by key."""
Grid = dict[tuple[float, int], Training]
"""Trainings by learning rate and batch."""


@dataclass(frozen=True)
class Bench:
    """The trainings on one text, with those that are kept."""

    base: Experiment
    splits: TrainValSplits
    text: str
    """Fingerprint of the corpus."""

    @classmethod
    def of(cls, text: Path) -> "Bench":
        """For the beginning of a text; raises ConfigError if it cannot be read."""
        given = {"corpus": "files", "path": str(text.absolute()), "max_bytes": TEXT_BYTES}
        base = read_experiment({**BASE, "data": given}, source="benchmark")
        corpus = measure_corpus(base.data, seq_len=base.train.seq_len)
        write_splits(base.data, corpus, SCRATCH)
        return cls(base, train_val_splits(SCRATCH, corpus.fingerprint), corpus.fingerprint)

    def tune(self, row: str, start: tuple[float, int]) -> Grid:
        """Trainings from `start` on, until half and double of the best rate and batch are worse."""
        grid, sizes = Grid(), self.base.train
        points = [start]
        while points:
            for rate, batch in points:
                values = {**TUNING, **tuned(rate, batch)}
                grid[rate, batch] = self.training(row, values, TUNING_SEED)
            rate, batch = best(grid)
            around = [(2 * rate, batch), (rate / 2, batch), (rate, 2 * batch), (rate, batch // 2)]
            points = [
                (rate, batch)
                for rate, batch in around
                if (rate, batch) not in grid and sizes.seq_len <= batch <= TIMED_BYTES
            ]
        return grid

    def training(self, row: str, values: Values, seed: int) -> Training:
        """A training with these changes of the base: a kept one, or made now."""
        experiment = self.base.replace({**values, "seed": seed})
        name = ", ".join([row, *(f"{key}={value}" for key, value in values.items()), f"{seed=}"])
        kept = json.loads(KEPT_FILE.read_text()) if KEPT_FILE.exists() else {}
        settings = self._settings(row, experiment)
        if name not in kept or kept[name]["settings"] != settings:
            progress(name)
            kept[name] = {"settings": settings, **self._train(row, experiment)._asdict()}
            lines = (f"{json.dumps(key)}: {json.dumps(one)}" for key, one in kept.items())
            part = KEPT_FILE.with_suffix(".part")
            part.write_text("{\n" + ",\n".join(lines) + "\n}\n")
            move_into_place(part, KEPT_FILE)
        found = kept[name]
        return Training(found["parameters"], Curve(*found["curve"]), found["tokens"])

    def _settings(self, row: str, experiment: Experiment) -> dict[str, Any]:
        """What a training depends on, but for its values, which are in its name.

        The text has a fingerprint, however it is read; the script has only sizes of `dca`.
        """
        ours = [*COMPUTING, *experiment.model_modules()]
        modules = imported_modules(["benchmarks.plain"] if row in SCRIPTED else ours)
        left = (DATA, "dca") if row in SCRIPTED else DATA
        code = digest_without_imports(m for m in modules if m == BATCHES or not m.startswith(left))
        base = hashlib.sha256(json.dumps(BASE, sort_keys=True).encode()).hexdigest()[:32]
        return {"base": base, "text": self.text, "code": code, "torch": torch.__version__}

    def _train(self, row: str, experiment: Experiment) -> Training:
        config, model = experiment.train, experiment.model
        if row in SCRIPTED:
            parameters = sum(w.numel() for w in SCRIPTED[row](experiment).parameters())
        else:
            parameters = model.parameter_count()
        points = [*self.points(row, experiment)]
        curve = Curve([one.tokens for one in points], [one.bits for one in points])
        return Training(parameters, curve, config.steps * config.batch_tokens)

    def points(self, row: str, experiment: Experiment) -> Generator[Point]:
        """The evaluations of a training, to its end or until it diverges."""
        config, seed = experiment.train, experiment.seed
        if row in SCRIPTED:
            torch.set_num_threads(THREADS)
            torch.manual_seed(seed)
            model, text = SCRIPTED[row](experiment), open_bytes(self.splits.train)
            batches = Batches(text, config.seq_len, config.batch_tokens // config.seq_len, seed)
            points = plain.train(model, config, batches, open_bytes(self.splits.validation))
            yield from takewhile(lambda point: math.isfinite(point.bits), points)
            return
        with tempfile.TemporaryDirectory() as folder, suppress(DivergedError):
            for *_, last in train(experiment.training_run(), self.splits, Path(folder) / "run"):
                yield Point(int(last[TOKENS]), last[SECONDS], last[VAL_BITS])

    def seconds(self, rows: Mapping[str, Values], rounds: int) -> dict[str, list[float]]:
        """Seconds of each round's TIMED_BYTES of training, by row, in a new order each round."""
        count, rng = rounds + WARMUP_ROUNDS, random.Random(0)
        length = {"train.tokens": count * TIMED_BYTES, "train.evals": count}
        short = {**length, "train.eval_tokens": self.base.train.seq_len}
        found: dict[str, list[float]] = {row: [] for row in rows}
        with ExitStack() as stack:
            trainings = {
                row: stack.enter_context(
                    closing(self.points(row, self.base.replace({**values, **short})))
                )
                for row, values in rows.items()
            }
            for number in range(count):
                progress(f"round {number + 1}/{count}")
                for row in rng.sample([*rows], len(rows)):
                    found[row].append(next(trainings[row]).seconds)
        return {row: [*np.diff(since)[WARMUP_ROUNDS - 1 :]] for row, since in found.items()}


def tuned(rate: float, batch: int) -> dict[str, Any]:
    """A point of the grid, as changes of the base."""
    return {"train.learning_rate": rate, "train.batch_tokens": batch}


def best(grid: Grid) -> tuple[float, int]:
    """The learning rate and batch with the fewest bits per byte at the end of the same bytes."""
    return min(grid, key=lambda key: grid[key].final_bits)


def tuning_table(grids: Mapping[str, Grid]) -> str:
    """Final bits per byte of each point, with the best one in bold."""
    rates = sorted({rate for grid in grids.values() for rate, _ in grid})
    lines = []
    for row, grid in grids.items():
        bits = {point: f"{training.final_bits:.4f}" for point, training in grid.items()}
        bits[best(grid)] = f"**{bits[best(grid)]}**"
        for batch in sorted({batch for _, batch in grid}):
            cells = [bits.get((rate, batch), EMPTY) for rate in rates]
            lines.append([row, str(batch), *cells])
    return markdown(["model", "bytes of a step", *map(str, rates)], lines)


def time_ratio(mine: Sequence[float], other: Sequence[float]) -> Ratio:
    """The median ratio of times of the same rounds."""
    return Ratio(*median_interval([a / b for a, b in zip(mine, other, strict=True)]))


def comparison_table(
    found: Mapping[str, Sequence[Training]], seconds: Mapping[str, Sequence[float]]
) -> str:
    """A line per row; what is compared with the plain transformer is so seed by seed.

    Args:
        found: the trainings of each row, by seed.
        seconds: for the same bytes, of each row and round; empty: nothing is said about time.
    """
    heads = ["model", "parameters", "seconds", "a byte's time", "bits per byte at the end"]
    heads += ["minus plain's", "bytes to plain's", "time to plain's"]
    heads += ["bits per byte in plain's time, minus plain's"]
    lines = []
    for row, trainings in found.items():
        whole, ratio = EMPTY, None
        if seconds:
            whole = f"{median(seconds[row]) / TIMED_BYTES * trainings[0].tokens:.0f}"
            ratio = time_ratio(seconds[row], seconds[PLAIN])
        bits = fmean(one.final_bits for one in trainings)
        cells = [row, f"{trainings[0].parameters:,}", whole, _cell(ratio), f"{bits:.4f}"]
        versus = _against(trainings, found[PLAIN], ratio) if row != PLAIN else [EMPTY] * 4
        lines.append([*cells, *versus])
    return markdown(heads, lines)


def _against(
    trainings: Sequence[Training], base: Sequence[Training], ratio: Ratio | None
) -> list[str]:
    """The cells that compare a row with the plain transformer."""
    pairs = [*zip(trainings, base, strict=True)]
    to_quality = quality.time_to_quality((one.curve, other.curve) for one, other in pairs)
    at_end = _difference([one.final_bits - other.final_bits for one, other in pairs])
    cells = [at_end, _share(to_quality)]
    if ratio is None:
        return [*cells, EMPTY, EMPTY]
    cells.append(_share(to_quality.times(ratio.value, ratio.interval)))
    read = base[0].tokens / ratio.value
    return [*cells, _difference([one.bits_at(read) - other.final_bits for one, other in pairs])]


def _difference(differences: Sequence[float]) -> str:
    """The mean with its t-interval, or that one diverged."""
    if not all(map(math.isfinite, differences)):
        return "diverged"
    mean, interval = fmean(differences), paired(differences).interval()
    return f"{mean:+.3f}" + (f" [{interval.low:+.3f}, {interval.high:+.3f}]" if interval else "")


def _share(found: TimeToQuality) -> str:
    if found.share is None:
        return f"{found.reached} of {found.pairs} reached"
    return _cell(Ratio(found.share, found.interval))


def _cell(ratio: Ratio | None) -> str:
    if ratio is None:
        return EMPTY
    ends = ratio.interval
    return f"{ratio.value:.3f}" + (f" [{ends.low:.3f}, {ends.high:.3f}]" if ends else "")


def draw(
    found: Mapping[str, Sequence[Training]], seconds: Mapping[str, Sequence[float]], file: Path
) -> None:
    """Bits per byte over seconds of training, each the mean of a row's trainings."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="seconds of training", ylabel="bits per byte of validation")
    for row, trainings in found.items():
        whole = [np.array(one.curve) for one in trainings if math.isfinite(one.final_bits)]
        if whole:
            read, bits = np.mean(whole, axis=0)
            axes.plot(read * median(seconds[row]) / TIMED_BYTES, bits, label=row)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    """Tune, train and time; print the tables."""
    parser = argparse.ArgumentParser(description="Seconds until a plain transformer's quality.")
    parser.add_argument("--text", type=Path, required=True, help="enwik8, or its first bytes")
    parser.add_argument("--until", choices=PARTS, default=PARTS[-1], help="the last part to do")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each row (5)")
    parser.add_argument("--rounds", type=int, default=20, help="in which rows are timed (20)")
    options = parser.parse_args(arguments)
    for name in ("seeds", "rounds"):
        if (given := getattr(options, name)) < 1:
            parser.error(f"--{name}: expected at least 1, got {given}")
    if pick_device().type != "cpu":
        parser.error("expected a machine without an accelerator, or CUDA_VISIBLE_DEVICES= (none)")
    try:
        bench = Bench.of(options.text)
    except ConfigError as error:
        parser.error(str(error))
    with threads_restored():
        measure(bench, options.until, options.seeds, options.rounds)


def measure(bench: Bench, until: str, seeds: int, rounds: int) -> None:
    """Make what is missing up to this part; print the tables."""
    print(f"{processor()}, {THREADS} threads, torch {torch.__version__}\n")
    grids = dict[str, Grid]()
    for row in SCRIPTED:
        try:
            grids[row] = bench.tune(row, best(grids[PLAIN]) if grids else START)
        except LeftOut as reason:
            progress(f"{row}: {reason}")
    print(tuning_table(grids), flush=True)
    if until == "tune":
        return
    chosen = {row: tuned(*best(grid)) for row, grid in grids.items()}
    rows = chosen | {row: {**chosen[PLAIN], **values} for row, values in OURS.items()}
    found: dict[str, list[Training]] = {row: [] for row in rows}
    for seed in range(seeds):
        for row, values in rows.items():
            found[row].append(bench.training(row, values, seed))
    seconds = bench.seconds(rows, rounds) if until == "time" else {}
    if seconds:
        draw(found, seconds, SCRATCH / "curves.png")
    print(f"\n{comparison_table(found, seconds)}", flush=True)


if __name__ == "__main__":
    main()
