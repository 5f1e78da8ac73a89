"""How often studies of equal arms find a difference, in a smaller simulation than the benchmark."""

import sys

import pytest

from benchmarks import studies
from benchmarks.studies import rates


@pytest.mark.parametrize("kind", studies.RESIDUALS)
def test_equal_arms_are_seldom_found_different(kind):
    """Without Holm, or with 0.05 at each look, a sixth or more of the studies would be."""
    found = rates(kind, 40)
    assert 0.9 <= found.coverage <= 1
    assert found.at_once <= 0.1 and found.extended <= 0.1


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
