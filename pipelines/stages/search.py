"""search: Ray Tune runs the trials that Optuna proposes, MLflow records them.

The tracking store is the truth. A trial's run is made, with its parameters, before the trial
starts; a search that was killed is rebuilt from these runs and goes on with what is missing.
"""

import json
import tempfile
import time
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from pipelines.runtime.cluster import cluster, require, slots
from pipelines.runtime.config import Config, run_params
from pipelines.runtime.dag import Context, Outputs, Stage
from pipelines.runtime.errors import PipelineError
from pipelines.runtime.progress import clock
from pipelines.runtime.tracking import HistoryWriter, Run, Store
from pipelines.stages.study import STATES, Space, StoredTrial, StudySearcher, build_study
from pipelines.training.data import development
from pipelines.training.trial import Trial

KIND = "trial"
HEAD_NODE = {"node:__internal_head__": 0.001}
"""What a trial takes whose workers take the CPUs: no CPU, or the two would wait for each other."""


def search(context: Context, needs: Mapping[str, Outputs]) -> Outputs:
    """Run what is missing of the search; returns how many trials ended how."""
    metric = context.config.train.best_metric
    stored = stored_trials(context.store, context.run_id, metric)
    remaining = context.config.search.trials - sum(t.state is not None for t in stored)
    spent = sum(trial.tokens for trial in stored if trial.state is not None)
    limit = context.config.search.max_tokens
    unfinished = sum(trial.state is None for trial in stored)
    context.store.log_params(context.run_id, {"search": context.config.search.model_dump()})
    if stored:
        done = len(stored) - unfinished
        context.progress.line(f"  {done} of {context.config.search.trials} trials are done")
    if remaining > 0 and (unfinished or limit is None or spent < limit):
        _run_trials(context, needs["corpus"]["fingerprint"], stored, remaining, spent)
    trials = stored_trials(context.store, context.run_id, metric)
    failed = [t for t in trials if t.state == "failed"]
    if len(failed) == len(trials):
        reasons = "\n".join(f"  trial {t.number}: {t.reason}" for t in failed)
        raise PipelineError(f"search: every trial failed; --fresh tries again\n{reasons}")
    counts = {state: sum(trial.state == state for trial in trials) for state in STATES}
    context.store.log_metrics(
        context.run_id, {"tokens": sum(trial.tokens for trial in trials), **counts}
    )
    return {"search_run": context.run_id, "trials": counts}


def stored_trials(store: Store, search_run: str, metric: str) -> list[StoredTrial]:
    """The trials of a search as the tracking store has them, by number."""
    trials = [_stored(store, run, metric) for run in store.children(search_run, KIND)]
    return sorted(trials, key=lambda trial: trial.number)


def _stored(store: Store, run: Run, metric: str) -> StoredTrial:
    tags, metrics = run.data.tags, run.data.metrics
    state = tags.get("dca.state")
    history = store.history(run.info.run_id, metric) if state == "pruned" else {}
    tokens = store.history(run.info.run_id, "tokens") if state == "pruned" else {}
    return StoredTrial(
        number=int(tags["dca.trial"]),
        run_id=run.info.run_id,
        values=json.loads(tags["dca.values"]),
        state=state,
        objective=metrics.get(f"best_{metric}"),
        tokens=int(metrics.get("tokens", 0)),
        curve={
            int(tokens[step]): value
            for step, value in zip(history, accumulate(history.values(), min), strict=True)
        },
        reason=tags.get("dca.reason", ""),
    )


def _run_trials(
    context: Context, fingerprint: str, stored: list[StoredTrial], remaining: int, spent: int
) -> None:
    config = context.config
    space = Space(config)
    study = build_study(config.search, space, config.seed, stored)
    searcher = StudySearcher(study, space, config.search.max_tokens, spent)
    folder = context.storage / "trials" / context.run_id
    trainable = tune.with_parameters(
        Trial,
        base=config,
        corpus=development(context.storage, fingerprint),
        folder=folder,
    )
    with context.progress.working("starting Ray"), cluster() as available:
        require(available, config.resources, "resources")
        recorder = _Recorder(context, space, stored)
        with tempfile.TemporaryDirectory() as scratch:
            tuner = tune.Tuner(
                tune.with_resources(trainable, _request(config)),
                tune_config=tune.TuneConfig(
                    metric="objective",
                    mode="min",
                    search_alg=searcher,
                    scheduler=_scheduler(config),
                    num_samples=remaining,
                    max_concurrent_trials=min(slots(available, config.resources), remaining),
                    reuse_actors=True,
                    trial_dirname_creator=_name,
                    trial_name_creator=_name,
                ),
                run_config=tune.RunConfig(
                    name=context.run_id,
                    storage_path=scratch,  # Tune's own snapshots lag and are never read
                    callbacks=[recorder],
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                    verbose=0,
                ),
            )
            try:
                tuner.fit()
            finally:
                recorder.close()


def _request(config: Config) -> tune.PlacementGroupFactory:
    if config.resources.workers > 1:
        return tune.PlacementGroupFactory([HEAD_NODE])
    bundle: dict[str, float] = {"CPU": config.resources.cpus_per_worker}
    if config.resources.gpus_per_worker:
        bundle["GPU"] = config.resources.gpus_per_worker
    return tune.PlacementGroupFactory([bundle])


