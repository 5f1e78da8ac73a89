"""The words and numbers of the page's sections, of results that are tables alone."""

import math
from dataclasses import replace

import pandas as pd
import pytest

from pipelines.experiment import read_experiment
from pipelines.reporting.importance import COLUMNS, Importance
from pipelines.reporting.mixing import Mixing, _stored
from pipelines.reporting.page import leaderboard, model_sections, provenance_sections
from pipelines.reporting.page import search_sections as search
from pipelines.reporting.page.cells import (
    bits_cell,
    count_cell,
    printable,
    seed_cells,
    share_cell,
    values_text,
)
from pipelines.reporting.page.content import Table
from pipelines.reporting.page.publish import MAX_SVG_BYTES, all_sections
from pipelines.reporting.statistics import compare_top_two, pruning_savings, trial_budgets
from pipelines.reporting.summary import (
    changed_from_defaults,
    gate_phrase,
    repeated_configurations,
    summary,
)
from pipelines.storage.project import script
from pipelines.tracking.encoding import encode_param
from pipelines.tracking.schema import DIRTY_TAG, VersionTags
from tests.pipelines.reporting.tables import INACTIVE, results_of, stage_run, trial

RATE = "train__learning_rate"
SPACE = {
    "train.learning_rate": {"log_uniform": [1e-4, 1e-2]},
    "model.dca.last_k": {"choice": [1, None], "when": {"model.residual": "dca"}},
}


