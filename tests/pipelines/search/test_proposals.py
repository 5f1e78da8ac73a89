"""What the search runs of what the sampler proposes: valid points, each of them once."""

from random import Random
from typing import Any

import pytest
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from pipelines.console.errors import ConfigError
from pipelines.cost.largest_trial import largest_trial
from pipelines.experiment import Experiment, read_experiment
from pipelines.search import space as module
from pipelines.search.space import bounded
from pipelines.tracking.trials import StoredTrial
from tests.pipelines.search.trials import complete, draw, result, searcher_of

DEPENDENT = {"model.dim": {"choice": [48, 64]}, "model.heads": {"choice": [2, 3]}}
"""Of the four points 64 and 3 is invalid."""
VALID = [(48, 2), (48, 3), (64, 2)]


def sizes(drawn: list[dict]) -> list[tuple]:
    return [(values["model.dim"], values["model.heads"]) for values in drawn]


def searching(experiment: Experiment, space: dict, **search: Any) -> Experiment:
    return experiment.replace({"search": {"space": space, **search}})


@pytest.mark.parametrize("sampler", ["tpe", "qmc", "random", "grid"])
def test_a_finite_space_is_run_once_without_its_invalid_points(experiment, sampler):
    trials = {} if sampler == "grid" else {"trials": 6}
    searched = searching(experiment, DEPENDENT, sampler={"name": sampler}, **trials)
    task = bounded(searched.search_task(), [])
    assert task.search.trial_count == 3
    left_out = []
    searcher, _ = searcher_of(searched, left_out=lambda *given: left_out.append(given))
    drawn = draw(searcher, 30)
    assert sorted(sizes(drawn)) == VALID
    invalid = [values for values, problem in left_out if problem]
    assert all(sizes([values]) == [(64, 3)] for values in invalid)
    if sampler == "grid":
        expected = "model.heads: dim / heads must be an even number, got 64 / 3"
        assert [problem for _, problem in left_out][:1] == [expected]


KIND, STREAMS = "model.residual", "model.mhc.streams"
SCHEDULE, FINAL = "train.schedule", "train.final_learning_rate_fraction"
DECAY = "train.decay_fraction"
UNREAD = [
    ({KIND: ["standard", "mhc"], STREAMS: [2, 3]}, {KIND: "mhc"}, 3),
    (
        {KIND: ["frac", "hyper_connections"], "model.hyper_connections.streams": [2, 8]},
        {KIND: "hyper_connections"},
        3,
    ),
    ({KIND: ["grn_v1", "grn_v3"], "model.dca.w_rate": [0.1, 1.0]}, {KIND: "grn_v3"}, 3),
    ({SCHEDULE: ["cosine", "wsd", "inverse_sqrt"], DECAY: [0.1, 0.2, 0.3]}, {SCHEDULE: "wsd"}, 5),
    ({SCHEDULE: ["inverse_sqrt", "cosine"], FINAL: [0.1, 0.2]}, {SCHEDULE: "cosine"}, 3),
]
"""Choices, which of the first are read with the second, and how many trainings there are."""


@pytest.mark.extended
@pytest.mark.parametrize("sampler", ["tpe", "qmc", "random", "grid"])
@pytest.mark.parametrize(("choices", "reader", "expected"), UNREAD)
def test_points_that_differ_in_what_they_do_not_read_are_trained_once(
    experiment, sampler, choices, reader, expected
):
    trials = {} if sampler == "grid" else {"trials": 12}
    space = {key: {"choice": values} for key, values in choices.items()}
    searched = searching(experiment, space, sampler={"name": sampler}, **trials)
    assert bounded(searched.search_task(), []).search.trial_count == expected
    drawn = draw(searcher_of(searched)[0], 30)
    assert len(drawn) == expected
    assert sum(reader.items() <= values.items() for values in drawn) == len([*choices.values()][1])


