"""Cost of the report of a large sweep: seconds of `pipelines/report.py`, and the page's size.

python benchmarks/report.py [--trials 200]

The sweep is generated and written to a tracking store directly: six searched keys, twenty
evaluations, three of four trials stopped early. The command then runs in a process of its own. One
row of Markdown goes to stdout.
"""

import argparse
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
EVALS = 20
SPACE = {
    "train.learning_rate": {"log_uniform": [1e-4, 1e-1]},
    "train.weight_decay": {"uniform": [0.0, 0.3]},
    "model.depth": {"int": [2, 12]},
    "model.heads": {"choice": [2, 4, 8]},
    "model.residual": {"choice": ["standard", "dca"]},
    "model.dca.last_k": {"choice": [1, 2, 4, None], "when": {"model.residual": "dca"}},
}
EXPERIMENT: dict[str, Any] = {
    "experiment": "bench",
    "model": {"dim": 64},
    "train": {"tokens": 2**20, "evals": EVALS},
    "search": {"space": SPACE},
}


def main() -> None:
    """Store the sweep, run the command, print the row."""
    parser = argparse.ArgumentParser(description="Cost of the report of a large sweep.")
    parser.add_argument("--trials", type=int, default=200)
    trials = parser.parse_args().trials
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        _store(trials)
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        command = [sys.executable, str(ROOT / "pipelines" / "report.py"), "bench"]
        page = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        megabytes = Path(page).stat().st_size / 1e6
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}\n")
    print("| trials | seconds | CPU seconds | MB of the page |\n|---|---|---|---|")
    print(f"| {trials} | {seconds:.1f} | {spent:.1f} | {megabytes:.2f} |")


def _store(trials: int) -> None:
    """Store a search with this number of trials in the current folder's tracking store."""
    sys.path.insert(0, str(ROOT))  # for the tests' generated sweeps
    from pipelines.experiment import read_experiment
    from pipelines.tracking.store import Store
    from tests.pipelines.stored import store_sweep

    config = read_experiment(EXPERIMENT | {"storage": str(Path("runs").resolve())}, source="bench")
    store = Store.open("bench", Path("runs").resolve())
    assert store is not None
    chance = random.Random(0)
    store_sweep(store, config, [_trial(chance, number) for number in range(trials)], winner=0)


def _trial(chance: random.Random, number: int) -> Any:
    """A trial with values of the space and a falling curve."""
    from tests.pipelines.stored import Made

    values = {
        "train.learning_rate": 10 ** chance.uniform(-4, -1),
        "train.weight_decay": chance.uniform(0, 0.3),
        "model.depth": chance.randint(2, 12),
        "model.heads": chance.choice([2, 4, 8]),
        "model.residual": chance.choice(["standard", "dca"]),
    }
    if values["model.residual"] == "dca":
        values["model.dca.last_k"] = chance.choice([1, 2, 4, None])
    pruned = number % 4 > 0
    end = chance.uniform(1.5, 2.5)
    bits = [end + 4 / n for n in range(1, (chance.randint(2, 10) if pruned else EVALS) + 1)]
    return Made(values, bits, "pruned" if pruned else "complete")


if __name__ == "__main__":
    main()
