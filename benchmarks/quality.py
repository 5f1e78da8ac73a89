"""How soon DCA reaches the quality of a plain transformer, both trained on the same bytes.

python -m benchmarks.quality --text FILE [--folder build/quality] [--seeds 5] [--tune]

The rows are the transformer of plain.py, the public package's DCA in the same script, and ours. The
first two have the best learning rate and batch of a grid, chosen with a seed that is not compared;
ours have the project's defaults, or what KEPT changes. The trainings take turns, seed by seed, each
with all cores. Every finished one is kept in the folder, so that the same command goes on after a
kill; a training with other settings or other code is made anew. Tables go to stdout as Markdown,
progress to stderr, and the mean curves to curves.png in the folder.
"""

import argparse
import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from benchmarks import plain
from benchmarks.model import LeftOut, extra, markdown, processor, progress
from benchmarks.plain import Point
from pipelines.comparison.statistics import geometric_mean
from pipelines.comparison.time_to_quality import Curve, running_median, time_to_quality
from pipelines.comparison.values import Interval
from pipelines.console.errors import ConfigError, DivergedError
from pipelines.data.batches import Batches, open_bytes
from pipelines.data.splits import TrainValSplits, measure_corpus, train_val_splits, write_splits
from pipelines.engine.code import CodeDigests
from pipelines.experiment import Experiment, read_experiment
from pipelines.storage.files import move_into_place
from pipelines.training.device import pick_device
from pipelines.training.history import SECONDS, TOKENS, VAL_BITS
from pipelines.training.loop import threads_restored, train

THREADS, TEXT_BYTES = 2, 4_000_000
BASE: dict[str, Any] = {
    "experiment": "quality",
    "model": {"dim": 128, "depth": 8, "heads": 4},
    "train": {
        **{"tokens": 2_048_000, "seq_len": 256, "batch_tokens": 2048, "precision": "float32"},
        **{"evals": 32, "eval_tokens": 65_536},
    },
    "resources": {"cpus_per_worker": THREADS},
}
DCA = {"model.residual": "dca", "model.dca.last_k": 2}
KEPT = {**DCA, "train.learning_rate": 8e-3}
"""Ours with all that studies kept: the best learning rate of the study in docs/results.md."""
PLAIN, PUBLIC = "plain transformer", "public 2-DCA"
SCRIPTED: dict[str, Callable[[Experiment], nn.Module]] = {
    PLAIN: lambda base: plain.GPT(base.model, base.train.seq_len),
    PUBLIC: lambda base: public_dca(base),
}
"""Rows that plain.py trains."""
OURS: dict[str, dict[str, Any]] = {
    "ours, standard": {"model.residual": "standard"},
    "ours, 2-DCA": DCA,
    "2-DCA, Muon": {**DCA, "train.optimizer": "muon"},
    "2-DCA, bfloat16": {**DCA, "train.precision": "bfloat16"},
    "2-DCA, all that was kept": KEPT,
}
"""Rows of the training loop, with what each changes in BASE."""
RATES, BATCHES = (1e-3, 2e-3, 4e-3, 8e-3), (1024, 2048, 4096)
TUNING_SEED = 1000
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
    curve: list[Point]
    """To its end, or until it diverged."""
    tokens: int
    """Of the whole training."""

    @property
    def diverged(self) -> bool:
        """Whether its curve ends early."""
        return not self.curve or self.curve[-1].tokens < self.tokens

    @property
    def final_bits(self) -> float:
        """Bits per byte at its end; infinite if it diverged."""
        return math.inf if self.diverged else self.curve[-1].bits

    @property
    def by_time(self) -> Curve:
        """The curve over seconds instead of tokens."""
        return Curve([one.seconds for one in self.curve], [one.bits for one in self.curve])

    def bits_at(self, seconds: float) -> float:
        """Bits per byte after that time, or at an earlier end; infinite if it diverged."""
        times, bits = self.by_time
        return math.inf if self.diverged else float(np.interp(seconds, times, running_median(bits)))


Grid = dict[tuple[float, int], Training]
"""Trainings by learning rate and batch."""


