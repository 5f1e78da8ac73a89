"""The check of a GPU: its parts on the CPU, and what it does with one that fails."""

import json
import os
import shutil
import subprocess
import sys
from math import sqrt
from statistics import mean, variance

import pytest
import torch

from benchmarks import check_gpu
from benchmarks.check_gpu import PARTS, ROOT, TINY, accuracy
from benchmarks.gpu import check as shared
from benchmarks.gpu import curves, kernels, steps
from benchmarks.gpu.check import KINDS, Check, Failed
from dca import kernels as compiled
from dca import mix

ON_GPU = ["steps, compiled, 24x512", "steps, compiled, 24x1024"]
"""Parts that a CPU cannot try."""
NOT_THERE = ["pydantic", "ray", "mlflow", "optuna", "ruamel", "yaml", "psutil", "pandas", "pytest"]
"""What a machine that only checks its GPU need not have."""


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


BARE = f"""
import sys
for name in {NOT_THERE}:
    sys.modules[name] = None  # which no import finds
import torch
torch.set_num_threads(1)
from benchmarks.check_gpu import PARTS, main
from benchmarks.gpu.check import FEW
PARTS["steps, eager, 24x1024"].keywords["kinds"] = FEW
PARTS["steps, eager, 24x512"].keywords["rounds"] = 1
sys.exit(main(["--cpu"]))
"""
"""Of all kinds it times steps once, in one round: on a CPU, models of each size are as small, and
their times are of no interest."""


