"""The table of a study, its sentences and its files."""

import csv
import io
import json
from dataclasses import replace
from typing import Any

from pipelines.comparison.table import Arm, Comparison, Row, compare, is_noisy
from pipelines.comparison.text import (
    COLUMNS,
    arm_sentence,
    columns,
    sentence,
    to_csv,
    to_json,
    to_markdown,
)
from pipelines.comparison.time_to_quality import Curve, TimeToQuality, learning_rates
from pipelines.comparison.values import Interval, Ratio
from pipelines.engine.results import from_json
from pipelines.engine.results import to_json as result_data

TOKENS = range(100, 1100, 100)
CURVE = [4.0, 3.5, 3.2, 3.0, 2.8, 2.7, 2.6, 2.55, 2.52, 2.5]
NOISE = [0.004, -0.002, 0.001, -0.006, 0.003]
RATES = learning_rates([(1e-3, 2.6), (2e-3, 2.5)], 8.0)


def arm(name: str, gain: float, **fields: Any) -> Arm:
    """An arm with five replicates, lower than the baseline's by a gain at every evaluation."""
    bits = {
        seed: 2.5 + 0.01 * seed - gain + noise * (gain != 0) for seed, noise in enumerate(NOISE)
    }
    curves = {
        seed: Curve(TOKENS, [x + bits[seed] - 2.5 for x in CURVE]) for seed in range(len(NOISE))
    }
    return Arm(name, bits, curves, **fields)


STANDARD = arm("standard", 0, parameters=1000, flops_per_token=6000.0, rates=RATES)
DCA = arm(
    "dca",
    0.1,
    parameters=1010,
    flops_per_token=6300.0,
    peak_memory_bytes=2_000_000,
    step_time=Ratio(1.25, Interval(1.2, 1.3)),
)
WORSE = arm("worse", -0.1, step_time=Ratio(0.5))
CLOSE = arm("close", 0.001)


def study(*arms: Arm, **settings: Any) -> Comparison:
    settings = {"smallest_difference": 0.01, **settings}
    return compare([*arms, STANDARD], "standard", [range(5)], **settings)


def row(found: Comparison, name: str) -> Row:
    return next(row for row in found.rows if row.arm == name)


def test_the_sentence_of_an_arm_that_is_better():
    assert sentence(study(DCA)) == (
        "dca beats standard by 0.100 bits per byte (0.095 to 0.105, 5 seeds, Holm p < 0.0001) "
        "and reaches its quality in 0.88 of its time (0.84 to 0.91)."
    )
    in_tokens = study(replace(DCA, step_time=None))
    assert sentence(in_tokens).endswith("reaches its quality in 0.70 of its tokens (0.69 to 0.71).")


def test_the_sentence_of_an_arm_that_is_worse_times_the_baseline():
    found = study(WORSE)
    share = found.rows[1].tokens_to_quality
    assert share is not None and share.share is not None and share.reverse
    assert sentence(found).startswith(
        "worse is worse than standard by 0.100 bits per byte (0.095 to 0.105, 5 seeds, Holm p < "
    )
    time = 2 * share.share  # a step of the baseline takes twice as long
    assert f", whose quality standard reaches in {time:.2f} of its time (" in sentence(found)


def test_the_time_of_the_baseline_has_the_error_of_the_step_time_too():
    noisy = study(replace(WORSE, step_time=Ratio(0.5, Interval(0.25, 0.5))))
    time = noisy.rows[1].time_to_quality
    assert time is not None and time.share is not None and time.interval is not None
    assert time.interval.high > 1.99 * time.share  # its steps may take four times an arm's
    assert time.interval.low > 0.9 * time.share


def test_a_step_time_is_noisy_if_an_end_of_its_interval_is_beyond_10_percent():
    ends = ((0.99, 1.21), (0.989, 1.1), (1.1, 1.22))
    times = [Ratio(1.1, Interval(*one)) for one in ends] + [Ratio(1.1)]
    assert [is_noisy(one) for one in times] == [False, True, True, False]
    found = study(DCA, replace(CLOSE, step_time=times[1]))
    assert found.noisy_times == [("close", Interval(0.989, 1.1))]


