from dataclasses import replace
from random import Random

import pytest

from pipelines.experiment.space_checks import space_problems
from pipelines.search import study as module
from pipelines.search.config import Dimension
from pipelines.search.space import Space
from pipelines.search.study import Proposals, build_study
from pipelines.training.config import FitConfig
from tests.pipelines.search.trials import SPACE, complete, searcher_of


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


PRIMES = [3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41]
EQUAL = {
    "model.dim": 2,
    "model.heads": 1,
    "model.kv_heads": 1,
    "train.batch_tokens": 256,
    "train.micro_batch_tokens": 256,
}
"""Keys, and by what a prime is multiplied for each: those of a valid point have one prime."""
RATE = {"train.learning_rate": Dimension(log_uniform=(1e-4, 1e-2))}


def sparse(experiment, count, **others):
    """A search of which one point in count**3 is valid, but for other keys."""
    changes = {"model.kv_heads": 1, "train.tokens": 1_000_000, "fit.tokens": None}
    task = experiment.replace(changes).search_task()
    primes = PRIMES[:count]
    space = {key: Dimension(choice=[n * p for p in primes]) for key, n in EQUAL.items()}
    return replace(task, search=task.search.model_copy(update={"space": {**space, **others}}))


@pytest.mark.extended
@pytest.mark.parametrize("others", [{}, RATE], ids=["sizes", "sizes and a rate"])
@pytest.mark.parametrize("count", [4, 8, 12])
def test_a_space_is_not_refused_for_valid_points_that_are_missed(experiment, count, others):
    task = sparse(experiment, count, **others)
    assert not list(space_problems(task.search.space, task.base, task.fit))


@pytest.mark.parametrize(
    ("key", "ends", "is_valid"),
    [
        ("train.batch_tokens", (100, 4096), True),  # seq_len is 64, and 256 by default
        ("train.batch_tokens", (31, 6401), True),
        ("train.batch_tokens", (0, 6400), False),
        ("model.heads", (1, 200), True),
        ("model.dim", (15, 1001), True),
        ("model.depth", (0, 200), False),
        ("model.depth", (-300, 4), False),
    ],
)
def test_an_end_of_a_range_is_refused_for_what_is_wrong_with_it_by_itself(
    experiment, key, ends, is_valid
):
    """What its other keys make of it may be right in the midst of the range."""
    sizes = {"train.seq_len": 64, "train.tokens": 1 << 20, "model.dim": 64}
    base = experiment.replace(sizes).training_run()
    found = [
        problem.key for problem in space_problems({key: Dimension(int=ends)}, base, experiment.fit)
    ]
    assert found == ([] if is_valid else [f"search.space.{key}"])


def test_a_value_that_is_wrong_by_itself_is_refused_in_any_space(experiment):
    for wrong in (0, "two"):
        task = sparse(experiment, 12, **{"model.depth": Dimension(choice=[1, wrong])})
        (problem,) = space_problems(task.search.space, task.base, task.fit)
        assert problem.key == "search.space.model.depth"
    both = {"model.heads": Dimension(choice=[2, 4]), "model.dim": Dimension(choice=[16, 17])}
    assert [one.key for one in space_problems({**both, **RATE}, task.base, task.fit)] == [
        "search.space.model.dim"
    ]


@pytest.mark.extended
@pytest.mark.parametrize("count", [8, 10])
def test_a_search_with_real_numbers_never_ends_for_lack_of_points(experiment, count):
    """It ended with any number of its trials, or with none."""
    for seed in range(4):
        task = sparse(experiment.replace({"seed": seed}), count, **RATE)
        proposals = Proposals(build_study(task, []), task, [])
        found = [proposals.next() for _ in range(20)]
        assert all(one is not None and Space(task).is_valid(one.values) for one in found)
        assert len({str(one.values) for one in found if one}) == 20


def test_where_no_random_point_is_valid_one_beside_a_known_one_is_proposed(experiment, monkeypatch):
    task = sparse(experiment, 12, **RATE)
    sizes = {key: 3 * n for key, n in EQUAL.items()}
    known = complete(0, values={**sizes, "train.learning_rate": 1e-3})
    monkeypatch.setattr(module, "MAX_DRAWN", 0)
    monkeypatch.setattr(module, "MAX_RELATED", 0)
    monkeypatch.setattr(module, "MAX_BESIDE", 100)
    proposals = Proposals(build_study(task, [known]), task, [known])
    for _ in range(5):
        point = proposals._new_point()
        assert {key: point[key] for key in sizes} == sizes
        assert point["train.learning_rate"] != 1e-3
    assert Proposals(build_study(task, []), task, [])._new_point() is not None


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
