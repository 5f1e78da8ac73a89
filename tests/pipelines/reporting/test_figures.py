"""What the figures draw: the points, lines, bars and labels, and how large they are."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.experiment import read_experiment
from pipelines.reporting import figures
from pipelines.reporting.figures.style import MARKERS
from pipelines.reporting.importance import COLUMNS, Importance
from pipelines.reporting.mixing import Mixing
from tests.pipelines.reporting.tables import INACTIVE, results_of, trial

STATES = [
    trial("complete", [4, 3, 2.5]),
    trial("pruned", [4.5, 3.5]),
    trial("failed"),
    trial("unfinished", [5.0]),
    trial("complete", [4, 2.8, 2.0]),
]


def size(figure: Figure) -> tuple[float, float]:
    return tuple(round(float(inches), 3) for inches in figure.get_size_inches())


def points(axes: Axes) -> dict[str, list]:
    """The points of each labelled series."""
    return {
        str(one.get_label()): np.round(one.get_offsets().filled(np.nan), 6).tolist()
        for one in axes.collections
        if not str(one.get_label()).startswith("_") and len(one.get_offsets())
    }


def texts(axes: Axes) -> list[tuple[float, float, str]]:
    return [
        (*(round(float(at), 3) for at in one.get_position()), one.get_text()) for one in axes.texts
    ]


def tick_texts(axes: Axes, axis: str = "y") -> dict[float, str]:
    ticks = getattr(axes, f"get_{axis}ticks")()
    labels = getattr(axes, f"get_{axis}ticklabels")()
    return {float(at): label.get_text() for at, label in zip(ticks, labels, strict=True)}


@pytest.fixture
def plain(data):
    return read_experiment(data, source="test")


def test_the_leaderboard_has_the_best_on_top_and_intervals_below_the_repeated(plain):
    trials = [*STATES, trial("complete", [2.2], "twice")]
    seeds = [("twice", 0, 2.2), ("twice", 1, 2.4), ("configuration 0", 0, 2.5)]
    figure = figures.leaderboard(results_of(plain, trials, winner=4, completed=seeds))
    (axes,) = figure.axes
    assert size(figure) == (5.0, 2.3)
    assert tick_texts(axes) == {
        4: "trial 4",
        3: "trial 5",
        2: "trial 0",
        1: "trial 1",
        0: "trial 3",
    }
    assert points(axes) == {
        "complete": [[2.5, 2], [2.2, 3], [2.0, 4]],
        "pruned": [[3.5, 1]],
        "unfinished": [[5.0, 0]],
    }
    (bars,) = axes.containers
    (mean,) = bars.lines[0].get_xydata()
    assert mean.tolist() == pytest.approx([2.3, 3 - 0.22])
    ((low, _), (high, _)) = bars.lines[2][0].get_segments()[0]
    assert (low + high) / 2 == pytest.approx(2.3)
    assert high - low == pytest.approx(2 * 12.7062 * 0.1, rel=1e-4)
    assert axes.get_xlabel() == "validation bits per byte, less is better"
    assert axes.get_legend() is not None


def test_the_leaderboard_has_the_best_twelve(plain):
    figure = figures.leaderboard(
        results_of(plain, [trial("complete", [2 + number / 100]) for number in range(20)])
    )
    assert [*tick_texts(figure.axes[0]).values()] == [f"trial {n}" for n in range(11, -1, -1)]


def test_trials_that_have_not_been_evaluated_yet_have_figures_without_a_warning(plain):
    results = results_of(plain, [trial("unfinished", []), trial("unfinished", [])])
    for draw in (figures.leaderboard, figures.history, figures.curves, figures.pruning):
        assert draw(results).axes


def test_the_history_has_the_trials_by_number_the_best_so_far_and_the_failed(plain):
    figure = figures.history(results_of(plain, STATES))
    (axes,) = figure.axes
    assert size(figure) == (5.0, 3.2)
    assert points(axes) == {
        "complete": [[0, 2.5], [4, 2.0]],
        "pruned": [[1, 3.5]],
        "unfinished": [[3, 5.0]],
        "failed: no number": [[2, 0.98]],
    }
    (best,) = axes.lines
    assert best.get_xydata().tolist() == [[0, 2.5], [4, 2.0], [4.5, 2.0]]
    assert best.get_drawstyle() == "steps-post"


def test_the_curves_name_the_best_three_and_show_the_range_that_matters(plain):
    trials = [trial("complete", [9.0, 3 + n / 10, 2 + n / 10]) for n in range(5)]
    results = results_of(plain, trials)
    fit = results.curves[results.curves["number"] == 0].assign(name="fit", number=-1)
    curves = pd.concat([results.curves, fit])
    figure = figures.curves(results_of(plain, trials, curves=curves))
    assert size(figure) == (5.0, 8.2)
    assert [axes.get_xlabel() for axes in figure.axes] == [
        *("steps", "bytes read", "seconds of training"),
    ]
    high, low = curves["bits_per_byte"].quantile(0.9), 2.0
    for axes, column in zip(figure.axes, ("step", "tokens", "seconds"), strict=True):
        named = {str(line.get_label()): line for line in axes.lines}
        assert [*named] == ["trial 0", "trial 1", "trial 2", "fit"]
        assert [line.get_linestyle() for line in named.values()] == ["-", "--", ":", "-."]
        drawn = named["trial 1"].get_xydata()
        own = curves[curves["name"] == "trial 1"][[column, "bits_per_byte"]].to_numpy()
        assert drawn.tolist() == own.tolist()
        assert len(axes.collections[0].get_segments()) == 2
        assert axes.get_ylim() == pytest.approx(
            (low - 0.05 * (high - low), high + 0.05 * (high - low))
        )
    legend = figure.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [
        *("trial 0", "trial 1", "trial 2", "fit"),
    ]


def test_curves_of_which_nearly_all_points_are_equal_are_shown_whole(plain):
    trials = [trial("complete", [2.0] * 20), trial("complete", [3.0])]
    axes = figures.curves(results_of(plain, trials)).axes[0]
    assert axes.get_ylim() == pytest.approx((1.95, 3.05))
    same = figures.curves(results_of(plain, [trial("complete", [2.0, 2.0])])).axes[0]
    assert same.get_ylim()[0] < 2.0 < same.get_ylim()[1]


def test_the_curves_are_of_the_validation_split_whatever_the_search_minimised(plain):
    training = plain.replace({"train.best_metric": "train_bits_per_byte"})
    trials = [trial("complete", [2.0, 1.0])]
    figure = figures.curves(results_of(training, trials))
    assert {axes.get_ylabel() for axes in figure.axes} == {"validation bits per byte"}
    (axes,) = figures.history(results_of(training, trials)).axes
    assert axes.get_ylabel() == "training bits per byte"


def bars(axes: Axes) -> list[list[tuple[float, float, float, float]]]:
    """Of each series: left end, bottom, width and height of the bars."""
    return [
        [
            tuple(round(float(x), 6) for x in (*bar.get_xy(), bar.get_width(), bar.get_height()))
            for bar in one
        ]
        for one in axes.containers
    ]


def test_the_bars_of_pruning_are_the_bytes_trained_on_and_those_not_spent(plain):
    long = trial("pruned", [4.0] * 17)
    figure = figures.pruning(results_of(plain, [*STATES, long]))
    (axes,) = figure.axes
    assert size(figure) == (5.0, 2.8)
    trained, saved = bars(axes)
    tokens = [17 * 256, 3 * 256, 3 * 256, 2 * 256, 256, 0]
    assert trained == [(place - 0.5, 0, 1, height) for place, height in enumerate(tokens)]
    assert saved == [(-0.5, 17 * 256, 1, 0), (2.5, 512, 1, 4096 - 512)]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        *("trained", "not spent: pruned"),
    ]
    (only,) = bars(figures.pruning(results_of(plain, STATES[:1])).axes[0])
    assert only == [(-0.5, 0, 1, 768)]


def test_the_seeds_of_the_repeated_configurations_are_drawn_best_on_top(plain):
    completed = [("b", 0, 2.0), ("b", 1, 2.2), ("a", 0, 3.0), ("a", 1, 3.4), ("once", 0, 1.0)]
    figure = figures.seeds(results_of(plain, completed=completed))
    (axes,) = figure.axes
    assert size(figure) == (5.0, round(0.9 + 2 * 0.45, 3))
    assert tick_texts(axes) == {0: "B", 1: "A"}
    drawn = [np.round(one.get_offsets(), 6).tolist() for one in axes.collections[::2]]
    assert drawn[0] == [[3.0, 0], [3.4, 0]]
    assert [[2.0, 1], [2.2, 1]] in drawn
    means = [bar.lines[0].get_xydata()[0].tolist() for bar in axes.containers]
    assert means == [pytest.approx([3.2, 0]), pytest.approx([2.1, 1])]
    (low, high) = axes.containers[1].lines[2][0].get_segments()[0][:, 0]
    assert (low + high) / 2 == pytest.approx(2.1)
    assert high - low == pytest.approx(2 * 12.7062 * 0.1, rel=1e-4)
    assert axes.get_ylim() == (-0.6, 1.6)


def test_the_front_is_joined_from_the_smallest_second_objective_on(plain):
    trials = [
        trial("complete", [2.0], second=30.0, pareto=True),
        trial("complete", [2.5], second=10.0, pareto=True),
        trial("complete", [2.6], second=20.0),
        trial("pruned", [1.0], second=1.0),
    ]
    search = {"search.second_objective": "bytes_per_second", "search.scheduler.name": "none"}
    figure = figures.pareto_front(results_of(plain.replace(search), trials))
    (axes,) = figure.axes
    assert size(figure) == (5.0, 3.2)
    (line,) = axes.lines
    assert line.get_xydata().tolist() == [[10, 2.5], [30, 2.0]]
    assert axes.collections[0].get_offsets().tolist() == [[30, 2.0], [10, 2.5], [20, 2.6]]
    assert [(note.xy, note.get_text()) for note in axes.texts] == [
        ((10.0, 2.5), "trial 1"),
        ((30.0, 2.0), "trial 0"),
    ]
    assert axes.get_xlabel() == "bytes per second"


def test_the_bars_of_importance_are_the_shares_largest_on_top(plain):
    rows = {"a": (0.7, 9, True), "b": (0.255, 9, False), "c": (float("nan"), 2, False)}
    known = Importance(pd.DataFrame.from_dict(rows, orient="index", columns=COLUMNS))
    figure = figures.importances(results_of(plain), known)
    (axes,) = figure.axes
    assert size(figure) == (5.0, round(0.8 + 2 * 0.32, 3))
    (shares,) = axes.containers
    assert [bar.get_width() for bar in shares] == [0.255, 0.7]
    assert [*tick_texts(axes).values()] == ["b", "a"]
    assert [text.get_text() for text in axes.texts] == ["26 %", "70 %"]
    assert axes.get_xlim() == (0, 1.12)
    assert axes.get_legend() is None
    written = axes.xaxis.get_major_formatter()
    assert [written(share) for share in (0.5, 1.0, 1.05)] == ["50 %", "100 %", ""]


def test_beside_the_shares_of_all_trials_are_those_of_the_best(plain):
    rows = {"a": (0.7, 9, True), "b": (float("nan"), 2, False), "c": (float("nan"), 1, False)}
    shares = pd.DataFrame.from_dict(rows, orient="index", columns=COLUMNS)
    known = Importance(shares, best={"b": 0.8, "a": 0.2})
    figure = figures.importances(results_of(plain), known)
    (axes,) = figure.axes
    assert size(figure) == (5.0, round(0.8 + 2 * 0.5, 3))
    every, best = axes.containers
    assert [bar.get_width() for bar in every] == [0.0, 0.7]
    assert [bar.get_width() for bar in best] == [0.8, 0.2]
    assert [*tick_texts(axes).values()] == ["b", "a"]
    assert [text.get_text() for text in axes.texts] == ["n/a", "70 %", "80 %", "20 %"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "of all trials",
        "of the best trials",
    ]


SPACE = {
    "train.learning_rate": {"log_uniform": [1e-4, 1e-2]},
    "train.weight_decay": {"uniform": [0.0, 0.4]},
    "model.depth": {"int": [2, 6]},
    "model.residual": {"choice": ["standard", "dca", "value_residual"]},
    "model.dca.last_k": {"choice": [1, None], "when": {"model.residual": "dca"}},
}


def point(rate: float, decay: float, depth: int, kind: str, last_k: Any, *bits: float) -> dict:
    values = {"train__learning_rate": rate, "train__weight_decay": decay, "model__depth": depth}
    return trial("complete", bits, **values, model__residual=kind, model__dca__last_k=last_k)


POINTS = [
    point(1e-3, 0.1, 3, "dca", None, 3.0, 2.0),
    point(1e-2, 0.4, 6, "value_residual", INACTIVE, 4.0, 3.0),
    point(1e-4, 0.0, 2, "standard", INACTIVE, 4.0, 2.5, 1.0),
]


@pytest.fixture
def spaced(data):
    return read_experiment(data | {"search": {"space": SPACE, "trials": 8}}, source="test")


def test_a_line_of_parallel_coordinates_goes_through_the_trials_values(spaced):
    figure = figures.parallel(results_of(spaced, POINTS, winner=0))
    axes, bar = figure.axes
    assert size(figure) == (5.0, 3.8)
    lines = [np.round(one, 6)[:, 1].tolist() for one in axes.collections[0].get_segments()]
    assert lines == [  # the worst first, after 512 bytes, which all reached
        [1.0, 1.0, 1.0, 1.0, -0.15, 1.0],
        [0.0, 0.0, 0.0, 0.0, -0.15, 0.5],
        [0.5, 0.25, 0.25, 0.5, 1.0, 0.0],
    ]
    (winner,) = axes.lines
    assert np.round(winner.get_ydata(), 6).tolist() == lines[2]
    assert winner.get_linestyle() == "--"
    assert axes.get_xlim() == (-0.15, 5.35)
    assert axes.get_ylim() == (-0.22, 1.06)
    assert [*tick_texts(axes, "x").values()] == [
        *("learning_\nrate", "weight_\ndecay", "depth", "residual", "last_\nk", "bits per\nbyte"),
    ]
    written = texts(axes)
    assert written[:3] == [(0.03, 0.0, "0.0001"), (0.03, 1.0, "0.01"), (1.03, 0.0, "0")]
    assert (3.03, 0.5, "dca") in written
    assert written[-5:-2] == [(4.03, 0.0, "1"), (4.03, 1.0, "null"), (4.03, -0.15, "n/a")]
    assert written[-2:] == [(5.03, 0.0, "2.000"), (5.03, 1.0, "3.000")]
    assert bar.get_xlabel() == "validation bits per byte after 512 bytes: dark is better"


def test_parallel_coordinates_of_equal_results_are_in_the_middle(spaced):
    figure = figures.parallel(results_of(spaced, [POINTS[0], POINTS[0]]))
    heights = [one[-1][1] for one in figure.axes[0].collections[0].get_segments()]
    assert heights == [0.5, 0.5]
    assert texts(figure.axes[0])[-2:] == [(5.03, 0.0, "1.500"), (5.03, 1.0, "2.500")]
    assert texts(figures.parallel(results_of(spaced)).axes[0])[-2:] == [
        (5.03, 0.0, "0.000"),
        (5.03, 1.0, "1.000"),
    ]


def test_each_slice_has_the_trials_at_their_values_and_the_winner_in_a_ring(spaced):
    figure = figures.slices(results_of(spaced, POINTS, winner=1))
    assert size(figure) == (5.0, round(3 * 2.3 + 0.3, 3))
    rate, decay, depth, kind, last_k, empty = figure.axes
    assert not empty.get_visible()
    assert [axes.get_xlabel() for axes in figure.axes[:5]] == [*SPACE]
    assert [axes.get_ylabel() for axes in figure.axes] == 3 * ["validation bits per byte", ""]
    assert points(rate) == {
        "complete": [[1e-3, 2.0], [1e-2, 3.0], [1e-4, 2.5]],
        "winner": [[1e-2, 3.0]],
    }
    assert rate.get_xscale() == "log"
    assert decay.get_xscale() == "linear"
    assert points(depth)["complete"] == [[3, 2.0], [6, 3.0], [2, 2.5]]
    assert all(at == int(at) for at in depth.get_xticks())
    assert points(kind)["complete"] == [[1, 2.0], [2, 3.0], [0, 2.5]]
    assert points(last_k)["complete"] == [[1, 2.0], [-1, 3.0], [-1, 2.5]]
    assert tick_texts(kind, "x") == {0: "standard", 1: "dca", 2: "value_residual"}
    assert kind.get_xlim() == (-0.5, 2.5)
    assert tick_texts(last_k, "x") == {-1: "n/a", 0: "1", 1: "None"}
    assert last_k.get_xlim() == (-1.5, 1.5)
    assert figure.get_suptitle() == "after 512 bytes, which all of these trials reached"


def test_the_slice_of_one_key_is_one_panel_and_inactive_reals_are_left_out(data):
    space = {"train.beta2": {"uniform": [0.0, 0.9], "when": {"train.compile": True}}}
    space["train.compile"] = {"choice": [True, False]}
    config = read_experiment(data | {"search": {"space": space}}, source="test")
    config.search.space.pop("train.compile")
    trials = [
        trial("complete", [2.0], train__beta2=0.5),
        trial("pruned", [3.0], train__beta2=INACTIVE),
    ]
    figure = figures.slices(results_of(config, trials))
    assert size(figure) == (5.0, 2.6)
    (axes,) = figure.axes
    assert points(axes)["complete"] == [[0.5, 2.0]]
    assert np.isnan(points(axes)["pruned"][0][0])


def weights(rows: list[tuple], added: float = 0.5) -> Mixing:
    columns = ["layer", "output", "entry", "place", "b"]
    return Mixing(pd.DataFrame(rows, columns=columns).assign(spread=0.0, added=added), 512)


ROWS = [
    *[("1", output, "embedding", 0, 1.0) for output in "qkv"],
    *[("2", output, "embedding", 0, 0.25) for output in "qkv"],
    *[("2", output, "1 back", 1, 2.0) for output in "qkv"],
    *[("out", "out", "embedding", 0, -1.0), ("out", "out", "1 back", 1, 3.0)],
]


def test_the_heat_maps_are_the_weights_by_layer_and_entry_and_with_the_input(plain):
    figure = figures.mixing_weights(weights(ROWS))
    panels = [axes for axes in figure.axes if axes.images]
    assert size(figure) == (5.0, round((0.34 * 3 + 1.0) * 2 + 0.6, 3))
    assert [axes.get_title(loc="left") for axes in panels] == 2 * ["q", "k", "v"]
    assert [axes.get_ylabel() for axes in panels] == [
        "layer: b",
        "",
        "",
        "layer: b + input",
        "",
        "",
    ]
    nothing = float("nan")
    first = np.array([[1.0, nothing], [0.25, 2.0], [-1.0, 3.0]])
    second = np.array([[1.0, nothing], [0.25, 2.0], [nothing, nothing]])
    for axes, grid in zip(panels, (first, second, second, first + 0.5, second + 0.5), strict=False):
        np.testing.assert_array_equal(axes.images[0].get_array().filled(nothing), grid)
        assert axes.images[0].get_clim() == (-1.0, 3.5)
    assert texts(panels[0]) == [
        *((0, 0, "1.00"), (0, 1, "0.25"), (1, 1, "2.00"), (0, 2, "-1.00"), (1, 2, "3.00")),
    ]
    colors = [text.get_color() for text in panels[0].texts]
    assert colors == ["white", "white", "black", "white", "black"]
    assert tick_texts(panels[0]) == {0: "1", 1: "2", 2: "out"}
    assert tick_texts(panels[0], "x") == {0: "embedding", 1: "1 back"}


def test_without_the_input_there_is_one_row_of_heat_maps(plain):
    figure = figures.mixing_weights(weights(ROWS, float("nan")))
    assert len([axes for axes in figure.axes if axes.images]) == 3
    assert size(figure) == (5.0, round(0.34 * 3 + 1.6, 3))
    assert size(figures.mixing_weights(Mixing(pd.DataFrame()))) == (5.0, 1.0)


def test_layers_are_sorted_as_numbers_and_large_heat_maps_have_fewer_words(plain):
    def rows(layers: int) -> list[tuple]:
        entries = [("embedding", 0), *((f"block {n}", n) for n in range(1, layers))]
        return [
            (str(layer), "all", name, at, 1.0 + at)
            for layer in range(layers, 0, -1)
            for name, at in entries
        ]

    twelve, thirteen = (figures.mixing_weights(weights(rows(n), float("nan"))) for n in (12, 13))
    assert size(twelve)[1] == round(12 * 0.34 + 1.6, 3)
    assert size(thirteen)[1] == round(13 * 0.26 + 1.6, 3)
    assert len(twelve.axes[0].texts) == 144
    assert not thirteen.axes[0].texts  # more than 150 cells
    assert [*tick_texts(twelve.axes[0]).values()] == [str(n) for n in range(1, 13)]
    assert len(tick_texts(twelve.axes[0], "x")) == 12
    wide = figures.mixing_weights(weights(rows(16), float("nan"))).axes[0]
    assert [*tick_texts(wide, "x")] == [*range(0, 16, 2)]


def test_a_figure_without_results_is_empty_and_drawn(plain, spaced):
    for draw in (
        figures.leaderboard,
        figures.history,
        figures.curves,
        figures.pruning,
        figures.seeds,
    ):
        figure = draw(results_of(plain))
        assert not [axes for axes in figure.axes if axes.get_legend()]
        assert not figure.legends
    assert size(figures.leaderboard(results_of(plain))) == (5.0, 1.18)
    assert size(figures.seeds(results_of(plain))) == (5.0, 1.35)
    assert size(figures.slices(results_of(plain))) == (5.0, 2.6)


def test_the_states_of_trials_differ_in_their_markers():
    assert {state: look["marker"] for state, look in MARKERS.items()} == {
        "complete": "o",
        "pruned": "v",
        "unfinished": "s",
    }
