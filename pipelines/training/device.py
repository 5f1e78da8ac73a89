"""The device of a training process, and what differs between devices.

Used by training, the cost estimate and the commands. Tests run on CPUs; the code for other devices
follows PyTorch's documentation.
"""

import importlib.util
import os
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist

from pipelines.training.config import MIN_BFLOAT16_WIDTH

LINUX_PEAK = Path("/proc/self/status")
DEVICE_FILES = Path("/dev")
TPU_FILES = ("accel[0-9]*", "vfio/[0-9]*")
"""Patterns of a TPU's files below /dev on its host: up to v4, and from v5e on."""
TPU_VARIABLES = ("TPU_NAME", "TPU_WORKER_ID", "TPU_ACCELERATOR_TYPE")
ALLOCATORS = ("cuda", "xpu")
"""Device types whose allocator records its peak; for others the process's memory is reported."""
FAST_BFLOAT16 = ("cuda", "xpu", "xla")
"""Device types that compute faster in bfloat16 than in float32."""
CPU_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
"""Instructions of processors that multiply bfloat16, in torch.cpu.get_capabilities(): of x86 ones,
and of ARM's."""

PEAK_FLOPS = {
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2.25e15,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 4090": 165e12,
}
"""Dense bfloat16 FLOPs per second with float32 sums, by CUDA's device name: half of what NVIDIA's
data sheets give with sparsity; RTX from the GA102 and Ada architecture papers. A part of a device
(MIG) has another name and is not listed."""


def pick_device() -> torch.device:
    """This process's accelerator, a TPU if torch_xla is installed, else the CPU.

    In a process group it is CUDA or the CPU, the devices for which Ray Train creates groups.
    """
    found = torch.accelerator.current_accelerator(check_available=True)
    if dist.is_initialized() and (found is None or found.type != "cuda"):
        return torch.device("cpu")
    if found is not None:
        return torch.device(found.type)
    if _on_tpu_host() and importlib.util.find_spec("torch_xla"):
        import torch_xla

        return torch_xla.device()
    return torch.device("cpu")


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of training processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def unused_tpu() -> str | None:
    """A warning that the machine has a TPU that cannot be used; None if it has none."""
    used = torch.accelerator.is_available() or importlib.util.find_spec("torch_xla")
    if used or not _on_tpu_host():
        return None
    return "this machine looks like a TPU host, but torch_xla is not installed: using the CPU"


def _on_tpu_host() -> bool:
    files = (path for pattern in TPU_FILES for path in DEVICE_FILES.glob(pattern))
    return any(name in os.environ for name in TPU_VARIABLES) or any(files)


def resolve_precision(precision: str, width: int, device: torch.device) -> str:
    """`train.precision` of a model of that width: float32 or bfloat16."""
    if precision != "auto":
        return precision
    wide = device.type != "cpu" or width >= MIN_BFLOAT16_WIDTH
    return "bfloat16" if wide and multiplies_bfloat16(device) else "float32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Matrix products and activations in that precision; weights are converted once inside."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bfloat16."""
    if device.type != "cpu":
        return device.type in FAST_BFLOAT16
    found = torch.cpu.get_capabilities()
    return any(found.get(name) for name in CPU_BFLOAT16)


def widest_float(device: torch.device) -> torch.dtype:
    """The type for long sums: float64, or float32 on Apple's GPUs, which do not have it."""
    return torch.float32 if device.type == "mps" else torch.float64


def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 FLOPs per second of a device; None if they are not known."""
    if device.type != "cuda":
        return None
    return PEAK_FLOPS.get(torch.cuda.get_device_name(device))


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory since `reset_peak_memory`: of an accelerator's tensors, if its allocator
    records that, else of the process."""
    if device.type in ALLOCATORS:
        return torch.accelerator.max_memory_allocated(device)
    if LINUX_PEAK.exists() and (peak := re.search(r"VmHWM:\s*(\d+) kB", LINUX_PEAK.read_text())):
        return 1024 * int(peak[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def free_memory_bytes(device: torch.device, share: float) -> int | None:
    """Memory of a GPU that this process can have, of the `share` of it that it was given if that
    is below 1; None for other devices than CUDA's."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device)
    return int(min(free, total * share) if 0 < share < 1 else free)


def reset_peak_memory(device: torch.device) -> None:
    """Restart the measurement of the peak, in a process that has trained another run before."""
    if device.type in ALLOCATORS:
        torch.accelerator.reset_peak_memory_stats(device)
    elif LINUX_PEAK.exists():
        with suppress(OSError):  # a container may forbid it: the peak is then since the start
            LINUX_PEAK.with_name("clear_refs").write_text("5")
