"""The check of a GPU: its parts on the CPU, and what it does with one that fails."""

import json

import pytest
import torch

from benchmarks import check_gpu
from benchmarks.check_gpu import PARTS, TINY, Check, Failed, accuracy, steps

ON_GPU = ["Triton kernels", "steps, compiled, 24x512", "waits of the host in a step"]
"""Parts that a CPU cannot try."""


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small wait for a second thread much longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def check(tmp_path):
    return Check(torch.device("cpu"), tmp_path)


@pytest.mark.slow
def test_every_part_has_figures_or_needs_a_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OUT", str(tmp_path))
    assert check_gpu.main(["--cpu"]) == 0
    parts = json.loads((tmp_path / "check_gpu.json").read_text())
    assert list(parts) == list(PARTS)
    assert [name for name, outcome in parts.items() if "skipped" in outcome] == ON_GPU
    assert all(outcome["result"] for name, outcome in parts.items() if name not in ON_GPU)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": {")[0] for line in lines] == list(PARTS)


def test_a_part_that_fails_is_recorded_and_stops_no_other(tmp_path, monkeypatch, capsys):
    def fail(check):
        raise RuntimeError("no such kernel\nand a long explanation")

    monkeypatch.setenv("OUT", str(tmp_path / "new" / "folder"))
    monkeypatch.setattr(check_gpu, "PARTS", {"first": fail, "second": lambda check: 7})
    assert check_gpu.main(["--cpu"]) == 1
    parts = json.loads((tmp_path / "new" / "folder" / "check_gpu.json").read_text())
    assert parts["first"]["failed"] == "RuntimeError: no such kernel"
    assert parts["second"]["result"] == 7


def test_gradients_that_are_wrong_on_the_device_are_a_failure(check, monkeypatch):
    right = check_gpu.loss_of

    def wrong(model, ids_bt):
        loss = right(model, ids_bt)
        return loss if loss.dtype == torch.float64 else loss + 0.01 * (loss - loss.detach())

    monkeypatch.setattr(check_gpu, "loss_of", wrong)
    with pytest.raises(Failed, match="standard, float32"):
        accuracy(check)


def test_times_are_of_each_kind_and_beside_the_standard_transformer(check):
    check.parts["machine"] = {"result": {"bfloat16_teraflops": 1e-3}}
    figures = steps(check, TINY, rounds=1)
    assert list(figures) == list(check_gpu.KINDS)
    assert figures["standard"]["over_standard"] == 1
    for figure in figures.values():
        assert figure["milliseconds"] > 0
        assert figure["share_of_the_products_speed"] > 0


def test_a_machine_without_a_gpu_is_told_of_the_option(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as error:
        check_gpu.main([])
    assert error.value.code == 2
    assert "--cpu" in capsys.readouterr().err
