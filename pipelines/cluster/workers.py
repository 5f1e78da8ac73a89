"""The training loop in several processes under Ray Train, as one iterator of rows.

Used by the search for trials of several workers, and by the stages that train.
"""

import os
import uuid
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import ray.train
import torch
import torch.distributed as dist
from pydantic import SecretStr
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.cluster.capacity import worker_bundle
from pipelines.cluster.connection import alive_nodes
from pipelines.cluster.inspection import Inspection, last_inspection
from pipelines.cluster.mailbox import Mailbox, next_message
from pipelines.cluster.room import has_room, wait_for_room
from pipelines.compat.ray import START_TIMEOUT, last_line, torch_backend, worker_exception
from pipelines.console.errors import (
    DETERMINISTIC,
    ConfigError,
    DamagedError,
    DeterministicError,
    DivergedError,
    PipelineError,
    StorageError,
    print_traceback,
)
from pipelines.console.text import one_line
from pipelines.data.splits import TrainValSplits
from pipelines.storage.remote import Folder
from pipelines.storage.scratch import scratch_folder
from pipelines.training.config import Resources, TrainingRun
from pipelines.training.device import pick_device
from pipelines.training.history import Row
from pipelines.training.loop import train, with_watchdog

RESIZE_SECONDS = 60
"""Interval of elastic training between two checks for resources for more workers."""
CONTROLLER_FAILURES = 3
"""Attempts to start the workers, after which resources that the cluster lacks are an error."""


def train_with_workers(
    config: TrainingRun,
    corpus: TrainValSplits,
    folder: Folder,
    log: Callable[[str], None],
    *,
    key: str | None = None,
    inspection: Inspection | None = None,
) -> Generator[list[Row]]:
    """`loop.train` in `config.resources.workers` processes of a running Ray cluster.

    Yields the rows of rank 0. After a worker has died or hung, all start again from the last
    checkpoint, as often as `config.failures` allows; with a range of workers also when there are
    resources for more. A cluster without room for them is waited for. Closing the iterator stops
    the workers at their next evaluation and waits until their resources are free. Rows are passed
    through an actor rather than through `ray.train.report`, which passes one report per health
    check (2 s).

    The `inspection` of the nodes is the command's; the process of a trial, which has none of its
    own, is given it. Nodes that have joined are inspected before the workers are placed, and those
    that have not passed get none. One that joins while a range of workers trains may get some.

    Raises:
        DivergedError: If the loss is no longer finite.
        PipelineError: If the training failed, and no attempt is left.

    """
    inspection = inspection or last_inspection()
    while True:
        wait_for_room(config.resources, inspection)
        task: dict[str, Any] = {"config": config, "corpus": corpus, "folder": folder}
        task |= {"key": SecretStr(key or "")}  # Ray shows the task as text
        error = yield from _attempt(task, inspection, log)
        if error is None:
            return
        if has_room(config.resources, inspection):
            raise _explain(error) from error
        log(f"{_explain(error)}; there is no node for it any more")


def _attempt(
    task: dict[str, Any], inspection: Inspection | None, log: Callable[[str], None]
) -> Generator[list[Row], None, BaseException | None]:
    """Train to the end, unless Ray Train fails; returns its error."""
    own_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox = Mailbox.options(scheduling_strategy=own_node).remote()  # type: ignore[attr-defined]
    with scratch_folder() as scratch, ThreadPoolExecutor(1) as pool:
        trainer = _trainer({**task, "mailbox": mailbox}, scratch, inspection)
        fit = pool.submit(trainer.fit)
        try:
            while (message := next_message(mailbox, fit)) is not None:
                if isinstance(message, Exception):
                    raise message
                if isinstance(message, str):
                    log(message)
                else:
                    yield message
                ray.get(mailbox.answer.remote(True))
        except KeyboardInterrupt:
            ray.shutdown()  # at once: the workers are at most an evaluation past a checkpoint
            raise
        finally:
            if ray.is_initialized():
                ray.get(mailbox.stop.remote())
            error = fit.exception()
    return error


