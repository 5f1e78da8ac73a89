"""One trial of a search, as Ray Tune runs it: step by step, an evaluation each.

A trial with one worker trains in the trial's own process, which the next trial reuses; one with
several trains them under Ray Train. Either way Tune only ever holds an iterator of rows, and
closing it ends the training in order and frees what it held.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from ray import tune

from pipelines.runtime.config import Config
from pipelines.training import loop
from pipelines.training.checkpoint import Row
from pipelines.training.data import Development


class Trial(tune.Trainable):
    """Trains one configuration of the space. A failure raises, and is never a number."""

    def setup(
        self, config: dict[str, Any], base: Config, corpus: Development, folder: Path
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
        metric, history = config.train.best_metric, list[Row]()
        launch = _launcher(config)
        with closing(launch(config, self._corpus, trial_folder(self._folder, number))) as run:
            for rows in run:
                history.extend(rows)
                last = rows[-1]
                finished = last["step"] >= config.train.steps
                yield {
                    "rows": rows,
                    "step": int(last["step"]),
                    "tokens": int(last["tokens"]),
                    "objective": loop.best_row(history, metric)[metric],
                    "finished": finished,
                    "done": finished,
                }


def _launcher(config: Config) -> Callable[..., Generator[list[Row]]]:
    if config.resources.workers == 1:
        return loop.train
    from pipelines.training.workers import train_with_workers  # 3 s that others need not pay

    return train_with_workers


def trial_folder(search_folder: Path, number: int) -> Path:
    """Where a trial's checkpoints lie: found again by its number."""
    return search_folder / f"trial-{number:04d}"
