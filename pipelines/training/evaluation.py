"""Bits per byte of a model on a split, and of common compressors."""

import bz2
import gzip
import lzma
import math
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from pipelines.data.batches import Bytes, open_bytes, windows
from pipelines.training.device import autocast, rank_and_world, widest_float


@torch.no_grad()
def bits_per_byte(
    model: nn.Module,
    data: Bytes,
    *,
    seq_len: int,
    tokens: int | None = None,
    batch: int = 32,
    precision: str = "float32",
) -> float:
    """Mean of -log2 p(byte), each byte predicted from the ones before it in its window.

    Windows of seq_len bytes do not overlap and are spread evenly over the split: as many as
    `tokens` allows, all of them for None. In a process group every rank evaluates its share, and
    all return the same number.
    """
    device = next(model.parameters()).device
    available = (len(data) - 1) // seq_len
    count = available if tokens is None else min(available, max(1, tokens // seq_len))
    starts = np.linspace(0, available - 1, count).round().astype(np.int64) * seq_len
    rank, world = rank_and_world()
    nats = torch.zeros((), dtype=widest_float(device), device=device)
    training = model.training
    model.eval()
    mine = starts[rank::world]
    for first in range(0, -(-count // world), batch):
        own = mine[first : first + batch]
        # where weights are sharded all ranks gather them as often: one without windows reads any
        ids = to_ids(windows(data, own if len(own) else starts[:1], seq_len), device)
        with autocast(device, precision):
            logits_btv = model(ids[:, :-1])
        if len(own):
            nats += F.cross_entropy(
                logits_btv.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum"
            )
    model.train(training)
    if world > 1:
        dist.all_reduce(nats)
    return nats.item() / (count * seq_len * math.log(2))


def compressors(path: Path) -> dict[str, float]:
    """Bits per byte of the order-0 entropy, and of gzip, bz2 and xz at their strongest setting."""
    data = path.read_bytes()
    counts = np.bincount(open_bytes(path), minlength=256)
    shares = counts[counts > 0] / len(data)
    sizes = {
        "gzip": len(gzip.compress(data, 9)),
        "bz2": len(bz2.compress(data, 9)),
        "xz": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
    }
    ratios = {name: 8 * size / len(data) for name, size in sizes.items()}
    return {"order-0 entropy": float(-(shares * np.log2(shares)).sum()), **ratios}


def to_ids(data: Bytes, device: torch.device) -> torch.Tensor:
    """Bytes [b, t] as integer ids on the device; the host does not wait for the copy."""
    bytes_bt = torch.from_numpy(data)
    if device.type == "cuda":  # from pageable memory the copy would wait for queued work
        bytes_bt = bytes_bt.pin_memory()
    return bytes_bt.to(device, non_blocking=True).long()
