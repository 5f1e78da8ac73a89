"""search: Ray Tune runs the trials that Optuna proposes, MLflow records them.

The tracking store is the truth. A trial's run is made, with its parameters, before the trial
starts; a search that was killed is rebuilt from these runs and goes on with what is missing.
"""

import json
import math
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from pipelines.runtime import notes
from pipelines.runtime.cluster import join, require, slots
from pipelines.runtime.config import Config, run_params
from pipelines.runtime.dag import Context, Outputs, Stage, storage_path
from pipelines.runtime.errors import ConfigError, PipelineError, StorageError
from pipelines.runtime.plain_yaml import flatten
from pipelines.runtime.storage import Folder, remove
from pipelines.runtime.tensorboard import events_of
from pipelines.runtime.tracking import Run, Store, Writer, plain
from pipelines.stages.scoreboard import Scoreboard
from pipelines.stages.study import (
    STATES,
    Space,
    StoredTrial,
    StudySearcher,
    build_study,
    grace_tokens,
    may_start,
    save_study,
    second_value,
)
from pipelines.training.data import development
from pipelines.training.trial import Trial, trial_folder

KIND = "trial"
SECONDS_BETWEEN_TELLING = 5
"""How much of search.max_seconds a killed command may forget."""
STATUSES = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
"""How MLflow calls the states of a trial that ended."""
HEAD_NODE = {"node:__internal_head__": 0.001}
"""What a trial takes whose workers take the CPUs: no CPU, or the two would wait for each other."""


def search(context: Context, needs: Mapping[str, Outputs]) -> Outputs:
    """Run what is missing of the search; returns how many trials ended how."""
    stored = stored_trials(context)
    for trial in stored:
        if trial.state is not None and trial.status != STATUSES[trial.state]:
            context.store.end(trial.run_id, STATUSES[trial.state])  # killed before it could
    config, fingerprint = context.config, needs["corpus"]["fingerprint"]
    done = [trial for trial in stored if trial.state is not None]
    spent = sum(trial.tokens for trial in done)
    seconds = max(context.store.history(context.run_id, "seconds").values(), default=0.0)
    task = _task(config, fingerprint) | {"search": config.search.model_dump()}
    context.store.log_params(context.run_id, task)
    context.store.describe(notes.of_search(config, context.run_id), context.run_id)
    paths = development(context.storage, fingerprint)
    splits = {"training": paths.train, "validation": paths.validation}
    context.store.log_corpus(context.run_id, needs["corpus"], **splits)
    if stored:
        total = config.search.trial_count
        context.progress.line(f"  {len(done)} of {total} trials are done")
    begun, complete = len(stored) > len(done), len(done) == config.search.trial_count
    if begun or (not complete and may_start(config.search, spent, seconds)):
        _run_trials(context, needs["corpus"], stored, seconds)
    trials = stored_trials(context)
    if any(trial.state is None for trial in trials):  # by SIGUSR1, which ends Tune's loop
        raise PipelineError("search: stopped early; run the same command again to go on")
    if not trials:
        raise PipelineError("search: no trial began within search.max_seconds; expected more")
    failed = [t for t in trials if t.state == "failed"]
    if len(failed) == len(trials):
        reasons = "\n".join(f"  trial {t.number}: {t.reason}" for t in failed)
        raise PipelineError(f"search: every trial failed; --fresh tries again\n{reasons}")
    remove(_folder(context))
    counts = {state: sum(trial.state == state for trial in trials) for state in STATES}
    context.store.log_metrics(
        context.run_id, {"tokens": sum(trial.tokens for trial in trials), **counts}
    )
    with tempfile.TemporaryDirectory() as scratch:
        save_study(Path(scratch) / notes.STUDY, config, trials)
        context.store.log_file(context.run_id, Path(scratch) / notes.STUDY)
    return {"search_run": context.run_id, "trials": counts}


def stored_trials(context: Context, search_run: str = "") -> list[StoredTrial]:
    """The trials of a search (default: the context's) as the tracking store has them, by number."""
    return trials_of(context.store, search_run or context.run_id, context.config)


def trials_of(store: Store, search_run: str, config: Config) -> list[StoredTrial]:
    """The trials under a search's run, by number."""
    trials = [_stored(store, run, config) for run in store.children(search_run, KIND)]
    return sorted(trials, key=lambda trial: trial.number)


def _stored(store: Store, run: Run, config: Config) -> StoredTrial:
    tags, metrics, metric = run.data.tags, run.data.metrics, config.train.best_metric
    values = json.loads(tags["dca.values"])
    state = tags.get("dca.state")
    return StoredTrial(
        number=int(tags["dca.trial"]),
        run_id=run.info.run_id,
        values=values,
        status=run.info.status,
        state=state,
        objective=metrics.get(f"best_{metric}"),
        second=second_value(config, values, metrics) if state == "complete" else None,
        tokens=int(metrics.get("tokens", 0)),
        curve=_curve(store, run, metric),
        reason=tags.get("dca.reason", ""),
        milliseconds=(run.info.start_time, run.info.end_time or run.info.start_time),
    )


