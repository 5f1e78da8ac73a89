"""What training a configuration needs in memory, by a formula: no step is run.

Peak of one training process = the process itself + weights, gradients and AdamW's two moments +
what the blocks keep of one micro batch for the backward pass. The factors were fitted to measured
peaks (VmHWM) of models of 0.2 to 20 million parameters; tests/pipelines/training/test_memory.py
holds them to 25 % of what child processes show.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from dca import ModelConfig
from pipelines.runtime.cluster import Cluster, slots
from pipelines.runtime.config import Config, condition_order
from pipelines.runtime.errors import ConfigError

MIB, GIB = 1 << 20, 1 << 30
PROCESS_BYTES = 570 * MIB
"""A worker before it has a model: Python, torch, Ray. Trials of a model of 7,000 parameters
peaked at 595 MiB, the workers of its fit at 605."""
SHARED_BYTES = 200 * MIB
"""Of these, pages of libraries that the processes of one machine share."""
STATE_COPIES = 4
"""Numbers held per parameter: weight, gradient, two moments."""
SAVED_COPIES = 6
"""The same while a checkpoint is written: weight and moments, and each as bytes for the file."""
EVAL_WINDOWS = 32
"""Windows of a batch in an evaluation, `evaluation.bits_per_byte`'s default."""
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def peak_bytes(config: Config, *, on_gpu: bool) -> int:
    """Most memory that one worker of this configuration holds: on a GPU its tensors alone."""
    parameters = config.model.parameter_count()
    tokens = _micro_tokens(config)
    averages = 4 * parameters if config.train.ema_decay else 0
    training = STATE_COPIES * 4 * parameters + tokens * _token_bytes(config, on_gpu=on_gpu)
    saving = (3 if on_gpu else SAVED_COPIES) * 4 * parameters
    evaluating = 3 * 4 * parameters + _evaluation_bytes(config)
    return averages + max(training, saving, evaluating) + (0 if on_gpu else PROCESS_BYTES)


def _token_bytes(config: Config, *, on_gpu: bool) -> int:
    """What the forward pass keeps of one token, and the logits with their gradient."""
    model = config.model
    block = 18 + 2 * model.ff_mult + _kind_keeps(model)
    blocks = model.depth * block
    if config.train.activation_checkpointing:  # one block at a time, and what goes into the others
        blocks = block + model.depth * (6 + _kind_keeps(model) // 2)
    width = 2 if on_gpu else 4  # bfloat16 there
    return width * model.dim * blocks + 4 * 4 * model.vocab


def _kind_keeps(model: ModelConfig) -> int:
    """What a block of a residual kind keeps besides, in multiples of dim: of dca two more inputs
    and their norms, of hyper-connections every stream. Kinds that are not here count as none."""
    return {"dca": 6, "hyper_connections": 8 * model.hyper_streams}.get(model.residual, 0)


def _evaluation_bytes(config: Config) -> int:
    """Nothing is kept for a backward pass but the entries of the stack."""
    model, train = config.model, config.train
    windows = min(EVAL_WINDOWS, max(1, (train.eval_tokens or train.seq_len * 32) // train.seq_len))
    entries = model.depth + 1 if model.last_k is None else min(model.depth, model.last_k + 1) + 1
    live = entries + model.hyper_streams + 4 + 2 * model.ff_mult
    return 4 * windows * train.seq_len * (model.dim * live + 3 * model.vocab)


def largest(config: Config) -> Config:
    """The configuration of the search space that needs most, each key at its worst in turn."""
    worst = config
    for key in condition_order(config.search.space):
        dimension = config.search.space[key]
        ends = dimension.choice or dimension.int or ()
        reachable = all(
            k in config.search.space or worst.get(k) == v for k, v in dimension.when.items()
        )
        points = [{**dimension.when, key: end} for end in ends] if reachable else []
        sizes = [*([worst] if dimension.when else []), *_replaced(worst, points)]
        worst = max(sizes, key=lambda one: peak_bytes(one, on_gpu=False), default=worst)
    return worst


def _replaced(config: Config, points: Iterable[Mapping[str, Any]]) -> Iterator[Config]:
    """What points of the space make; those that do not go with the other keys are left out."""
    for values in points:
        with suppress(ConfigError):
            yield config.replace(values)


def require_memory(config: Config, cluster: Cluster, *, trials: int = 1) -> None:
    """Raise ConfigError if `trials` of this configuration cannot train at once on this machine.

    The memory of another cluster (RAY_ADDRESS) is not known, and not asked for.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    resources = config.resources
    on_gpu = resources.gpus_per_worker > 0 and torch.cuda.is_available()
    each = peak_bytes(config, on_gpu=on_gpu)
    if on_gpu:
        at_once = min(trials, slots(cluster, resources)) * resources.most
        together = min(at_once, int(1 / min(1, resources.gpus_per_worker)))
        need, there = together * each, torch.cuda.get_device_properties(0).total_memory
    else:
        together = min(trials, slots(cluster, resources)) * resources.most
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


def _least(config: Config) -> Config:
    """The same with the smallest micro batch."""
    return config.replace({"train.micro_batch_tokens": config.train.seq_len})


def _micro_tokens(config: Config) -> int:
    """Bytes of one forward pass of a worker."""
    share = config.train.batch_tokens // config.resources.least
    return min(share, config.train.micro_batch_tokens or share)