SPELLINGS = [
    ({"model.kv_heads": [None, 2, 1]}, 2),
    ({"model.kv_heads": [None, 1, 2], "model.heads": [2, 1]}, 3),
    ({"model.dca.last_k": [1, 2, 8, None], "model.depth": [2]}, 2),
    ({"model.dca.last_k": [1, 2, 8, None], "model.depth": [1, 2]}, 3),
    ({"train.micro_batch_tokens": [None, 128, 256]}, 2),
    ({FINAL: [None, 0.1, 0.2]}, 2),
    ({SCHEDULE: ["wsd"], DECAY: [None, 0.2, 0.3]}, 2),
    ({KIND: ["laurel"], "model.laurel.rank": [None, 1, 2]}, 2),
    ({KIND: ["attention_residuals"], "model.attention_residuals.blocks": [None, 3, 4, 2]}, 2),
    ({"train.weight_decay": [0, 1], "train.beta1": [0.5, 0.9]}, 4),
]
"""Choices, and how many trainings there are: several values mean the same."""


@pytest.mark.parametrize(("choices", "expected"), SPELLINGS)
def test_equal_trainings_in_other_words_are_trained_once(experiment, choices, expected):
    space = {key: {"choice": values} for key, values in choices.items()}
    changes = {"model.residual": "dca", "model.heads": 2, "train.batch_tokens": 256}
    changes |= {"train.micro_batch_tokens": None, "model.depth": 2}
    searched = searching(experiment.replace(changes), space, sampler={"name": "grid"})
    assert bounded(searched.search_task(), []).search.trial_count == expected
    assert len(draw(searcher_of(searched)[0], 30)) == expected


def test_on_a_gpu_null_is_another_micro_batch_than_the_whole_batch(experiment):
    space = {"train.micro_batch_tokens": {"choice": [None, 256]}}
    changes = {"train.batch_tokens": 256, "resources.gpus_per_worker": 1}
    searched = searching(experiment.replace(changes), space, sampler={"name": "grid"})
    assert len(draw(searcher_of(searched)[0], 30)) == 2


def test_stored_trials_are_points_that_are_not_run_again(experiment):
    searched = searching(experiment, DEPENDENT, sampler={"name": "grid"})
    stored = [complete(0, values={"model.dim": 48, "model.heads": 3})]
    assert bounded(searched.search_task(), stored).search.trial_count == 3
    assert sizes(draw(searcher_of(searched, stored)[0], 9)) == [(48, 2), (64, 2)]
    random = searching(experiment, DEPENDENT, sampler={"name": "random"}, trials=50)
    assert sorted(sizes(draw(searcher_of(random, stored)[0], 9))) == [(48, 2), (64, 2)]


def test_a_long_space_does_not_bound_the_search(experiment, monkeypatch):
    space = {"model.dim": {"int": [4, 2**20], "step": 4}}
    task = searching(experiment, space, trials=50).search_task()
    assert bounded(task, []) is task
    rates = {"train.learning_rate": {"log_uniform": [1e-4, 1e-2]}}
    task = searching(experiment, rates, trials=50).search_task()
    assert bounded(task, []) is task
    monkeypatch.setattr(module, "MAX_LOOKED_AT", 2)
    task = searching(experiment, DEPENDENT, trials=50).search_task()
    assert bounded(task, []) is task


def test_an_equal_proposal_is_told_its_known_result_and_asked_again(experiment):
    searched = searching(experiment, DEPENDENT, sampler={"name": "random"}, trials=50)
    known = [
        StoredTrial(0, "0", {"model.dim": 48, "model.heads": 2}, "complete", 2.5),
        complete(
            1,
            values={"model.dim": 48, "model.heads": 3},
            state="pruned",
            objective=3.0,
            curve={256: 3.5, 512: 3.0},
        ),
    ]
    searcher, study = searcher_of(searched, known)
    assert sizes(draw(searcher, 9)) == [(64, 2)]
    told = study.trials[2:]
    assert len(told) > 3
    for one in told:
        if one.params == known[0].values:
            assert (one.state, one.value) == (TrialState.COMPLETE, 2.5)
        if one.params == known[1].values:
            assert one.state == TrialState.PRUNED
            assert one.intermediate_values == {256: 3.5, 512: 3.0}


def test_a_trial_that_runs_is_not_proposed_again_and_one_that_has_begun_goes_on(experiment):
    searched = searching(experiment, DEPENDENT, sampler={"name": "random"}, trials=50)
    begun = complete(0, state=None, objective=None, values={"model.dim": 48, "model.heads": 2})
    searcher, _ = searcher_of(searched, [begun])
    drawn = [searcher.suggest(name) for name in "abc"]
    assert (drawn[0]["number"], drawn[0]["values"]) == (0, begun.values)
    assert sorted(sizes([one["values"] for one in drawn])) == VALID
    assert searcher.suggest("d") is None
    for name in "abc":
        searcher.on_trial_complete(name, result(2.0, 4, finished=True))
    assert searcher.suggest("d") == "FINISHED"


