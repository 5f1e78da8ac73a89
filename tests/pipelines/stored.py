"""Empty tracking stores, and stored sweeps with given results, without any training."""

import fcntl
import functools
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from pipelines.data.fingerprint import PreparedCorpus
from pipelines.experiment import Experiment
from pipelines.tracking.client import connect
from pipelines.tracking.provenance import provenance
from pipelines.tracking.schema import (
    EXPERIMENT_FILE,
    INACTIVE_PARAM,
    OUTPUTS_TAG,
    REASON_TAG,
    STAGE_TAG,
    STATE_TAG,
    TRIAL_TAG,
    VALUES_TAG,
)
from pipelines.tracking.store import Store
from pipelines.tracking.writer import Writer
from pipelines.training.config import TrainingRun

CORPUS = "0" * 32
PROVENANCE = "pipelines.tracking.store.provenance"
same_provenance = functools.cache(provenance)
"""In its place, for tests that open a store again and again: git is started twice in all."""
SHARED: list[Path] = []
"""Where the processes that run tests keep an empty database, of which others are copies."""
STATUSES = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}


@event.listens_for(Engine, "connect")
def _leave_writing_to_the_system(connection: Any, _: Any) -> None:
    """No test loses power: what a killed process has written is there without waiting for it."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")


def put_database(path: Path) -> str:
    """Write an empty database for MLflow, a copy of one made once; returns its URI."""
    path.write_bytes(empty_database(*SHARED))
    return f"sqlite:///{path}"


def move_database(path: Path, old: Path | str, new: Path) -> None:
    """Let a copied database name the files of another folder: it has absolute paths."""
    with sqlite3.connect(path) as database:
        dump = "\n".join(database.iterdump())
    path.unlink()
    with sqlite3.connect(path) as database:
        database.executescript(dump.replace(str(old), str(new)))


def copy_store(old: Path, new: Path) -> None:
    """Copy the folder `runs` and the database of a finished command, for tests that go on from it.

    The key of the pipeline's run has the old folder, the keys of its stages have none.
    """
    shutil.copytree(old / "runs", new / "runs", symlinks=True)
    shutil.copyfile(old / "mlflow.db", new / "mlflow.db")
    move_database(new / "mlflow.db", old, new)


@functools.cache
def empty_database(path: Path | None = None) -> bytes:
    """With a path made by the first of all processes that name it: MLflow needs seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = path or Path(folder, "mlflow.db")
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                part = Path(folder, "part.db")
                connect(f"sqlite:///{part}")
                shutil.copyfile(part, path)
            return path.read_bytes()


def purge(store: Store, run_id: str) -> None:
    """Remove a run as `mlflow gc` does: versions and logged models of it stay."""
    store.client.delete_run(run_id)
    store.client._client._tracking_client.store._hard_delete_run(run_id)


@dataclass
class Made:
    """A trial: its state, and its validation bits per byte at each evaluation."""

    values: dict[str, Any] = field(default_factory=dict)
    bits: Sequence[float] = ()
    state: str = "complete"
    reason: str = ""


def store_sweep(
    store: Store, config: Experiment, trials: Sequence[Made], *, winner: int | None = None
) -> str:
    """Store a search with these trials, `winner` selected; returns its pipeline run."""
    name = f"{config.experiment} {config.seed}"
    data = config.model_dump(mode="json")
    pipeline = store.create("pipeline", f"{name} pipeline", "pipeline", params=data)
    store.log_text(pipeline, config.to_yaml(), EXPERIMENT_FILE)
    search = store.create(
        "search", f"{name} search", "search", parent=pipeline, params={"corpus": CORPUS}
    )
    store.tag(pipeline, {STAGE_TAG.format("search"): search})
    writer = Writer(store)
    for number, trial in enumerate(trials):
        store_trial(store, writer, config, search, number, trial)
    writer.close()
    if winner is not None:
        select = store.create("select", f"{name} select", "select", parent=pipeline)
        store.tag(select, {OUTPUTS_TAG: json.dumps({"trial": winner})})
        store.tag(pipeline, {STAGE_TAG.format("select"): select})
    return pipeline


def store_trial(
    store: Store, writer: Writer, config: Experiment, search: str, number: int, trial: Made
) -> str:
    """Store a trial under the run of its search; returns its run."""
    params = (
        config.training_run().params
        | dict.fromkeys(config.search.space, INACTIVE_PARAM)
        | trial.values
    )
    tags = {TRIAL_TAG: str(number), VALUES_TAG: json.dumps(trial.values)}
    run = store.create(
        "trial", f"{search}/{number}", f"trial {number}", parent=search, params=params, tags=tags
    )
    train = config.training_run(trial.values if trial.bits else {}).train
    rows = [
        {
            "step": step,
            "time": 1e9 + step,
            "tokens": step * train.batch_tokens,
            "train_bits_per_byte": bits,
            "val_bits_per_byte": bits,
            "seconds": 0.5 * step,
        }
        for step, bits in zip(train.eval_steps, trial.bits, strict=False)
    ]
    writer.write(run, rows)
    if trial.state == "unfinished":
        return run
    summary = None
    if rows and trial.state != "failed":
        summary = {k: rows[-1][k] for k in ("step", "time")}
        summary |= {f"best_{config.train.best_metric}": min(trial.bits)}
    tags = {STATE_TAG: trial.state, REASON_TAG: trial.reason}
    writer.finish(run, STATUSES[trial.state], {k: v for k, v in tags.items() if v}, summary)
    return run


def store_training(store: Store, run: TrainingRun, bits: float) -> str:
    """Store a finished run of train.py with this configuration."""
    key = f"train {bits} {run.model_dump_json()}"
    run_id = store.create("train", key, "train", params=run.params)
    store.log_corpus(run_id, PreparedCorpus("files", CORPUS, {}), train=Path(__file__))
    store.log_metrics(run_id, {f"best_{run.train.best_metric}": bits})
    store.tag(run_id, {OUTPUTS_TAG: "{}"})
    store.end(run_id)
    return run_id