@dataclass(frozen=True)
class Bench:
    """The trainings on one text, with those that are in the folder."""

    base: Experiment
    splits: TrainValSplits
    text: str
    """Fingerprint of the corpus."""
    folder: Path
    codes: CodeDigests = field(default_factory=CodeDigests)

    @classmethod
    def of(cls, text: Path, folder: Path) -> "Bench":
        """For the beginning of a text; raises ConfigError if it cannot be read."""
        given = {"corpus": "files", "path": str(text.absolute()), "max_bytes": TEXT_BYTES}
        base = read_experiment({**BASE, "data": given}, source="benchmark")
        corpus = measure_corpus(base.data, seq_len=base.train.seq_len)
        write_splits(base.data, corpus, folder)
        return cls(base, train_val_splits(folder, corpus.fingerprint), corpus.fingerprint, folder)

    @property
    def file(self) -> Path:
        """What was measured, by row, values and seed."""
        return self.folder / "results.json"

    def tune(self, row: str) -> Grid:
        """The trainings of the grid, by learning rate and batch."""
        return {
            (rate, batch): self.training(row, {**tuned(rate, batch), "train.evals": 1}, TUNING_SEED)
            for batch in BATCHES
            for rate in RATES
        }

    def training(self, row: str, values: Mapping[str, Any], seed: int) -> Training:
        """A training with these changes of the base: from the folder, or made now."""
        experiment = self.base.replace({**values, "seed": seed})
        name = ", ".join([row, *(f"{key}={value}" for key, value in values.items()), f"{seed=}"])
        stored = json.loads(self.file.read_text()) if self.file.exists() else {}
        settings = self._settings(row, experiment)
        if name not in stored or stored[name]["settings"] != settings:
            progress(name)
            stored[name] = {"settings": settings, **self._train(row, experiment)._asdict()}
            part = self.file.with_suffix(".part")
            part.write_text(json.dumps(stored, indent=1))
            move_into_place(part, self.file)
        found = stored[name]
        curve = [Point(*point) for point in found["curve"]]
        return Training(found["parameters"], curve, found["tokens"])

    def _settings(self, row: str, experiment: Experiment) -> dict[str, Any]:
        """All that a training depends on: what was made with something else is not reused."""
        params = experiment.training_run().params
        code = self.codes["pipelines.training.loop", *sorted(experiment.model_modules())]
        if row in SCRIPTED:
            code += hashlib.sha256(Path(plain.__file__).read_bytes()).hexdigest()[:32]
        values = {key: value for key, value in params.items() if not key.startswith("data.")}
        machine = {"processor": processor(), "torch": torch.__version__, "threads": THREADS}
        return {**values, **machine, "text": self.text, "code": code}

    def _train(self, row: str, experiment: Experiment) -> Training:
        """Train, after two steps that are not timed: they load kernels and wake the threads."""
        short = {"train.tokens": 2 * experiment.train.batch_tokens, "train.evals": 1}
        for _ in self._curve(row, experiment.replace(short)):
            pass
        if row in SCRIPTED:
            parameters = sum(w.numel() for w in SCRIPTED[row](experiment).parameters())
        else:
            parameters = experiment.model.parameter_count()
        config = experiment.train
        tokens = config.steps * config.batch_tokens
        return Training(parameters, [*self._curve(row, experiment)], tokens)

    def _curve(self, row: str, experiment: Experiment) -> Iterator[Point]:
        """The evaluations of a training, to its end or until it diverges."""
        config, seed = experiment.train, experiment.seed
        with threads_restored():
            torch.set_num_threads(THREADS)
            if row in SCRIPTED:
                torch.manual_seed(seed)
                model, text = SCRIPTED[row](experiment), open_bytes(self.splits.train)
                sequences = config.batch_tokens // config.seq_len
                batches = Batches(text, config.seq_len, sequences, seed)
                points = plain.train(model, config, batches, open_bytes(self.splits.validation))
                yield from takewhile(lambda point: isfinite(point.bits), points)
                return
            with tempfile.TemporaryDirectory() as folder, suppress(DivergedError):
                for *_, last in train(experiment.training_run(), self.splits, Path(folder) / "run"):
                    yield Point(int(last[TOKENS]), last[SECONDS], last[VAL_BITS])


def tuned(rate: float, batch: int) -> dict[str, Any]:
    """A point of the grid, as changes of the base."""
    return {"train.learning_rate": rate, "train.batch_tokens": batch}


def best(grid: Grid) -> tuple[float, int]:
    """The learning rate and batch with the fewest bits per byte at the end of the same bytes."""
    return min(grid, key=lambda key: grid[key].final_bits)


