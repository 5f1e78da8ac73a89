import numpy as np
import pytest

from pipelines.registry import statistics
from pipelines.registry.score import Score, block_edges
from pipelines.registry.statistics import paired_gain


def test_the_bootstrap_covers_the_true_gain_at_its_confidence(monkeypatch):
    """Lower bounds of experiments whose gain is 0: above it in 5 %, that is 12 to 28 of 400."""
    monkeypatch.setattr(statistics, "RESAMPLES", 499)
    rng, edges = np.random.default_rng(0), np.diff(block_edges(400_000))
    above = 0
    for _ in range(400):
        mine, other = (
            Score((edges * rng.normal(2.0, 0.1, len(edges))).tolist(), 400_000, 1, 1.0, 1.0)
            for _ in range(2)
        )
        above += paired_gain(mine, other, 0.95).lower_bound > 0
    assert 12 <= above <= 28


def test_a_gain_that_is_the_same_in_every_block_has_itself_as_bound():
    edges = np.diff(block_edges(400_000))
    challenger, champion = (
        Score((edges * bits).tolist(), 400_000, 1, 1.0, 1.0) for bits in (1.5, 2.0)
    )
    assert paired_gain(challenger, champion, 0.95) == pytest.approx((0.5, 0.5))
    assert paired_gain(champion, challenger, 0.95) == pytest.approx((-0.5, -0.5))


def test_the_same_scores_give_the_golden_bounds():
    """Another number of resamples or seed would decide otherwise about close versions."""
    rng, edges = np.random.default_rng(1), np.diff(block_edges(2001))
    mine, other = (
        Score((edges * rng.normal(2, 0.1, len(edges))).tolist(), 2001, 1, 1.0, 1.0)
        for _ in range(2)
    )
    for confidence, bound in ((0.9, -0.0269588388687), (0.95, -0.0351306049856)):
        gain = paired_gain(mine, other, confidence)
        assert gain.mean == pytest.approx(0.00296763267386, rel=1e-9)
        assert gain.lower_bound == pytest.approx(bound, rel=1e-9)
