"""Published worked examples, and what must hold of any differences."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from pipelines.comparison.statistics import (
    Paired,
    geometric_mean,
    holm,
    look_level,
    median_interval,
    paired,
    seeds_needed,
    sign_flip_floor,
    sign_flip_p,
)

SLEEP = [-1.2, -2.4, -1.3, -1.3, 0.0, -1.0, -1.8, -0.8, -4.6, -1.4]
"""Student 1908, The Probable Error of a Mean: hours of sleep gained with two drugs. The results are
those that R prints for its data set `sleep` with t.test(paired = TRUE)."""
MAIZE = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
"""Darwin's maize, Fisher 1935, The Design of Experiments, section 17: eighths of an inch."""


def test_students_sleep():
    found = paired(SLEEP)
    assert (found.n, found.mean) == (10, pytest.approx(-1.58))
    assert found.t == pytest.approx(-4.0621, abs=5e-5)
    assert found.p == pytest.approx(0.00283, abs=5e-6)
    interval = found.interval()
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((-2.4598858, -0.7001142), abs=1e-6)


def test_fishers_maize():
    """t = 2.148 on 14 degrees, and 1,726 of 32,768 choices of signs at least as far from 0."""
    found = paired(MAIZE)
    assert found.t == pytest.approx(2.148, abs=5e-4)
    assert found.sign_flip_p == 1726 / 32768


MULTTEST = [
    *(0.28282, 0.30688, 0.71022, 0.77175, 0.78180, 0.88581, 0.54685, 0.84978, 0.24228, 0.58977),
    *(0.03498, 0.41607, 0.31631, 0.05254, 0.45061, 0.75758, 0.12496, 0.49485, 0.21572, 0.50505),
    *(0.94372, 0.81260, 0.77596, 0.36889),
]
"""SAS/STAT User's Guide, The MULTTEST Procedure, example 5: column Raw."""


def test_holms_procedure_in_published_examples():
    """The column Stepdown Bonferroni of that table; and of Wikipedia's article on the method, where
    the first and the last hypothesis are rejected at 0.05."""
    assert [round(p, 4) for p in holm(MULTTEST)] == [1.0] * 10 + [0.8395] + [1.0] * 13
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_an_arm_without_a_test_counts_as_one_and_has_no_adjusted_p():
    assert holm([0.01, None, 0.02]) == [pytest.approx(0.03), None, pytest.approx(0.04)]


@pytest.mark.parametrize("n", [1, 2, 5, 8, 9])
def test_sign_flips_are_those_of_an_enumeration(n):
    for values in (np.random.default_rng(n).normal(0.5, 1, n), np.full(n, 0.1), np.zeros(n)):
        sums = [np.dot(signs, values) for signs in itertools.product((1, -1), repeat=n)]
        extreme = sum(abs(s) >= abs(values.sum()) - 1e-9 for s in sums)
        assert sign_flip_p(values) == extreme / 2**n


def test_the_floor_of_the_sign_flip_test():
    assert sign_flip_p([0.3, 0.4, 0.1, 0.2, 0.7]) == sign_flip_floor(5) == 0.0625
    assert 5 * sign_flip_floor(8) <= 0.05 < 5 * sign_flip_floor(7)  # arms of Holm's first step
    assert 11 * sign_flip_floor(9) <= 0.05 < 11 * sign_flip_floor(8)
    assert sign_flip_p([]) is sign_flip_p([0.1] * 31) is None
    assert sign_flip_p([1.0, -1.0] * 15) == 1.0


def test_few_and_equal_differences():
    assert paired([]) == Paired(0)
    assert paired([0.5]) == Paired(1, 0.5)
    assert paired([0.5]).t is paired([0.5]).interval() is None
    same = paired([0.1] * 3)
    assert (same.t, same.p, same.sign_flip_p) == (math.inf, 0.0, 0.25)
    assert paired([-0.1] * 3).t == -math.inf
    assert (paired([0.0] * 3).t, paired([0.0] * 3).p) == (0.0, 1.0)