def test_the_sentence_of_an_undecided_arm_says_how_many_seeds_would_find_a_difference():
    found = study(CLOSE)
    needed = found.rows[1].seeds_needed
    assert sentence(found) == (
        "close is undecided against standard: 0.001 bits per byte lower (-0.004 to 0.006, 5 seeds, "
        f"Holm p = 0.61); {needed} seeds would find a difference of 0.01 with a probability "
        "of 80 %."
    )
    wider = study(CLOSE, smallest_difference=0.002).rows[1].seeds_needed
    assert needed is not None and wider is not None and 5 < needed < wider
    enough = study(CLOSE, smallest_difference=0.1)
    assert sentence(enough).endswith(
        "; 5 seeds are enough to find a difference of 0.1 with a probability of 80 %."
    )
    once = study(CLOSE, single_look=True).rows[1].seeds_needed
    assert once is not None and once < needed  # at 0.05, and not at what is left for a second look


def test_of_several_arms_the_best_one_is_named_or_none():
    better = arm("better", 0.05)
    assert sentence(study(WORSE, better, DCA)).startswith("dca beats standard")
    assert sentence(study(WORSE, CLOSE)) == "No arm beats standard: of 2, worse: 1, undecided: 1."


def test_an_arm_without_results_and_the_baseline_have_their_sentences():
    gone = Arm("gone", dict.fromkeys(range(5)))
    found = study(gone)
    assert sentence(found) == (
        "gone is undecided against standard: no pair has two results; it cannot be called better, "
        "because 5 trainings diverged."
    )
    assert found.decidable == []  # more seeds are not advised
    lost = Arm("standard", dict.fromkeys(range(5)))
    other = compare([lost, DCA], "standard", [range(5)], smallest_difference=0.01)
    assert sentence(other).endswith(
        "it cannot be called worse, because 5 trainings of standard diverged."
    )
    both = compare([lost, gone], "standard", [range(5)], smallest_difference=0.01)
    assert sentence(both) == "gone is undecided against standard: no pair has two results."
    assert arm_sentence(found, found.rows[0]) == "standard is the baseline."
    assert (found.rows[1].diverged, found.rows[1].bits_per_byte) == (5, None)
    assert "| 0, 5 diverged |" in to_markdown(found)


def test_an_arm_without_others_has_the_interval_of_its_mean():
    found = study()
    assert sentence(found) == ("standard reaches 2.5200 bits per byte (2.5004 to 2.5396, 5 seeds).")
    assert "| standard | 2.5200 (2.5004 to 2.5396) | 0.0158 | 5 |" in to_markdown(found)
    assert "verdict" not in to_markdown(found)
    gone = compare([Arm("gone", {0: None})], "gone", [[0]], smallest_difference=0.01)
    assert sentence(gone) == "gone has no result: 1 of 1 seed diverged."
    one = compare([Arm("one", {0: 2.5, 1: None})], "one", [[0, 1]], smallest_difference=0.01)
    assert sentence(one) == "one reaches 2.5000 bits per byte (1 seed, 1 diverged)."


def test_divergence_stands_in_the_sentence_and_in_the_table():
    found = study(replace(DCA, bits=dict(DCA.bits) | {4: None}))
    assert "4 seeds, Holm p < 0.0001, 1 diverged)" in sentence(found)
    assert "| 4, 1 diverged |" in to_markdown(found)
    assert sentence(found).startswith("dca is undecided")


def test_what_divergence_has_blocked_has_its_reason_and_no_number_of_seeds():
    found = study(replace(DCA, bits=dict(DCA.bits) | {4: None}))
    assert found.rows[1].seeds_needed is None
    assert sentence(found) == (
        "dca is undecided against standard: 0.101 bits per byte lower (0.094 to 0.108, 4 seeds, "
        "Holm p < 0.0001, 1 diverged); it cannot be called better, because 1 training "
        "diverged."
    )
    lost = replace(STANDARD, bits=dict(STANDARD.bits) | {0: None, 4: None})
    found = compare([lost, WORSE, DCA], "standard", [range(5)], smallest_difference=0.01)
    (worse,) = found.undecided
    assert (worse.arm, worse.seeds_needed, found.decidable) == ("worse", None, [])
    assert arm_sentence(found, worse).endswith(
        "; it cannot be called worse, because 2 trainings of standard diverged."
    )
    assert row(found, "dca").difference.verdict == "better"  # type: ignore[union-attr]