@pytest.fixture
def config(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://store:5000")
    return read_experiment(data | {"search": {"space": SPACE, "trials": 8}}, source="test")


TRIALS = [
    trial("complete", [3.0, 2.5], train__learning_rate=1e-3, model__dca__last_k=None),
    trial("complete", [3.0, 2.0], train__learning_rate=2e-3, model__dca__last_k=1),
    trial("pruned", [4.0], train__learning_rate=3e-3, model__dca__last_k=INACTIVE),
    trial("failed", reason="diverged", train__learning_rate=4e-3, model__dca__last_k=1),
    trial("unfinished", train__learning_rate=5e-3, model__dca__last_k=1),
]


def test_cells_are_empty_where_there_is_no_number():
    nan = float("nan")
    assert (bits_cell(2.34567), bits_cell(nan)) == ("2.3457", "")
    assert (share_cell(0.1234), share_cell(nan)) == ("12.3 %", "n/a")
    assert (count_cell(12345.6), count_cell(nan)) == ("12,346", "")
    assert seed_cells(pd.NA, nan, nan, nan) == ["0", "", ""]
    assert seed_cells(1, 2.0, nan, nan) == ["1", "2.0000", ""]
    assert seed_cells(3, 2.0, 1.9, 2.1) == ["3", "2.0000", "1.9000 to 2.1000"]
    assert printable("a\n\tb\x1b[1m\x00") == "a\n\tb\ufffd[1m\ufffd"


def test_columns_of_numbers_are_aligned(config):
    table = Table("", ["a", "b"], [], {1})
    assert [table.cell_class(column) for column in (0, 1)] == ["", ' class="number"']
    section = leaderboard.leaderboard_section(results_of(config, TRIALS))
    (found,) = section.tables
    assert found.numbers == set(range(2, len(found.columns)))


def test_the_leaderboard_has_a_row_for_each_trial_with_what_was_searched(config):
    text = '["c", [["model.depth", "2"]]]'
    repeated = [*TRIALS[:1], TRIALS[1] | {"configuration": text}, *TRIALS[2:]]
    completed = [(text, 0, 2.0), (text, 1, 2.2), ("x", 0, 9.0)]
    results = results_of(config, repeated, winner=1, completed=completed)
    section = leaderboard.leaderboard_section(results)
    trials, seeds = section.tables
    assert trials.columns[:6] == ["trial", "state", "bits per byte", "n", "mean", "95 % interval"]
    assert trials.columns[6:] == ["bytes", "parameters", "train.learning_rate", "model.dca.last_k"]
    half = 12.7062 * 0.1
    assert trials.rows[0] == [
        *("1 (winner)", "complete", "2.0000", "2", "2.1000"),
        f"{2.1 - half:.4f} to {2.1 + half:.4f}",
        *("512", "7,000", "0.002", "1"),
    ]
    assert [row[0] for row in trials.rows[1:]] == ["0", "2", "4", "3"]
    assert trials.rows[1][3:6] == ["0", "", ""]
    assert trials.caption.startswith("Trials: those")
    assert [picture.name for picture in section.pictures] == ["leaderboard", "seeds"]
    assert (seeds.rows[0][0], seeds.rows[0][2:4]) == ("A", ["2", "2.1000"])
    assert [seeds.columns[column] for column in seeds.numbers] == ["n", "mean", "95 % interval"]
    assert section.paragraphs == ()


def test_the_leaderboard_of_nothing_says_so(config):
    section = leaderboard.leaderboard_section(results_of(config))
    assert section.paragraphs[0] == "There are no trials."
    assert "no intervals" in section.paragraphs[1]
    assert section.tables == section.pictures == ()


def test_a_leaderboard_of_fifty_is_whole_and_a_longer_one_counts_all(config):
    def table(count: int) -> Table:
        trials = [trial("complete", [2.0], train__learning_rate=1e-3) for _ in range(count)]
        return leaderboard.leaderboard_section(results_of(config, trials)).tables[0]

    assert len(table(50).rows) == len(table(51).rows) == 50
    assert table(50).caption.startswith("Trials: ")
    assert table(51).caption.startswith("Trials, the best 50 of 51: ")


def test_two_objectives_have_a_column_and_a_picture_more(config):
    two = config.replace(
        {"search.second_objective": "bytes_per_second", "search.scheduler.name": "none"}
    )
    trials = [trial("complete", [2.0], second=1234.5, pareto=True, train__learning_rate=1e-3)]
    section = leaderboard.leaderboard_section(results_of(two, trials))
    assert section.tables[0].columns[2:5] == ["bits per byte", "bytes per second", "n"]
    assert section.tables[0].rows[0][2:5] == ["2.0000", "1,234", "0"]
    assert [picture.name for picture in section.pictures] == ["leaderboard", "front"]


def test_the_winner_has_its_values_the_gate_and_the_test(config):
    tested = {"baselines": {"gzip": 3.0, "xz": 1.0}, "test_bits_per_byte": 2.0}
    results = results_of(config, TRIALS, winner=0, outputs={"evaluate": tested})
    section = model_sections.winner_section(results)
    assert section.paragraphs == [
        "Trial 0: train.learning_rate=0.001, model.dca.last_k=null.",
        "No version is registered yet, so there is no comparison on the test split.",
    ]
    changed, scores = section.tables
    assert ("train.learning_rate", "0.004", "0.001") in changed.rows
    assert ("model.dca.last_k", "2", "null") in changed.rows
    assert scores.rows == [["xz", "1.0000"], ["this model", "2.0000"], ["gzip", "3.0000"]]
    assert scores.numbers == {1}
    versioned = results_of(config, TRIALS, winner=0, outputs={"evaluate": tested}, version=7)
    assert model_sections.winner_section(versioned).tables[1].rows[1][0] == "version 7"


def test_without_a_winner_there_is_the_gate_alone(config):
    section = model_sections.winner_section(results_of(config, TRIALS))
    assert len(section.paragraphs) == len(section.tables) == 1
    bare = read_experiment(config.model_dump(mode="json") | {"search": {}}, source="test")
    section = model_sections.winner_section(results_of(bare, [trial("complete", [2.0])], winner=0))
    assert section.paragraphs[0] == "Trial 0: the configuration without changes."


def mixing(rows: int, added: float, bytes_read: int) -> Mixing:
    row = {"layer": "1", "output": "q", "entry": "embedding", "place": 0, "b": 1.0}
    row |= {"spread": 0.12345, "added": added}
    return Mixing(pd.DataFrame([row] * rows), bytes_read)


def test_stored_weights_are_read_only_if_all_of_them_are_numbers():
    row = {"layer": "1", "output": "q", "entry": "embedding", "place": 0}
    row |= {"b": 1.0, "spread": 0.5, "added": 0.25}
    whole = {"rows": [row, row], "bytes_read": 512}
    found = _stored(whole)
    assert (found.weights.to_dict("records"), found.bytes_read) == ([row, row], 512)
    rows = [{**row, "b": math.nan}, {**row, "added": "0.5"}, {**row, "place": "0"}, [], {}]
    damaged = [{**whole, "rows": [row, one]} for one in rows]
    damaged += [None, [], {}, {**whole, "rows": []}, {**whole, "bytes_read": 0}]
    assert [_stored(one) for one in damaged] == [None] * len(damaged)


def test_the_mixing_has_a_table_unless_it_is_too_long(config):
    section = model_sections.mixing_section(mixing(200, 0.5, 4096))
    (table,) = section.tables
    assert table.rows[0] == ["1", "q", "embedding", "1.000", "0.123", "0.500"]
    assert table.numbers == {3, 4, 5}
    assert "averaged over 4,096 bytes" in section.pictures[0].caption
    assert section.paragraphs == []
    assert model_sections.mixing_section(mixing(201, 0.5, 4096)).tables == ()
    bare = model_sections.mixing_section(mixing(1, math.nan, 0))
    assert bare.tables[0].rows[0][-1] == ""
    assert "averaged over features. The last row" in bare.pictures[0].caption
    noted = model_sections.mixing_section(Mixing(pd.DataFrame(), note="no model yet"))
    assert (noted.paragraphs, noted.pictures) == (["No model yet."], ())


def test_the_text_names_its_model(config):
    section = model_sections.samples_section(results_of(config, samples="a\x00b"))
    assert (section.paragraphs, section.samples) == (["Generated by no model:"], ["a\ufffdb"])
    named = results_of(config, samples="a", outputs={"sample": {"model_uri": "models:/m/1"}})
    assert model_sections.samples_section(named).paragraphs == ["Generated by models:/m/1:"]
    nothing = model_sections.samples_section(results_of(config))
    assert (nothing.paragraphs, nothing.samples) == (["No text has been generated yet."], ())


LINEAGE = {
    "corpus": {"name": "files", "fingerprint": "abc"},
    "provenance": {
        "mlflow.source.git.commit": "c0ffee",
        DIRTY_TAG: "true",
        "version.torch": "2.0",
    },
    "hardware": {"processor": "fast", "cpus": 4, "gpus": ["H100"], "platform": "Linux"},
}


def test_the_lineage_names_the_runs_the_model_and_where_they_come_from(config):
    results = results_of(config, TRIALS, winner=1)
    section = provenance_sections.lineage_section(results)
    rows = dict(section.tables[0].rows)
    assert rows["experiment"] == "tiny in http://store:5000"
    assert rows["pipeline run"] == 32 * "a"
    assert rows["select run"] == "the run of select"
    assert rows["winning trial's run"] == "run 1"
    assert (rows["model"], rows["version"], rows["gate"]) == ("none yet", "none", "not decided")
    assert rows["corpus"] == f"files {'0' * 32}"
    assert (rows["commit"], rows["hardware"]) == ("unknown", "unknown, ? CPUs")
    assert rows["platform"] == "unknown"
    assert section.paragraphs == ()


def test_a_model_has_its_uri_its_version_and_the_decision(config):
    results = results_of(
        config,
        outputs={"fit": {"model_uri": "models:/m-1"}},
        version=3,
        version_tags=VersionTags(decision="promoted: the first"),
        lineage=LINEAGE,
        other_pipeline_count=2,
    )
    section = provenance_sections.lineage_section(results)
    rows = dict(section.tables[0].rows)
    assert (rows["model"], rows["version"]) == ("models:/m-1", "dca-gpt 3")
    assert rows["gate"] == "promoted: the first"
    assert rows["commit"] == "c0ffee and uncommitted changes"
    assert rows["hardware"] == "fast, 4 CPUs, H100"
    assert rows["platform"] == "Linux"
    assert section.paragraphs[0].startswith("The experiment has 2 other pipeline runs")
    assert "winning trial's run" not in rows


def test_the_next_commands_come_after_what_a_shell_needs_once(config):
    section = provenance_sections.next_section(results_of(config, TRIALS))
    assert section.commands[0].purpose == "Once in a new shell"
    assert "export MLFLOW_TRACKING_URI=http://store:5000" in section.commands[0].lines
    assert section.file.name == "tiny.yaml"
    assert section.file.text == config.to_yaml()


def test_the_importance_has_a_row_for_each_key(config):
    rows = {"a": (0.7, 9, True), "b": (float("nan"), 3, False)}
    known = Importance(pd.DataFrame.from_dict(rows, orient="index", columns=COLUMNS), 4096)
    section = search.importance_section(results_of(config, TRIALS), known)
    assert "after 4,096 bytes" in section.paragraphs[0]
    (table,) = section.tables
    assert (table.rows, table.numbers) == ([["a", "70.0 %", "9"], ["b", "n/a", "3"]], {1, 2})
    assert section.pictures[0].alt.endswith("the largest is a.")
    known = replace(known, best={"b": 0.8, "a": 0.2})
    section = search.importance_section(results_of(config, TRIALS), known)
    assert "PED-ANOVA" in section.paragraphs[1]
    (table,) = section.tables
    assert table.rows == [["a", "70.0 %", "9", "20.0 %"], ["b", "n/a", "3", "80.0 %"]]
    assert (table.columns[-1], table.numbers) == ("share of the best", {1, 2, 3})
    empty = pd.DataFrame([], columns=COLUMNS)
    for known, reason in (
        (Importance(empty), "no key could be compared with another"),
        (Importance(empty, note="too few"), "too few"),
    ):
        section = search.importance_section(results_of(config), known)
        assert section.paragraphs == [f"No importance can be computed: {reason}."]
        assert section.pictures == section.tables == ()


def test_a_section_of_a_picture_says_why_there_is_none(config):
    some, none = results_of(config, TRIALS), results_of(config)
    for draw, words in (
        (search.history_section, "There are no trials."),
        (search.parallel_section, "Nothing was searched, or no trial has a result."),
        (search.slices_section, "Nothing was searched, or no trial has a result."),
        (search.curves_section, "There is no evaluation yet."),
        (search.pruning_section, "There are no trials."),
    ):
        section = draw(none)
        assert (section.paragraphs, section.pictures) == ([words], ())
        assert len(draw(some).pictures) == 1
    unsearched = config.replace({"search.space": {}})
    only = results_of(unsearched, [trial("complete", [2.0])])
    assert search.parallel_section(only).pictures == ()


def test_of_a_training_without_ended_trials_there_is_no_picture_of_values(config):
    curve = {"name": "train", "number": -1, "step": 1, "tokens": 256, "seconds": 2.0}
    curves = pd.DataFrame([curve | {"bits_per_byte": 3.0, "best": 3.0}])
    trained = results_of(config, outputs={"train": {}}, curves=curves)
    begun = [trial("unfinished", [3.0], train__learning_rate=1e-3, model__dca__last_k=1)]
    for results in (trained, results_of(config, begun)):
        for draw in (search.parallel_section, search.slices_section):
            assert draw(results).paragraphs == ["Nothing was searched, or no trial has a result."]
        assert len(search.curves_section(results).pictures) == 1


def test_the_savings_of_pruning_are_counted_in_bytes_time_and_share(config):
    trials = [trial("complete", [2.0] * 16), trial("pruned", [3.0] * 4)]
    results = results_of(config, trials)
    savings = pruning_savings(results)
    assert (savings.trials, savings.tokens, savings.seconds) == (1, 12 * 256, 24.0)
    assert savings.share == pytest.approx(12 / 32)
    (sentence,) = search.pruning_section(results).paragraphs
    assert sentence.startswith("Of 2 trials 1 was stopped early. This saved 3,072 bytes of")
    assert "38 % of the budgets" in sentence
    assert "about 0:24 of training" in sentence
    (sentence,) = search.pruning_section(results_of(config, trials[:1])).paragraphs
    assert sentence == "No trial was stopped early (scheduler asha)."
    beyond = results_of(config, [trial("pruned", [3.0] * 20), trial("pruned")])
    savings = pruning_savings(beyond)
    assert (savings.tokens, savings.seconds) == (4096, 0.0)
    assert savings.share == pytest.approx(16 / 36)
    assert pruning_savings(results_of(config, [trial("pruned", [3.0] * 16)])).share == 0.0


def test_a_budget_is_in_full_steps_of_the_trials_own_batch(data):
    space = {"train.batch_tokens": {"choice": [256, 512, 96], "when": {"train.compile": False}}}
    config = read_experiment(data | {"search": {"space": space}}, source="test")
    trials = [trial("complete", [2.0], train__batch_tokens=size) for size in (512, 96, INACTIVE)]
    assert trial_budgets(results_of(config, trials)).tolist() == [4096, 43 * 96, 4096]


def test_failures_are_trials_and_stages_with_their_reasons(config):
    results = results_of(config, TRIALS)
    failed = stage_run("fit", {}, "FAILED", **{"dca.reason": "no memory"})
    silent = stage_run("evaluate", {}, "FAILED")
    done = stage_run("select", {}, **{"dca.reason": "resumed"})
    results.stages.update({"fit": failed, "evaluate": silent, "select": done})
    (table,) = search.failures_section(results).tables
    assert table.rows == [
        ["trial 3", "failed", "diverged", "train.learning_rate=0.004, model.dca.last_k=1"],
        ["trial 4", "unfinished", "-", "train.learning_rate=0.005, model.dca.last_k=1"],
        ["fit", "failed", "no memory", ""],
    ]
    section = search.failures_section(results_of(config, TRIALS[:2]))
    assert section.paragraphs == ["None: no trial or stage failed or is unfinished."]
    assert section.tables == ()


def test_the_values_of_a_trial_are_shown_as_people_write_them(config):
    results = results_of(config, TRIALS)
    assert values_text(results, results.trials.loc[2]) == (
        "train.learning_rate=0.003, model.dca.last_k=n/a"
    )


def first(results, *shares: tuple[str, float, int, bool]) -> str:
    rows = {key: rest for key, *rest in shares}
    known = Importance(pd.DataFrame.from_dict(rows, orient="index", columns=COLUMNS), 4096)
    return summary(results, known)[0]


def test_the_first_sentence_names_the_key_that_decides_and_two_others(config):
    results = results_of(config, TRIALS)
    assert first(
        results,
        ("a", 0.8, 30, False),
        ("b", 0.6, 20, True),
        ("c", 0.2, 9, False),
        ("d", 0.1, 9, True),
    ) == (
        "b is the most important hyperparameter: it explains 60 % of the variance between 20 "
        "trials (then a 80 % where it applies, c 20 % where it applies), compared after 4,096 "
        "bytes of training, which all of them reached."
    )
    few = first(results, ("a", 0.805, 19, True))
    assert "it explains 80 % of the variance between 19 trials, compared" in few
    assert few.endswith("reached; with so few trials this is only a hint.")


def test_no_key_is_the_most_important_one_where_none_was_compared(config):
    results, start = results_of(config, TRIALS), "The most important hyperparameter cannot be"
    constant = first(results, ("a", 0.0, 30, True), ("b", 0.0, 20, False))
    assert constant == f"{start} determined: no searched key varied."
    alone = first(results, ("a", float("nan"), 30, True), ("b", 0.0, 30, True))
    assert alone == f"{start} determined: no key could be compared with another."
    beside = first(results, ("a", 0.3, 30, False), ("b", float("nan"), 30, True))
    assert beside == alone  # b, which all trials have, may explain more


def test_the_second_sentence_has_the_winner_and_the_next(config):
    better = summary(results_of(config, TRIALS, winner=1))[1]
    assert better == (
        "Trial 1 won with 2.0000 bits per byte, 0.5000 better than trial 0, the next, after 4,096 "
        "bytes, with one seed each, too few to exclude chance; no version is registered yet, so "
        "there is no comparison on the test split."
    )
    worse = summary(results_of(config, TRIALS, winner=0))[1]
    assert "0.5000 worse than trial 1, the next, after 4,096 bytes" in worse
    alone = summary(results_of(config, TRIALS[:1], winner=0))[1]
    assert "won with 2.5000 bits per byte, without another trial to compare it with;" in alone
    equal = summary(results_of(config, [TRIALS[0], TRIALS[0]], winner=1))[1]
    assert "0.0000 better than trial 0" in equal


def seeded(config, *seeds: tuple[int, float, float]) -> str:
    completed = [
        (f"configuration {which}", seed, (a, b)[which]) for seed, a, b in seeds for which in (0, 1)
    ]
    completed = [one for one in completed if not math.isnan(one[2])]
    return summary(results_of(config, TRIALS[:2], winner=1, completed=completed))[1]


def test_seeds_tell_whether_the_winner_is_better(config):
    nan = math.nan
    assert "with 2 and 1 seed, too few" in seeded(config, (0, 2.5, 2.0), (1, nan, 2.1))
    better = seeded(config, (0, 2.5, 2.0), (1, 2.51, 2.01))
    assert "over 2 and 2 seeds 2.0050 against 2.5050, a difference between" in better
    assert "with 95 % confidence, so that it is better" in better
    assert "so that it is worse" in seeded(config, (0, 2.0, 2.5), (1, 2.01, 2.51))
    assert "so that it may be no better" in seeded(config, (0, 2.0, 2.0), (1, 2.2, 2.3))


def test_the_runner_up_is_compared_where_both_were(config):
    assert compare_top_two(results_of(config, TRIALS)) is None
    assert compare_top_two(results_of(config, TRIALS[:1] + TRIALS[3:], winner=0)) is None
    pair = compare_top_two(results_of(config, TRIALS, winner=1))
    assert (pair.winner, pair.second, pair.tokens, pair.gap) == (1, 0, 4096, 0.5)
    assert (pair.counts, math.isnan(pair.low)) == ((0, 0), True)
    pruned = compare_top_two(results_of(config, TRIALS[1:], winner=0))
    assert (pruned.second, pruned.tokens, pruned.gap) == (1, 256, 1.0)


def test_without_a_winner_the_leader_or_the_one_run_is_named(config):
    leads = summary(results_of(config, TRIALS))[1]
    assert leads == (
        "No winner is selected yet: trial 1, complete, leads with 2.0000 bits per byte."
    )
    nothing = summary(results_of(config, TRIALS[3:]))[1]
    assert nothing == "No winner is selected yet: no trial has a result."
    trained = results_of(config, outputs={"train": {}})
    assert summary(trained)[1].endswith(
        "so there is no winner: one training run has no result yet."
    )
    trained.stages["train"].data.metrics["best_val_bits_per_byte"] = 2.5
    assert summary(trained)[1].endswith("one training run reached 2.5000 bits per byte.")


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({}, "version 2 has no decision yet"),
        ({"decision": "kept version 1: x"}, "version 2 kept version 1: x"),
        ({"gain": 0.5}, "version 2 has no decision yet"),
        ({"min_gain": 0.5}, "version 2 has no decision yet"),
        (
            {"gain": 0.5, "min_gain": 0.25, "champion": "1", "promoted": True},
            "on the test split version 2 gains 0.5000 bits per byte over version 1, at least "
            "0.2500 with 95 % confidence, and was promoted",
        ),
        (
            {"gain": 0.0, "min_gain": 0.0, "champion": "1", "promote": {"confidence": 0.9}},
            "on the test split version 2 gains 0.0000 bits per byte over version 1, at least "
            "0.0000 with 90 % confidence, and was not promoted",
        ),
    ],
)
def test_the_gate_has_a_phrase_for_each_decision(config, tags, words):
    assert gate_phrase(results_of(config, version=2, version_tags=VersionTags(**tags))) == words


