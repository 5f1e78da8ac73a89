import math

import pytest

from pipelines.comparison.time_to_quality import (
    Curve,
    TimeToQuality,
    learning_rates,
    running_median,
    share_of_tokens,
    time_to_quality,
)
from pipelines.comparison.values import Interval

TOKENS = range(100, 1100, 100)
BASE = Curve(TOKENS, [4.0, 3.5, 3.2, 3.0, 2.8, 2.7, 2.6, 2.55, 2.52, 2.5])


def lower(by: float) -> Curve:
    return Curve(TOKENS, [bits - by for bits in BASE.bits])


def test_a_curve_reaches_its_own_end_at_its_end():
    assert share_of_tokens(BASE, BASE) == 1.0


def test_the_first_tokens_with_that_quality_lie_between_two_evaluations():
    assert share_of_tokens(lower(0.1), BASE) == pytest.approx(0.7)  # 2.5 at 700 of 1,000 tokens
    assert share_of_tokens(lower(0.15), BASE) == pytest.approx(0.65)  # 2.55 and 2.45 around it
    assert share_of_tokens(lower(-0.01), BASE) is None
    assert share_of_tokens(lower(9.0), BASE) == 0.1  # at the first evaluation


def test_tokens_are_a_share_of_the_other_curves():
    shorter = Curve(range(50, 550, 50), BASE.bits)
    assert share_of_tokens(shorter, BASE) == 0.5


def test_an_evaluation_before_training_reaches_nothing():
    flat = Curve([0, 100, 200], [2.0, 2.0, 2.0])
    assert share_of_tokens(flat, flat) == 0.5


def test_a_single_low_evaluation_is_smoothed_away():
    bits = list(BASE.bits)
    bits[3] = 2.0
    assert share_of_tokens(Curve(TOKENS, bits), BASE) == 1.0
    assert list(running_median([3, 1, 2, 9, 0])) == [3, 2, 2, 2, 0]
    assert list(running_median([2, 1])) == [2, 1]


def test_the_mean_over_pairs_is_geometric_and_has_an_interval():
    halves = Curve(range(50, 550, 50), BASE.bits)
    found = time_to_quality([(halves, BASE), (BASE, halves)])
    assert (found.pairs, found.reached, found.share) == (2, 2, pytest.approx(1.0))
    assert found.interval is not None
    assert found.interval.low * found.interval.high == pytest.approx(1)
    assert time_to_quality([(halves, BASE)]) == TimeToQuality(1, 1, False, pytest.approx(0.5))


def test_no_mean_unless_all_pairs_reach_the_quality():
    found = time_to_quality([(lower(0.1), BASE), (lower(-0.1), BASE)])
    assert found == TimeToQuality(2, 1)
    assert found.times(2.0) == found


def test_of_an_arm_that_is_worse_the_baseline_is_timed():
    found = time_to_quality([(lower(-0.1), BASE)], reverse=True)
    assert found == TimeToQuality(1, 1, True, pytest.approx(0.7))


def test_the_share_of_the_time_takes_the_step_time():
    halves = Curve(range(50, 550, 50), BASE.bits)
    found = time_to_quality([(halves, BASE), (BASE, BASE)]).times(1.5)
    assert found.share == pytest.approx(1.5 * math.sqrt(0.5))
    assert found.interval is not None
    assert math.sqrt(found.interval.low * found.interval.high) == pytest.approx(found.share)


def test_the_interval_of_the_time_has_the_errors_of_tokens_and_of_step_time():
    tokens = TimeToQuality(5, 5, False, 0.88, Interval(0.88 * math.exp(-0.3), 0.88 * math.exp(0.6)))
    found = tokens.times(1.11, Interval(1.11 * math.exp(-0.4), 1.11 * math.exp(0.8)))
    assert found.share == pytest.approx(0.88 * 1.11)
    assert found.interval is not None
    ends = (math.log(found.interval.low / found.share), math.log(found.interval.high / found.share))
    assert ends == pytest.approx((-0.5, 1.0))  # 3, 4, 5


def test_without_an_interval_of_either_there_is_that_of_the_other_or_none():
    tokens = TimeToQuality(5, 5, False, 0.5, Interval(0.4, 0.6))
    assert tokens.times(2.0).interval == Interval(pytest.approx(0.8), pytest.approx(1.2))
    assert TimeToQuality(1, 1, False, 0.5).times(2.0, Interval(1.0, 4.0)).interval is None


def test_the_curve_over_learning_rates():
    trials = [(4e-3, 2.3), (1e-3, 2.5), (2e-3, 2.2), (8e-3, None), (16e-3, 9.5), (1e-3, 2.4)]
    found = learning_rates(trials, bits_at_start=8.0)
    assert found is not None
    assert found.rates == (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)
    assert found.bits == (2.4, 2.2, 2.3, None, 9.5)
    assert (found.best_rate, found.at_end) == (2e-3, None)
    assert found.sensitivity == pytest.approx((0.2 + 0.0 + 0.1 + 5.8 + 5.8) / 5)


def test_a_best_rate_at_an_end_is_marked():
    ends = [
        learning_rates(trials, 8.0)
        for trials in ([(1.0, 2.0), (2.0, 3.0)], [(1.0, 3.0), (2.0, 2.0)], [(1.0, 2.0)])
    ]
    assert [found and found.at_end for found in ends] == ["lowest", "highest", None]


def test_there_is_no_curve_without_a_value():
    assert learning_rates([(1.0, None), (2.0, math.nan)], 8.0) is None
    assert learning_rates([], 8.0) is None
