"""How often the gate promotes, in a simulation smaller than the benchmark's."""

import sys

import pytest

from benchmarks import gate
from benchmarks.gate import rates, standard_error


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.85])
def test_few_models_that_are_no_better_are_promoted_whatever_the_correlation_of_blocks(correlation):
    """Half of those that are two standard errors better. Of 2,000 the share found is within 0.015.

    Blocks that are taken as independent fail, which is printed beside.
    """
    found = rates(correlation, blocks=147, comparisons=2000)
    assert 0.04 <= found.false_promotions <= 0.07
    assert 0.5 <= found.power <= 0.6
    assert correlation == 0 or found.independent > 0.15


@pytest.mark.faults
@pytest.mark.parametrize("correlation", [c for c in gate.CORRELATIONS if c <= 0.85])
def test_the_gate_holds_its_confidence_in_four_thousand_comparisons(correlation):
    assert rates(correlation, blocks=147, comparisons=4000).false_promotions <= 0.065


def test_the_standard_error_of_blocks_without_correlation():
    assert standard_error(0.0, 100) == pytest.approx(0.1)
    assert standard_error(0.5, 2) == pytest.approx((1 / 0.75 * 1.5 / 2) ** 0.5)


def test_the_table_has_a_row_for_each_correlation(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gate.py", "--comparisons", "10", "--blocks", "20"])
    gate.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(gate.CORRELATIONS)
    assert {line.count("|") for line in lines} == {5}
