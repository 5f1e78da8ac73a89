"""A study as it is stored, and beside another baseline."""

import json

import pytest

from pipelines.comparison.values import Interval, Ratio
from pipelines.engine.results import from_json, to_json
from pipelines.reporting.studies.screen import settling_lines, table_lines
from pipelines.reporting.studies.study import Study
from tests.pipelines.reporting.studies.made import CLOSE, DCA, STANDARD, arm, study

FOUND = study(STANDARD, CLOSE, DCA, token_seconds=0.01)
FIND = "find a difference of 0.01 with a probability of 80 %"
NOISY = Ratio(1.2, Interval(0.7, 1.3))
TIMES = (
    "times     step times (b) are too noisy to compare costs in time: 9 turns each; the report "
    "has the commands that measure again"
)


def test_it_is_stored_with_all_that_was_measured():
    stored = from_json(Study, json.dumps(to_json(FOUND)))
    assert stored is not None
    assert to_json(stored) == to_json(FOUND)
    assert (stored.comparison, stored.looks) == (FOUND.comparison, FOUND.looks)


def test_the_arms_are_ordered_from_the_best_to_the_worst_behind_the_baseline():
    assert [row.arm for row in FOUND.ordered_rows] == ["standard", "dca", "close"]
    gone = arm("gone", 0, bits={}, curves={})
    assert [one.name for one in study(STANDARD, gone, DCA).others] == ["dca", "gone"]


def test_another_baseline_has_the_opposite_verdict_and_its_own_time():
    other = FOUND.against("dca")
    assert other.comparison.baseline == "dca"
    rows = {row.arm: row for row in other.comparison.rows}
    assert rows["standard"].difference is not None
    assert rows["standard"].difference.verdict == "worse"
    assert rows["standard"].difference.paired.mean == pytest.approx(0.1)
    times = {name: row.step_time for name, row in rows.items()}
    assert times["dca"] == Ratio(1.0)
    assert times["standard"] == Ratio(1 / 1.25, Interval(1 / 1.375, 1 / 1.125))
    assert times["close"] is not None
    assert times["close"].interval is not None
    ends = (times["close"].interval.low, times["close"].interval.high)
    assert ends == pytest.approx((0.99 / 1.375, 1.21 / 1.125))
    seconds = [[one.seconds_of_token(arm) for arm in one.arms] for one in (FOUND, other)]
    assert seconds[1] == pytest.approx(seconds[0])
    assert (
        other.against("standard").comparison.rows[2].difference
        == FOUND.comparison.rows[2].difference
    )


def test_without_a_probe_another_baseline_has_no_times_either():
    found = study(arm("a", 0), arm("b", 0.1)).against("b")
    assert found.token_seconds is None
    assert {row.step_time for row in found.comparison.rows} == {None}


def test_promised_to_be_single_a_look_is_so_beside_another_baseline_too():
    once = study(STANDARD, DCA, single_look=True)
    assert once.against("dca").comparison.level == 0.05


def test_the_screen_has_the_arms_beside_the_baseline():
    first, heads, *rows = table_lines(FOUND)
    assert first == "bits per byte of the test split beside standard"
    assert [line.split()[0] for line in rows] == ["standard", "dca", "close"]
    for name in ("verdict", "difference (95 %)", "Holm p", "step time"):
        assert all(line[heads.index(name) - 2 :].startswith("  ") for line in rows)
    assert rows[1][heads.index("verdict") :].startswith("better")
    assert rows[1][heads.index("step time") :].startswith("1.25 (1.12 to 1.38)")
    assert "sd" not in heads


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (FOUND, [f"settle    the same command with seeds=11 would {FIND}"]),
        (study(STANDARD, arm("b", 0.1, 1.2, step_time=NOISY)), [TIMES]),
        (study(STANDARD, DCA), []),
        (study(STANDARD, CLOSE, single_look=True), []),
        (study(STANDARD, CLOSE, smallest_difference=1.0), []),
    ],
)
def test_the_screen_says_what_more_seeds_would_find_and_what_is_too_noisy(
    experiment, found, wanted
):
    assert settling_lines(found, experiment) == wanted
    tiny = experiment.replace({"experiment": "a-smoke"})  # has two seeds, whatever is given
    assert settling_lines(found, tiny) == []
