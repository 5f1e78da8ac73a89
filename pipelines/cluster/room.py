"""How many jobs a cluster has room for, counted again as its nodes come and go.

Used by the search and by the stages that train on a cluster. Nodes that join are inspected and
used, the autoscaler of a cluster that has one is asked for what is waiting, and a cluster without
room for a single job is waited for.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from ray.tune.search import Searcher

from pipelines.cluster.capacity import Cluster, describe, max_concurrent_jobs, worker_bundle
from pipelines.cluster.connection import alive_nodes, cluster_address
from pipelines.cluster.inspection import Inspection, last_inspection
from pipelines.compat.ray import AutoscalerRequest, NotPickled
from pipelines.console.progress import Progress
from pipelines.console.text import counted, first_line, format_duration
from pipelines.console.updates import ProgressUpdate
from pipelines.training.config import Resources

LOOK_SECONDS = 1.0
"""Interval between two counts."""
ASK_SECONDS = 60.0
"""Interval between two requests to the autoscaler, which forgets them after three of them."""


class Room:
    """How many jobs of the same resources fit a cluster at once."""

    def __init__(self, resources: Resources, jobs: int) -> None:
        self.resources = resources
        self.jobs = jobs


@contextmanager
def watched_room(
    resources: Resources, progress: Progress, *, name: str, left: Callable[[], int] = lambda: 1
) -> Iterator[Room]:
    """Count, for the time of a block, how many jobs fit the cluster at RAY_ADDRESS.

    A change is printed, and why a node that has joined is not used; while there is no room, a line
    of progress from time to time. The nodes of a cluster of this machine are counted once.

    Args:
        resources: Of each job.
        progress: The command's.
        name: Of what the jobs belong to, for the autoscaler.
        left: How many jobs run or wait.

    """
    room = Room(resources, _count(resources, last_inspection()))
    if not cluster_address():
        yield room
        return
    ended, request = threading.Event(), AutoscalerRequest(name, lasts_seconds=3 * ASK_SECONDS)
    thread = threading.Thread(
        target=_watch, args=(room, progress, request, left, ended), daemon=True
    )
    thread.start()
    try:
        yield room
    finally:
        ended.set()
        thread.join()
        with suppress(Exception):  # Ray may have ended: what was asked for is forgotten then
            request.withdraw()


def wait_for_room(resources: Resources, inspection: Inspection | None = None) -> None:
    """Wait until one job fits the cluster at RAY_ADDRESS; `watched_room` tells the user.

    With an `inspection`, nodes that have joined are inspected first, in this process.
    """
    while True:
        if inspection and (new := inspection.due(alive_nodes(sys.modules["ray"]))):
            inspection.inspect(new)
        if has_room(resources, inspection):
            return
        time.sleep(LOOK_SECONDS)


def has_room(resources: Resources, inspection: Inspection | None = None) -> bool:
    """Whether one job fits the cluster; that of this machine stays as large as it was.

    In the process of a trial the command's inspection is given; there RAY_ADDRESS may be missing.
    """
    if inspection is None and not cluster_address():
        return True
    return _count(resources, inspection or last_inspection()) > 0


def _watch(
    room: Room,
    progress: Progress,
    request: AutoscalerRequest,
    left: Callable[[], int],
    ended: threading.Event,
) -> None:
    """What the thread does, until the block or Ray ends.

    What Ray cannot do now, as while its head restarts, is tried again.
    """
    resources, since, asked, at = room.resources, time.monotonic(), 0, 0.0
    nodes, shown, failed = _Nodes(progress), room.jobs, set[type]()
    while not ended.wait(LOOK_SECONDS):
        now = time.monotonic()
        try:
            room.jobs = max_concurrent_jobs(nodes.usable(), resources)
            wanted = nodes.wanted(_wanted(resources, left(), room.jobs))
            if wanted != asked or (wanted and now > at + ASK_SECONDS):
                request.ask([worker_bundle(resources)] * (resources.min_workers * wanted))
                asked, at = wanted, now
        except Exception as error:
            if not sys.modules["ray"].is_initialized():
                return  # Ray has ended meanwhile
            if type(error) not in failed:
                failed.add(type(error))
                progress.log(f"  the nodes are looked at again: {first_line(error)}")
        if room.jobs != shown:
            shown, since = room.jobs, now
            trainings = f"{counted(shown, 'training')} of {describe(resources)}"
            progress.log(f"  the cluster has room for {trainings}")
        if not shown:
            seconds = round(now - since)
            text = (
                f"waiting for nodes with room for {describe(resources)}, {format_duration(seconds)}"
            )
            progress.update(ProgressUpdate(text, {"waiting_for_nodes_seconds": seconds}))


class _Nodes:
    """The nodes of the cluster that can be used; those that join are inspected in threads."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._inspection = progress, last_inspection()
        self._asked: set[str] = set()
        """Ids of nodes that are being inspected."""
        self._told: set[tuple[str, str]] = set()
        """Lines' beginnings and ids of nodes that are not used, as has been printed."""
        self._is_told = False
        """Whether it has been printed that no more nodes are asked for."""

    def wanted(self, jobs: int) -> int:
        """For how many jobs the autoscaler is asked: for none, as one line says, where no other
        nodes than those of the start can be used."""
        known = self._inspection
        if known is None or not known.not_shared:
            return jobs
        if jobs and not self._is_told:
            self._is_told = True
            self._progress.log(f"  no more nodes are asked for: {known.not_shared}")
        return 0

    def usable(self) -> Cluster:
        """Those that are alive; of each other one, one line says why it is not used."""
        nodes, known = alive_nodes(sys.modules["ray"]), self._inspection
        if known is None:
            return nodes
        if new := [node for node in known.due(nodes) if node.id not in self._asked]:
            self._asked |= {node.id for node in new}
            threading.Thread(target=self._inspect, args=(known, new), daemon=True).start()
        self._log(nodes, "has joined and is not used", known.refused)
        self._log(nodes, "has joined and is not used until it is inspected", known.unanswered)
        return known.usable(nodes)

    def _inspect(self, known: Inspection, nodes: Cluster) -> None:
        """What a thread does; others inspect what joins while a node's answer is awaited."""
        known.inspect(nodes)
        self._asked -= {node.id for node in nodes}

    def _log(self, nodes: Cluster, text: str, reasons: Mapping[str, str]) -> None:
        """Print the text and the reason of each of the nodes that has one, once."""
        for node in nodes:
            reason = reasons.get(node.id)
            if reason is not None and (text, node.id) not in self._told:
                self._told.add((text, node.id))
                self._progress.log(f"  {node} {text}: {reason}")