def _curve(store: Store, run: Run, metric: str) -> dict[int, float]:
    evaluated = store.history(run.info.run_id, "val_bits_per_byte")
    if not evaluated:  # nor is it sure to have parameters, if a kill came right after it was made
        return {}
    same = metric == "val_bits_per_byte"
    history = evaluated if same else store.history(run.info.run_id, metric)
    batch_tokens = int(run.data.params["train.batch_tokens"])
    best = accumulate((history[step] for step in evaluated), min)
    return {batch_tokens * step: value for step, value in zip(evaluated, best, strict=True)}


def _folder(context: Context) -> Folder:
    """Where the trials' checkpoints lie."""
    return context.storage / "trials" / context.run_id


def _task(config: Config, fingerprint: str) -> dict[str, Any]:
    """What two searches must have in common for the results of one to teach the other."""
    fixed = {
        key: value
        for key, value in run_params(config).items()
        if key not in config.search.space and key.startswith(("model.", "train."))
    }
    search = config.search.model_dump(include={"space", "second_objective"})
    return {"corpus": fingerprint, **fixed, "search": search}


def earlier_trials(config: Config, fingerprint: str, search_run: str = "") -> list[StoredTrial]:
    """Finished trials of the searches that search.warm_start names, `search_run` itself left out.

    Raises ConfigError if an experiment has none, or none that did the same.
    """
    found: list[StoredTrial] = []
    task = {key: plain(value) for key, value in flatten(_task(config, fingerprint))}
    for name in config.search.warm_start:
        where = f"search.warm_start: {name}"
        store = Store.open(name, storage_path(config), create=False)
        runs = store.find("search") if store else []
        runs = [run for run in runs if run.info.run_id != search_run]
        if store is None or not runs:
            raise ConfigError(f"{where}: no such experiment, or no search in it")
        differences = {run.info.run_id: _difference(run.data.params, task) for run in runs}
        if all(differences.values()):
            raise ConfigError(
                f"{where}: expected a search of the same space and training, but "
                f"{differences[runs[0].info.run_id]}"
            )
        for run_id, difference in differences.items():
            trials = [] if difference else trials_of(store, run_id, config)
            found += [trial for trial in trials if trial.state in ("complete", "pruned")]
    return found


def _difference(theirs: Mapping[str, str], ours: Mapping[str, str]) -> str | None:
    """The first parameter of a search that is not ours."""
    keys = {*ours, *(key for key in theirs if key.startswith("search.space."))}
    for key in sorted(keys):
        if theirs.get(key) != ours.get(key):
            return f"its {key} is {theirs.get(key, 'absent')}, here {ours.get(key, 'absent')}"
    return None


def _run_trials(
    context: Context, corpus: Outputs, stored: list[StoredTrial], seconds: float
) -> None:
    config, fingerprint = context.config, corpus["fingerprint"]
    space = Space(config)
    earlier = earlier_trials(config, fingerprint, context.run_id)
    if earlier:
        context.progress.line(f"  learns from {len(earlier)} trials of earlier searches")
    recorder = _Recorder(context, corpus, space, stored, seconds)
    searcher = StudySearcher(
        build_study(config, space, stored, earlier),
        space,
        config,
        open_run=recorder.open_run,
        stored=stored,
        earlier=len(earlier),
        seconds=seconds,
    )
    recorder.retries = searcher.retries
    left = config.search.trial_count - sum(trial.state is not None for trial in stored)
    trainable = tune.with_parameters(
        Trial,
        base=config,
        corpus=development(context.storage, fingerprint),
        folder=_folder(context),
    )
    with (
        context.progress.working("starting Ray"),
        tempfile.TemporaryDirectory() as scratch,
        closing(recorder),
    ):
        cluster = join(dashboard=config.resources.most > 1)
        _keep_keys()
        require(cluster, config.resources, "resources")
        tuner = tune.Tuner(
            tune.with_resources(trainable, _request(config)),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler_of(config, stored, searcher.should_prune),
                num_samples=-1,  # the searcher knows when all are done
                max_concurrent_trials=min(slots(cluster, config.resources), left),
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
        except tune.TuneError:
            if recorder.refused is None:
                raise
            raise recorder.refused from None


def _keep_keys() -> None:
    """Tune would send AWS's keys along with its actors, and Ray's agents write what is sent into
    their logs. Each node has its own."""
    sent = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in sent if not name.startswith("AWS_")}


def _request(config: Config) -> tune.PlacementGroupFactory:
    if config.resources.most > 1:
        return tune.PlacementGroupFactory([HEAD_NODE])
    bundle: dict[str, float] = {"CPU": config.resources.cpus_per_worker}
    if config.resources.gpus_per_worker:
        bundle["GPU"] = config.resources.gpus_per_worker
    return tune.PlacementGroupFactory([bundle])


