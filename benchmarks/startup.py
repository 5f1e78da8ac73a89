"""How long the commands take until they answer, of this checkout and optionally of another.

python benchmarks/startup.py [--against FOLDER] [--rounds 5] [--only help list ...]

Each command runs in a process of its own; with --against the two checkouts take turns, each with
the Python of its own .venv if it has one. The table goes to stdout as Markdown: the median of the
rounds in seconds, and the processor's seconds, which other work on the machine disturbs less.
"""

import argparse
import os
import platform
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
COMMANDS = ("sweep.py", "train.py", "generate.py", "promote.py", "report.py")
EXPERIMENT = """
experiment: bench
data: {corpus: files, path: text.txt}
model: {dim: 16, depth: 2, heads: 2}
train: {tokens: 4096, seq_len: 32, batch_tokens: 256, evals: 2, log_every_steps: 1}
search: {trials: 3, space: {train.learning_rate: {log_uniform: [1.0e-3, 1.0e-2]}}}
"""
FIRST_STEP = "select min(timestamp) from metrics where key = 'train_bits_per_byte'"


class Measured(NamedTuple):
    """One run of a command."""

    seconds: float
    """Until it ended, or until the first optimizer step."""
    processor: float
    """Seconds of the processor, of all its processes."""


class Checkout:
    """A checkout of the project, and a folder with a small experiment that it has run."""

    def __init__(self, root: Path, folder: Path) -> None:
        own = root / ".venv" / "bin" / "python"
        self._python = str(own) if own.exists() else sys.executable
        self._root, self._folder = root, folder
        folder.mkdir()
        words = (f"{number} is the square root of {number**2}" for number in range(2000))
        (folder / "text.txt").write_text("\n".join(words))
        (folder / "bench.yaml").write_text(EXPERIMENT)

    def run(self, command: str, *arguments: str, code: int = 0) -> Measured:
        """Run a command to its end. Raises RuntimeError unless it has the exit code."""
        environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
        began, before = time.time(), _processor_seconds()
        child = subprocess.run(
            [self._python, str(self._root / "pipelines" / command), *arguments],
            cwd=self._folder,
            env=environment | {"PYTHONPATH": str(self._root)},
            capture_output=True,
            text=True,
        )
        if child.returncode != code:
            raise RuntimeError(f"{command}: exit code {child.returncode}: {child.stderr[-500:]}")
        return Measured(time.time() - began, _processor_seconds() - before)

    def prepare(self) -> None:
        """Run the experiment, once, for the commands that read its results."""
        if not (self._folder / "mlflow.db").exists():
            self.run("sweep.py", "bench.yaml")

    def first_step(self) -> Measured:
        """From the start of a sweep without any file to its first optimizer step."""
        with tempfile.TemporaryDirectory() as folder:
            fresh = Checkout(self._root, Path(folder) / "fresh")
            began = time.time()
            whole = fresh.run("sweep.py", "bench.yaml", "search.trials=1", "--until", "search")
            with sqlite3.connect(fresh._folder / "mlflow.db") as database:
                (milliseconds,) = database.execute(FIRST_STEP).fetchone()
        return Measured(milliseconds / 1000 - began, whole.processor)


def _help(checkout: Checkout) -> Measured:
    """The slowest of all commands."""
    return max(checkout.run(command, "--help") for command in COMMANDS)


def _report(checkout: Checkout) -> Measured:
    checkout.prepare()
    return checkout.run("report.py", "bench")


def _list(checkout: Checkout) -> Measured:
    checkout.prepare()
    return checkout.run("promote.py", "list")


def _reuse(checkout: Checkout) -> Measured:
    checkout.prepare()
    return checkout.run("sweep.py", "bench.yaml")


MEASURED: dict[str, tuple[str, Callable[[Checkout], Measured]]] = {
    "help": ("`--help`, the slowest command", _help),
    "config": ("`sweep.py --print-config`", lambda c: c.run("sweep.py", "--print-config")),
    "train-config": ("`train.py --print-config`", lambda c: c.run("train.py", "--print-config")),
    "bad-key": ("a bad key", lambda c: c.run("sweep.py", "model.dimm=3", code=2)),
    "list": ("`promote.py list`", _list),
    "report": ("`report.py` of a small experiment", _report),
    "reuse": ("a sweep that reuses everything", _reuse),
    "first-step": ("a new sweep, to its first optimizer step", Checkout.first_step),
}


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description="How long the commands take until they answer.")
    parser.add_argument("--against", type=Path, help="another checkout, measured in turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=MEASURED, nargs="+", default=list(MEASURED))
    arguments = parser.parse_args()
    roots = [ROOT, *([arguments.against.resolve()] if arguments.against else [])]
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}\n")
    names = ["this", "other"][: len(roots)]
    print("| measured |", *(f"{name}, s | {name}, CPU s |" for name in names))
    print("|---|" + "---|---|" * len(roots), flush=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        checkouts = [Checkout(root, Path(folder) / str(i)) for i, root in enumerate(roots)]
        for name in arguments.only:
            text, measure = MEASURED[name]
            found = _in_turn(checkouts, measure, arguments.rounds)
            print(f"| {text} |", *(f"{m.seconds:.2f} | {m.processor:.2f} |" for m in found))
            sys.stdout.flush()


def _in_turn(
    checkouts: Sequence[Checkout], measure: Callable[[Checkout], Measured], rounds: int
) -> list[Measured]:
    """The medians of each checkout, after a round that only fills the disk's cache."""
    for checkout in checkouts:
        measure(checkout)
    found = [[measure(checkout) for checkout in checkouts] for _ in range(rounds)]
    return [Measured(*map(median, zip(*one, strict=True))) for one in zip(*found, strict=True)]


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
