"""Other devices than the CPU are made up at the edge: what PyTorch says is there."""

from types import SimpleNamespace

import pytest
import torch

from pipelines.training import device
from pipelines.training.device import (
    autocast,
    multiplies_bfloat16,
    peak_flops,
    peak_memory_bytes,
    pick_device,
    resolve_precision,
    unused_tpu,
    widest_float,
)


@pytest.fixture(autouse=True)
def bare(tmp_path, monkeypatch):
    """A machine without accelerators; its /dev is a folder."""
    found(monkeypatch, None)
    monkeypatch.setattr(device, "DEVICE_FILES", tmp_path)
    for name in device.TPU_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def found(monkeypatch, name: str | None) -> None:
    accelerator = torch.device(name, 0) if name else None
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: accelerator)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: name is not None)


@pytest.mark.parametrize(
    ("share", "free"), [(0.0, 700), (1.0, 700), (2.0, 700), (0.5, 500), (0.8, 700)]
)
def test_a_process_can_have_what_is_free_of_its_share_of_a_gpu(monkeypatch, share, free):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (600, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 100)
    assert device.free_memory_bytes(torch.device("cuda"), share) == free
    assert device.free_memory_bytes(torch.device("cpu"), share) is None


@pytest.mark.parametrize("name", ["cuda", "xpu", "mps", None])
def test_the_accelerator_that_is_there_is_picked_else_the_cpu(monkeypatch, name):
    found(monkeypatch, name)
    assert pick_device() == torch.device(name or "cpu")
    assert unused_tpu() is None


@pytest.mark.parametrize(("name", "picked"), [("cuda", "cuda"), ("mps", "cpu"), (None, "cpu")])
def test_several_workers_share_cuda_or_the_cpu(monkeypatch, name, picked):
    found(monkeypatch, name)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert pick_device() == torch.device(picked)


@pytest.mark.parametrize("sign", ["TPU_NAME", "accel0", "vfio/0"])
def test_a_tpu_host_without_torch_xla_is_told_and_trains_on_the_cpu(tmp_path, monkeypatch, sign):
    if sign == "TPU_NAME":
        monkeypatch.setenv(sign, "local")
    else:
        (tmp_path / sign).parent.mkdir(exist_ok=True)
        (tmp_path / sign).touch()
    assert pick_device() == torch.device("cpu")
    line = unused_tpu()
    assert line is not None and "torch_xla is not installed" in line and "\n" not in line
    found(monkeypatch, "cuda")
    assert unused_tpu() is None


def test_a_tpu_is_used_through_torch_xla(tmp_path, monkeypatch):
    (tmp_path / "torch_xla.py").write_text(
        "import torch\n\ndef device():\n    return torch.device('xla', 0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert pick_device() == torch.device("cpu")  # installed, but there is no TPU
    monkeypatch.setenv("TPU_NAME", "local")
    assert pick_device() == torch.device("xla", 0)
    assert unused_tpu() is None


@pytest.mark.parametrize(
    ("kind", "native", "width", "resolved"),
    [
        ("cuda", False, 16, "bfloat16"),
        ("mps", True, 512, "float32"),
        ("cpu", True, 128, "bfloat16"),
        ("cpu", True, 127, "float32"),
        ("cpu", False, 512, "float32"),
    ],
)
def test_auto_is_bfloat16_where_a_step_is_faster_in_it(monkeypatch, kind, native, width, resolved):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    assert resolve_precision("auto", width, torch.device(kind)) == resolved
    for given in ("float32", "bfloat16"):
        assert resolve_precision(given, width, torch.device(kind)) == given


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", "bf16"])
def test_a_processor_with_any_of_the_instructions_multiplies_bfloat16(monkeypatch, name):
    known = torch.cpu.get_capabilities()
    if known["architecture"] == "x86_64":
        assert {"avx512_bf16", "amx_bf16"} <= known.keys()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: True})
    assert multiplies_bfloat16(torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, name: False})
    assert not multiplies_bfloat16(torch.device("cpu"))


def test_products_have_the_precision_and_long_sums_what_the_device_has():
    cpu = torch.device("cpu")
    for name in ("float32", "bfloat16"):
        with autocast(cpu, name):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == getattr(torch, name)
    assert widest_float(cpu) == torch.float64
    assert widest_float(torch.device("mps")) == torch.float32


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None)],
)
def test_the_peak_is_that_of_the_very_device_or_unknown(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert peak_flops(torch.device("cuda")) == peak
    assert peak_flops(torch.device("cpu")) is None


@pytest.mark.parametrize("name", ["cuda", "xpu"])
def test_the_memory_of_an_accelerator_is_its_allocators(monkeypatch, name):
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", lambda _: 7)
    monkeypatch.setattr(torch.accelerator, "reset_peak_memory_stats", asked.append)
    device.reset_peak_memory(torch.device(name))
    assert asked == [torch.device(name)]
    assert peak_memory_bytes(torch.device(name)) == 7
    assert peak_memory_bytes(torch.device("mps")) > 2**20


def test_the_listed_peaks_are_those_of_the_data_sheets():
    """In units of 1e12, as NVIDIA gives them: dense, bfloat16."""
    assert {name: flops / 1e12 for name, flops in device.PEAK_FLOPS.items()} == {
        "NVIDIA A100-PCIE-40GB": 312,
        "NVIDIA A100-SXM4-40GB": 312,
        "NVIDIA A100 80GB PCIe": 312,
        "NVIDIA A100-SXM4-80GB": 312,
        "NVIDIA H100 80GB HBM3": 989,
        "NVIDIA H100 PCIe": 756,
        "NVIDIA H200": 989,
        "NVIDIA B200": 2250,
        "NVIDIA L4": 121,
        "NVIDIA L40S": 362,
        "NVIDIA GeForce RTX 3090": 71,
        "NVIDIA GeForce RTX 4090": 165,
    }


def test_the_peak_of_a_process_is_in_bytes_and_starts_again(tmp_path, monkeypatch):
    cpu = torch.device("cpu")
    status = tmp_path / "status"
    monkeypatch.setattr(device, "LINUX_PEAK", status)
    used = SimpleNamespace(ru_maxrss=3)
    monkeypatch.setattr(device.resource, "getrusage", lambda _: used)
    device.reset_peak_memory(cpu)  # without /proc nothing is written
    assert list(tmp_path.iterdir()) == []
    for platform, expected in (("linux", 3072), ("darwin", 3)):
        monkeypatch.setattr(device.sys, "platform", platform)
        assert peak_memory_bytes(cpu) == expected
    status.write_text("Name:\tpython\nVmHWM:\t    12 kB\nVmRSS:\t 5 kB\n")
    assert peak_memory_bytes(cpu) == 12 * 1024
    status.write_text("Name:\tpython\n")
    assert peak_memory_bytes(cpu) == 3
    device.reset_peak_memory(cpu)
    assert (tmp_path / "clear_refs").read_text() == "5"