def test_the_third_sentence_has_the_command_and_the_commit(config):
    at = summary(results_of(config, TRIALS, lineage=LINEAGE))[2]
    assert at.startswith("To reproduce it at commit c0ffee, which had uncommitted changes: python ")
    assert summary(results_of(config, TRIALS))[2].startswith(
        f"To reproduce it: python {script('sweep.py')}"
    )


def test_what_differs_from_the_defaults_is_the_fits(config):
    rows = {key: rest for key, *rest in changed_from_defaults(results_of(config, TRIALS, winner=1))}
    assert rows["train.learning_rate"] == ["0.004", "0.002"]
    assert rows["model.dca.last_k"] == ["2", "1"]
    assert rows["model.dim"] == ["128", "16"]
    assert not [key for key in rows if key.startswith(("search", "fit", "experiment", "storage"))]
    without = {key: rest for key, *rest in changed_from_defaults(results_of(config, TRIALS))}
    assert without["train.learning_rate"] == ["0.004", "0.01"]


@pytest.mark.parametrize("stage", ["train", "fit"])
def test_what_differs_from_the_defaults_is_what_a_training_has_recorded(config, stage):
    """The tokens of an arm follow from its step time with `budget: time`."""
    config = config.replace({"fit.tokens": 8192})
    results = results_of(config, TRIALS, winner=1, outputs={stage: {}})
    planned = {key: value for key, _, value in changed_from_defaults(results)}
    assert planned["train.tokens"] == {"train": "4096", "fit": "8192"}[stage]
    run = config.training_run({"train.tokens": 2560, "train.learning_rate": 4e-3})
    params = {key: encode_param(value) for key, value in run.params.items()}
    results.stages[stage].data.params.update(params)
    found = {key: value for key, _, value in changed_from_defaults(results)}
    assert found["train.tokens"] == "2560"
    assert "train.learning_rate" not in found  # 0.004 is the default