def _wanted(resources: Resources, left: int, jobs: int) -> int:
    """For how many jobs the autoscaler is asked: for none if all fit, else for those that run too,
    unless they are of Ray Train, which asks for them itself."""
    if left <= jobs:
        return 0
    return left - jobs if resources.max_workers > 1 else left


def _count(resources: Resources, known: Inspection | None) -> int:
    nodes = alive_nodes(sys.modules["ray"])
    return max_concurrent_jobs(known.usable(nodes) if known else nodes, resources)


class WithinRoom(NotPickled, Searcher):
    """Tune's searcher around another one, which suggests no more trials than there is room for.

    Without any room it suggests one, which waits for it. A trial with several workers is given what
    is known of the nodes, by which its own process places the workers.
    """

    def __init__(self, searcher: Searcher, room: Room) -> None:
        super().__init__(metric=searcher.metric, mode=searcher.mode)
        self._searcher, self._room = searcher, room
        self._running: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial's configuration; None if no more may run now."""
        if len(self._running) >= max(1, self._room.jobs):
            return None
        found = self._searcher.suggest(trial_id)
        if isinstance(found, dict):
            self._running.add(trial_id)
            known = last_inspection()
            if known and self._room.resources.max_workers > 1:
                return {**found, "inspection": known.copy()}
        return found

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass on a trial's evaluations."""
        self._searcher.on_trial_result(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Pass on how a trial ended."""
        self._running.discard(trial_id)
        self._searcher.on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing is saved, as of the other one."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing is restored."""
