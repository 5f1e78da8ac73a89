"""One training as a trial of Ray Tune, an evaluation each step, and its outcome.

Used by `jobs`, for the trials of searches and for the fits of a study. A trial with one worker
trains in the trial's own process, which the next trial reuses; one with several workers trains
under Ray Train. In both cases the trial iterates over rows of the history, and closing the iterator
ends the training and frees its resources.
"""

import math
import sys
from collections.abc import Generator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import SecretStr
from ray import tune

from pipelines.cluster.inspection import Inspection
from pipelines.cluster.memory import require_trial_memory
from pipelines.console.errors import (
    DETERMINISTIC,
    ConfigError,
    DivergedError,
    PipelineError,
    StorageError,
    print_traceback,
)
from pipelines.console.text import one_line
from pipelines.data.splits import TrainValSplits
from pipelines.storage.remote import Folder
from pipelines.training import loop
from pipelines.training.config import TrainingRun
from pipelines.training.history import TOKENS, VAL_BITS, Row, finished


@dataclass(frozen=True)
class TrialOutcome:
    """How a trial ended; used for the search's study, the trial's MLflow run and the progress."""

    state: str
    """`complete`: it used its budget or its patience; `pruned`: the scheduler stopped it before;
    `failed`: it diverged, crashed too often, or its values are no valid training run."""
    reason: str = ""
    """Why it failed; empty for other states."""
    objective: float | None = None
    """The best value of train.best_metric; None if it failed."""
    last_row: Row = field(default_factory=dict)
    """The last row of its history; empty if it failed."""
    diverged: bool = False
    """Whether it failed because its loss was no longer finite."""

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> "TrialOutcome":
        """From the last result of a trial that ended without an exception."""
        if "objective" not in result:
            reason = result.get("failed", "no evaluation")
            return cls("failed", reason=reason, diverged=result.get("diverged", False))
        state = "complete" if result["finished"] else "pruned"
        return cls(state, objective=result["objective"], last_row=result["rows"][-1])


class Trial(tune.Trainable):
    """Trains one configuration.

    Raises on errors that a retry may fix. Any other, such as a divergence, values that are no valid
    training run, or a mistake in a model's code, is a result without an objective, with the reason
    as `failed`.
    """

    def setup(
        self,
        config: dict[str, Any],
        groups: Mapping[str, tuple[TrainingRun, Folder]],
        corpus: TrainValSplits,
    ) -> None:
        """Prepare the first trial of this process.

        Args:
            config: The trial's `group`; its `values`, in which it differs from the training of that
                group; its `folder`, a name below the group's, for its checkpoints; the `key` that
                these are signed with; and, with several workers on a cluster at RAY_ADDRESS, the
                `inspection` of its nodes.
            groups: The training and the folder of each group of trials.
            corpus: The text that all of them read.

        """
        self._groups, self._corpus = groups, corpus
        self._results = self._train(**config)

    def step(self) -> dict[str, Any]:
        """Train to the next evaluation; the first step of a resumed trial replays its history.

        Returns the new `rows`, the `curve` of their evaluations (tokens and the best objective by
        then), the `tokens` trained on, the `objective`, whether the trial is `finished`, and
        `notes` for people.
        """
        return next(self._results)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Reuse this process, with torch loaded, for the next trial."""
        self.cleanup()
        if "torch._dynamo" in sys.modules:  # PyTorch's compiler, which the reset would import
            torch.compiler.reset()
        self._results = self._train(**new_config)
        return True

    def cleanup(self) -> None:
        """End the training, finished or not.

        Of one that was stopped the last checkpoint may still be written, while its folder is
        removed: it is of no use, and no fault of the trial that comes next.
        """
        with suppress(StorageError):
            self._results.close()

    def _train(
        self,
        group: str,
        values: Mapping[str, Any],
        folder: str,
        key: SecretStr,
        inspection: Inspection | None = None,
        **_: Any,
    ) -> Generator[dict[str, Any]]:
        notes: list[str] = []
        base, place = self._groups[group]
        try:
            run = base.replace(values)
            require_trial_memory(run)
            signing_key = key.get_secret_value() or None
            launched = _launch(run, self._corpus, place / folder, notes, signing_key, inspection)
            yield from self._results_of(run, launched, notes)
        except DETERMINISTIC as error:
            known = isinstance(error, PipelineError | ConfigError)
            if not known:  # a mistake in code, which only its place explains
                print_traceback(error)
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            yield {
                "failed": one_line(reason, limit=1000),
                "diverged": isinstance(error, DivergedError),
                "notes": notes,
                "done": True,
            }

    def _results_of(
        self, run: TrainingRun, launched: Generator[list[Row]], notes: list[str]
    ) -> Generator[dict[str, Any]]:
        history: list[Row] = []
        best = math.inf
        with closing(launched) as training:
            for rows in training:
                curve = []
                for row in rows:
                    if VAL_BITS in row:
                        best = min(best, row[run.train.best_metric])
                        curve.append((int(row[TOKENS]), best))
                history += rows
                done = finished(history, run.train)
                yield {
                    "rows": rows,
                    "curve": curve,
                    "tokens": curve[-1][0],
                    "objective": best,
                    "finished": done,
                    "notes": [notes.pop(0) for _ in notes.copy()],
                    "done": done,
                }


def _launch(
    run: TrainingRun,
    corpus: TrainValSplits,
    folder: Folder,
    notes: list[str],
    key: str | None,
    inspection: Inspection | None = None,
) -> Generator[list[Row]]:
    if run.resources.max_workers == 1:
        training = loop.train(run, corpus, folder, notes.append, key=key)
        return loop.with_watchdog(training, run.failures.timeout_seconds)
    from pipelines.cluster.workers import train_with_workers  # takes 3 s, for several workers only

    # Whoever runs the trials retries a crashed one; the two limits would multiply.
    once = run.replace({"failures.retries": 0})
    return train_with_workers(once, corpus, folder, notes.append, key=key, inspection=inspection)