def test_repeated_configurations_are_named_by_what_differs(config):
    def text(**values) -> str:
        params = {"train.learning_rate": "0.001", "train.tokens": "4096", "model.depth": "2"}
        params |= {key.replace("__", "."): value for key, value in values.items()}
        return f'["c", {[list(item) for item in sorted(params.items())]}]'.replace("'", '"')

    completed = [
        *((text(), seed, 2.0 + seed / 10) for seed in range(2)),
        *((text(model__depth="3"), seed, 1.0 + seed / 10) for seed in range(3)),
        (text(model__depth="4"), 0, 0.5),
    ]
    rows = repeated_configurations(results_of(config, completed=completed))
    assert [row[:3] for row in rows] == [("A", "model.depth=3", 3), ("B", "model.depth=2", 2)]
    assert rows[0][3] == pytest.approx(1.1)
    (one,) = repeated_configurations(results_of(config, completed=completed[:2]))
    assert one[1] == "train.learning_rate=0.001, model.dca.last_k=None, train.tokens=4096"


def test_after_z_the_letters_of_configurations_begin_again(config):
    completed = [
        (f'["c", [["model.depth", "{n:02}"]]]', seed, float(n))
        for n in range(27)
        for seed in (0, 1)
    ]
    letters = [row[0] for row in repeated_configurations(results_of(config, completed=completed))]
    assert letters == [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "A"]


def test_every_section_is_there_and_a_figure_may_have_a_megabyte(config, monkeypatch):
    monkeypatch.setattr(
        "pipelines.reporting.page.publish.read_mixing", lambda _: Mixing(pd.DataFrame())
    )
    sections = all_sections(results_of(config, TRIALS, winner=1))
    assert len({section.id for section in sections}) == len(sections) == 14
    assert MAX_SVG_BYTES == 10**6