def scheduler_of(
    config: Config,
    stored: Sequence[StoredTrial],
    should_prune: Callable[[str, dict[str, Any]], bool],
) -> TrialScheduler:
    """Stops trials; its rungs know what earlier starts of the search have reached."""
    chosen, train = config.search.scheduler, config.train
    if chosen.name == "none":
        return FIFOScheduler()
    if chosen.name == "median":
        return _Median(should_prune)
    asha = _Asha(
        metric="objective",
        mode="min",
        time_attr="tokens",
        grace_period=grace_tokens(config),
        max_t=train.steps * train.batch_tokens + 1,  # a rung at the end would stop finished trials
        reduction_factor=chosen.reduction_factor,
        stop_last_trials=False,
    )
    for trial in stored:
        known = SimpleNamespace(config={"number": trial.number})
        asha.on_trial_add(None, known)
        asha.on_trial_result(None, known, {"curve": trial.curve.items()})
    return asha


class _Median(FIFOScheduler):
    """Asks the study, which has every trial's curve, also after a resume."""

    def __init__(self, should_prune: Callable[[str, dict[str, Any]], bool]) -> None:
        super().__init__()
        self._should_prune = should_prune

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop it if it is worse than the median of those that completed."""
        stop = self._should_prune(trial.trial_id, result)
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE


class _Asha(AsyncHyperBandScheduler):
    """Knows a trial by its number, and its whole curve: one that starts again, and replays what it
    had reached, stands on each rung once, with its value there."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Admit a trial."""
        super().on_trial_add(tune_controller, _numbered(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop it if it is too far behind on a rung that it has just reached."""
        actions = [
            super(_Asha, self).on_trial_result(
                tune_controller, _numbered(trial), {"tokens": tokens, "objective": objective}
            )
            for tokens, objective in result["curve"]
        ]
        return TrialScheduler.STOP if TrialScheduler.STOP in actions else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Let it go, with what it has reached last."""
        if "curve" in result:
            self.on_trial_result(tune_controller, trial, result)
        self.on_trial_remove(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Let it go."""
        super().on_trial_remove(tune_controller, _numbered(trial))


def _numbered(trial: Any) -> SimpleNamespace:
    return SimpleNamespace(trial_id=trial.config["number"])


def _name(trial: TuneTrial) -> str:
    return f"trial-{trial.config['number']:04d}-{trial.trial_id}"


class _Recorder(tune.Callback):
    """The only writer of the search's runs; also keeps the scoreboard up to date."""

    retries: Callable[[int], int]
    """How often a trial that has just failed will have been retried; 0 if it will not be."""
    refused: StorageError | None = None
    """Why the search ended early: no trial would have fared better."""

    def __init__(
        self,
        context: Context,
        corpus: Outputs,
        space: Space,
        stored: list[StoredTrial],
        seconds: float,
    ) -> None:
        """`seconds` of the search have passed before."""
        self._context, self._corpus, self._space = context, corpus, space
        self._stored = {trial.number: trial.run_id for trial in stored}
        self._writer = Writer(context.store, events_of(context.config))
        self._open: dict[int, Future[str]] = {}
        """The runs of trials that have not ended."""
        self._board = Scoreboard(context.config, stored, context.progress)
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
        params = run_params(self._context.config) | values
        params |= dict.fromkeys(self._space.inactive(values), "n/a")
        if number in self._stored:
            self._context.store.resume(self._stored[number], params)
            return self._stored[number]
        return self._context.store.create(
            KIND,
            f"{self._context.run_id}/{number}",
            f"{self._context.config.experiment} trial {number}",
            parent=self._context.run_id,
            params=params,
            tags={"dca.trial": str(number), "dca.values": json.dumps(values)},
        )

    def _complete_run(self, run: Future[str], number: int, values: dict[str, Any]) -> None:
        """What the trial need not wait for: a description, the text it reads."""
        context, run_id = self._context, run.result()
        search = notes.link("the search", context.store.experiment_id, context.run_id)
        note = notes.of_trial(number, search, context.pipeline_run, values)
        context.store.describe(note, run_id)
        training = development(context.storage, self._corpus["fingerprint"]).train
        context.store.log_corpus(run_id, self._corpus, training=training)

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Show it."""
        number, values = trial.config["number"], trial.config["values"]
        self._heard[number] = time.monotonic()
        self._context.progress.tell("trial", trial=number, state="started", values=values)
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
            self._context.progress.line(
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
        if time.monotonic() > self._told + SECONDS_BETWEEN_TELLING:
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
        number, limit = trial.config["number"], self._context.config.failures
        silent = time.monotonic() - self._heard.pop(number, math.inf)
        reason = _reason(trial)
        alone = self._context.config.resources.most == 1  # else Ray Train says how it ended
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
        self._context.progress.line(
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
            metric = f"best_{self._context.config.train.best_metric}"
            summary = {"step": last["step"], "time": last["time"], metric: result["objective"]}
            told = {"steps": last["step"], metric: result["objective"]}
            outcome = f"{last['step']} steps, best {result['objective']:.4f} bits per byte"
        self._writer.finish(run_id, STATUSES[state], tags, summary)
        # A trial's checkpoints serve its resumption; its end and its history are in MLflow.
        self._writer.then(partial(remove, trial_folder(_folder(self._context), number)), run_id)
        values = trial.config["values"]
        shown = ", ".join(f"{key}={_short(value)}" for key, value in values.items())
        self._context.progress.line(
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
