"""What more workers gain, and what a driver carries.

python benchmarks/cluster.py [--only workers | slots | writes ...] [--rounds 3] [--slots 200]

`workers` trains 6x512 under Ray Train with one and two workers of one thread each, in turn, at the
same global batch, and compares losses of one, two and four. `slots` drives a search whose trials
have no model: that many at once on this machine, first such that end at once, then such that sleep
and report as trials do. `writes` stores reports one after the other in a file and through a
tracking server. The table goes to stdout as Markdown.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stdout
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
PARTS = ("workers", "slots", "writes")
WRITES = 200
WORKERS = (1, 2, 4)
REPORTS = 8
ROWS = 6
"""Rows of a report, as with 49 steps between evaluations and a row every ten."""
METRICS = (
    *("train_bits_per_byte", "learning_rate", "grad_norm", "tokens_per_second"),
    *("seconds", "peak_memory_bytes", "tokens"),
)
"""Of a row."""
SLEEP_SECONDS = 10
"""Between two reports of a sleeping trial."""
LARGE: dict[str, Any] = {
    "experiment": "bench",
    "model": {"dim": 512, "depth": 6, "heads": 8},
    "train": {
        **{"tokens": 4 * 4096, "seq_len": 512, "batch_tokens": 4096, "evals": 4},
        **{"eval_tokens": 512, "log_every_steps": 1},
    },
}
SMALL: dict[str, Any] = {
    "experiment": "bench",
    "model": {"dim": 64, "depth": 2},
    "train": {"tokens": 40 * 2048, "evals": 4, "eval_tokens": 8192, "log_every_steps": 1},
}


def main() -> None:
    """Measure the chosen parts, each in processes and a folder of its own."""
    parser = argparse.ArgumentParser(description="What workers gain, and what a driver carries.")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slots", type=int, default=200)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        CHILDREN[arguments.child[0]](json.loads(arguments.child[1]))
        return
    print("| measured | value |\n|---|---|", flush=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        if "workers" in arguments.only:
            _measure_workers(Path(folder), arguments.rounds)
        if "slots" in arguments.only:
            for reports, trials in ((1, 5 * arguments.slots), (REPORTS, 2 * arguments.slots)):
                _measure_slots(Path(folder), arguments.slots, reports, trials)
        if "writes" in arguments.only:
            _measure_writes(Path(folder))


def _measure_workers(folder: Path, rounds: int) -> None:
    found = _run_child("workers", {"rounds": rounds}, folder)
    one, two = (found["speeds"][str(workers)] for workers in (1, 2))
    ratios = sorted(b / a for a, b in zip(one, two, strict=True))
    _row("6x512, one worker of one thread", f"{median(one):,.0f} bytes/s")
    _row(
        "two workers, one thread each, beside one, paired",
        f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}, n = {rounds})",
    )
    for workers in WORKERS[1:]:
        _row(
            f"losses of {workers} workers and of one, same global batch, 40 steps",
            f"largest relative difference {found['differences'][str(workers)]:.1e}",
        )


def _measure_slots(folder: Path, slots: int, reports: int, trials: int) -> None:
    config = {"slots": slots, "reports": reports, "trials": trials}
    found = _run_child("slots", config, folder)
    wall, kind = found["wall"], "no-op" if reports == 1 else "sleeping"
    ideal = trials / slots * (reports - 1) * SLEEP_SECONDS
    efficiency = f", {ideal / wall:.2f} of the ideal" if reports > 1 else ""
    points = trials * reports * ROWS * len(METRICS)
    _row(
        f"{trials} {kind} trials on {slots} slots",
        f"{trials / wall:.1f} trials/s, {trials * reports / wall:.1f} reports/s{efficiency}",
    )
    _row("- the driver's processor time", f"{1000 * found['cpu'] / trials:.0f} ms a trial")
    _row("- points written", f"{points / wall:,.0f} per second, {found['database'] / 1e6:.0f} MB")
    _row("- the driver's memory at the end", f"{found['memory'] / 1e6:.0f} MB")


def _measure_writes(folder: Path) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{found.getsockname()[1]}"
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
            *("--port", uri.rpartition(":")[2], "--backend-store-uri", f"sqlite:///{folder}/s.db"),
            *("--artifacts-destination", f"{folder}/artifacts"),
        ],
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for name, where in (("a SQLite file", "sqlite:///mlflow.db"), ("a tracking server", uri)):
            stored = _run_child("writes", {"uri": where}, folder)
            _row(
                f"reports of {ROWS} rows stored in {name}, one writer",
                f"{WRITES / stored['wall']:.0f} per second",
            )
    finally:
        server.terminate()
        server.wait()


def _run_child(name: str, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A child's last line of output, as JSON."""
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as own:
        result = subprocess.run(
            [sys.executable, __file__, "--child", name, json.dumps(config)],
            cwd=own,
            env={k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    return json.loads(result.stdout.splitlines()[-1])


def _row(name: str, value: str) -> None:
    print(f"| {name} | {value} |", flush=True)


@contextmanager
def _local_cluster(cpus: int) -> Iterator[None]:
    """A Ray cluster of this process with a number of CPUs."""
    from pipelines.compat.ray import ENVIRONMENT, NICENESS

    os.environ.update({**ENVIRONMENT, NICENESS: "0"})
    import ray

    ray.init(num_cpus=cpus, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    try:
        yield
    finally:
        ray.shutdown()


def _workers(config: dict[str, Any]) -> None:
    """Prints the speed of one and two workers by round, and how far losses are apart."""
    from pipelines.data.splits import measure_corpus, train_val_splits, write_splits
    from pipelines.experiment import read_experiment

    large, small = (read_experiment(data, source="benchmark") for data in (LARGE, SMALL))
    corpus = measure_corpus(large.data, seq_len=large.train.seq_len)
    write_splits(large.data, corpus, Path("runs").absolute())
    there = train_val_splits(Path("runs").absolute(), corpus.fingerprint)
    speeds: dict[int, list[float]] = {1: [], 2: []}
    with _local_cluster(max(WORKERS)):
        from pipelines.cluster.workers import train_with_workers

        def train(config: Any, workers: int, name: str) -> list[dict[str, float]]:
            config = config.replace({"resources.workers": workers})
            folder = Path(name).absolute()
            with closing(train_with_workers(config, there, folder, print)) as run:
                return [row for rows in run for row in rows]

        with redirect_stdout(sys.stderr):
            curves = {n: train(small, n, f"small-{n}") for n in WORKERS}
            for number in range(config["rounds"]):
                for workers in speeds:
                    rows = train(large, workers, f"large-{number}-{workers}")
                    speeds[workers].append(median(row["tokens_per_second"] for row in rows[1:]))
    differences = {
        workers: max(
            abs(a["train_bits_per_byte"] / b["train_bits_per_byte"] - 1)
            for a, b in zip(curves[workers], curves[1], strict=True)
        )
        for workers in WORKERS[1:]
    }
    print(json.dumps({"speeds": speeds, "differences": differences}))


def _idle(reports: int) -> Any:
    """A trial without a model."""
    from ray import tune

    class Idle(tune.Trainable):
        """A trial that reports what a trial would, and sleeps instead of training."""

        def setup(self, config: dict[str, Any]) -> None:
            """Begin at the beginning."""
            self._done = 0

        def step(self) -> dict[str, Any]:
            """The next report."""
            if self._done:
                time.sleep(SLEEP_SECONDS)
            self._done += 1
            first = (self._done - 1) * ROWS
            rows = [
                {"step": step, "time": time.time(), **dict.fromkeys(METRICS, 1.0)}
                for step in range(first + 1, first + ROWS + 1)
            ]
            rows[-1]["val_bits_per_byte"] = 1.0
            tokens = self._done * 2048
            last = self._done == reports
            result = {"rows": rows, "curve": [(tokens, 1.0)], "tokens": tokens, "objective": 1.0}
            return {**result, "finished": last, "notes": [], "done": last}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            """Begin again."""
            self._done = 0
            return True

    return Idle


def _slots(config: dict[str, Any]) -> None:
    """Prints the wall and processor time, memory and database of a search without models."""
    import psutil
    from ray import tune

    sys.path.insert(0, str(ROOT))
    from benchmarks.sweep import run_search
    from pipelines.cluster import jobs
    from pipelines.cluster.trial_events import TrialEvents
    from pipelines.experiment import read_experiment

    reports = config["reports"]

    setattr(jobs, "Trial", _idle(reports))  # noqa: B010
    setattr(tune, "with_parameters", lambda trainable, **_: trainable)  # noqa: B010
    data = {
        "experiment": "bench",
        "train": {"tokens": 2048 * reports, "evals": reports},
        "search": {
            "space": {"train.learning_rate": {"log_uniform": [1e-3, 1e-2]}},
            "sampler": {"name": "random"},
            "scheduler": {"name": "none"},
            "trials": config["trials"],
        },
    }
    ends: list[float] = []
    begins: list[float] = []
    started, ended = TrialEvents.on_trial_start, TrialEvents.on_trial_complete

    def note_start(*args: Any, **kwargs: Any) -> None:
        begins.append(time.time())
        started(*args, **kwargs)

    def note_end(*args: Any, **kwargs: Any) -> None:
        ends.append(time.time())
        ended(*args, **kwargs)

    setattr(TrialEvents, "on_trial_start", note_start)  # noqa: B010
    setattr(TrialEvents, "on_trial_complete", note_end)  # noqa: B010
    loaded = read_experiment(data, source="benchmark")
    own = psutil.Process()
    with _local_cluster(config["slots"]), redirect_stdout(sys.stderr):
        before = sum(own.cpu_times()[:2])
        run_search(loaded)
        spent = sum(own.cpu_times()[:2]) - before
    warm = begins[: config["slots"]][-1]  # every slot has its process
    counted = sum(end > warm for end in ends)
    print(
        json.dumps(
            {
                "wall": (ends[-1] - warm) * config["trials"] / counted,
                "cpu": spent,
                "memory": own.memory_info().rss,
                "database": Path("mlflow.db").stat().st_size,
            }
        )
    )


def _writes(config: dict[str, Any]) -> None:
    """Prints how long it takes to store reports, one after the other, as a search's writer does."""
    from pipelines.console.errors import ConfigError
    from pipelines.tracking.store import Store
    from pipelines.tracking.writer import Writer

    os.environ["MLFLOW_TRACKING_URI"] = config["uri"]
    deadline = time.monotonic() + 120
    while True:
        try:
            store = Store.open("bench", Path("runs").absolute())
            break
        except ConfigError:  # the server is still starting
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
    assert store is not None
    run_id = store.create("trial", "writes", "writes")
    writer = Writer(store)
    writer.write(run_id, [])
    started = time.perf_counter()
    for report in range(WRITES):
        rows = [
            {"step": report * ROWS + i, "time": time.time(), **dict.fromkeys(METRICS, 1.0)}
            for i in range(ROWS)
        ]
        writer.write(run_id, rows)
    writer.close()
    print(json.dumps({"wall": time.perf_counter() - started}))


CHILDREN = {"workers": _workers, "slots": _slots, "writes": _writes}

if __name__ == "__main__":
    main()