def test_a_divergence_that_blocks_nothing_leaves_the_number_of_seeds():
    lost = replace(STANDARD, bits=dict(STANDARD.bits) | {4: None})
    close = compare([lost, CLOSE], "standard", [range(5)], smallest_difference=0.01)
    assert close.rows[1].difference.paired.mean < 0  # type: ignore[union-attr, operator]
    assert close.decidable == close.undecided
    assert close.rows[1].seeds_needed is not None
    older = replace(close.rows[1].difference, baseline_diverged=0)  # type: ignore[type-var]
    data = result_data(close)
    del data["rows"][1]["difference"]["baseline_diverged"]
    read = from_json(Comparison, json.dumps(data))
    assert read.rows[1].difference == older


def test_only_a_count_is_said_where_not_all_pairs_reach_the_quality():
    slow = {seed: Curve(TOKENS, [9.0] * 10) for seed in range(2)}
    found = study(replace(DCA, curves=dict(DCA.curves) | slow))
    assert sentence(found).endswith("and reaches its quality in 3 of 5 pairs.")
    assert "3 of 5 reached" in to_markdown(found)


def test_a_training_that_diverged_is_one_that_does_not_reach_the_quality():
    curves = {seed: curve for seed, curve in DCA.curves.items() if seed != 4}
    lost = replace(DCA, bits=dict(DCA.bits) | {4: None}, curves=curves)
    found = row(study(lost), "dca").tokens_to_quality
    assert found == TimeToQuality(5, 4)
    assert "4 of 5 reached" in to_markdown(study(lost))
    both = replace(STANDARD, bits=dict(STANDARD.bits) | {4: None}, curves=curves)
    found = row(compare([both, lost], "standard", [range(5)], smallest_difference=0.01), "dca")
    assert (found.tokens_to_quality.pairs, found.tokens_to_quality.reached) == (4, 4)
    fewer = replace(lost, bits={seed: DCA.bits[seed] for seed in range(4)})  # one is not trained
    assert row(study(fewer), "dca").tokens_to_quality.share is not None
    gone = Arm("gone", dict.fromkeys(range(5)))
    assert row(study(gone), "gone").tokens_to_quality == TimeToQuality(5, 0)


def test_the_rows_begin_with_the_baseline_and_have_their_sizes_beside_its():
    found = study(DCA, CLOSE)
    assert [row.arm for row in found.rows] == ["standard", "dca", "close"]
    dca = row(found, "dca")
    assert (dca.parameter_ratio, dca.flops_ratio) == (1.01, 1.05)
    assert dca.interval is not None and dca.simultaneous is not None
    assert dca.simultaneous.low < dca.interval.low
    assert row(study(DCA), "dca").simultaneous is None
    assert (found.looks, found.level) == ((5,), 0.04)


def test_the_files_hold_the_same_numbers():
    found = study(DCA, WORSE, CLOSE)
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert list(rows[0]) == list(COLUMNS)
    for line, values in zip(rows, columns(found), strict=True):
        assert line == {name: "" if v is None else str(v) for name, v in values.items()}
    filled = {name for name in COLUMNS if any(line[name] for line in rows)}
    assert filled == set(COLUMNS)
    data = json.loads(to_json(found))
    assert data["sentence"] == sentence(found)
    assert data["rows"][1]["difference"]["paired"]["mean"] == columns(found)[1]["difference"]


def test_the_table_for_readers_leaves_empty_columns_out():
    lines = to_markdown(study(DCA, CLOSE)).splitlines()
    heads = lines[2].strip("| ").split(" | ")
    assert {"verdict", "difference (95 %)", "95 % for all arms together", "Holm p"} <= set(heads)
    assert "seeds to find 0.01" in heads
    assert all(line.count("|") == lines[2].count("|") for line in lines[2:])
    line = next(line for line in lines if line.startswith("| dca |"))
    assert "| better | -0.1000 (-0.1050 to -0.0950) |" in line
    assert "| 1,010 (x 1.010) | 1.25 (1.20 to 1.30) | 0.88 (0.84 to 0.91) |" in line
    assert "| 6.3e+03 (x 1.050) | 2 |" in line
    assert "0.002 (highest tried: widen)" in next(x for x in lines if x.startswith("| standard"))
    assert "time to quality" not in to_markdown(study(CLOSE))


def test_a_comparison_is_a_result_of_a_stage():
    found = study(DCA, WORSE, CLOSE)
    assert from_json(Comparison, json.dumps(result_data(found))) == found
