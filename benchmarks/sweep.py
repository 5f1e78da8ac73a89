"""What orchestrating a search costs: start-up, time between trials, beside a plain script.

python benchmarks/sweep.py [--only start | sweep | script | study | no-op ...] [--trials 24]
                           [--seconds 30]

The sweep is `python pipelines/sweep.py --until search` on equal trials without pruning; its times
are read from MLflow, where every row of a trial's history has the moment it was made. The script
trains the same configurations, by the same loop, one after the other. The study has four arms, of
four trials and three trainings each, all of equal length. The table goes to stdout as Markdown,
progress to stderr.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
PARTS = ("start", "sweep", "script", "study", "no-op")
STARTS = 5
NO_OPS = 1000
CALIBRATION_STEPS = 30
EXPERIMENT: dict[str, Any] = {
    "experiment": "bench",
    "model": {"dim": 128, "depth": 4},
    "train": {"evals": 4, "eval_tokens": 8192},
    "search": {
        "space": {"train.learning_rate": {"log_uniform": [1e-3, 1e-2]}},
        "scheduler": {"name": "none"},
    },
}
STUDY: dict[str, Any] = {
    "arms": {f"decay-{decay}": {"train.weight_decay": decay} for decay in (0.0, 0.1, 0.2, 0.3)},
    "seeds": 3,
    "fit": {"evals": 4, "eval_tokens": 8192},
}
"""Arms of one speed, with trainings as long as the trials."""
ARM_TRIALS = 4
Span = tuple[float, float]
"""When a trial's first optimizer step began and its last one ended, in seconds since 1970."""