@pytest.mark.process
def test_every_part_has_figures_or_needs_a_gpu_where_little_is_installed(tmp_path):
    environment = os.environ | {"OUT": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", BARE], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    parts = json.loads((tmp_path / "check_gpu.json").read_text())
    assert list(parts) == list(PARTS)
    assert [name for name, outcome in parts.items() if "skipped" in outcome] == ON_GPU
    assert all(outcome["result"] for name, outcome in parts.items() if name not in ON_GPU)
    assert [line.split(": {")[0] for line in done.stdout.splitlines()] == list(PARTS)
    profiled = (tmp_path / "profile.txt").read_text().splitlines()
    assert profiled == parts["profile of a step, 2-DCA, 24x512"]["result"]


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
    check.parts["machine"] = {
        "result": {"bfloat16_teraflops": 1e-3, "copy_terabytes_per_second": 1e-3}
    }
    kinds = ("standard", "2-DCA", "full DCA", "laurel", "frac")
    figures = steps.steps(check, TINY, rounds=1, kinds=kinds)
    assert tuple(figures) == kinds
    assert figures["standard"]["over_standard"] == 1
    for kind, figure in figures.items():
        assert figure["milliseconds"] > 0
        assert figure["share_of_the_products_speed"] > 0
        copying = figure.get("mixing_milliseconds_of_copying_as_much", 0)
        assert (copying > 0) == (kind in ("2-DCA", "full DCA"))


def test_each_kind_is_timed_once_in_a_group_with_the_standard_transformer():
    groups = [*steps.groups_of([*KINDS])]
    assert all(group[0] == "standard" and len(group) <= 4 for group in groups)
    assert [kind for group in groups for kind in group[1:]] == [*KINDS][1:]


def test_parts_that_no_time_is_left_for_do_not_begin(check):
    check.started -= shared.LIMIT_SECONDS
    check.run("late", lambda check: 7)
    assert "seconds are over" in check.parts["late"]["skipped"]


def test_a_number_of_a_tensor_that_the_host_reads_is_a_wait(check, monkeypatch):
    right = shared.Trainee.step

    def reading(trainee, *given):
        loss = right(trainee, *given)
        return loss if loss > 0 else -loss

    assert set(steps.host_waits(check).values()) == {"none"}
    monkeypatch.setattr(shared.Trainee, "step", reading)
    with pytest.raises(RuntimeError, match="reads a number"):
        steps.host_waits(check)


def test_more_memory_than_by_the_formula_is_a_failure(check, monkeypatch):
    monkeypatch.setattr(Check, "on_gpu", True)
    for name in ("reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 0)
    monkeypatch.setattr(steps, "DEEP", TINY)
    monkeypatch.setattr(steps, "KINDS", ("standard",))
    peak = steps.peak_bytes(steps._as_training(TINY, "standard"), on_gpu=True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: round(1.2 * peak))
    assert steps.memory(check)["standard"]["over_formula"] == pytest.approx(1.2)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: round(1.3 * peak))
    with pytest.raises(Failed, match=r"standard.*1\.3"):
        steps.memory(check)


@pytest.fixture
def with_kernels() -> None:
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")


def test_cases_are_of_all_sizes_types_and_kinds():
    drawn = kernels.cases()[len(kernels.CORNERS) :]
    assert len(drawn) == 60
    assert kernels.cases() == kernels.cases()
    assert min(case.n for case in drawn) < 6
    assert max(case.n for case in drawn) > 55
    assert {64, 2048} <= {case.d for case in kernels.CORNERS}
    assert any(case.d & (case.d - 1) for case in drawn)
    for sums, most in ((False, 3), (True, 5)):
        own = [case for case in drawn if case.sums == sums]
        assert {case.outputs for case in own} == {*range(1, most + 1)}
        assert len({(case.first, case.others) for case in own}) == 4


def test_kernels_that_leave_out_a_result_are_found(check, monkeypatch, with_kernels):
    """Memory that was used before often holds the right numbers, and zeros often pass for them."""
    right = compiled.mix_forward

    def forgetting(*given, **how):
        skip, normed, saved = right(*given, **how)
        return skip, [*normed[:-1], torch.empty_like(normed[-1])], saved

    case = kernels.Case(5, 64, 3, 3)
    assert kernels.worst(case, check.device, 0)[0] < 1
    monkeypatch.setattr(compiled, "mix_forward", forgetting)
    assert kernels.worst(case, check.device, 0)[0] == float("inf")
    monkeypatch.setattr(kernels, "cases", lambda: [case])
    with pytest.raises(Failed, match="1 of 1 cases: inf"):
        kernels.kernels(check)


@pytest.mark.parametrize("sums", [False, True])
def test_kernels_whose_gradient_is_wrong_are_found(check, monkeypatch, with_kernels, sums):
    name = "sums_backward" if sums else "mix_backward"
    right = getattr(compiled, name)

    def wrong(*given, **how):
        found = right(*given, **how)
        given[8][0].mul_(1.001)  # of an entry
        return found

    case = kernels.Case(5, 64, 3, 3, groups=1 if sums else None)
    monkeypatch.setattr(compiled, name, wrong)
    assert kernels.worst(case, check.device, 0)[0] > 1


def test_a_case_that_no_kernel_takes_is_not_compared_with_itself(check, monkeypatch):
    monkeypatch.setattr(mix, "_module", lambda *_: None)
    with pytest.raises(shared.Skipped, match="no kernel takes"):
        kernels.worst(kernels.Case(5, 64, 3, 3), check.device, 0)


def test_a_curve_that_is_not_the_cpus_is_a_failure(check, monkeypatch):
    stored = json.loads(curves.FILE.read_text())
    assert stored["curves"].keys() == set(curves.KINDS)
    for seeds in stored["curves"].values():
        assert len(seeds) == curves.SEEDS
        assert {len(points) for points in seeds} == {curves.STEPS // curves.WINDOW}
    seeds = stored["curves"]["2-DCA"]
    spread = sqrt(mean(variance(points) for points in zip(*seeds, strict=True)))
    cases = {0.9: True, 1.1: False, float("nan"): False}
    for distance, equal in cases.items():
        found = [point + distance * spread for point in seeds[0]]
        assert equal == curve_passes(check, monkeypatch, found)
    once = [seeds[0][0] + 2.9 * spread, *seeds[0][1:]]
    assert curve_passes(check, monkeypatch, once)
    once[0] = seeds[0][0] + 3.1 * spread
    assert not curve_passes(check, monkeypatch, once)


def curve_passes(check, monkeypatch, found: list[float]) -> bool:
    monkeypatch.setattr(curves, "curve", lambda *_, **__: found)
    try:
        return "2-DCA, float32" in curves.curves(check)
    except Failed as error:
        assert "not the curve of curves.json: 2-DCA, float32" in str(error)
        return False


def test_a_machine_without_a_gpu_is_told_of_the_option(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as error:
        check_gpu.main([])
    assert error.value.code == 2
    assert "--cpu" in capsys.readouterr().err
