from dataclasses import replace

import pytest

from pipelines.console.errors import PipelineError
from pipelines.search.ranking import best_trial, pareto_front
from pipelines.tracking.trials import StoredTrial
from tests.pipelines.search.trials import evaluations


def trial(number: int, state: str, objective: float | None, curve=None) -> StoredTrial:
    curve = curve or {}
    return StoredTrial(
        *(number, str(number), {}, state, objective),
        tokens=max(curve, default=0),
        evaluations=evaluations(curve),
    )


def test_the_smallest_objective_of_the_complete_trials_wins():
    trials = [trial(0, "complete", 2.5), trial(1, "complete", 2.1), trial(2, "complete", 2.3)]
    assert best_trial(trials).number == 1


def test_a_pruned_trial_never_outranks_a_complete_one():
    trials = [trial(0, "complete", 3.0), trial(1, "pruned", 1.0, {10: 1.0})]
    assert best_trial(trials).number == 0


def test_a_failed_trial_is_no_candidate():
    assert best_trial([trial(0, "failed", None), trial(1, "complete", 9.0)]).number == 1
    with pytest.raises(PipelineError, match="no trial has a result"):
        best_trial([trial(0, "failed", None)])


def test_of_trials_that_all_diverged_the_last_to_do_so_wins():
    failed = [
        replace(trial(number, "failed", None), reason=reason, tokens=tokens)
        for number, (reason, tokens) in enumerate(
            [("diverged at step 1", 10), ("no room", 30), ("diverged at step 2", 20)]
        )
    ]
    assert best_trial(failed).number == 2
    assert best_trial([*failed, trial(3, "pruned", 9.0)]).number == 3


def test_if_none_is_complete_the_deepest_shared_rung_decides():
    trials = [
        trial(0, "pruned", 2.0, {10: 2.0}),
        trial(1, "pruned", 2.6, {10: 2.9, 20: 2.6}),
        trial(2, "pruned", 2.5, {10: 3.0, 20: 2.8, 30: 2.5}),
    ]
    assert best_trial(trials).number == 1


@pytest.mark.parametrize(
    ("second", "front"), [("parameters", [2, 0]), ("bytes_per_second", [2, 3])]
)
def test_the_front_is_what_no_trial_beats_in_both_objectives(second, front):
    values = {0: (2.5, 10), 1: (2.6, 10), 2: (2.0, 30), 3: (2.5, 40), 4: (2.0, 30), 5: (3.0, 20)}
    trials = [
        replace(trial(number, "complete", bits), second=float(other))
        for number, (bits, other) in values.items()
    ]
    trials += [trial(6, "failed", None), replace(trial(7, "pruned", 1.0), second=1.0)]
    assert [found.number for found in pareto_front(trials, second)] == front
    assert best_trial(trials).number == 2


def test_of_equal_trials_the_first_wins():
    assert best_trial([trial(3, "complete", 2.0), trial(1, "complete", 2.0)]).number == 1
    curve = {10: 2.0, 20: 1.0}
    pruned = [trial(4, "pruned", 1.0, curve), trial(2, "pruned", 1.0, curve)]
    assert best_trial(pruned).number == 2


def test_pruned_trials_without_a_shared_rung_are_ranked_by_depth():
    trials = [trial(0, "pruned", 1.0, {10: 1.0}), trial(1, "pruned", 3.0, {30: 3.0})]
    assert best_trial(trials).number == 1


def test_of_equal_second_objectives_the_better_one_is_on_the_front():
    values = {0: (2.0, 10.0), 1: (2.5, 10.0), 2: (3.0, 9.0)}
    trials = [replace(trial(n, "complete", a), second=b) for n, (a, b) in values.items()]
    assert [found.number for found in pareto_front(trials, "parameters")] == [0, 2]
    assert [found.number for found in pareto_front(trials, "bytes_per_second")] == [0]