def main() -> None:
    """Measure the chosen parts, each in processes and a folder of its own."""
    parser = argparse.ArgumentParser(description="What orchestrating a search costs.")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--seconds", type=int, default=30, help="of one trial's training (30)")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        CHILDREN[arguments.child[0]](json.loads(arguments.child[1]))
        return
    cores = os.cpu_count() or 1
    print(f"{cores} cores, {platform.machine()}, Python {platform.python_version()}\n")
    print("| measured | value |\n|---|---|", flush=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        config = EXPERIMENT | {"trials": arguments.trials, "threads": 1}
        if {"sweep", "script", "study"} & set(arguments.only):
            config["tokens"] = int(_run_child("calibrate", config, Path(folder))["tokens"])
            config["tokens"] *= arguments.seconds
        if "start" in arguments.only:
            _measure_start(Path(folder))
        wall = _measure_sweep(config, Path(folder)) if "sweep" in arguments.only else None
        if "script" in arguments.only:
            for threads in (1, cores):
                result = _run_child("script", config | {"threads": threads}, Path(folder))
                ratio = f"; the sweep takes {wall / result['wall']:.2f} of it" if wall else ""
                name = f"plain Optuna + MLflow script, {threads} threads"
                _row(f"{name}, {arguments.trials} trials", f"{result['wall']:.0f} s{ratio}")
        if "study" in arguments.only:
            _measure_study(config, Path(folder))
        if "no-op" in arguments.only:
            _measure_no_ops(Path(folder))


def _measure_start(folder: Path) -> None:
    """Each start has nothing to begin with: no corpus, no database, no cluster."""
    config, seconds = EXPERIMENT | {"trials": 1, "threads": 1, "tokens": 8192}, []
    for number in range(STARTS):
        new = folder / f"start-{number}"
        new.mkdir()
        started = time.time()
        _sweep(config, new)
        ((first, _),) = _run_child("spans", config, new)["spans"]
        seconds.append(first - started)
    _row(
        "start-up, from nothing to the first optimizer step",
        f"median {median(seconds):.1f} s, {min(seconds):.1f} to {max(seconds):.1f} s, n = {STARTS}",
    )


def _measure_sweep(config: dict[str, Any], folder: Path) -> float:
    """Returns the wall time of the whole command."""
    started = time.time()
    _sweep(config, folder)
    wall, slots = time.time() - started, os.cpu_count() or 1
    spans = sorted(map(tuple, _run_child("spans", config, folder)["spans"]))
    ideal = sum(end - start for start, end in spans) / slots
    gaps = between(spans, slots)
    _row("start-up of this sweep", f"{spans[0][0] - started:.1f} s")
    _row("one trial, first to last optimizer step", f"{median(b - a for a, b in spans):.1f} s")
    _row(
        "overhead per trial: last step of one to first step of the next on its slot",
        f"median {median(gaps):.2f} s, largest {max(gaps):.2f} s, n = {len(gaps)}",
    )
    _row(
        f"sweep of {len(spans)} trials on {slots} slots",
        f"{wall:.0f} s, efficiency {ideal / wall:.3f} of the ideal {ideal:.0f} s",
    )
    again = time.time()
    _sweep(config, folder)
    _row("the same command again: everything reused", f"{time.time() - again:.1f} s")
    return wall


def _measure_study(config: dict[str, Any], folder: Path) -> None:
    """Its searches and its trainings; what is between them is not: probe times arms alone."""
    new, slots = folder / "study", os.cpu_count() or 1
    new.mkdir()
    config = config | STUDY | {"trials": ARM_TRIALS}
    started = time.time()
    _sweep(config, new, until="fit")
    wall = time.time() - started
    parts = _run_child("parts", config, new)
    each = median(end - start for start, end in parts["search"]["spans"])
    _row("study, one trial, first to last optimizer step", f"{each:.1f} s")
    total, ideal = 0.0, 0.0
    for stage, part in parts.items():
        spans = sorted(map(tuple, part["spans"]))
        own, gaps = each * len(spans) / slots, between(spans, slots)
        total, ideal = total + part["wall"], ideal + own
        _row(
            f"study, {stage}: {len(spans)} trainings on {slots} slots",
            f"{part['wall']:.0f} s, {part['wall'] / own:.3f} of the ideal {own:.0f} s; between two "
            f"trainings median {median(gaps):.2f} s, largest {max(gaps):.2f} s",
        )
    _row("study, both", f"{total:.0f} s, {total / ideal:.3f} of the ideal {ideal:.0f} s")
    _row("study, from the command to the last model, with its probe", f"{wall:.0f} s")


def between(spans: Sequence[Span], slots: int) -> list[float]:
    """Idle time of a slot before each trial but its first: the one free for longest is next."""
    free: list[float] = []
    gaps = []
    for start, end in sorted(spans):
        if len(free) < slots:
            free.append(end)
            continue
        gaps.append(start - min(free))
        free.remove(min(free))
        free.append(end)
    return gaps


def _sweep(config: dict[str, Any], folder: Path, *, until: str = "search") -> None:
    overrides = [
        f"train.tokens={config['tokens']}",
        f"search.trials={config['trials']}",
    ]
    path = folder / "bench.yaml"
    path.write_text(json.dumps({k: v for k, v in config.items() if k in {**EXPERIMENT, **STUDY}}))
    command = [sys.executable, str(ROOT / "pipelines" / "sweep.py"), str(path), *overrides]
    subprocess.run(
        [*command, "--until", until], cwd=folder, env=_environment(), check=True, stdout=2
    )


def _measure_no_ops(folder: Path) -> None:
    result = _run_child("no-op", {}, folder)
    _row(f"{NO_OPS} no-op trials", f"{NO_OPS / result['wall']:.1f} per second")
    _row(
        "driver memory, from the first trials to the last",
        f"{result['first'] / 1e6:.0f} to {result['last'] / 1e6:.0f} MB",
    )
    _row("tracking database", f"{result['database'] / 1e6:.1f} MB")


def _run_child(name: str, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A child's last line of output, as JSON."""
    command = [sys.executable, __file__, "--child", name, json.dumps(config)]
    result = subprocess.run(
        command, cwd=folder, env=_environment(), check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(result.stdout.splitlines()[-1])


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}


def _row(name: str, value: str) -> None:
    print(f"| {name} | {value} |", flush=True)


def _load(config: dict[str, Any]) -> Any:
    from pipelines.experiment import read_experiment

    data = {k: v for k, v in config.items() if k in EXPERIMENT}
    loaded = read_experiment(data, source="benchmark")
    tokens = config.get("tokens", loaded.train.batch_tokens)
    return loaded.replace(
        {
            "train.tokens": tokens,
            "search.trials": config["trials"],
            "resources.cpus_per_worker": config["threads"],
        }
    )


def _corpus(config: Any) -> Any:
    from pipelines.data.splits import measure_corpus, train_val_splits, write_splits

    storage = Path("script-runs").absolute()
    found = measure_corpus(config.data, seq_len=config.train.seq_len)
    write_splits(config.data, found, storage)
    return train_val_splits(storage, found.fingerprint)


def _calibrate(config: dict[str, Any]) -> None:
    """Prints how many tokens one thread trains on in a second, with no other process beside it."""
    from pipelines.training.loop import train

    loaded = _load(config)
    tokens = CALIBRATION_STEPS * loaded.train.batch_tokens
    timed = loaded.replace({"train.tokens": tokens, "train.evals": 1}).training_run()
    (rows,) = train(timed, _corpus(loaded), Path("calibration"), print)
    print(json.dumps({"tokens": median(row["tokens_per_second"] for row in rows)}))


def _script(config: dict[str, Any]) -> None:
    """The search as a plain script: Optuna's loop, MLflow's fluent calls, one trial at a time."""
    started = time.time()
    import mlflow
    import optuna

    from pipelines.training.loop import train

    base = _load(config)
    corpus = _corpus(base)
    mlflow.set_tracking_uri(f"sqlite:///script-{config['threads']}.db")
    mlflow.set_experiment("script")
    low, high = base.search.space["train.learning_rate"].log_uniform

    def objective(trial: Any) -> float:
        rate = trial.suggest_float("train.learning_rate", low, high, log=True)
        folder = Path(f"script-{config['threads']}/{trial.number}")
        best = float("inf")
        with mlflow.start_run(nested=True):
            mlflow.log_param("learning_rate", rate)
            run = base.training_run({"train.learning_rate": rate})
            for rows in train(run, corpus, folder, print):
                for row in rows:
                    step = int(row["step"])
                    mlflow.log_metrics({k: v for k, v in row.items() if k != "step"}, step=step)
                best = min(best, rows[-1]["val_bits_per_byte"])
        return best

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with mlflow.start_run():
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
        study.optimize(objective, n_trials=config["trials"])
    print(json.dumps({"wall": time.time() - started}))


def _spans(config: dict[str, Any]) -> None:
    """Prints when each trial of the sweep in this folder trained, from MLflow."""
    from pipelines.tracking.store import Store

    store = Store.open("bench", Path("runs").absolute())
    assert store is not None
    print(json.dumps({"spans": [_span(store, run) for run in store.find("trial")]}))


def _parts(config: dict[str, Any]) -> None:
    """Prints how long the searches and the trainings of the study in this folder took, likewise."""
    from pipelines.tracking.store import Store

    store = Store.open("bench", Path("runs").absolute())
    assert store is not None
    parts = {}
    for stage, trained in (("search", "trial"), ("fit", "fit")):
        runs = [run.info for run in store.find(stage)]
        wall = max(run.end_time for run in runs) - min(run.start_time for run in runs)
        spans = [_span(store, run) for run in store.find(trained)]
        parts[stage] = {"wall": wall / 1000, "spans": spans}
    print(json.dumps(parts))


def _span(store: Any, run: Any) -> Span:
    """When a run trained: between its first row and its last one."""
    points = store.client.get_metric_history(run.info.run_id, "seconds")
    points.sort(key=lambda point: point.step)
    first, last = points[0], points[-1]
    return first.timestamp / 1000 - first.value, last.timestamp / 1000


def run_search(experiment: Any) -> None:
    """Corpus and search of an experiment in this process."""
    from pipelines.console.progress import Progress
    from pipelines.engine import dag
    from pipelines.engine.stage import Invocation, Stage
    from pipelines.stages import search
    from pipelines.stages.corpus import CorpusStage
    from pipelines.tracking.descriptions import describe_pipeline

    invocation = Invocation(sys.argv, Progress())
    about = describe_pipeline(experiment.experiment, experiment.promote.model, invocation.argv)
    stages: list[Stage[Any, Any]] = [CorpusStage().stage, search.search_stage()]
    dag.run(stages, experiment, invocation, lock_name="benchmark", descriptions=about)


def _no_op(config: dict[str, Any]) -> None:
    """A search whose trials report one number and end; prints its time and its driver's memory."""
    import psutil
    from ray import tune

    from pipelines.cluster import jobs
    from pipelines.cluster.trial_events import TrialEvents

    class NoOp(tune.Trainable):
        """A trial that costs nothing."""

        def step(self) -> dict[str, Any]:
            """The one result."""
            row = {"step": 1, "time": time.time(), "tokens": 2048, "seconds": 0.0}
            row["tokens_per_second"] = 2048.0
            row |= {"train_bits_per_byte": 1.0, "val_bits_per_byte": 1.0}
            result = {"rows": [row], "curve": [(2048, 1.0)], "tokens": 2048, "objective": 1.0}
            return {**result, "finished": True, "notes": [], "done": True}

        def setup(self, config: dict[str, Any], **kwargs: Any) -> None:
            """Nothing to prepare."""

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            """Nothing to reset."""
            return True

    memory: list[tuple[float, int]] = []
    ended = TrialEvents.on_trial_complete

    def watch(*args: Any, **kwargs: Any) -> None:
        memory.append((time.time(), psutil.Process().memory_info().rss))
        ended(*args, **kwargs)

    setattr(TrialEvents, "on_trial_complete", watch)  # noqa: B010
    setattr(jobs, "Trial", NoOp)  # noqa: B010
    loaded = _load(EXPERIMENT | {"trials": NO_OPS, "threads": 1})
    with redirect_stdout(sys.stderr):
        run_search(loaded)
    print(
        json.dumps(
            {
                "wall": memory[-1][0] - memory[0][0],
                "first": memory[10][1],
                "last": memory[-1][1],
                "database": Path("mlflow.db").stat().st_size,
            }
        )
    )


CHILDREN = {
    "calibrate": _calibrate,
    "script": _script,
    "spans": _spans,
    "parts": _parts,
    "no-op": _no_op,
}

if __name__ == "__main__":
    main()