def test_an_invalid_point_is_pruned_for_a_sampler_that_has_its_startup_trials(experiment):
    space = {**DEPENDENT, "train.learning_rate": {"log_uniform": [1e-4, 1e-2]}}
    searched = searching(experiment, space, trials=40)
    searcher, study = searcher_of(searched)
    assert len(draw(searcher, 40)) == 40
    completed = 0
    for one in study.trials:
        if one.state == TrialState.COMPLETE:
            completed += 1
        else:
            assert (one.params["model.dim"], one.params["model.heads"]) == (64, 3)
            wanted = TrialState.PRUNED if completed >= 4 else TrialState.FAIL
            assert (one.state, one.value) == (wanted, None)
    assert completed == 40


def test_a_point_to_try_first_is_completed_until_it_is_valid(experiment):
    for seed in range(8):
        first = [{"model.dim": 64}]
        searched = searching(experiment.replace({"seed": seed}), DEPENDENT, try_first=first)
        assert sizes(draw(searcher_of(searched)[0], 1)) == [(64, 2)]


def test_a_point_to_try_first_without_a_key_is_sampled(experiment):
    searched = searching(experiment, DEPENDENT, try_first=[{}, {"model.dim": 64}])
    first, second = draw(searcher_of(searched)[0], 2)
    assert {tuple(first.values()), tuple(second.values())} <= {(48, 2), (48, 3), (64, 2)}
    stored = [complete(0, values={"model.dim": 48, "model.heads": 2})]
    assert sizes(draw(searcher_of(searched, stored)[0], 1)) == [(64, 2)]


def test_a_point_to_try_first_has_what_its_conditions_need(experiment):
    for seed in range(8):
        first = [{"model.dca.last_k": 2}, {"model.residual": "standard"}]
        searched = experiment.replace({"seed": seed})
        searched = searching(searched, CONDITIONAL, try_first=first, trials=3)
        drawn = draw(searcher_of(searched)[0], 2)
        assert drawn[0] == {"model.residual": "dca", "model.dca.last_k": 2}
        assert drawn[1] == first[1]
        stored = [complete(0, values=drawn[0])]
        assert draw(searcher_of(searched, stored)[0], 1) == drawn[1:]


def test_a_point_to_try_first_whose_conditions_contradict_one_another_is_refused(experiment):
    kinds = {"model.residual": {"choice": ["mhc", "dca"]}}
    space = {**CONDITIONAL, **kinds}
    space["model.mhc.streams"] = {"choice": [2, 4], "when": {"model.residual": "mhc"}}
    first = [{"model.residual": "dca"}, {"model.dca.last_k": 2, "model.mhc.streams": 2}]
    message = 'try_first.1.model.mhc.streams: not searched with model.residual = "dca"'
    with pytest.raises(ConfigError, match=message):
        searching(experiment, space, try_first=first)


def test_a_point_to_try_first_that_is_hardly_ever_valid_is_tried(experiment):
    space = {"model.dim": {"int": [8, 512]}, "model.heads": {"int": [1, 64]}}
    first = [{"model.heads": 43}, {"model.dim": 64, "model.heads": 4}]
    searched = searching(experiment, space, try_first=first, trials=2)
    left_out = []
    searcher, _ = searcher_of(searched, left_out=lambda *given: left_out.append(given))
    drawn = draw(searcher, 3)
    assert sizes(drawn[:1]) == [(64, 4)]
    assert drawn[1]["model.heads"] == 43
    assert drawn[1]["model.dim"] % 86 == 0
    assert len(left_out) == 1
    assert draw(searcher_of(searched, [complete(0, values=drawn[1])])[0], 1) == drawn[:1]


class Always(RandomSampler):
    """Proposes the same point again and again."""

    def __init__(self, point: dict) -> None:
        super().__init__()
        self._point = point

    def sample_independent(self, study, trial, name, distribution):
        return self._point[name]


