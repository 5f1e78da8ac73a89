"""Whether a training fits the memory of this machine, by the formula of pipelines.training.memory.

Used by the commands before anything starts.
"""

import os
from pathlib import Path

import torch

from pipelines.cluster.capacity import Cluster, max_concurrent_jobs, worker_capacity
from pipelines.cluster.connection import cluster_address
from pipelines.console.errors import ConfigError, Problem
from pipelines.training.config import TrainingRun
from pipelines.training.memory import (
    GIB,
    MIB,
    STATE_COPIES,
    micro_tokens,
    micro_tokens_that_fit,
    peak_bytes,
)

SHARED_BYTES = 200 * MIB
"""Of a process's memory, pages of libraries that the processes of one machine share."""
FORMULA_ERROR = 1.25
"""How much the formula may be above the peak, see pipelines.training.memory."""
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def require_memory(config: TrainingRun, cluster: Cluster, *, trials: int = 1) -> None:
    """Raise ConfigError if `trials` of this configuration cannot train at once on this machine.

    Nothing is checked on another cluster (RAY_ADDRESS): the memory of its nodes is not known.
    """
    if cluster_address():
        return
    resources = config.resources
    on_gpu = resources.gpus_per_worker > 0 and torch.cuda.is_available()
    jobs = min(trials, max_concurrent_jobs(cluster, resources))
    workers = min(jobs * resources.max_workers, worker_capacity(cluster, resources))
    if on_gpu:
        together = min(workers, int(1 / min(1, resources.gpus_per_worker)))
        there = torch.cuda.get_device_properties(0).total_memory
        if config.train.micro_batch_tokens is None:
            micro = micro_tokens_that_fit(config, there // together)
            config = config.replace({"train.micro_batch_tokens": micro})
        each = peak_bytes(config, on_gpu=True)
        need = together * each
    else:
        together, each = workers, peak_bytes(config, on_gpu=False)
        need, there = SHARED_BYTES + together * (each - SHARED_BYTES), machine_bytes()
    if need > there:
        raise ConfigError(_problem(config, each, together, need, there, on_gpu=on_gpu))


def require_trial_memory(config: TrainingRun) -> None:
    """Raise ConfigError if one worker cannot train on this machine's CPUs, by the formula and its
    error: on a cluster nothing has checked it before."""
    if config.resources.gpus_per_worker > 0 or config.resources.max_workers > 1:
        return
    need, there = peak_bytes(config, on_gpu=False), machine_bytes()
    if need > FORMULA_ERROR * there:
        raise ConfigError(_problem(config, need, 1, need, there, on_gpu=False))


def machine_bytes() -> int:
    """Memory of this machine, or of the container around this process."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.exists() else "max"
    return physical if limit == "max" else min(physical, int(limit))


def _problem(
    config: TrainingRun, each: int, together: int, need: int, there: int, *, on_gpu: bool
) -> Problem:
    """Names the key to change: the micro batch if it takes more than the model's state."""
    parameters = config.model.parameter_count()
    smallest = config.replace({"train.micro_batch_tokens": config.train.seq_len})
    activations = each - peak_bytes(smallest, on_gpu=on_gpu)
    large_batch = activations > STATE_COPIES * 4 * parameters
    key = "train.micro_batch_tokens" if large_batch else "model.dim"
    others = "or model.depth"
    if together > 1:
        others += "; or more resources.cpus_per_worker: fewer at once"
    message = (
        f"{parameters:,} parameters, {micro_tokens(config):,} bytes of text at once and "
        f"{together} x {each / GIB:.1f} GiB need about {need / GIB:.1f} GiB; the "
        f"{'GPU' if on_gpu else 'machine'} has {there / GIB:.1f} GiB; expected a smaller {key} "
        f"({others})"
    )
    return Problem(message, key)