def _scheduler(config: Config) -> TrialScheduler:
    chosen, train = config.search.scheduler, config.train
    if chosen.name == "none":
        return FIFOScheduler()
    grace = min(chosen.grace_evals, len(train.eval_steps))
    return AsyncHyperBandScheduler(
        time_attr="tokens",
        grace_period=train.eval_steps[grace - 1] * train.batch_tokens,
        max_t=train.steps * train.batch_tokens + 1,  # a rung at the end would stop finished trials
        reduction_factor=chosen.reduction_factor,
        stop_last_trials=False,
    )


def _name(trial: TuneTrial) -> str:
    return f"trial-{trial.config['number']:04d}"


class _Recorder(tune.Callback):
    """The only writer of the search's runs; also keeps the live line up to date."""

    def __init__(self, context: Context, space: Space, stored: list[StoredTrial]) -> None:
        self._context, self._space = context, space
        self._runs = {trial.number: trial.run_id for trial in stored}
        self._writer = HistoryWriter(context.store)
        self._counts = {s: sum(t.state == s for t in stored) for s in STATES}
        done = [
            (t.objective, t.number)
            for t in stored
            if t.state == "complete" and t.objective is not None
        ]
        self._best = min(done, default=None)
        self._share: dict[int, float] = {}
        """Part of its budget that each running trial has used."""
        self._first = sum(self._counts.values())
        self._started = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune snapshots its callbacks, and nobody reads the snapshots."""
        return {}

    def close(self) -> None:
        """Wait until everything is stored."""
        self._writer.close()

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Make the trial's run, or take up the one it has."""
        self._share[trial.config["number"]] = 0.0
        self._open_run(trial)
        self._show()

    def _open_run(self, trial: TuneTrial) -> None:
        number, values = trial.config["number"], trial.config["values"]
        params = run_params(self._context.config) | values
        params |= dict.fromkeys(self._space.inactive(values), "n/a")
        if number in self._runs:
            self._context.store.resume(self._runs[number], params)
            return
        self._runs[number] = self._context.store.create(
            KIND,
            f"{self._context.run_id}/{number}",
            f"{self._context.config.experiment} trial {number}",
            parent=self._context.run_id,
            params=params,
            tags={"dca.trial": str(number), "dca.values": json.dumps(values)},
        )

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
        self._writer.write(self._runs[number], result["rows"])
        self._share[number] = min(1.0, result["tokens"] / self._context.config.train.tokens)
        if self._best is None or result["objective"] < self._best[0]:
            self._best = (result["objective"], number)
        self._show()

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """The trial used its budget, or the scheduler stopped it."""
        result = trial.last_result
        metric = self._context.config.train.best_metric
        summary = {"step": result["step"], f"best_{metric}": result["objective"]}
        if result["finished"]:
            self._end(trial, "complete", "FINISHED", summary=summary)
        else:
            self._end(trial, "pruned", "KILLED", summary=summary)

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """A failure has a reason and no number; it may come before the trial has started."""
        if trial.config["number"] not in self._runs:
            self._open_run(trial)
        self._end(trial, "failed", "FAILED", reason=_reason(trial))

    def _end(
        self,
        trial: TuneTrial,
        state: str,
        status: str,
        *,
        reason: str = "",
        summary: Mapping[str, float] | None = None,
    ) -> None:
        number = trial.config["number"]
        tags = {"dca.state": state} | ({"dca.reason": reason} if reason else {})
        self._writer.finish(self._runs[number], status, tags, summary)
        self._share.pop(number, None)
        self._counts[state] += 1
        outcome = reason or f"{summary['step'] if summary else 0} steps"
        if summary is not None:
            outcome += f", best {trial.last_result['objective']:.4f} bits per byte"
        values = ", ".join(f"{k}={_short(v)}" for k, v in trial.config["values"].items())
        self._context.progress.line(f"  trial {number} {state}: {outcome}  ({values})")
        self._show()

    def _show(self) -> None:
        """Trials by state, best so far, time left."""
        total = self._context.config.search.trials
        counts = ", ".join(f"{n} {state}" for state, n in self._counts.items() if n)
        text = f"search: {sum(self._counts.values())}/{total} trials"
        text += f" ({counts})" if counts else ""
        text += f", {len(self._share)} running"
        if self._best is not None:
            text += f", best {self._best[0]:.4f} (trial {self._best[1]})"
        now = sum(self._counts.values()) + sum(self._share.values())
        if now > self._first:
            rate = (now - self._first) / (time.monotonic() - self._started)
            text += f", about {clock((total - now) / rate)} left"
        self._context.progress.live(text)


def _reason(trial: TuneTrial) -> str:
    """The last line of what went wrong: `Diverged: the gradient is not finite ...`."""
    text = Path(trial.error_file).read_text().strip() if trial.error_file else "unknown"
    kind, separator, message = text.splitlines()[-1].strip().partition(": ")
    return f"{kind.rsplit('.')[-1]}{separator}{message}"[:1000]


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


STAGE = Stage(
    name="search",
    run=search,
    needs=("corpus",),
    reads=("seed", "model", "train", "search"),
    sources=(
        "dca",
        "pipelines/training",
        "pipelines/stages/search.py",
        "pipelines/stages/study.py",
    ),
)
