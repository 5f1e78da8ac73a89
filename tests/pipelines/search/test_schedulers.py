from types import SimpleNamespace

import pytest

from pipelines.experiment import Experiment
from pipelines.search.schedulers import scheduler_of
from tests.pipelines.search.trials import complete, result, searcher_of

BATCHES = {"train.batch_tokens": {"choice": [256, 512, 768, 1024, 2048, 4096]}}


def rungs_of(asha) -> list[tuple[int, dict[int, float]]]:
    return [(tokens, dict(found)) for tokens, found in asha._brackets[0]._rungs]


def never(*_) -> bool:
    return False


def stops(asha, number: int, *curve: tuple[int, float], **values: int) -> bool:
    trial = SimpleNamespace(config={"number": number, "values": values})
    asha.on_trial_add(None, trial)
    return asha.on_trial_result(None, trial, {"curve": curve}) == "STOP"


def test_a_resumed_search_stops_trials_by_what_it_had_reached_before(searched):
    rung = searched.train.eval_steps[1] * searched.train.batch_tokens
    known = [complete(n, state="pruned", curve={rung: 2.0 + n / 10}) for n in range(3)]
    assert not stops(scheduler_of(searched.search_task(), [], never), 9, (rung, 3.0))
    assert stops(scheduler_of(searched.search_task(), known, never), 9, (rung, 3.0))
    assert not stops(scheduler_of(searched.search_task(), known, never), 9, (rung, 1.0))


def test_a_trial_that_starts_again_stands_on_a_rung_once_with_its_value_there(searched):
    rung = searched.train.eval_steps[1] * searched.train.batch_tokens
    asha = scheduler_of(searched.search_task(), [], never)
    assert not stops(asha, 0, (rung, 3.0))
    assert stops(asha, 1, (rung, 3.5))
    assert not stops(asha, 2, (rung, 2.0))
    assert not stops(asha, 0, (rung, 3.0), (2 * rung, 1.0))
    assert asha._brackets[0]._rungs[-1][1] == {0: -3.0, 1: -3.5, 2: -2.0}
    known = [complete(0, state=None, curve={rung: 3.0}), complete(1, curve={rung: 2.0})]
    assert not stops(scheduler_of(searched.search_task(), known, never), 0, (rung, 3.0))


@pytest.mark.parametrize("batch", [512, 768, 2048, 4096])
@pytest.mark.parametrize("stored", [False, True])
def test_trials_of_any_batch_are_on_a_rung_with_their_evaluation_of_its_time(batch, stored):
    """With batches of 1,024 bytes the rungs are after 48,128 and 144,384; of 2,048 the second
    evaluation is after 47,104 and the sixth after 143,360."""
    changes = {"train.tokens": 192_000, "train.batch_tokens": 1024, "train.evals": 8}
    grace = {"search.scheduler.name": "asha", "search.scheduler.grace_evals": 2}
    task = (
        Experiment(experiment="e")
        .replace({**changes, **grace, "search.space": BATCHES})
        .search_task()
    )
    train = task.base.replace({"train.batch_tokens": batch}).train
    curve = {step * batch: 3.0 - n / 10 for n, step in enumerate(train.eval_steps, 1)}
    values = {"train.batch_tokens": batch}
    known = [complete(3, curve=curve, values=values)] if stored else []
    asha = scheduler_of(task, known, never)
    if not stored:
        trial = SimpleNamespace(config={"number": 3, "values": values})
        asha.on_trial_add(None, trial)
        asha.on_trial_result(None, trial, {"curve": curve.items()})
    reached = {tokens: [-loss for loss in found.values()] for tokens, found in rungs_of(asha)}
    assert reached == {48_128: [pytest.approx(2.8)], 144_384: [pytest.approx(2.4)]}


def test_the_largest_reduction_factor_is_one(searched):
    largest = searched.replace({"search.scheduler.reduction_factor": 1_000_000})
    assert not stops(scheduler_of(largest.search_task(), [], never), 0, (1 << 20, 3.0))


@pytest.mark.parametrize("resumed", [False, True])
def test_median_stopping_ends_what_is_worse_than_half_of_the_completed(searched, resumed):
    searched = searched.replace(
        {"search.scheduler.name": "median", "search.scheduler.grace_evals": 2}
    )
    steps = [step * searched.train.batch_tokens for step in searched.train.eval_steps]
    curves = [{t: 4.0 + n / 10 - i / 2 for i, t in enumerate(steps)} for n in range(5)]
    known = [
        complete(n, curve=curve, objective=min(curve.values()), tokens=steps[-1])
        for n, curve in enumerate(curves)
    ]
    searcher, _ = searcher_of(searched, known if resumed else known[:3])
    for name, second in (("good", 3.6), ("bad", 3.8)):
        number = searcher.suggest(name)["number"]
        trial = SimpleNamespace(trial_id=name, config={"number": number})
        scheduler = scheduler_of(searched.search_task(), known, searcher.should_prune)
        early = {**result(9.0, steps[0], finished=False)}
        assert scheduler.on_trial_result(None, trial, early) == "CONTINUE"
        late = {**result(second, steps[1], finished=False)}
        verdict = scheduler.on_trial_result(None, trial, late)
        assert verdict == ("STOP" if resumed and name == "bad" else "CONTINUE")


@pytest.mark.parametrize(("trained", "verdict"), [(3, "CONTINUE"), (4, "STOP")])
def test_median_stopping_compares_with_four_trials_however_often_their_results_come(
    searched, trained, verdict
):
    median = {"search.scheduler.name": "median", "search.scheduler.grace_evals": 1}
    searched = searched.replace(median)
    tokens = searched.train.eval_steps[0] * searched.train.batch_tokens
    known = [complete(n, curve={tokens: 2.0}) for n in range(trained)]
    repeated = [complete(n) for n in range(trained, trained + 4)]  # as that of an equal proposal is
    searcher, _ = searcher_of(searched, [*known, *repeated])
    trial = SimpleNamespace(trial_id="new", config={"number": searcher.suggest("new")["number"]})
    scheduler = scheduler_of(searched.search_task(), [], searcher.should_prune)
    assert scheduler.on_trial_result(None, trial, result(9.0, tokens, finished=False)) == verdict
