import numpy as np
import pytest

from pipelines.registry.score import Score, block_edges
from pipelines.registry.statistics import paired_gain, spending_text, spent_confidence


def scores(text_bytes: int, *bits_per_byte: float, noise: float = 0.0) -> list[Score]:
    """Scores of models on one text, with independent noise of each block."""
    rng, edges = np.random.default_rng(1), np.diff(block_edges(text_bytes))
    blocks = [edges * (bits + noise * rng.normal(size=len(edges))) for bits in bits_per_byte]
    return [Score(found.tolist(), text_bytes, 8, 8, 1, 1.0, 1.0) for found in blocks]


def test_the_bound_is_below_the_true_gain_at_its_confidence():
    """Gains of 0, above it in 5 %: 12 to 28 of 400. benchmarks/gate.py has correlated blocks."""
    rng, edges = np.random.default_rng(0), np.diff(block_edges(400_000))
    above = 0
    for _ in range(400):
        mine, other = (
            Score((edges * rng.normal(2.0, 0.1, len(edges))).tolist(), 400_000, 8, 8, 1, 1.0, 1.0)
            for _ in range(2)
        )
        above += paired_gain(mine, other).lower_bound(0.95) > 0
    assert 12 <= above <= 28


def test_a_gain_that_is_the_same_in_every_block_has_itself_as_bound():
    challenger, champion = scores(400_000, 1.5, 2.0)
    for gain, expected in (
        (paired_gain(challenger, champion), 0.5),
        (paired_gain(champion, challenger), -0.5),
    ):
        assert (gain.mean, gain.lower_bound(0.95)) == pytest.approx((expected, expected))


def test_the_same_scores_give_the_golden_bounds():
    """Another variance would decide otherwise about close versions."""
    gain = paired_gain(*scores(2001, 2.0, 2.0, noise=0.1))
    assert gain.mean == pytest.approx(0.00296763267386, rel=1e-9)
    for confidence, bound in ((0.9, -0.0266867799315), (0.95, -0.0370557323409)):
        assert gain.lower_bound(confidence) == pytest.approx(bound, rel=1e-9)


def test_what_must_be_gained_is_beyond_the_least_improvement():
    gain = paired_gain(*scores(2001, 2.0, 2.0, noise=0.1))
    assert "it must gain 2.3 standard errors, the" in spending_text(gain, 0.95, 1, 1, 0.0)
    text = spending_text(gain, 0.95, 1, 1, 0.01)
    assert "it must gain 2.3 standard errors more than 0.01, the next one 3.4" in text


def test_the_level_is_spent_over_any_number_of_challengers():
    """Of which the first few are all it is spent on."""
    levels = [1 - spent_confidence(0.95, number) for number in range(1, 20_001)]
    assert levels[:3] == pytest.approx([0.0303964, 0.0075991, 0.0033774], abs=1e-7)
    assert 0.04999 < sum(levels) < 0.05
    assert levels == sorted(levels, reverse=True)
