"""The commands that settle a study, repeat it, and make one of a search."""

import shlex
from pathlib import Path

import pytest

from pipelines.comparison.config import MAX_ARMS, MAX_SEED, MAX_SEEDS
from pipelines.comparison.time_to_quality import LearningRates, learning_rates
from pipelines.comparison.values import Interval, Ratio
from pipelines.experiment import Experiment, load, read_experiment
from pipelines.reporting.commands import next_commands, reproduction_command
from pipelines.reporting.page.leaderboard import leaderboard_section
from pipelines.reporting.results import Results
from pipelines.reporting.studies.choices import choice_answers, choice_commands
from pipelines.reporting.studies.commands import (
    seeds_text,
    seeds_to_settle,
    study_commands,
    with_seeds,
)
from pipelines.search.config import MAX_TRIALS
from tests.pipelines.reporting.studies.made import CLOSE, DCA, STANDARD, arm, study
from tests.pipelines.reporting.tables import INACTIVE, results_of, stage_run, trial

RATE, LAST_K = "train.learning_rate", "model.dca.last_k"
ARMS = {
    "standard": {"model.residual": "standard"},
    "dca": {"model.residual": "dca"},
    "close": {"model.dca.last_k": 4},
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The project lies in the current folder."""
    monkeypatch.setattr("pipelines.storage.project.ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def config(data: dict) -> Experiment:
    space = {RATE: {"choice": [1e-3, 2e-3]}}
    search = {"space": space, "sampler": {"name": "grid"}}
    return read_experiment(data | {"arms": ARMS, "seeds": 5, "search": search}, source="test")


def of_study(config: Experiment, *arms, **settings) -> Results:
    found = study(*arms, **settings) if arms else None
    return results_of(config.of_arm("dca"), whole=config, study=found, arm="dca")


def lines(found) -> dict[str, str]:
    return {one.purpose.split(";")[0].split(",")[0]: one.lines[0] for one in found}


def changes(line: str, tmp_path: Path, config: Experiment) -> Experiment:
    """The experiment that a command runs."""
    program, script, path, *given = shlex.split(line)
    assert (program, script) == ("python", "pipelines/sweep.py")
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(config.to_yaml())
    return load([path, *given])


def test_an_undecided_arm_has_the_command_that_adds_seeds(config, tmp_path):
    given = list(study_commands(of_study(config, STANDARD, DCA, CLOSE)))
    found = lines(given)
    assert given[0].purpose == (
        "Add seeds until there are 11, which would find a difference of 0.01 with a probability of "
        "80 %; only what is missing is trained"
    )
    added = changes(found["Add seeds until there are 11"], tmp_path, config)
    assert added == config.replace({"seeds": 11})
    assert found["Compare the arms with another baseline"] == (
        "python pipelines/report.py tiny --baseline dca"
    )
    again = changes(found["Repeat it with other seeds"], tmp_path, config)
    assert (again.experiment, again.seeds) == ("tiny-2", [5, 6, 7, 8, 9])
    assert changes(found["Run the whole study"], tmp_path, config) == config


def test_a_decided_study_and_one_of_a_single_look_have_none(config):
    for found in (
        of_study(config, STANDARD, DCA),
        of_study(config, STANDARD, CLOSE, single_look=1),
    ):
        assert not any(name.startswith("Add") for name in lines(study_commands(found)))


def test_too_few_seeds_to_say_how_many_are_needed_are_to_become_five():
    single = study(*(arm(n, g, bits={0: 2.0 + g}) for n, g in (("a", 0), ("b", 0.1))), looks=1)
    assert seeds_to_settle(single.comparison, 1) == 5
    far = arm("far", 0, bits={0: 2.0, 1: 9.0})
    assert seeds_to_settle(study(STANDARD, far, looks=2).comparison, 2) == 5
    close = arm("close", 0, bits={0: 2.501, 1: 2.508})
    both = study(STANDARD, far, close, looks=2).comparison
    assert seeds_to_settle(both, 2) == both.rows[2].seeds_needed == 16
    alone = study(arm("a", 0, bits={0: 2.0}), looks=1)
    assert seeds_to_settle(alone.comparison, 1) == 5
    assert seeds_to_settle(study(STANDARD).comparison, 5) is None


def test_what_more_seeds_would_do_is_said_of_the_arms_for_which_it_is_known():
    single = study(*(arm(n, g, bits={0: 2.0 + g}) for n, g in (("a", 0), ("b", 0.1))), looks=1)
    assert seeds_text(single.comparison, 5) == "show how many are needed"
    assert seeds_text(study(STANDARD).comparison, 5) == "make the interval narrower"
    far = arm("far", 0, bits={0: 2.0, 1: 9.0})
    too_many = study(STANDARD, far, looks=2).comparison
    assert too_many.rows[1].seeds_needed > MAX_SEEDS
    assert seeds_text(too_many, 5) == "show better how many are needed"
    close = arm("close", 0, bits={0: 2.501, 1: 2.508})
    both = study(STANDARD, far, close, looks=2).comparison
    assert seeds_text(both, 16).endswith("of 0.01 with a probability of 80 % of close")


def test_no_seeds_are_advised_for_what_divergence_has_blocked(config):
    blocked = arm("blocked", 0.1, bits=dict(DCA.bits) | {4: None})
    found = of_study(config, STANDARD, blocked)
    assert seeds_to_settle(study(STANDARD, blocked).comparison, 4) is None
    assert not any(name.startswith("Add") for name in lines(study_commands(found)))
    both = study(STANDARD, blocked, CLOSE).comparison
    assert seeds_to_settle(both, 5) == 11
    assert seeds_text(both, 11).endswith("with a probability of 80 % of close")


def test_step_times_that_are_too_noisy_have_the_commands_that_measure_them_again(config):
    noisy = arm("b", 0.1, step_time=Ratio(1.2, Interval(0.7, 1.3)))
    probes = [stage_run("probe", {}, run_id=name) for name in ("p2", "p1")]

    def again(config: Experiment, *arms) -> list[list[str]]:
        results = of_study(config, *arms)
        results.store.find = {"probe": probes}.get  # type: ignore[method-assign, assignment]
        return [c.lines for c in study_commands(results) if c.purpose.startswith("Measure")]

    (found,) = again(config, STANDARD, noisy)
    assert found[:2] == [f"mlflow runs delete --run-id {name}" for name in ("p2", "p1")]
    assert found[2:] == [reproduction_command(of_study(config, STANDARD, noisy))]
    assert again(config, STANDARD, DCA) == []
    assert again(config.replace({"budget": "time"}), STANDARD, noisy) == []


def test_more_seeds_than_an_experiment_may_have_are_not_suggested():
    found = study(STANDARD, CLOSE, smallest_difference=1e-4)
    assert found.comparison.rows[1].seeds_needed is not None
    assert found.comparison.rows[1].seeds_needed > 256
    assert seeds_to_settle(found.comparison, 5) is None


def test_a_list_of_seeds_is_continued_with_others(config):
    listed = config.replace({"seeds": [7, 0, 2]})
    assert with_seeds(listed, 6) == "seeds=[7, 0, 2, 1, 3, 4]"
    alone = config.replace({"arms": {}, "seeds": [1, 2]})  # whose search has the seed 0
    assert with_seeds(alone, 4) == "seeds=[1, 2, 3, 4]"


def test_where_the_best_rate_is_the_last_a_wider_range_is_suggested(config, tmp_path):
    def wider(config: Experiment, *ends: str) -> Experiment:
        rates = {"lowest": (2.0, 2.1), "highest": (2.1, 2.0)}
        arms = [arm(f"arm {n}", 0, rates=_rates(*rates[end])) for n, end in enumerate(ends)]
        found = lines(study_commands(of_study(config, *arms)))
        return changes(found["Search a wider range of learning rates"], tmp_path, config)

    grid = wider(config, "highest", "highest")
    assert grid.search.space[RATE].choice == [1e-3, 2e-3, 4e-3]
    assert (grid.search.trials, grid.search.trial_count) == (None, 3)
    some = wider(config.replace({"search.trials": 2}), "highest", "lowest")
    assert (some.search.trials, some.search.grid_size) == (4, 4)
    assert wider(config, "lowest", "highest").search.space[RATE].choice == [5e-4, 1e-3, 2e-3, 4e-3]
    drawn = {f"search.space.{RATE}": {"log_uniform": [1e-3, 1e-2]}, "search.sampler.name": "random"}
    found = wider(config.replace(drawn), "lowest", "lowest")
    assert found.search.space[RATE].log_uniform == (5e-4, 1e-2)
    assert found.search.trials == 2 * 8  # those that there are lie in the wider range
    limited = drawn | {"search.trials": 3, "search.max_tokens": 50_000, "search.max_seconds": 60}
    search = wider(config.replace(limited), "lowest").search
    assert (search.trials, search.max_tokens, search.max_seconds) == (6, 100_000, 120)
    many = drawn | {"search.trials": MAX_TRIALS}
    assert wider(config.replace(many), "lowest").search.trials == MAX_TRIALS


def _rates(*bits: float) -> LearningRates | None:
    return learning_rates(zip((1e-3, 2e-3), bits, strict=True), 8.0)


def test_a_range_of_an_arm_of_its_own_is_left_alone(config):
    own = {"close": {f"search.space.{RATE}": {"choice": [1e-3]}}}
    found = of_study(config.replace({"arms": ARMS | own}), arm("a", 0, rates=_rates(2.1, 2.0)))
    assert not any("wider" in name for name in lines(study_commands(found)))


def test_an_unfinished_study_goes_on_with_the_same_command(config, tmp_path):
    results = of_study(config)
    assert list(lines(study_commands(results))) == ["Go on with the study"]
    assert reproduction_command(results) == lines(study_commands(results))["Go on with the study"]
    assert not any(
        "seed" in one.purpose or "longer" in one.purpose for one in next_commands(results)
    )


def searched(data: dict, **more) -> Experiment:
    space = {
        RATE: {"log_uniform": [1e-3, 1e-2]},
        "model.residual": {"choice": ["standard", "dca"]},
        "model.dca.last_k": {"choice": [1, 2], "when": {"model.residual": "dca"}},
    }
    return read_experiment(data | {"search": {"space": space, "trials": 5} | more}, source="test")


def tried(
    state: str, bits: float, kind: str, last_k: object = INACTIVE, rate: float = 2e-3, name=""
):
    values = {"train__learning_rate": rate, "model__residual": kind, "model__dca__last_k": last_k}
    return trial(state, [3.0, bits], name, **values)


TRIALS = [
    tried("complete", 2.5, "standard", name="s"),
    tried("complete", 2.6, "standard", rate=9e-3),
    tried("complete", 2.3, "dca", 2, name="d"),
    tried("pruned", 2.2, "dca", 1),
]


def test_the_best_trials_of_a_choice_are_compared_over_the_seeds_that_there_are(data):
    once = results_of(searched(data), TRIALS, completed=[("s", 0, 2.5), ("d", 0, 2.3)])
    (answer,) = choice_answers(once)
    assert (answer.key, answer.trials) == ("model.residual", {"standard": 0, "dca": 2})
    (row,) = answer.comparison.undecided
    assert row.difference is not None
    assert row.difference.paired.n == 1
    seeds = [("s", s, 2.5 + 0.01 * s) for s in (0, 1, 2)] + [("d", s, 2.3) for s in (0, 1, 2, 3)]
    (answer,) = choice_answers(results_of(searched(data), TRIALS, completed=seeds))
    assert answer.comparison.looks == (2,)  # without the seed that chose the trials
    dca = answer.comparison.rows[1].difference
    assert dca is not None
    assert (dca.paired.n, dca.paired.mean) == (2, pytest.approx(-0.215))


def test_the_table_of_a_choice_names_the_split_that_the_search_minimised(data):
    for metric, split in (("val", "validation"), ("train", "training")):
        config = searched(data).replace({"train.best_metric": f"{metric}_bits_per_byte"})
        results = results_of(config, TRIALS, completed=[("s", 0, 2.5), ("d", 0, 2.3)])
        captions = [table.caption for table in leaderboard_section(results).tables]
        assert captions[1].endswith(f"On the {split} split.")


def test_a_choice_with_results_of_one_value_has_no_answer(data):
    assert choice_answers(results_of(searched(data), TRIALS[2:])) == []


def test_the_values_of_a_choice_are_told_apart_and_seeds_go_on_from_0_behind_the_largest(data):
    rates = [1e-3, 1.00001e-3]
    changes = {"search.space": {RATE: {"choice": rates}}, "seed": MAX_SEED - 2}
    config = searched(data).replace(changes)
    trials = [trial("complete", [3.0, 2.5], f"t{n}", train__learning_rate=rates[n]) for n in (0, 1)]
    results = results_of(config, trials)
    (answer,) = choice_answers(results)
    assert answer.trials == {"0.001": 0, "0.00100001": 1}
    (command,) = choice_commands(results)
    assert f"seeds=[{MAX_SEED - 1}, 0, 1, 2, 3]" in command.lines[0]


def test_one_command_makes_a_study_of_a_choice(data, tmp_path):
    config = searched(data, try_first=[{RATE: 2e-3, "model.residual": "standard"}])
    results = results_of(config, TRIALS, completed=[("s", 0, 2.5), ("d", 0, 2.3)])
    (command,) = choice_commands(results)
    found = changes(command.lines[0], tmp_path, config)
    assert found.experiment == "tiny-residual"
    assert (found.replicate_seeds, found.tuning_seed) == ((1, 2, 3, 4, 5), 1_000_000)
    standard, dca = map(found.of_arm, found.arm_names)
    assert [one.search.trial_count for one in (standard, dca)] == [1, 1]
    assert (standard.model.residual, standard.train.learning_rate) == ("standard", 2e-3)
    assert (dca.model.residual, dca.model.dca.last_k) == ("dca", 2)
    assert list(choice_commands(of_study(found))) == []


def test_a_study_of_a_choice_has_the_best_of_too_many_values(data, tmp_path):
    rates = [round(1e-3 * n, 4) for n in range(1, MAX_ARMS + 3)]
    config = searched(data).replace({"search.space": {RATE: {"choice": rates}}})
    results = results_of(
        config,
        [
            trial("complete", [3.0, 2.0 + abs(n - 40) / 100], f"t{n}", train__learning_rate=rate)
            for n, rate in enumerate(rates)
        ],
    )
    (command,) = choice_commands(results)
    assert "the best trials of 64 values of train.learning_rate" in command.purpose
    found = changes(command.lines[0], tmp_path, config)
    assert list(found.arms) == [f"{rate:g}" for rate in rates[2:]]


def test_values_that_make_no_study_have_no_command_and_no_sentence_that_names_it(data):
    """The best trials of both are the same model: its kind does not read what was searched."""
    space = {"model.residual": {"choice": ["standard", "dca"]}, LAST_K: {"choice": [1, 2]}}
    config = searched(data).replace({"search.space": space})
    trials = [tried("complete", 2.0 + n, "standard", n, name=f"t{n}") for n in (1, 2)]
    results = results_of(config, trials, completed=[("t1", 0, 3.0), ("t2", 0, 4.0)])
    (answer,) = choice_answers(results)
    assert answer.key == LAST_K
    assert list(choice_commands(results)) == []
    sentence, *_ = leaderboard_section(results).paragraphs
    assert sentence.endswith(" One seed decides nothing.")
