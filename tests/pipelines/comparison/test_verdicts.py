"""Verdicts over seeds and looks; tests/benchmarks/test_studies.py simulates whole studies."""

import pytest

from pipelines.comparison.statistics import paired
from pipelines.comparison.verdicts import Difference, differences, pair

BASE = {seed: 2.0 + 0.01 * seed for seed in range(20)}
NOISE = [0.002, -0.001, 0.001, -0.003, 0.001, 0.002, -0.002, 0.0, 0.001, -0.001]


def shifted(by: float, seeds: int = 5, scale: float = 1.0) -> dict[int, float | None]:
    return {seed: BASE[seed] + by + scale * NOISE[seed % 10] for seed in range(seeds)}


def verdicts(found: dict[str, Difference]) -> dict[str, str]:
    return {name: difference.verdict for name, difference in found.items()}


def test_pairs_are_replicates_of_the_same_seed():
    arm = {0: 1.0, 1: None, 3: 1.5, 7: None, 9: 1.0}
    base = {0: 2.0, 1: 1.0, 2: 1.0, 3: 1.0, 7: None, 9: None}
    pairs = pair(arm, base)
    assert pairs.differences == (-1.0, 0.5)
    assert (pairs.arm_diverged, pairs.baseline_diverged) == (1, 1)
    assert pair(arm, base, [3]).differences == (0.5,)


def test_each_arm_has_its_verdict():
    arms = {"good": shifted(-0.05), "bad": shifted(0.05), "same": shifted(0.0005)}
    found = differences(arms, BASE, [range(5)])
    assert verdicts(found) == {"good": "better", "bad": "worse", "same": "undecided"}
    assert [one.decided_at for one in found.values()] == [1, 1, None]
    assert found["good"].paired.mean == pytest.approx(-0.05)


def test_holm_over_the_arms_decides_and_not_each_test_alone():
    near = shifted(-0.0028)
    p = paired(pair(near, BASE).differences).p
    assert p is not None and 0.01 < p < 0.04
    assert verdicts(differences({"near": near}, BASE, [range(5)]))["near"] == "better"
    arms = {"near": near, **{str(n): shifted(0.0005) for n in range(5)}}
    assert verdicts(differences(arms, BASE, [range(5)]))["near"] == "undecided"


def test_an_arm_that_diverges_where_the_baseline_does_not_is_never_better():
    arm = shifted(-0.05, 8) | {3: None}
    assert verdicts(differences({"arm": arm}, BASE, [range(8)])) == {"arm": "undecided"}
    both = dict(BASE) | {3: None}
    assert verdicts(differences({"arm": arm}, both, [range(8)])) == {"arm": "better"}
    arm = shifted(0.05, 8) | {3: None}
    assert verdicts(differences({"arm": arm}, BASE, [range(8)])) == {"arm": "worse"}
    steady = shifted(0.05, 8)
    assert verdicts(differences({"arm": steady}, both, [range(8)])) == {"arm": "undecided"}


def test_a_divergence_among_added_seeds_takes_better_back():
    arm = shifted(-0.05, 10)
    looks = [range(5), range(10)]
    assert verdicts(differences({"arm": arm}, BASE, looks)) == {"arm": "better"}
    assert verdicts(differences({"arm": arm | {7: None}}, BASE, looks)) == {"arm": "undecided"}


def test_added_seeds_are_judged_at_what_is_left_of_the_level():
    arm = shifted(-0.002, 10)
    arm[0] = BASE[0] + 0.002
    tests = [paired(pair(arm, BASE, range(n)).differences).p for n in (5, 10)]
    assert tests[0] > 0.05 and 0.005 < tests[1] < 0.04
    assert verdicts(differences({"arm": arm}, BASE, [range(10)])) == {"arm": "better"}
    found = differences({"arm": arm}, BASE, [range(5), range(10)])
    assert verdicts(found) == {"arm": "undecided"}
    found = differences({"arm": arm}, BASE, [range(5), range(10)], single_look=True)
    assert verdicts(found) == {"arm": "undecided"}


def test_unless_one_look_was_promised_an_extension_can_decide():
    arm = shifted(-0.05, seeds=10) | {0: BASE[0] + 0.07}  # five seeds are too noisy
    looks = [range(5), range(10)]
    assert verdicts(differences({"arm": arm}, BASE, looks[:1])) == {"arm": "undecided"}
    arm |= {seed: BASE[seed] - 0.09 for seed in range(5, 20)}
    looks = [range(5), range(20)]
    assert verdicts(differences({"arm": arm}, BASE, looks)) == {"arm": "better"}
    once = differences({"arm": arm}, BASE, looks, single_look=True)
    assert verdicts(once) == {"arm": "undecided"}


def test_a_verdict_stays_unless_the_added_seeds_contradict_it():
    arm = shifted(-0.003, 10)
    arm |= {seed: BASE[seed] - 0.001 * (seed % 2) for seed in range(5, 10)}
    first, second = ([range(5)], [range(5), range(10)])
    assert differences({"arm": arm}, BASE, first)["arm"].decided_at == 1
    found = differences({"arm": arm}, BASE, second)["arm"]
    assert found.holm_p is not None and 0.005 < found.holm_p < 0.05
    assert (found.verdict, found.decided_at) == ("better", 1)
    arm |= {seed: BASE[seed] + 0.003 for seed in range(5, 10)}
    found = differences({"arm": arm}, BASE, second)["arm"]
    assert (found.verdict, found.decided_at) == ("undecided", None)


def test_without_pairs_nothing_is_decided():
    found = differences({"arm": {0: 1.0}, "none": {7: None}}, {0: 2.0, 7: None}, [[0, 7]])
    assert verdicts(found) == {"arm": "undecided", "none": "undecided"}
    assert (found["arm"].paired.n, found["none"].paired.n) == (1, 0)
