"""What training a configuration needs in memory, by a formula: no step is run.

Peak of one training process = the process itself + weights, gradients and AdamW's two moments +
what the blocks keep of one micro batch for the backward pass. The factors were fitted to measured
peaks (VmHWM) of models of 0.2 to 20 million parameters; tests/pipelines/training/test_memory.py
holds them to 25 % of what child processes show.
"""

import os
from pathlib import Path

import torch

from pipelines.cluster.capacity import Cluster, max_concurrent_jobs
from pipelines.console.errors import ConfigError
from pipelines.training.config import TrainingRun
from pipelines.training.memory import GIB, MIB, STATE_COPIES, _micro_tokens, peak_bytes

SHARED_BYTES = 200 * MIB
"""Of these, pages of libraries that the processes of one machine share."""
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def require_memory(config: TrainingRun, cluster: Cluster, *, trials: int = 1) -> None:
    """Raise ConfigError if `trials` of this configuration cannot train at once on this machine.

    The memory of another cluster (RAY_ADDRESS) is not known, and not asked for.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    resources = config.resources
    on_gpu = resources.gpus_per_worker > 0 and torch.cuda.is_available()
    each = peak_bytes(config, on_gpu=on_gpu)
    if on_gpu:
        at_once = min(trials, max_concurrent_jobs(cluster, resources)) * resources.max_workers
        together = min(at_once, int(1 / min(1, resources.gpus_per_worker)))
        need, there = together * each, torch.cuda.get_device_properties(0).total_memory
    else:
        together = min(trials, max_concurrent_jobs(cluster, resources)) * resources.max_workers
        need, there = SHARED_BYTES + together * (each - SHARED_BYTES), machine_bytes()
    if need <= there:
        return
    tokens, state = each - peak_bytes(_least(config), on_gpu=on_gpu), config.model.parameter_count()
    key = "train.micro_batch_tokens" if tokens > STATE_COPIES * 4 * state else "model.dim"
    others = ("model.depth", "resources.cpus_per_worker: fewer at once")
    raise ConfigError(
        f"{key}: {state:,} parameters, {_micro_tokens(config):,} bytes of text at once and "
        f"{together} x {each / GIB:.1f} GiB need about {need / GIB:.1f} GiB; the "
        f"{'GPU' if on_gpu else 'machine'} has {there / GIB:.1f} GiB; expected a smaller {key}"
        f"{f' (or {others[0]}; or more {others[1]})' if together > 1 else f' or {others[0]}'}"
    )


def machine_bytes() -> int:
    """Memory of this machine, or of the container around this process."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.exists() else "max"
    return physical if limit == "max" else min(physical, int(limit))


def _least(config: TrainingRun) -> TrainingRun:
    """The same with the smallest micro batch."""
    return config.replace({"train.micro_batch_tokens": config.train.seq_len})
