from dataclasses import replace
from random import Random

from pipelines.search.config import Dimension
from pipelines.search.space import Space, space_problems
from pipelines.training.config import FitConfig
from tests.pipelines.search.trials import SPACE, searcher_of


def test_a_condition_decides_whether_a_key_is_searched(searched):
    searcher, _ = searcher_of(searched)
    drawn = [searcher.suggest(str(i))["values"] for i in range(30)]
    kinds = {values["model.residual"] for values in drawn}
    assert kinds == {"standard", "dca"}
    for values in drawn:
        assert ("model.last_k" in values) == (values["model.residual"] == "dca")
        assert 1e-4 <= values["train.learning_rate"] <= 1e-2
        searched.replace(values)


def test_a_condition_may_be_on_a_key_that_is_not_searched(searched):
    space = {key: SPACE[key] for key in ("model.last_k", "train.learning_rate")}
    fixed = searched.replace({"search": {"space": space}, "model.residual": "dca"})
    assert searcher_of(fixed)[0].suggest("a")["values"].keys() == space.keys()
    task = fixed.search_task()
    never = Space(replace(task, base=task.base.replace({"model.residual": "standard"})))
    assert never.inactive({"train.learning_rate": 1}) == ["model.last_k"]
    assert never.draw(Random(0)).keys() == {"train.learning_rate"}


def test_cyclic_conditions_are_a_problem_of_the_space(run):
    space = {
        "model.depth": Dimension(int=(1, 2), when={"model.last_k": 1}),
        "model.last_k": Dimension(int=(1, 2), when={"model.depth": 1}),
    }
    (problem,) = space_problems(space, run, FitConfig())
    assert problem.key == "search.space"
    assert problem.message.startswith("cyclic `when` conditions: model.")
