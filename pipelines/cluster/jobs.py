"""Trainings side by side: the trials of one Ray Tune run, in groups that take turns.

Used by the search, with a group for each arm of a study, and by the stages for the fits of a study,
a group each. All groups share the slots of the cluster: none waits for another.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from dca import registry
from pipelines.cluster.capacity import HEAD_NODE_SHARE, require_capacity
from pipelines.cluster.connection import cluster_address, connect
from pipelines.cluster.inspection import worker_place
from pipelines.cluster.room import WithinRoom, watched_room
from pipelines.cluster.trial import Trial
from pipelines.cluster.trial_events import TrialEvents
from pipelines.compat.ray import HEAD_NODE, NotPickled, variables_for_trials
from pipelines.console.progress import Progress
from pipelines.data.splits import TrainValSplits
from pipelines.storage.remote import Folder
from pipelines.storage.scratch import scratch_folder
from pipelines.training.config import Resources, TrainingRun

FINISHED = Searcher.FINISHED
"""What a source suggests when it has no more trials."""
KIND_KEYS = [f"model.{kind.field}" for kind in (registry.architecture, registry.residual)]
"""Keys whose values are names of classes: a process imports one when it first trains it."""


class Source(Protocol):
    """Where the trials of a group come from."""

    @property
    def left(self) -> int:
        """How many trials run, are to be retried or are still to come; for other threads."""

    def start_clock(self) -> None:
        """Called when the first trial of any group may start, and later."""

    def suggest(self, trial_id: str, *, wait: bool) -> dict[str, Any] | str | None:
        """The next trial's configuration, with its `number`, as `Trial` takes it.

        None: none yet; FINISHED: there are no more. With `wait` nothing else runs, so that it waits
        for a trial that cannot start yet.
        """

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Take note of a trial's evaluations."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Take note of how a trial ended, or queue its retry if it crashed."""


@dataclass(frozen=True)
class JobGroup:
    """Trials with one base configuration: those of a search, or the one of a fit."""

    base: TrainingRun
    folder: Folder
    """In which each trial has a folder for its checkpoints."""
    source: Source
    events: TrialEvents
    require_same_code: Callable[[], None]
    """Raises PipelineError if code that its trials import was edited since the command began."""
    scheduler: TrialScheduler = field(default_factory=FIFOScheduler)
    """By default it stops no trial early."""