@pytest.mark.parametrize(("sampler", "asks"), [("gp", 1), ("tpe", 10)])
def test_gp_is_asked_once_where_it_proposes_what_is_invalid(experiment, sampler, asks):
    left_out = []
    searcher, study = searcher_of(
        searching(experiment, DEPENDENT, sampler={"name": sampler}),
        left_out=lambda *given: left_out.append(given),
    )
    invalid = {"model.dim": 64, "model.heads": 3}
    study.sampler = Always(invalid)
    assert sizes(draw(searcher, 1))[0] in VALID
    assert [values for values, _ in left_out] == [invalid] * asks


CONDITIONAL = {
    "model.residual": {"choice": ["standard", "dca"]},
    "model.dca.last_k": {"choice": [1, 2], "when": {"model.residual": "dca"}},
}


def test_a_finite_conditional_space_has_each_of_its_points_once(experiment):
    searched = searching(experiment, CONDITIONAL, trials=20)
    drawn = draw(searcher_of(searched)[0], 30)
    assert sorted(drawn, key=str) == [
        {"model.residual": "dca", "model.dca.last_k": 1},
        {"model.residual": "dca", "model.dca.last_k": 2},
        {"model.residual": "standard"},
    ]


@pytest.mark.parametrize(
    ("space", "change", "group"),
    [
        (CONDITIONAL, {}, True),
        (CONDITIONAL, {"second_objective": "parameters", "scheduler": {"name": "none"}}, False),
        ({"model.dca.last_k": {"choice": [1, 2], "when": {"model.residual": "dca"}}}, {}, False),
        (DEPENDENT, {}, False),
    ],
    ids=["conditions", "two objectives", "a condition that is always met", "none"],
)
def test_tpe_samples_groups_of_keys_where_points_differ_in_them(experiment, space, change, group):
    _, study = searcher_of(searching(experiment, space, **change))
    assert study.sampler._group is group


def test_the_largest_trial_is_found_beside_invalid_corners(experiment):
    base = experiment.replace({"model.dim": 48, "model.heads": 3})
    assert largest_trial(searching(base, DEPENDENT).search_task()).model.dim == 64


KEYS = {
    "model.dim": lambda rng: rng.choice([(24, 48), (48, 64), (16, 24, 40)]),
    "model.heads": lambda rng: rng.choice([(2, 3), (1, 5), (2, 4, 6)]),
    "train.batch_tokens": lambda rng: rng.choice([(64, 256), (128, 160, 256)]),
    "train.micro_batch_tokens": lambda rng: rng.choice([(32, 128), (None, 64), (160,)]),
    "train.schedule": lambda rng: rng.choice([("cosine", "wsd"), ("wsd", "inverse_sqrt")]),
}


def drawn_space(rng: Random) -> dict:
    """Keys that depend on one another, in ranges of every kind."""
    chosen = rng.sample(sorted(KEYS), rng.randint(1, len(KEYS)))
    space: dict[str, dict] = {key: {"choice": list(KEYS[key](rng))} for key in chosen}
    if "model.dim" in space and rng.random() < 0.3:
        space["model.dim"] = {"int": [24, 72], "step": rng.choice([8, 12, 24])}
    if rng.random() < 0.5:
        space["model.depth"] = {"int": [1, rng.randint(2, 4)], "log": rng.random() < 0.5}
    if "wsd" in space.get("train.schedule", {}).get("choice", ()):
        low = rng.choice([0.2, 0.6])
        when = {"train.schedule": "wsd"}
        space["train.decay_fraction"] = {"uniform": [low, 0.9], "when": when}
        space["train.warmup_fraction"] = {"uniform": [rng.choice([0.0, 0.2]), 0.7]}
    return space


@pytest.mark.slow
@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.faults)])
def test_every_proposal_of_many_spaces_is_valid_and_none_is_retried(data, count):
    rng, accepted, invalid = Random(0), 0, 0
    for number in range(count):
        search = {
            "space": drawn_space(rng),
            "sampler": {"name": "random" if number % 10 else "tpe", "startup_trials": 1},
            "trials": 3,
        }
        try:
            experiment = read_experiment({**data, "search": search}, source=str(number))
        except ConfigError as error:
            assert "search.space" in str(error)
            continue
        searcher, study = searcher_of(experiment)
        drawn = draw(searcher, 3)
        for values in drawn:
            experiment.fit.check(experiment.training_run(values).train)
        assert not searcher._queue
        accepted += 1
        invalid += len(study.trials) - len(drawn)
    assert accepted > 0.5 * count
    assert invalid > 0.3 * count
