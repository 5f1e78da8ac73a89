"""How often studies of equal arms find a difference, in a smaller simulation than the benchmark."""

import sys

import pytest

from benchmarks import studies
from benchmarks.studies import rates


@pytest.mark.extended
@pytest.mark.slow
@pytest.mark.parametrize("kind", studies.RESIDUALS)
def test_equal_arms_are_seldom_found_different(kind):
    """Of 200 the share found has an error of 0.015. With 0.05 at each look 0.11 of the studies with
    normal results would be, and half of them without Holm too."""
    found = rates(kind, 200)
    assert 0.93 <= found.coverage <= 0.975
    assert found.at_once <= 0.075 and found.extended <= 0.075


@pytest.mark.faults
@pytest.mark.parametrize("kind", studies.RESIDUALS)
def test_two_thousand_studies_of_equal_arms(kind):
    found = rates(kind, 2000)
    assert 0.93 <= found.coverage <= 0.97
    assert found.at_once <= 0.06 and found.extended <= 0.06


def test_the_table_has_a_row_for_each_kind_of_residuals(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["studies.py", "--studies", "3"])
    studies.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[2:]] == ["normal", "skewed", "real"]
    assert {line.count("|") for line in lines} == {5}
