from dataclasses import replace
from random import Random

import pytest

from pipelines.experiment.space_checks import space_problems
from pipelines.search.config import Dimension
from pipelines.search.space import Space
from pipelines.search.study import Proposals, build_study
from pipelines.training.config import FitConfig
from tests.pipelines.search.trials import SPACE, searcher_of


def test_a_condition_decides_whether_a_key_is_searched(searched):
    searcher, _ = searcher_of(searched)
    drawn = [searcher.suggest(str(i))["values"] for i in range(30)]
    kinds = {values["model.residual"] for values in drawn}
    assert kinds == {"standard", "dca"}
    for values in drawn:
        assert ("model.dca.last_k" in values) == (values["model.residual"] == "dca")
        assert 1e-4 <= values["train.learning_rate"] <= 1e-2
        searched.replace(values)


def test_a_condition_may_be_on_a_key_that_is_not_searched(searched):
    space = {key: SPACE[key] for key in ("model.dca.last_k", "train.learning_rate")}
    fixed = searched.replace({"search": {"space": space}, "model.residual": "dca"})
    assert searcher_of(fixed)[0].suggest("a")["values"].keys() == space.keys()
    task = fixed.search_task()
    never = Space(replace(task, base=task.base.replace({"model.residual": "standard"})))
    assert never.inactive({"train.learning_rate": 1}) == ["model.dca.last_k"]
    assert never.draw(Random(0)).keys() == {"train.learning_rate"}


def test_cyclic_conditions_are_a_problem_of_the_space(run):
    space = {
        "model.depth": Dimension(int=(1, 2), when={"model.dca.last_k": 1}),
        "model.dca.last_k": Dimension(int=(1, 2), when={"model.depth": 1}),
    }
    (problem,) = space_problems(space, run, FitConfig())
    assert problem.key == "search.space"
    assert problem.message.startswith("cyclic `when` conditions: model.")


RARE = {
    "multiples": {"model.dim": (16, 4096), "model.heads": (2, 64)},
    "multiples of a long range": {"model.dim": (1000, 4000), "model.heads": (450, 900)},
    "divisors of a multiple": {
        "train.batch_tokens": (5000, 100_000),
        "train.micro_batch_tokens": (600, 100_000),
    },
}


@pytest.mark.parametrize("space", RARE.values(), ids=RARE)
def test_a_space_of_rare_valid_points_is_one_and_has_proposals(experiment, space):
    ranges = {key: Dimension(int=bounds) for key, bounds in space.items()}
    experiment = experiment.replace({"train.tokens": 1_000_000, "fit.tokens": None})
    base, fit = experiment.training_run(), experiment.fit
    assert not list(space_problems(ranges, base, fit))
    task = experiment.search_task()
    task = replace(task, search=task.search.model_copy(update={"space": ranges}))
    proposals = Proposals(build_study(task, []), task, [])
    found = [proposals.next() for _ in range(2)]
    assert all(one is not None and Space(task).is_valid(one.values) for one in found)


def test_a_related_point_lies_in_its_ranges_and_has_the_given_values(experiment):
    ranges = {
        "model.dim": Dimension(int=(24, 4092), step=12),
        "model.heads": Dimension(int=(2, 64), log=True),
        "train.learning_rate": Dimension(log_uniform=(1e-4, 1e-2)),
        "model.residual": Dimension(choice=["dca", "standard"]),
        "model.dca.last_k": Dimension(choice=[1, 2], when={"model.residual": "dca"}),
    }
    task = experiment.search_task()
    space = Space(replace(task, search=task.search.model_copy(update={"space": ranges})))
    rng = Random(0)
    for _ in range(200):
        point = space.draw_related(rng, {"model.heads": 7})
        assert point["model.heads"] == 7
        assert ("model.dca.last_k" in point) == (point["model.residual"] == "dca")
        assert all(ranges[key].contains(value) for key, value in point.items())
