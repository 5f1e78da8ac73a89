"""What the benchmark of the orchestration computes from times."""

import pytest

from benchmarks.sweep import between


def test_the_time_between_trials_is_that_of_the_slot_that_was_free_first():
    spans = [(0.0, 10.0), (0.5, 10.5), (10.9, 20.0), (11.4, 21.0), (20.5, 30.0)]
    assert between(spans, slots=2) == pytest.approx([0.9, 0.9, 0.5])
    assert between(spans[:2], slots=2) == []