def test_the_simultaneous_interval_is_that_of_a_smaller_level():
    one, five = paired(SLEEP).interval(), paired(SLEEP).interval(5)
    low, high = stats.t.interval(0.99, 9, np.mean(SLEEP), stats.sem(SLEEP))
    assert one is not None and five is not None
    assert (five.low, five.high) == pytest.approx((low, high))
    assert five.low < one.low


def test_the_levels_of_all_looks_add_up_to_the_whole():
    assert [look_level(n) for n in (1, 2, 3)] == pytest.approx([0.04, 0.005, 0.0025])
    assert sum(look_level(n) for n in range(1, 40)) == pytest.approx(0.05)
    assert [look_level(n, single=True) for n in (1, 2)] == [0.05, 0.0]


def test_seeds_for_a_difference_of_half_a_standard_deviation():
    """34 pairs: the sample size of a two-sided paired t-test in Cohen's tables and G*Power."""
    surely = 10**6  # pairs, of which the standard deviation is known
    assert seeds_needed(1.0, surely, 0.5) == 34
    assert seeds_needed(1.0, surely, 0.5, level=0.01) > 45
    assert seeds_needed(0.0, 5, 0.5) == 2


def test_seeds_are_planned_with_the_upper_bound_of_the_standard_deviation():
    """Which covers the true one in 80 % of samples of 5."""
    bound = math.sqrt(4 / stats.chi2.ppf(0.2, 4))
    assert seeds_needed(1.0, 5, 0.5) == seeds_needed(bound, 10**7, 0.5) > 70
    samples = np.random.default_rng(0).normal(size=(4000, 5))
    assert np.mean(samples.std(axis=1, ddof=1) * bound > 1) == pytest.approx(0.8, abs=0.02)


def test_more_seeds_than_anyone_can_train_are_not_counted():
    assert seeds_needed(0.1, 5, 1e-6) is not None
    for difference in (1e-7, 1e-200):
        assert seeds_needed(1.0, 5, difference) is None


def test_the_level_of_a_late_look_is_not_rounded_away():
    levels = [look_level(look) for look in (40, 50, 60)]
    needed = [seeds_needed(1.0, 10**7, 0.5, level) for level in levels]
    assert needed == sorted(needed) and needed[-1] < 1000
    assert seeds_needed(1.0, 10**7, 0.5, look_level(2000)) is None


def test_of_pairs_that_differ_by_rounding_only_two_are_enough():
    for sd in (1e-5, 1e-8, 1e-12, 1e-300):
        assert seeds_needed(sd, 5, 0.01) == 2, sd
    assert seeds_needed(1e-12, 5, 0.01, level=1e-300) is not None


def test_the_seeds_needed_have_the_power_promised():
    n = seeds_needed(0.02, 10**6, 0.01, level=0.04)
    rng = np.random.default_rng(0)
    powers = [
        np.mean(stats.ttest_1samp(rng.normal(0.01, 0.02, (4000, k)), 0, axis=1).pvalue <= 0.04)
        for k in (n - 3, n, n + 3)
    ]
    assert powers[0] < 0.8 < powers[2]
    assert powers[1] == pytest.approx(0.8, abs=0.02)


def test_the_geometric_mean_of_ratios():
    mean, interval = geometric_mean([0.5, 2.0])
    assert mean == pytest.approx(1.0)
    assert interval is not None and interval.low * interval.high == pytest.approx(1.0)
    assert geometric_mean([0.7]) == (pytest.approx(0.7), None)


@pytest.mark.parametrize("n", [6, 9, 10, 20])
def test_the_interval_of_a_median_is_that_of_scipy(n):
    values = list(np.random.default_rng(n).normal(size=n))
    median, interval = median_interval(values)
    expected = stats.quantile_test(values, p=0.5).confidence_interval(0.95)
    assert interval is not None
    assert (median, interval.low, interval.high) == (np.median(values), *expected)


def test_five_values_are_too_few_for_an_interval_of_their_median():
    assert median_interval([5.0, 1.0, 2.0, 4.0, 3.0]) == (3.0, None)
