"""Tracking stores, and sweeps with results that are made up, there in a moment."""

import functools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.config.yaml_text import flatten
from pipelines.experiment import Experiment
from pipelines.tracking.client import connect
from pipelines.tracking.schema import EXPERIMENT_FILE, STAGE_TAG
from pipelines.tracking.store import Store
from pipelines.tracking.writer import Writer

CORPUS = "0" * 32
STATUSES = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}


def put_database(path: Path) -> str:
    """An empty database for MLflow, which takes seconds to make one; returns its URI."""
    path.write_bytes(_empty_database())
    return f"sqlite:///{path}"


@functools.cache
def _empty_database() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mlflow.db")
        connect(f"sqlite:///{path}")
        return path.read_bytes()


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
    """The pipeline run of a search with these trials; `winner` is what select found."""
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
        _store_trial(store, writer, config, search, number, trial)
    writer.close()
    if winner is not None:
        select = store.create("select", f"{name} select", "select", parent=pipeline)
        store.tag(select, {"dca.outputs": json.dumps({"trial": winner})})
        store.tag(pipeline, {STAGE_TAG.format("select"): select})
    return pipeline


def _store_trial(
    store: Store, writer: Writer, config: Experiment, search: str, number: int, trial: Made
) -> None:
    params = config.params | dict.fromkeys(config.search.space, "n/a") | trial.values
    tags = {"dca.trial": str(number), "dca.values": json.dumps(trial.values)}
    run = store.create(
        "trial", f"{search}/{number}", f"trial {number}", parent=search, params=params, tags=tags
    )
    train = config.replace(trial.values).train
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
        return
    summary = None
    if rows and trial.state != "failed":
        summary = {k: rows[-1][k] for k in ("step", "time")}
        summary |= {f"best_{config.train.best_metric}": min(trial.bits)}
    told = {"dca.state": trial.state, "dca.reason": trial.reason}
    writer.finish(run, STATUSES[trial.state], {k: v for k, v in told.items() if v}, summary)


def store_training(store: Store, config: Experiment, bits: float) -> str:
    """A finished run of train.py, of the configuration as it is."""
    run = store.create(
        "train",
        f"train {bits} {config.model_dump_json()}",
        "train",
        params=dict(flatten(config)).params,
    )
    store.log_corpus(run, {"name": "files", "fingerprint": CORPUS}, train=Path(__file__))
    store.log_metrics(run, {f"best_{config.train.best_metric}": bits})
    store.tag(run, {"dca.outputs": "{}"})
    store.end(run)
    return run
