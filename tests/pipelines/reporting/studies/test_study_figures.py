"""What the figures of a study draw."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from pipelines.comparison.time_to_quality import Curve, learning_rates
from pipelines.reporting import figures
from pipelines.reporting.figures.study import _broken
from pipelines.reporting.figures.style import ARM_COLORS, INK, arm_styles
from tests.pipelines.reporting.studies.made import CLOSE, DCA, NOISE, STANDARD, TOKENS, arm, study
from tests.pipelines.reporting.test_figures import points, tick_texts

FOUND = study(STANDARD, CLOSE, DCA, token_seconds=0.01)


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_forest_has_the_best_arm_on_top_with_each_pair_below_its_mean():
    figure = figures.forest(FOUND)
    (axes,) = figure.axes
    assert tick_texts(axes) == {0: "close\nundecided", 1: "dca\nbetter"}
    pairs = points(axes)["a pair of seeds"]
    assert [y for _, y in pairs] == [0.76] * 5  # of dca, the last that was drawn
    assert [x for x, _ in pairs] == pytest.approx([n - 0.1 for n in NOISE])
    drawn = {tuple(line.get_xydata()[0]) for line in axes.lines if line.get_marker() == "D"}
    assert {(round(x, 6), y) for x, y in drawn} == {(-0.001, 0), (-0.1, 1)}
    assert legend(figure) == [
        *("a pair of seeds", "mean and 95 %", "95 % for all arms together", "within 0.01")
    ]
    assert axes.get_xlabel() == "test bits per byte minus standard's: left is better"


def test_the_forest_of_one_arm_or_one_seed_leaves_out_what_there_is_not():
    assert "95 % for all arms together" not in legend(figures.forest(study(STANDARD, DCA)))
    once = study(*(arm(n, g, bits={0: 2.0 + g}) for n, g in (("a", 0), ("b", 0.1))), looks=1)
    assert legend(figures.forest(once)) == ["a pair of seeds", "within 0.01"]
    nothing = study(STANDARD, arm("gone", 0, bits=dict.fromkeys(range(5)), curves={}))
    assert legend(figures.forest(nothing)) == ["a pair of seeds", "within 0.01"]


def test_the_curves_are_means_over_the_seeds_by_bytes_and_by_time():
    figure = figures.study_curves(FOUND)
    by_bytes, by_time = figure.axes
    assert legend(figure) == ["standard", "close", "dca"]
    for axes, scale in ((by_bytes, [1, 1, 1]), (by_time, [0.01, 0.011, 0.0125])):
        for line, factor in zip(axes.lines, scale, strict=True):
            assert line.get_xdata() == pytest.approx([factor * tokens for tokens in TOKENS])
    assert by_bytes.lines[0].get_ydata()[-1] == pytest.approx(2.52)
    (low, high) = (f(by_bytes.collections[0].get_paths()[0].vertices[:, 1]) for f in (min, max))
    assert (low, high) == pytest.approx((2.5, 3.44))
    assert len(figures.study_curves(study(arm("a", 0), arm("b", 0.1))).axes) == 1
    untimed = study(STANDARD, DCA, token_seconds=0.0)  # no arm but the baseline could be probed
    assert len(figures.study_curves(untimed).axes) == 1


def test_evaluations_that_not_all_seeds_have_are_left_out():
    short = {0: Curve([100, 200], [3.0, 2.0]), 1: Curve([100], [4.0])}
    (axes,) = figures.study_curves(study(arm("a", 0, curves=short))).axes
    assert axes.lines[0].get_xydata().tolist() == [[100, 3.5]]


def test_quality_is_drawn_against_time_with_the_baseline_where_the_lines_cross():
    (axes,) = figures.quality_and_time(FOUND).axes
    where = {c.get_label(): tuple(c.lines[0].get_xydata()[0].round(3)) for c in axes.containers}
    assert where == {"standard": (1, 0), "close": (1.1, -0.001), "dca": (1.25, -0.1)}


def test_the_rates_of_an_arm_have_a_ring_at_the_best_and_a_cross_where_all_diverged():
    lost = learning_rates([(1e-3, 2.7), (2e-3, 2.5), (4e-3, None)], 8.0)
    (axes,) = figures.rate_curves(study(STANDARD, arm("lost", 0.1, rates=lost)), "training").axes
    assert [text for _, text in sorted(tick_texts(axes, "x").items())] == [
        "0.001",
        "0.002",
        "0.004",
    ]
    assert axes.get_ylabel() == "training bits per byte of the trials"
    line = axes.lines[1].get_xydata()
    assert line[:2].tolist() == [[1e-3, 2.7], [2e-3, 2.5]]
    assert np.isnan(line[2, 1])
    offsets = [one.get_offsets().tolist() for one in axes.collections]
    assert offsets == [[[2e-3, 2.5]], [], [[2e-3, 2.5]], [[4e-3, 0.98]]]
    nothing = figures.rate_curves(study(arm("a", 0, rates=None)), "validation")
    assert not nothing.legends


def test_each_arm_has_the_same_style_in_all_figures_and_no_two_are_alike():
    names = [f"arm {n}" for n in range(20)]
    styles = arm_styles(["base", *names], "base")
    assert styles["base"]["color"] == INK
    looks = {(s["color"], str(s["linestyle"]), s["marker"]) for s in styles.values()}
    assert len(looks) == 21
    assert styles == arm_styles([*names, "base"], "base")
    figure = figures.study_curves(FOUND)
    assert [to_hex(line.get_color()) for line in figure.axes[0].lines] == [
        INK,
        *(color.lower() for color in ARM_COLORS[:2]),
    ]


def test_long_names_are_broken_where_words_end():
    assert _broken("short") == "short"
    assert _broken("hyper_connections-4-streams") == "hyper_connections-\n4-streams"
    assert _broken("a" * 30) == f"{'a' * 16}\n{'a' * 14}"
