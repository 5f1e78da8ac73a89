"""search: Ray Tune runs the trials that Optuna proposes, MLflow records them.

The tracking store is the truth. A trial's run is made, with its parameters, before the trial
starts; a search that was killed is rebuilt from these runs and goes on with what is missing.
"""

import json
import math
import re
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from pipelines.console.errors import StorageError
from pipelines.console.text import format_value
from pipelines.data.splits import train_val_splits
from pipelines.engine.stage import Context, Outputs
from pipelines.search.config import SearchTask
from pipelines.search.progress import SearchProgress
from pipelines.search.resume import TRIAL_KIND, StoredTrial, trials_folder
from pipelines.search.space import Space
from pipelines.search.trial import trial_folder
from pipelines.storage.files import remove
from pipelines.tracking import descriptions
from pipelines.tracking.tensorboard import event_files
from pipelines.tracking.writer import Writer

ELAPSED_LOG_INTERVAL_SECONDS = 5
"""How much of search.max_seconds a killed command may forget."""
STATUSES = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
"""How MLflow calls the states of a trial that ended."""


class Recorder(tune.Callback):
    """The only writer of the search's runs; also keeps the scoreboard up to date."""

    retries: Callable[[int], int]
    """How often a trial that has just failed will have been retried; 0 if it will not be."""
    refused: StorageError | None = None
    """Why the search ended early: no trial would have fared better."""

    def __init__(
        self,
        context: Context[Any],
        task: SearchTask,
        corpus: Outputs,
        space: Space,
        stored: list[StoredTrial],
        seconds: float,
    ) -> None:
        """`seconds` of the search have passed before."""
        self._context, self._task, self._corpus, self._space = context, task, corpus, space
        self._stored = {trial.number: trial.run_id for trial in stored}
        self._writer = Writer(
            context.store, event_files(task.storage, task.experiment, enabled=task.tensorboard)
        )
        self._open: dict[int, Future[str]] = {}
        """The runs of trials that have not ended."""
        self._board = SearchProgress(task, stored, context.progress)
        self._heard: dict[int, float] = {}
        """When each running trial started or last reported."""
        self._started = time.monotonic()
        self._before, self._told = seconds, self._started

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune snapshots its callbacks, and nobody reads the snapshots."""
        return {}

    def close(self) -> None:
        """Wait until everything is stored; what is still open was interrupted."""
        for run in self._open.values():
            self._writer.then(partial(self._interrupt, run))
        self._tell_seconds()
        self._writer.close()

    def _tell_seconds(self) -> None:
        """Store how long the search has taken, over all its starts."""
        self._told = time.monotonic()
        seconds = self._before + self._told - self._started
        row = {"step": round(seconds), "seconds": seconds}
        self._writer.then(partial(self._context.store.log_metrics, self._context.run_id, row))

    def _interrupt(self, run: Future[str]) -> None:
        self._context.store.end(run.result(), "KILLED")

    def open_run(self, number: int, values: dict[str, Any]) -> Future[str]:
        """Have the trial's run made, or the one it has taken up."""
        run = self._open[number] = self._writer.open(partial(self._open_run, number, values))
        self._writer.then(partial(self._complete_run, run, number, values))
        return run

    def _open_run(self, number: int, values: dict[str, Any]) -> str:
        params = self._task.base.params | values
        params |= dict.fromkeys(self._space.inactive(values), "n/a")
        if number in self._stored:
            self._context.store.resume(self._stored[number], params)
            return self._stored[number]
        return self._context.store.create(
            TRIAL_KIND,
            f"{self._context.run_id}/{number}",
            f"{self._task.experiment} trial {number}",
            parent=self._context.run_id,
            params=params,
            tags={"dca.trial": str(number), "dca.values": json.dumps(values)},
        )

    def _complete_run(self, run: Future[str], number: int, values: dict[str, Any]) -> None:
        """What the trial need not wait for: a description, the text it reads."""
        context, run_id = self._context, run.result()
        search = descriptions.run_link("the search", context.store.experiment_id, context.run_id)
        note = descriptions.describe_trial(number, search, context.pipeline_run, values)
        context.store.describe(note, run_id)
        training = train_val_splits(context.storage, self._corpus["fingerprint"]).train
        context.store.log_corpus(run_id, self._corpus, training=training)

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Show it."""
        number, values = trial.config["number"], trial.config["values"]
        self._heard[number] = time.monotonic()
        self._context.progress.emit_event("trial", trial=number, state="started", values=values)
        self._board.started(number)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Store the new rows, off Tune's event loop."""
        number = trial.config["number"]
        self._heard[number] = time.monotonic()
        for note in result["notes"]:
            self._context.progress.log(
                f"  trial {number}: {note}", "trial", trial=number, state="note", text=note
            )
        if "failed" in result:
            return
        rows = result["rows"]
        self._writer.write(self._open[number].result(), rows)
        speed = rows[-1]["tokens_per_second"]
        self._board.reported(number, result["tokens"], result["objective"], speed)

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Keep count of the time, between evaluations too."""
        if time.monotonic() > self._told + ELAPSED_LOG_INTERVAL_SECONDS:
            self._tell_seconds()

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """The trial used its budget, diverged, or was stopped by the scheduler."""
        result = trial.last_result
        if "failed" in result:
            self._end(trial, "failed", reason=result["failed"])
        else:
            self._end(trial, "complete" if result["finished"] else "pruned")

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Say that the trial starts again; else its failure has a reason and no number.

        Ends the search if the disk is the reason.
        """
        number, limit = trial.config["number"], self._task.base.failures
        silent = time.monotonic() - self._heard.pop(number, math.inf)
        reason = _reason(trial)
        alone = self._task.base.resources.max_workers == 1  # else Ray Train says how it ended
        if alone and limit.timeout_seconds and silent > limit.timeout_seconds:
            reason = f"no evaluation within failures.timeout_seconds = {limit.timeout_seconds}"
        if reason.startswith(StorageError.__name__):
            self.refused = StorageError(f"trial {number}: {reason.partition(': ')[2]}")
            raise self.refused
        retry = self.retries(number)
        if not retry:
            self._end(trial, "failed", reason=reason)
            return
        self._board.crashed(number)
        self._context.progress.log(
            f"  trial {number} crashed: {reason}; goes on from its last checkpoint "
            f"(retry {retry} of {limit.retries})",
            "trial",
            **{"trial": number, "state": "crashed", "reason": reason, "retry": retry},
        )

    def _end(self, trial: TuneTrial, state: str, *, reason: str = "") -> None:
        number, result = trial.config["number"], trial.last_result
        run_id = self._open.pop(number).result()
        tags, summary = {"dca.state": state}, None
        outcome, told = reason, {"reason": reason}
        if state == "failed":
            tags["dca.reason"] = reason
        else:
            last = result["rows"][-1]
            metric = f"best_{self._task.base.train.best_metric}"
            summary = {"step": last["step"], "time": last["time"], metric: result["objective"]}
            told = {"steps": last["step"], metric: result["objective"]}
            outcome = f"{last['step']} steps, best {result['objective']:.4f} bits per byte"
        self._writer.finish(run_id, STATUSES[state], tags, summary)
        # A trial's checkpoints serve its resumption; its end and its history are in MLflow.
        self._writer.then(
            partial(remove, trial_folder(trials_folder(self._context), number)), run_id
        )
        values = trial.config["values"]
        shown = ", ".join(f"{key}={format_value(value)}" for key, value in values.items())
        self._context.progress.log(
            f"  trial {number} {state}: {outcome}  ({shown})",
            "trial",
            **{"trial": number, "state": state, "values": values, "run": run_id, **told},
        )
        self._board.ended(number, state)


def _reason(trial: TuneTrial) -> str:
    """The last line of what went wrong, or how the process ended: `MemoryError: ...`."""
    text = Path(trial.error_file).read_text().strip() if trial.error_file else "unknown"
    if died := re.search(r"Worker exit detail: (.+?\.)(?: |$)", text):
        return f"its process died: {died[1]}"
    lines = [line.strip() for line in text.splitlines()]
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
    reason = (named or lines)[-1]
    return re.sub(r"^(?:\w+\.)+(?=\w+: )", "", reason)[:1000]  # without the error's module
