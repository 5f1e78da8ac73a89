"""One trial of a search, as Ray Tune runs it: step by step, an evaluation each.

A trial with one worker trains in the trial's own process, which the next trial reuses; one with
several trains them under Ray Train. Either way Tune only ever holds an iterator of rows, and
closing it ends the training in order and frees what it held.
"""

import math
from collections.abc import Generator, Mapping
from contextlib import closing
from typing import Any

import torch
from ray import tune

from pipelines.data.splits import TrainValSplits
from pipelines.storage.remote import Folder
from pipelines.training import loop
from pipelines.training.config import TrainingRun
from pipelines.training.history import Row, finished
from pipelines.training.trainer import DivergedError


class Trial(tune.Trainable):
    """Trains one configuration of the space. What may succeed another time raises; a divergence
    is a result, with `failed` as its reason and no objective."""

    def setup(
        self, config: dict[str, Any], base: TrainingRun, corpus: TrainValSplits, folder: Folder
    ) -> None:
        """Prepare the trial that `config` (its number and searched values) describes."""
        self._base, self._corpus, self._folder = base, corpus, folder
        self._results = self._train(config["number"], config["values"])

    def step(self) -> dict[str, Any]:
        """Train to the next evaluation; the first step of a resumed trial replays its history."""
        return next(self._results)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Reuse this process, with torch loaded, for the next trial."""
        self.cleanup()
        torch.compiler.reset()
        self._results = self._train(new_config["number"], new_config["values"])
        return True

    def cleanup(self) -> None:
        """End the training, finished or not."""
        self._results.close()

    def _train(self, number: int, values: Mapping[str, Any]) -> Generator[dict[str, Any]]:
        config = self._base.replace(values)
        metric, best, notes = config.train.best_metric, math.inf, list[str]()
        history: list[Row] = []
        folder = trial_folder(self._folder, number)
        with closing(_launch(config, self._corpus, folder, notes)) as run:
            try:
                for rows in run:
                    curve = []
                    for row in rows:
                        if "val_bits_per_byte" in row:
                            best = min(best, row[metric])
                            curve.append((int(row["tokens"]), best))
                    history += rows
                    done = finished(history, config.train)
                    yield {
                        "rows": rows,
                        "curve": curve,
                        "tokens": curve[-1][0],
                        "objective": best,
                        "finished": done,
                        "notes": [notes.pop(0) for _ in notes.copy()],
                        "done": done,
                    }
            except DivergedError as error:
                yield {"failed": str(error), "notes": notes, "done": True}


def _launch(
    config: TrainingRun, corpus: TrainValSplits, folder: Folder, notes: list[str]
) -> Generator[list[Row]]:
    if config.resources.max_workers == 1:
        run = loop.train(config, corpus, folder, notes.append)
        return loop.with_watchdog(run, config.failures.timeout_seconds)
    from pipelines.cluster.workers import train_with_workers  # 3 s that others need not pay

    # The search starts a trial again itself; both together would multiply.
    once = config.replace({"failures.retries": 0})
    return train_with_workers(once, corpus, folder, notes.append)


def trial_folder(search_folder: Folder, number: int) -> Folder:
    """Where a trial's checkpoints lie: found again by its number."""
    return search_folder / f"trial-{number:04d}"