def run_jobs(
    groups: Mapping[str, JobGroup],
    corpus: TrainValSplits,
    progress: Progress,
    *,
    key: str,
    name: str,
) -> None:
    """Run the missing trials of all groups in one Ray Tune run, to their end.

    Args:
        groups: By a name, which the trials of each have in their configuration. All need the same
            resources.
        corpus: The text that the trials read.
        progress: Shows how many trials the nodes of a cluster have room for.
        key: The configuration key of the resources, for errors.
        name: Of the run, for Tune.

    Raises:
        ConfigError: If not one trial fits this machine.
        StorageError: If a checkpoint cannot be written.
        PipelineError: If something could not be stored in the tracking store, or code was edited.

    """
    resources = next(iter(groups.values())).base.resources
    with progress.watching(lambda: "  starting Ray", stage="ray"):
        cluster = connect(dashboard=resources.max_workers > 1)
    if local := not cluster_address():  # else its nodes are waited for
        require_capacity(cluster, resources, key)
    trainings = {group_name: (group.base, group.folder) for group_name, group in groups.items()}
    trainable = tune.with_parameters(Trial, groups=trainings, corpus=corpus)
    events, sources = GroupEvents(groups), [group.source for group in groups.values()]
    room = watched_room(
        resources, progress, name=name, left=lambda: sum(source.left for source in sources)
    )
    with scratch_folder() as scratch, variables_for_trials(inherited=local), room as found:
        tuner = tune.Tuner(
            tune.with_resources(trainable, partial(_request, resources)),
            tune_config=tune.TuneConfig(
                search_alg=WithinRoom(TakeTurns(groups), found),
                scheduler=ScheduleEach(groups),
                num_samples=-1,  # until the searcher returns FINISHED
                reuse_actors=True,
                trial_dirname_creator=_trial_name,
                trial_name_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=scratch,  # for Tune's own snapshots, which are never read
                callbacks=[events],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except tune.TuneError:
            if events.error is None:
                raise
            raise events.error from None


def _request(resources: Resources, config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    """What Ray reserves for a trial, not on nodes that cannot be used or are not inspected yet.

    It is made for each start of a trial, that of a retry too. The own process of a trial with
    several workers is on the head node, and requests no CPU: it would wait for its own workers'
    CPUs. Their places are chosen in `workers`.
    """
    if resources.max_workers > 1:
        return tune.PlacementGroupFactory([{HEAD_NODE: HEAD_NODE_SHARE}])
    bundle, selector = worker_place(resources)
    if not selector:
        return tune.PlacementGroupFactory([bundle])
    return tune.PlacementGroupFactory([bundle], bundle_label_selector=[selector])


def _trial_name(trial: TuneTrial) -> str:
    return f"trial-{trial.config['number']:04d}-{trial.trial_id}"


class TakeTurns(NotPickled, Searcher):
    """Tune's searcher: suggests a trial of each group in turn.

    Tune's own retries leave out trials that crash while they start: a source suggests them again.
    """

    def __init__(self, groups: Mapping[str, JobGroup]) -> None:
        """A searcher that ends when all groups have no more trials."""
        super().__init__(metric="objective", mode="min")
        self._sources = {name: group.source for name, group in groups.items()}
        self._turns = list(groups)
        """The groups that may have more trials, the next one first."""
        self._running: dict[str, str] = {}
        """Groups of the running trials, by Tune's id."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's configuration, with its group."""
        for source in self._sources.values():
            source.start_clock()
        for name in self._turns.copy():
            found = self._sources[name].suggest(trial_id, wait=not self._running)
            self._turns.remove(name)
            if found != FINISHED:
                self._turns.append(name)
            if isinstance(found, dict):
                self._running[trial_id] = name
                return {"group": name, **found}
        return None if self._turns else FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass a trial's evaluations to its group."""
        self._sources[self._running[trial_id]].on_trial_result(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Pass to a trial's group how it ended."""
        name = self._running.pop(trial_id, None)
        if name is None:
            return
        self._sources[name].on_trial_complete(trial_id, result, error)
        if error:  # its retry is next
            self._turns.sort(key=lambda other: other != name)

    def save(self, checkpoint_path: str) -> None:
        """Nothing is saved: a resumed run is built from the tracking store."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing is restored: see `save`."""


class ScheduleEach(NotPickled, FIFOScheduler):
    """Tune's scheduler: each group has one of its own, which compares its trials alone."""

    def __init__(self, groups: Mapping[str, JobGroup]) -> None:
        """The schedulers of these groups."""
        super().__init__()
        self._schedulers = {name: group.scheduler for name, group in groups.items()}

    def _of(self, trial: Any) -> TrialScheduler:
        return self._schedulers[trial.config["group"]]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Pass on that a trial is there."""
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Pass on that a trial crashed."""
        self._of(trial).on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether the trial goes on."""
        return self._of(trial).on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Pass on that a trial ended."""
        self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Pass on that a trial is removed before it ran."""
        self._of(trial).on_trial_remove(tune_controller, trial)


class GroupEvents(NotPickled, tune.Callback):
    """Tune's callback: passes each event to the events of the trial's group."""

    error: Exception | None = None
    """The one that ended the run: Tune raises another in its place."""

    def __init__(self, groups: Mapping[str, JobGroup]) -> None:
        """The events of these groups."""
        self._groups = groups
        self._checked = set[tuple[Any, ...]]()
        """Processes of trials, and the kinds they trained, whose code is that of the command."""

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """A trial started."""
        with self._kept():
            self._of(trial).on_trial_start(iteration, trials, trial)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """A trial was evaluated."""
        with self._kept():
            self._require_same_code(trial, result)
            self._of(trial).on_trial_result(iteration, trials, trial, result)

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """A trial ended by itself, or was stopped."""
        with self._kept():
            self._of(trial).on_trial_complete(iteration, trials, trial)

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """A trial crashed."""
        with self._kept():
            if not cluster_address():  # a retry would import what was edited
                self._groups[trial.config["group"]].require_same_code()
            self._of(trial).on_trial_error(iteration, trials, trial)

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Tune's loop went round."""
        with self._kept():
            for group in self._groups.values():
                group.events.on_step_end(iteration, trials)

    def _of(self, trial: TuneTrial) -> TrialEvents:
        return self._groups[trial.config["group"]].events

    def _require_same_code(self, trial: TuneTrial, result: Mapping[str, Any]) -> None:
        """Raise PipelineError if a trial's process may have imported code of after an edit.

        A process that is used again imports the class of a kind when it first trains it. A cluster
        that the command does not start has a copy of the code of its beginning.
        """
        name, values = trial.config["group"], trial.config["values"]
        group = self._groups[name]
        several = group.base.resources.max_workers > 1  # workers import it for each trial
        imported = (result["pid"], name, *[values.get(key) for key in KIND_KEYS])
        imported += (trial.trial_id if several else "",)
        if imported not in self._checked and not cluster_address():
            group.require_same_code()
            self._checked.add(imported)

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.error = error
            raise


class OneTrial:
    """The source of a group of one trial, which is suggested again if it crashes."""

    def __init__(self, config: Mapping[str, Any], retries: int) -> None:
        """The trial of a configuration, whose number is 0 and which has no searched values."""
        self._config = {"number": 0, "values": {}, **config}
        self._retries, self._retry = retries, 0
        self._queued, self._runs = True, False

    @property
    def left(self) -> int:
        """1 until it has ended for good."""
        return int(self._queued or self._runs)

    def start_clock(self) -> None:
        """Nothing: it has no budget of time."""

    def suggest(self, trial_id: str, *, wait: bool) -> dict[str, Any] | str | None:
        """The trial, unless it runs or has ended."""
        if not self._queued:
            return None if self._runs else FINISHED
        self._queued, self._runs = False, True
        return self._config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: its evaluations lead to nothing."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Queue the trial again if it crashed, as often as it may."""
        self._runs = False
        if error and self._retry < self._retries:
            self._retry += 1
            self._queued = True

    def queued_retry(self, number: int) -> int:
        """The number, from 1, of the trial's queued retry; 0 if it is not queued."""
        return self._retry if self._queued else 0