def _trainer(
    task: dict[str, Any], scratch: Path, inspection: Inspection | None = None
) -> TorchTrainer:
    config: TrainingRun = task["config"]
    resources = config.resources
    on_head = isinstance(task["folder"], Path) or bool(inspection and inspection.not_shared)
    number, selector = resources.workers, None
    if inspection and not on_head:
        number, selector = _placement(resources, inspection)
    if resources.min_workers < resources.max_workers:
        # Ray counts a dead node for a while, and waits for a place on it: not for minutes.
        os.environ[START_TIMEOUT] = str(RESIZE_SECONDS)
    return TorchTrainer(
        _work,
        train_loop_config=task,
        torch_config=_TorchConfig(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=number,
            label_selector=selector,
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=worker_bundle(resources, on_head=on_head),
        ),
        run_config=ray.train.RunConfig(
            name=uuid.uuid4().hex,  # never a name that Train would resume from by itself
            storage_path=str(scratch),
            failure_config=ray.train.FailureConfig(
                max_failures=config.failures.retries, controller_failure_limit=CONTROLLER_FAILURES
            ),
        ),
    )


def _placement(
    resources: Resources, inspection: Inspection
) -> tuple[int | tuple[int, int], dict[str, str] | None]:
    """How many workers there may be, and the label selector of each.

    Elastic training counts the nodes that the selector excludes, and would wait for places there:
    of a range of workers no more are allowed than fit the others.
    """
    nodes = alive_nodes(ray)
    if not (selector := inspection.selector(nodes)):
        return resources.workers, None
    if resources.min_workers == resources.max_workers:
        return resources.workers, selector
    fit = sum(node.worker_capacity(resources) for node in inspection.usable(nodes))
    most = min(resources.max_workers, max(resources.min_workers, fit))
    return (resources.min_workers, most), selector


class _TorchConfig(TorchConfig):
    """PyTorch's process group, over the interface of each node's own address."""

    @property
    def backend_cls(self) -> type[Any]:
        """What Ray Train starts."""
        return torch_backend(_use_own_interface)


def _use_own_interface() -> None:
    """Make gloo use the interface of the node's address: the host's name may stand for a loopback
    address, which other machines cannot reach (ray-project/ray#37461)."""
    own = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == own for address in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def _work(task: dict[str, Any]) -> None:
    """What every worker runs; Ray Train has made the process group."""
    config, mailbox, first = task["config"], task["mailbox"], dist.get_rank() == 0

    def log(text: str) -> None:
        if first:
            ray.get(mailbox.post.remote(text))

    key = task["key"].get_secret_value() or None
    run = train(config, task["corpus"], task["folder"], log, key=key)
    try:
        for rows in with_watchdog(run, config.failures.timeout_seconds):
            go_on = torch.ones((), device=pick_device())
            if first:
                go_on *= ray.get(mailbox.post.remote(rows))
            dist.broadcast(go_on, src=0)
            if not go_on:
                return
    except DETERMINISTIC as error:  # on every rank at the same step; another attempt would, too
        if first:
            ray.get(mailbox.post.remote(_own_error(error)))


def _own_error(error: Exception) -> Exception:
    """An error that can be sent: that of a library may not be pickled."""
    if isinstance(error, ConfigError | DivergedError | DamagedError):
        return error
    print_traceback(error)
    text = one_line(f"{type(error).__name__}: {error}", limit=1000)
    return DeterministicError(f"training failed: {text}")


def _explain(error: BaseException) -> PipelineError:
    """The reason under Ray Train's wrapping, as one line; a full disk as it was raised."""
    cause = worker_exception(error)
    if isinstance(cause, StorageError):
        return cause
    return PipelineError(f"training failed: {last_line(cause)}")