def tuning_table(grids: Mapping[str, Grid]) -> str:
    """Final bits per byte of each point; a best one at an end of the grid is a reason to widen."""
    lines = []
    for row, grid in grids.items():
        for batch in BATCHES:
            bits = [f"{grid[rate, batch].final_bits:.4f}" for rate in RATES]
            chosen = best(grid)
            if chosen[1] == batch:
                bits[RATES.index(chosen[0])] = f"**{bits[RATES.index(chosen[0])]}**"
            lines.append([row, str(batch), *bits])
    return markdown(["model", "bytes of a step", *map(str, RATES)], lines)


def comparison_table(found: Mapping[str, Sequence[Training]]) -> str:
    """A line per row; of the same seed each is compared with the plain transformer."""
    heads = ["model", "parameters", "seconds of training", "bits per byte at the end"]
    heads += ["seconds to the quality of plain", "plain = 1"]
    heads += ["bits per byte in the time of plain", "plain = 1"]
    base, lines = found[PLAIN], []
    seconds = fmean(one.curve[-1].seconds for one in base)
    for row, trainings in found.items():
        own = fmean(one.curve[-1].seconds if one.curve else math.nan for one in trainings)
        bits = fmean(one.final_bits for one in trainings)
        line = [row, f"{trainings[0].parameters:,}", f"{own:.1f}", f"{bits:.4f}"]
        lines.append(
            [*line, *([EMPTY] * 4 if row == PLAIN else _against(trainings, base, seconds))]
        )
    return markdown(heads, lines)


def _against(trainings: Sequence[Training], base: Sequence[Training], seconds: float) -> list[str]:
    """The cells that compare a row with the plain transformer, which takes `seconds`."""
    pairs = [*zip(trainings, base, strict=True)]
    time = time_to_quality((one.by_time, other.by_time) for one, other in pairs)
    cells = [f"{time.reached} of {time.pairs} reached", EMPTY]
    if time.share is not None:
        cells = [f"{time.share * seconds:.1f}", _ratio(time.share, time.interval)]
    bits = [one.bits_at(other.curve[-1].seconds) for one, other in pairs]
    if not all(map(isfinite, bits)):
        return [*cells, "diverged", EMPTY]
    shares = [own / other.final_bits for own, (_, other) in zip(bits, pairs, strict=True)]
    return [*cells, f"{fmean(bits):.4f}", _ratio(*geometric_mean(shares))]


def _ratio(value: float, interval: Interval | None) -> str:
    return f"{value:.3f}" + (f" [{interval.low:.3f}, {interval.high:.3f}]" if interval else "")


def draw(found: Mapping[str, Sequence[Training]], file: Path) -> None:
    """Bits per byte over seconds of training, each the mean of a row's trainings."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="seconds of training", ylabel="bits per byte of validation")
    for row, trainings in found.items():
        whole = [np.array(one.curve) for one in trainings if not one.diverged]
        if whole:
            _, seconds, bits = np.mean(whole, axis=0).T
            axes.plot(seconds, bits, label=row)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    """Tune, train and compare; print the tables."""
    parser = argparse.ArgumentParser(description="Seconds until a plain transformer's quality.")
    parser.add_argument("--text", type=Path, required=True, help="enwik8, or its first bytes")
    parser.add_argument("--folder", type=Path, default=Path("build/quality"))
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each row (5)")
    parser.add_argument("--tune", action="store_true", help="end after the grids")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds: expected at least 1, got {options.seeds}")
    if pick_device().type != "cpu":
        parser.error("expected a machine without an accelerator, or CUDA_VISIBLE_DEVICES= (none)")
    try:
        bench = Bench.of(options.text, options.folder)
    except ConfigError as error:
        parser.error(str(error))
    print(f"{processor()}, {THREADS} threads, torch {torch.__version__}\n")
    grids = dict[str, Grid]()
    for row in SCRIPTED:
        try:
            grids[row] = bench.tune(row)
        except LeftOut as reason:
            progress(f"{row}: {reason}")
    print(tuning_table(grids), flush=True)
    if options.tune:
        return
    rows = {row: tuned(*best(grid)) for row, grid in grids.items()} | OURS
    found: dict[str, list[Training]] = {row: [] for row in rows}
    for seed in range(options.seeds):
        for row, values in rows.items():
            found[row].append(bench.training(row, values, seed))
    draw(found, options.folder / "curves.png")
    print(f"\n{comparison_table(found)}", flush=True)


if __name__ == "__main__":
    main()
