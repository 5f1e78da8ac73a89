"""The benchmark on a shape of seconds, without the packages that it compares with."""

import random
import re
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import model, streams
from benchmarks.gpu.mixing import mixing_tensors
from benchmarks.model import (
    FULL,
    ROWS,
    STANDARD,
    TWO,
    Bench,
    Case,
    Row,
    Shape,
    dca,
    median_interval,
)
from dca import build_model, registry

CPU = torch.device("cpu")
TINY = Shape(2, 32, seq_len=16, batch=2)


@pytest.fixture(autouse=True)
def nothing_extra(monkeypatch):
    """As where the extra packages are not installed."""
    for name in ("deep_cross_attention", "hyper_connections", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(model, "bandwidth", lambda device: (1e9, 1e9))
    return Bench(CPU, rounds=2)


def cells(table: str) -> list[dict[str, str]]:
    heads, _, *lines = [line.strip("| ").split(" | ") for line in table.splitlines()]
    return [dict(zip(heads, line, strict=True)) for line in lines]


@pytest.mark.slow
def test_every_row_has_its_figures_or_the_reason_why_not(bench):
    cases = [Case(row, TINY) for row in ROWS]
    bench.measure_steps(cases, slow=False)
    lines = {line["model"]: line for line in cells(bench.step_table(cases))}
    assert list(lines) == [str(row) for row in ROWS]
    for row in ROWS:
        line = lines[str(row)]
        if row.public:
            assert "pip install" in line["ms per step"]
        else:
            assert float(line["ms per step"].replace(",", "")) > 0
            assert (
                int(line["parameters"].replace(",", "")) == Case(row, TINY).config.parameter_count()
            )
    assert re.fullmatch(r"[\d.]+ \[[\d.]+, [\d.]+\]", lines["2-DCA"]["standard = 1"])
    assert lines["standard"]["standard = 1"] == lines["2-DCA"]["public = 1"] == "-"


def test_a_row_that_fails_is_printed_with_its_reason_and_stops_no_other(bench, monkeypatch):
    step = model.Trainee.step

    def fail(trainee):
        if trainee.model.config.residual == "dca":
            raise RuntimeError("no | such kernel\nand a long explanation")
        step(trainee)

    monkeypatch.setattr(model.Trainee, "step", fail)
    cases = [Case(STANDARD, TINY), Case(TWO, TINY)]
    bench.measure_steps(cases, slow=False)
    good, bad = cells(bench.step_table(cases))
    assert float(good["ms per step"].replace(",", "")) > 0
    assert bad["ms per step"] == "failed: RuntimeError: no / such kernel"


def test_the_row_that_compiles_for_many_minutes_is_left_out_in_words(bench):
    case = Case(FULL.theirs(), Shape(24, 32), "compiled")
    bench.measure_steps([case], slow=False)
    assert "left out" in bench.step_table([case])


@pytest.mark.extended
@pytest.mark.process
def test_peak_memory_is_that_of_a_fresh_process(bench):
    case = Case(TWO, Shape(2, 256, seq_len=64, batch=4))
    bench.measure_peaks([case, Case(TWO, TINY, "compiled")])
    weights = 4 * case.config.parameter_count()
    assert 3 * weights < bench.peaks[case] < 40 * weights
    assert len(bench.peaks) == 1  # a compiler's memory is not the model's


def test_generation_is_timed_and_names_what_is_not_installed(bench):
    bench.measure_generation(TINY, prompt=3, new=4)
    ours, public, llama = cells(bench.generation_table(TINY, 4))
    assert float(ours["tokens/s"].replace(",", "")) > 0
    assert "pip install" in public["tokens/s"]
    assert "pip install" in llama["tokens/s"]


def test_what_recomputes_everything_takes_part_in_the_first_rounds_only(bench):
    bench.rounds = model.SLOW_ROUNDS + 2
    bench.alternate({model.CACHED: int, model.UNCACHED: int})
    assert len(bench.seconds[model.CACHED]) == bench.rounds
    assert len(bench.seconds[model.UNCACHED]) == model.SLOW_ROUNDS


def test_speeds_are_paired_by_round(bench):
    slow, fast = Case(TWO, TINY), Case(STANDARD, TINY)
    bench.seconds = {slow: [2.0, 20.0, 200.0], fast: [1.0, 10.0, 100.0]}
    assert bench.speed(slow, fast) == "0.50 [0.50, 0.50]"


@pytest.mark.parametrize(("n", "rank"), [(5, 0), (6, 0), (15, 3), (101, 40)])
def test_the_interval_of_the_median_is_the_textbooks(n, rank):
    values = random.Random(0).sample(range(n), n)
    assert median_interval(values) == ((n - 1) / 2, rank, n - 1 - rank)


def test_mixing_moves_what_a_count_by_hand_says():
    plain = mixing_tensors(Case(STANDARD, Shape(2, 32)).config)
    assert plain == 2 * (3 + 3)
    # stacks of 1, 2, 3, 4 (the input, the sum, one kept... all of k = 2), then the output's
    block = {n: (n + 3) + (3 + 3 * n) for n in (1, 2, 3, 4)}
    output = (4 + 1) + (1 + 3 * 4)
    two = mixing_tensors(Case(TWO, Shape(5, 32)).config)
    assert two == block[1] + block[2] + block[3] + 2 * block[4] + output + 2 * 3


def test_a_row_of_two_groups_is_paired_with_the_rounds_of_the_last(bench):
    plain, other = Case(STANDARD, TINY), Case(dca(1), TINY)
    bench.seconds[plain] = [1e9, 1e9]
    bench.measure_steps([plain, other], slow=False)
    assert len(bench.seconds[plain]) == len(bench.seconds[other]) == bench.rounds
    assert float(bench.speed(other, plain).split()[0]) < 1000


def test_every_residual_kind_has_a_row_beside_our_standard():
    groups = model.zoo_groups(torch.device("cpu"))
    assert all(group[0] == STANDARD for group in groups)
    rows = [row for group in groups[:-1] for row in group[1:]] + ROWS
    assert {row.residual for row in rows} == set(registry.residual.names)
    assert len({str(row) for row in rows}) == len(rows)
    assert all(Case(row, TINY).config.residual == row.residual for row in rows)


@pytest.mark.parametrize("kind", streams.KINDS)
def test_a_kind_of_a_package_is_in_a_group_with_ours(kind):
    groups = [{str(row) for row in group} for group in model.zoo_groups(torch.device("cpu"))]
    assert [f"public {kind}" in group for group in groups] == [*(len(groups) - 1) * [False], True]
    assert kind in groups[-1]
    with pytest.raises(model.LeftOut, match="no package hyper_connections"):
        Case(Row(kind).theirs(), TINY).build()


class Connections(torch.nn.Module):
    """In the place of the package's: the plain residual sum."""

    def __init__(self, num_residual_streams, *, dim, layer_index, num_fracs=1):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def width_connection(self, x_btd):
        return x_btd, x_btd, {"scale": self.scale}

    def depth_connection(self, y_btd, x_btd, *, scale):
        return x_btd + scale * y_btd


def test_between_our_sublayers_are_the_package_s_connections(monkeypatch):
    package = SimpleNamespace(
        HyperConnections=Connections,
        mHC=Connections,
        get_expand_reduce_stream_functions=lambda streams: (torch.nn.Identity(),) * 2,
    )
    monkeypatch.setitem(sys.modules, "hyper_connections", package)
    ids = torch.randint(256, (2, 8), generator=torch.Generator().manual_seed(0))
    plain = build_model(Case(STANDARD, TINY).config, generator=torch.Generator().manual_seed(0))
    for kind in streams.KINDS:
        theirs = Case(Row(kind).theirs(), TINY).build()
        torch.testing.assert_close(theirs(ids), plain(ids))
        extra = sum(x.numel() for x in theirs.parameters()) - plain.config.parameter_count()
        assert extra == 2 * TINY.depth


def test_shapes_are_read_as_they_are_written():
    assert Shape.parse("24x512").tokens == Shape.parse("6x512").tokens == 1024
    assert Shape.parse("2x32x16x2") == TINY
    assert str(dca(1).theirs()) == "public 1-DCA"
