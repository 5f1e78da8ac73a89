"""Experiments with arms and seeds: how they are read, and the experiments they consist of."""

import json
from pathlib import Path

import jsonschema
import pytest

from pipelines import sweep, train
from pipelines.cluster import inspection, memory
from pipelines.cluster.capacity import Node
from pipelines.comparison.config import ARM_NAME, MAX_SEED, TUNING_SEED
from pipelines.config.yaml_text import dump, flatten, parse
from pipelines.console.errors import ConfigError
from pipelines.engine.instances import VALUE
from pipelines.experiment import Experiment, load, read_experiment, read_packaged, read_stored
from pipelines.experiment.reference import schema
from pipelines.stages import evaluate, fit, select
from pipelines.stages.search import search_stage
from pipelines.stages.study import fan_out
from pipelines.training.memory import peak_bytes

RATES = {"train.learning_rate": {"choice": [1e-3, 4e-3]}}
MEMORY = {"model.dca.last_k": {"choice": [1, 2], "when": {"model.residual": "dca"}}}
ARMS = {
    "standard": {"model.residual": "standard"},
    "dca 1": {"model": {"residual": "dca", "dca": {"last_k": 1}}},
    "lr-0.004": {"train": {"learning_rate": 4e-3}},
}


@pytest.fixture
def study(data: dict) -> Experiment:
    """Three arms, one of which has the experiment's own rate instead of a tuned one."""
    return study_of(data)


def study_of(data: dict, arms: dict = ARMS, **changes: object) -> Experiment:
    search = {"space": RATES | MEMORY, "scheduler": {"name": "none"}}
    return read_experiment({**data, "search": search, "arms": arms, **changes}, source="test")


@pytest.fixture
def path(tmp_path: Path, data: dict) -> Path:
    """The file of a study."""
    file = tmp_path / "e.yaml"
    file.write_text(dump({**data, "search": {"space": RATES | MEMORY}, "arms": ARMS}))
    return file


def problem(*arguments: object) -> str:
    with pytest.raises(ConfigError) as error:
        load([str(argument) for argument in arguments], grids=True)
    return str(error.value)


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        ("3", "arms: input should be an object, got 3"),
        ("[a, b]", 'arms: input should be an object, got ["a", "b"]'),
        ("{a: {}}", "arms: expected two or more, got a alone"),
        ("{a: {}, b: 3}", "arms.b: expected changes such as {model.residual: dca}, or {} for none"),
        ("{a: {}, b: }", "arms.b: expected changes such as {model.residual: dca}, or {} for none"),
        (
            "{hyper: {}, hypr: }",
            "{} for none; there is no such arm to leave out; did you mean hyper?",
        ),
        ("{a: {}, a/b: {model.dim: 32}}", "arms.a/b: expected a name of 1 to 60 letters a to z, "),
        ("{a: {}, 'a ': {model.dim: 32}}", "arms.a : expected a name of 1 to 60 letters a to z, "),
        ("{a: {}, '': {model.dim: 32}}", "arms.: expected a name of 1 to 60 letters a to z, "),
        ("{a: {}, b: {}}", "arms.b: the same as a: expected another configuration"),
        (
            "{a: {}, b: {model.residual: grn_v1}, c: {model.residual: grn_v1, "
            "model.dca.w_rate: 1.0}}",
            "arms.c: the same as b, which does not read model.dca.w_rate: expected another",
        ),
        ("{a: {}, b: {model.depth: 2}}", "arms.b: the same as a: expected another configuration"),
        (
            "{a: {}, b: {model.mhc.streams: 8}}",
            "arms.b: the same as a, which does not read model.mhc.streams: expected another conf",
        ),
        ("{a: {}, b: {model.dimm: 3}}", "did you mean model.dim?"),
        ("{a: {}, b: {dim: 3}}", "arms.b.dim: expected a key of model, train or search.space; did"),
        ("{a: {}, b: {dim: 3}}", "did you mean model.dim?"),
        ("{a: {}, b: {storage: x}}", "arms.b.storage: expected a key of model, train or search.sp"),
        ("{a: {}, b: {search: {trials: 3}}}", "arms.b.search.trials: expected a key of model, tra"),
        (
            "{a: {}, b: {model.depth: 3, model: {depth: 4}}}",
            "arms.b.model.depth: given twice, 3 and 4; expected once",
        ),
        ("{a: {}, b: {model: {}}}", "arms.b.model: expected a key of model, train or search.space"),
        ("{a: {}, b: {train.tokens: 8192}}", "arms.b.train.tokens: expected once, for all arms"),
        ("{a: {}, b: {model.dim: wide}}", "arms.b.model.dim: input should be a valid integer, got"),
        ("{a: {}, b: {model.residual: dcaa}}", "did you mean dca?"),
        ("{a: {}, b: {model.dim: 33}}", "arms.b: model.heads: dim / heads must be an even number"),
        ("{a: {}, b: {search.space.model.dim: {}}}", "arms.b.search.space.model.dim: expected exa"),
        ("{a: {}, b: {search.space.model.depht: {choice: [1]}}}", "did you mean model.depth?"),
        (
            "{a: {}, b: {search.space.train.tokens: {choice: [8192]}}}",
            "arms.b.search.space.train.tokens: cannot be searched",
        ),
        (
            "{a: {}, b: {search.space.model.dim: {choice: [33]}}}",
            "arms.b.search.space.model.dim: model.heads: dim / heads must be an even number",
        ),
        (
            "{a: {}, b: {model.dim: 32, search.space.model.dim: {choice: [16]}}}",
            "arms.b.search.space.model.dim: expected one of model.dim and its range",
        ),
        (
            "{a: {train.decay_fraction: 0.3}, b: {train.schedule: wsd}}",
            "arms.a.train.decay_fraction: expected null with schedule = cosine",
        ),
        (
            "{a: {model.residual: standard}, b: {model.residual: grn_v2}}",
            "search.space.model.dca.last_k: no arm searches it",
        ),
    ],
)
def test_bad_arms_are_one_line_that_names_the_arm(path, arms, expected):
    file = path.with_name("bad.yaml")
    file.write_text(path.read_text().partition("arms:")[0])
    message = problem(file, f"arms={arms}")
    assert expected in message
    assert len(message.splitlines()) == 1
    assert message.startswith(("command line: ", f"{file}: search.space"))


STREAMS = "search.space.model.mhc.streams"


@pytest.mark.parametrize(
    ("residuals", "when", "useless"),
    [
        (("standard", "frac"), "", "nothing reads it with residual = standard"),
        (("mhc", "frac"), "model.residual: frac", "nothing reads it with residual = frac"),
        (("mhc", "frac"), "", ""),
        (("mhc", "frac"), "model.residual: mhc", ""),
    ],
)
def test_a_searched_option_that_no_arm_can_read_is_refused(path, residuals, when, useless):
    file = path.with_name("bad.yaml")
    file.write_text(path.read_text().partition("search:")[0])
    arms = ", ".join(f"{kind}: {{model.residual: {kind}}}" for kind in residuals)
    given = [file, f"arms={{{arms}}}", f"{STREAMS}={{choice: [2, 4], when: {{{when}}}}}"]
    if useless:
        assert problem(*given) == f"command line: {STREAMS}: {useless}"
    else:
        load(list(map(str, given)), grids=True)


RATE_SPACE = "search.space.train.learning_rate"
OWN = f"{RATE_SPACE}: {{choice: [0.1, 0.2]}}"
RANGES = f"arms={{a: {{{OWN}}}, b: {{model.depth: 1, {OWN}}}}}"
"""Each arm has a range of its own."""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["baseline=standrad"], 'baseline: expected the name of an arm, got "standrad"; did you m'),
        (["baseline=standrad"], "did you mean standard?"),
        (["arms={}", "baseline=a"], 'baseline: expected null without arms, got "a"'),
        (["arms={}", "budget=time"], "budget: expected tokens without arms: there is nothing"),
        (["budget=tokns"], "did you mean tokens?"),
        (["seeds=0"], "seeds: input should be greater than or equal to 1, got 0"),
        (["seeds=-1"], "seeds: input should be greater than or equal to 1, got -1"),
        (["seeds=1000"], "seeds: input should be less than or equal to 256, got 1000"),
        (["seeds=true"], "seeds: input should be a valid integer, got true"),
        (["seeds=2.5"], "seeds: input should be a valid integer, got 2.5"),
        (["seeds=[]"], "seeds: list should have at least 1 item"),
        (["seeds=1,2,1"], "seeds: expected each seed once"),
        (["seeds=1,-2"], "seeds.1: input should be greater than or equal to 0, got -2"),
        (["seeds=1,true"], "seeds.1: input should be a valid integer, got true"),
        (["seeds=3,1000000"], "seeds: expected others than 1000000, with which the search chooses"),
        (["arms={}", "seeds=0,1"], "seeds: expected others than 0, with which the search chooses"),
        (["search.warm_start=[other]"], "search.warm_start: expected none with arms, which are a"),
        (["compare.smallest_difference=0"], "compare.smallest_difference: input should be gre"),
        (["fit.evals=0"], "fit.evals: input should be greater than or equal to 1, got 0"),
        (["fit.eval_tokens=0"], "fit.eval_tokens: input should be greater than or equal to 1, g"),
        (["fit.eval_tokens=al"], "fit.eval_tokens: input should be 'all', got \"al\""),
        (["fit.eval_tokens=true"], "fit.eval_tokens: input should be a valid integer, got true"),
        (["arms.standard=null", "arms.lr-0.004=null"], "arms: expected two or more, got dca 1 al"),
        (["arms.dca.model.dim=32"], "arms.dca.model.dim=32: no such arm; a new one is arms.dca={"),
        (["arms.dca.model.dim=32"], "did you mean dca 1?"),
        (["arms.standard.model.dim=31"], "arms.standard: model.heads: dim / heads must be an even"),
        (["arms.standard.model.dimm=3"], "did you mean model.dim?"),
        (["arms.standard.model.dim=16,32"], "expected one value; a range is arms.standard.search."),
        (
            ["arms={a: {model.dim: 32}, b: {model: {dim: 64}}}", "model.dim=16"],
            "command line: model.dim: every arm has a value or range of its own; expected arms.NA",
        ),
        *(
            (
                [RANGES, given],
                f"command line: {key}: every arm has a value or range of its own; expected "
                f"arms.NAME.{expected}",
            )
            for given, key, expected in (
                ("train.learning_rate=1e-3", "train.learning_rate", "train.learning_rate=VALUE"),
                ("train.learning_rate=1e-3,2e-3", "train.learning_rate", f"{RATE_SPACE}=RANGE"),
                (f"{RATE_SPACE}={{choice: [0.5]}}", RATE_SPACE, f"{RATE_SPACE}=RANGE"),
                (f"{RATE_SPACE}=null", RATE_SPACE, f"{RATE_SPACE}=RANGE"),
            )
        ),
        (
            ["arms.lr-0.004=null"],
            "search.space.model.dca.last_k: no arm searches it (each has a value",
        ),
        (["model.dim=33"], "model.heads: dim / heads must be an even number, got 33 / 2"),
    ],
)
def test_bad_use_of_a_study_is_one_line(path, arguments, expected):
    message = problem(path, *arguments)
    assert expected in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("own", "given"),
    [
        (
            f"{RATE_SPACE}: {{choice: [0.1], when: {{model.residual: dca}}}}",
            "train.learning_rate=1",
        ),
        ("train.learning_rate: 0.1", f"{RATE_SPACE}=null"),
    ],
)
def test_what_arms_can_use_beside_their_own_is_taken(path, own, given):
    load([str(path), f"arms={{a: {{{own}}}, b: {{model.depth: 1, {own}}}}}", given], grids=True)


def test_an_arm_is_what_its_changes_on_the_command_line_would_make(data, study):
    for name, changes in ARMS.items():
        arguments = [f"{key}={json.dumps(value)}" for key, value in flatten(changes)]
        plain = {**data, "search": study.model_dump(mode="json")["search"]}
        wanted = read_experiment(plain, arguments, source="test")
        arm = study.of_arm(name)
        assert not arm.is_study
        assert (arm.model, arm.train) == (wanted.model, wanted.train)
        assert arm.search.space.keys() == wanted.search.space.keys()
        assert arm.search_task().search.trial_count == wanted.search.trial_count
        assert arm.seed == study.tuning_seed == TUNING_SEED
    found = {name: list(study.of_arm(name).search.space) for name in ARMS}
    assert found == {
        "standard": ["train.learning_rate"],
        "dca 1": ["train.learning_rate"],
        "lr-0.004": ["model.dca.last_k"],
    }


def test_conditions_that_an_arm_decides_are_none_of_its_search(data):
    """So that a grid, which has no conditional keys, can search the memory of one arm only."""
    space = {**MEMORY, "model.depth": {"choice": [1, 2], "when": {"model.dca.last_k": 2}}}
    search = {"space": space | RATES, "sampler": {"name": "grid"}, "scheduler": {"name": "none"}}
    arms = {"dca": {}, "k2": {"model.dca.last_k": 2}, "standard": {"model.residual": "standard"}}
    arms["k1"] = {"model.dca.last_k": 1}
    search["space"]["model.depth"] = {"choice": [1, 2], "when": {"model.residual": "dca"}}
    found = read_experiment({**data, "search": search, "arms": arms}, source="test")
    spaces = {name: arm.search.space for name, arm in found.by_arm.items()}
    assert {name: sorted(space) for name, space in spaces.items()} == {
        "dca": ["model.dca.last_k", "model.depth", "train.learning_rate"],
        "k2": ["model.depth", "train.learning_rate"],
        "standard": ["train.learning_rate"],
        "k1": ["model.depth", "train.learning_rate"],
    }
    assert not any(one.when for space in spaces.values() for one in space.values())
    assert [arm.search.trial_count for arm in found.by_arm.values()] == [8, 4, 2, 4]


def test_a_key_that_depends_on_one_that_drops_out_goes_by_the_arms_value(data):
    depth = {"model.depth": {"choice": [1, 2], "when": {"model.dca.last_k": 2}}}
    search = {"space": RATES | MEMORY | depth}
    arms = {"standard": {"model.residual": "standard"}, "dca": {}}
    found = read_experiment({**data, "search": search, "arms": arms}, source="test")
    standard, dca = (arm.search.space for arm in found.by_arm.values())
    assert standard["model.depth"].when == {}  # last_k is 2 by default
    assert dca["model.depth"].when == {"model.dca.last_k": 2}
    arms["standard"]["model.dca.last_k"] = 1
    found = read_experiment({**data, "search": search, "arms": arms}, source="test")
    assert list(found.of_arm("standard").search.space) == ["train.learning_rate"]


def test_a_condition_that_the_unchanged_experiment_does_not_meet_is_one_of_other_arms(data):
    """And so is a key that depends on the one that drops out, whatever its order."""
    depth = {"model.depth": {"choice": [1, 2], "when": {"model.dca.last_k": 3}}}
    search = {"space": depth | RATES | MEMORY}
    search["space"]["model.dca.last_k"] = {"choice": [2, 3], "when": {"model.residual": "dca"}}
    model = {**data["model"], "residual": "standard"}
    arms = {"standard": {}, "dca": {"model.residual": "dca"}}
    changes = {"model": model, "search": search, "arms": arms}
    found = read_experiment({**data, **changes}, source="test")
    assert list(found.of_arm("standard").search.space) == ["train.learning_rate"]
    assert found.of_arm("dca").search.space.keys() == search["space"].keys()
    assert found.of_arm("dca").search.space["model.depth"].when == {"model.dca.last_k": 3}


def test_points_to_try_first_lose_the_keys_that_an_arm_does_not_search(data):
    points = [{"model.dca.last_k": 1, "train.learning_rate": 1e-3}, {"model.dca.last_k": 2}]
    points += [{"train.learning_rate": 1e-3}]
    search = {"space": RATES | MEMORY, "try_first": points}
    arms = {"standard": {"model.residual": "standard"}, "dca": {}}
    found = read_experiment({**data, "search": search, "arms": arms}, source="test")
    assert found.of_arm("standard").search.try_first == [{"train.learning_rate": 1e-3}]
    assert found.of_arm("dca").search.try_first == points


def test_an_arm_can_have_a_range_of_its_own_or_none(data):
    wider = {"search.space.train.learning_rate": {"log_uniform": [1e-4, 1e-1]}}
    nested = {"search": {"space": {"train.learning_rate": None, "model.dca.last_k": None}}}
    found = study_of(data, {"a": wider, "b": nested})
    assert found.of_arm("a").search.space["train.learning_rate"].log_uniform == (1e-4, 1e-1)
    assert found.of_arm("b").search.space == {}
    assert found.untuned_baseline == ""
    untuned = study_of(data, {"a": wider, "b": nested}, baseline="b").untuned_baseline
    assert untuned.startswith("b, the baseline, is not tuned, but a is: ")
    assert study_of(data, {"a": {"model.depth": 1}, "b": {}}).untuned_baseline == ""


def test_an_option_is_refused_only_if_no_arm_can_use_it(data):
    train = {**data["train"], "decay_fraction": 0.3}
    arms = {"cosine": {}, "wsd": {"train.schedule": "wsd"}}
    assert study_of({**data, "train": train}, arms).of_arm("wsd").train.decay_share == 0.3
    with pytest.raises(ConfigError) as error:
        study_of({**data, "train": train}, {"a": {}, "b": {"model.dim": 32}})
    assert str(error.value) == "test: train.decay_fraction: expected null with schedule = cosine"


def test_seeds_are_a_number_or_a_list_and_never_the_tunings(data):
    def seeds(**changes):
        return study_of(data, **changes).replicate_seeds

    assert seeds() == seeds(seeds=1) == (0,)
    assert seeds(seeds=5) == (0, 1, 2, 3, 4)
    assert seeds(seeds=[3, 1]) == (3, 1)
    assert seeds(seed=MAX_SEED - TUNING_SEED + 1, seeds=3) == (0, 2, 3)  # the tuning has 1
    assert seeds(arms={}) == (0,)
    assert seeds(arms={}, seed=7) == (7,)
    assert seeds(arms={}, seed=1, seeds=3) == (0, 2, 3)
    assert study_of(data, arms={}, seed=7, seeds=2).tuning_seed == 7
    assert not study_of(data, arms={}).is_study
    assert study_of(data, arms={}, seeds=1).is_study


def test_a_studys_curves_have_enough_evaluations_on_the_whole_validation_split(data, study):
    def evaluations(experiment):
        train = experiment.fit_run().train
        return train.evals, train.eval_tokens

    base = study.train
    searched = study.of_arm("standard")
    assert (searched.train.evals, searched.train.eval_tokens) == (base.evals, base.eval_tokens)
    assert evaluations(searched) == evaluations(searched.of_seed(3)) == (32, None)
    assert evaluations(study_of(data, {}, seeds=2).of_seed(1)) == (32, None)
    assert evaluations(study_of(data, {})) == (base.evals, base.eval_tokens)
    assert evaluations(study_of(data, {}, fit={"eval_tokens": "all"})) == (base.evals, None)
    given = study_of(data, fit={"evals": 3, "eval_tokens": 64})
    assert evaluations(given.of_arm("standard")) == (3, 64)
    often = study_of({**data, "train": {**data["train"], "evals": 40}})
    assert evaluations(often.of_arm("standard")) == (40, None)


def test_the_instances_of_a_study_are_its_arms_and_replicates(data, study):
    found = fan_out(study_of(data, seeds=[4, 2]))
    assert found.dimensions == {"arm": ("standard", "dca 1", "lr-0.004"), "seed": (4, 2)}
    tuned = found.configure({"arm": "dca 1"})
    assert (tuned.seed, tuned.model.dca.last_k) == (TUNING_SEED, 1)
    replicate = found.configure({"arm": "dca 1", "seed": 2})
    assert replicate == tuned.of_seed(2)
    assert replicate.seed == 2
    alone = fan_out(study_of(data, {}, seeds=2))
    assert alone.dimensions == {"seed": (1, 2)}
    assert alone.configure({"seed": 2}).fit_run().params["seed"] == 2
    assert fan_out(study_of(data, {})) is None


def test_names_of_arms_are_those_that_instances_can_have():
    assert ARM_NAME.pattern == VALUE.pattern


def test_more_seeds_and_arms_change_no_instance_that_there_is(data, study):
    arms = {**ARMS, "deep": {"model.depth": 3}}
    grown = study_of(data, arms, seeds=3, baseline="deep", budget="time")
    for name in ARMS:
        assert grown.of_arm(name) == study.of_arm(name)
        assert grown.of_arm(name).of_seed(0) == study.of_arm(name).of_seed(0)


def test_what_makes_a_study_is_in_no_key_of_a_search_or_a_fit():
    stages = [search_stage(), select.STAGE, fit.STAGE, evaluate.STAGE]
    keys = {key for stage in stages for key in stage.config_keys}
    assert keys == {"seed", "model", "train", "search", "search.space"}


def test_a_study_is_written_as_a_file_that_is_read_as_the_same(study, path):
    path.write_text(study.to_yaml())
    assert load([str(path)]) == study
    assert read_stored(parse(study.to_yaml(), source=""), source="") == study
    assert study.arms["dca 1"] == {"model.residual": "dca", "model.dca.last_k": 1}


def test_experiments_from_before_there_were_studies_are_read(study):
    old = study.without_study().model_dump(mode="json")
    for key in ("arms", "baseline", "seeds", "budget", "compare"):
        del old[key]
    del old["fit"]["evals"], old["fit"]["eval_tokens"], old["data"]["max_bytes"]
    assert read_stored(old, source="old") == study.without_study()
    assert read_packaged(old, source="old").model == study.model
    moved = read_packaged(old, ["data.path=x.txt"], source="old")
    assert moved.data.path == str(Path.cwd() / "x.txt")
    packaged = study.model_dump(mode="json")
    assert not read_packaged(packaged, ["model.residual=dca"], source="old").is_study


def test_files_that_extend_one_another_change_arms_key_by_key(path):
    heir = path.with_name("heir.yaml")
    heir.write_text(
        "extends: e.yaml\n"
        "arms:\n"
        "  standard: null\n"
        "  dca 1: {model: {dca: {last_k: null}},\n"
        "    search.space.train.learning_rate: {choice: [1.0e-2]}}\n"
        "  new: {model.depth: 1}\n"
    )
    found = load([str(heir)])
    assert found.arms == {
        "dca 1": {
            "model.residual": "dca",
            "model.dca.last_k": None,
            "search.space.train.learning_rate": {"choice": [0.01]},
        },
        "lr-0.004": {"train.learning_rate": 0.004},
        "new": {"model.depth": 1},
    }
    heir.write_text("extends: e.yaml\narms: {dca 1: {model.dca.last_k: 0}}\n")
    assert problem(heir).startswith(
        f"{heir}: arms.dca 1.model.dca.last_k: expected at least 1 or null"
    )
    heir.write_text("extends: e.yaml\narms: {dca 1: {model.depth: 2}, x: null}\n")
    assert problem(heir).startswith(f"{heir}: arms.x: expected changes such as")


def test_an_arm_may_be_named_by_a_number(path):
    arms = "arms={32: {model.dim: 32}, 0.5: {model.dim: 64}}"
    none = "search.space.model.dca.last_k=null"
    found = load([str(path), arms, "baseline='32'", "arms.0.5.model.depth=1", none], grids=True)
    assert found.arms == {"32": {"model.dim": 32}, "0.5": {"model.dim": 64, "model.depth": 1}}
    assert problem(path, arms, "arms.3.model.dim=64").endswith("; did you mean 32?")


def test_arms_and_seeds_are_changed_on_the_command_line(path):
    def study(*arguments):
        return load([str(path), *arguments], grids=True)

    assert study("arms.dca 1.model.dca.last_k=3").of_arm("dca 1").model.dca.last_k == 3
    assert study("arms.dca 1.model.dca.last_k=null").of_arm("dca 1").model.dca.last_k is None
    assert study("arms.lr-0.004.train.learning_rate=0.1").of_arm("lr-0.004").train.beta1 == 0.9
    range_ = "arms.standard.search.space.train.learning_rate={choice: [0.1, 0.2, 0.3]}"
    assert study(range_).of_arm("standard").search.space["train.learning_rate"].size == 3
    assert study("arms.new={model.depth: 1}").arm_names[-1] == "new"
    none = "search.space.model.dca.last_k=null"
    assert study("arms.standard=null").arm_names == ("dca 1", "lr-0.004")
    assert study("arms={a: {}, b: {model.depth: 1}}", "arms.b.model.dim=32").arms["b"] == {
        "model.depth": 1,
        "model.dim": 32,
    }
    assert study("seeds=5").replicate_seeds == (0, 1, 2, 3, 4)
    assert study("seeds=4,2").replicate_seeds == (4, 2)
    assert study("seeds=4").search == study("seeds=4,2").search
    grid = study("seeds=4,2", "model.depth=1,2")
    assert list(grid.of_arm("standard").search.space) == ["model.depth"]
    fixed = study("train.learning_rate=0.1", "arms.lr-0.004=null", none)
    assert fixed.of_arm("dca 1").search.space == {}


def test_a_command_that_trains_once_takes_no_list_of_seeds(path):
    with pytest.raises(ConfigError, match="a comma list is a grid, for sweep"):
        load([str(path), "seeds=1,2"])


def test_one_training_is_of_the_experiment_without_its_arms(path):
    one = train._experiment(train._parse([str(path)]), None)
    assert not one.is_study
    assert one.training_run() == load([str(path)]).training_run()


@pytest.mark.parametrize(
    ("sections", "changes"),
    [
        ({"arms": {"a": {"model.residual": "standard"}, "b": {}}}, ["model.residual=standard"]),
        ({"arms": {"one": {}}, "baseline": "two", "seeds": [1, 1], "budget": "time"}, []),
        ({"fit": {"tokens": 512}}, ["train.batch_tokens=1024"]),
        ({"fit": {"resources": {"workers": 16}}}, []),
        ({"search": {"space": {"model.dca.last_k": {"choice": [1]}}}}, ["model.residual=standard"]),
        ({"search": {"space": {"model.dim": {"choice": [3]}}}, "compare": 3}, []),
    ],
)
def test_one_training_is_not_refused_for_what_it_leaves_out(path, data, sections, changes):
    """It was, and had another precision for the widths of a space that it does not search."""
    path.write_text(dump({**data, **sections}))
    with pytest.raises(ConfigError):
        load([str(path), *changes])
    one = train._experiment(train._parse([str(path), *changes]), None)
    path.write_text(dump(data))
    assert one == load([str(path), *changes])


@pytest.mark.parametrize("change", ["arms.lr-0.004=null", "arms={}", "search.space={}"])
def test_one_training_takes_the_end_of_what_it_leaves_out(path, data, change):
    one = train._experiment(train._parse([str(path), change]), None)
    path.write_text(dump(data))
    assert one == load([str(path)])


def test_smoke_keeps_the_arms_and_two_seeds(path):
    small = load([str(path), "seeds=4,2,3"], smoke=True, grids=True)
    assert small.arms.keys() == ARMS.keys()
    assert small.replicate_seeds == (4, 2)
    run = small.of_arm("standard").fit_run()
    assert (run.train.evals, run.train.eval_tokens) == (4, 4 * 32)
    assert load([str(path)], smoke=True).replicate_seeds == (0,)


def test_smoke_reads_less_of_a_text_of_which_not_all_is_read(path):
    def size(*arguments):
        return load([str(path), *arguments], smoke=True).data.max_bytes

    assert size() is None
    assert size("data.max_bytes=4000000") == 1_000_000
    assert size("data.max_bytes=20000") == 20_000
    long = ["train.seq_len=32768", "train.batch_tokens=32768", "train.tokens=65536"]
    assert size("data.max_bytes=4000000", *long) == 40 * 32_768


def test_an_arm_that_does_not_fit_the_memory_is_named(path, monkeypatch):
    monkeypatch.setattr(inspection, "inspect_cluster", lambda *_, **__: [Node("here", 2)])
    monkeypatch.setattr(memory, "machine_bytes", lambda: 2 << 30)
    study = load([str(path), "arms.big={model.dim: 1024, model.depth: 24}"])
    with pytest.raises(ConfigError, match=r"^arms\.big: model\.dim: .* 2 x .* need about"):
        sweep._require_resources(study)
    with pytest.raises(ConfigError, match=r"^model\.dim: .* 2 x .* need about"):
        sweep._require_resources(study.of_arm("big"))
    sweep._require_resources(load([str(path)]))


def test_the_trials_and_the_replicates_of_all_arms_share_the_memory(path, monkeypatch):
    """Of an arm without a space one trial."""
    none = "search.space.model.dca.last_k=null"
    study = load([str(path), "arms={a: {}, b: {model.dim: 32}}", none, "train.learning_rate=1e-3"])
    most = peak_bytes(study.of_arm("b").training_run(), on_gpu=False)
    both = memory.SHARED_BYTES + 2 * (most - memory.SHARED_BYTES)
    monkeypatch.setattr(inspection, "inspect_cluster", lambda *_, **__: [Node("here", 8)])
    monkeypatch.setattr(memory, "machine_bytes", lambda: both)
    sweep._require_resources(study)
    monkeypatch.setattr(memory, "machine_bytes", lambda: both - 1)
    with pytest.raises(ConfigError, match=r"^arms\.b: "):
        sweep._require_resources(study)


def test_a_dry_run_says_how_many_trainings_there_are(path, capsys, monkeypatch):
    def lines(*arguments):
        study = load([str(path), *arguments], grids=True)
        sweep._print_resources(study, [Node("here", 4)])
        return capsys.readouterr().out.strip().splitlines()

    search, fit, _ = lines("seeds=5", "search.trials=2")
    assert search.startswith(
        "search: 3 arms x 2 trials of 4,096 bytes (16 steps) in auto, tpe and asha, "
    )
    assert search.endswith("each with 1 x 1 CPU, at most 4 at once")
    assert fit == "fit:    3 arms x 5 seeds of 4,096 bytes with 1 x 1 CPU, at most 4 at once"
    more = "arms.standard.search.space.train.learning_rate={choice: [0.1, 0.2, 0.3]}"
    search, fit, _ = lines(more, "budget=time", "fit.tokens=8192")
    assert search.startswith("search: 3 + 2 + 2 trials of 4,096 bytes")
    assert fit == (
        "fit:    3 arms x 1 seed of 8,192 bytes in the baseline, of its time in others with "
        "1 x 1 CPU, at most 3 at once"
    )
    batches = "arms={a: {train.batch_tokens: 512}, b: {train.batch_tokens: 128}}"
    search, *_ = lines(batches, "search.space={}")
    assert search.startswith("search: 2 arms x 1 trial of 4,096 bytes (8 to 32 steps) in auto, ")
    _, fit, _ = lines("arms={}", "seeds=3")
    assert fit == "fit:    3 seeds of 4,096 bytes with 1 x 1 CPU, at most 3 at once"
    _, fit, _ = lines("arms={}")
    assert fit == "fit:    4,096 bytes with 1 x 1 CPU"


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("{a: {}, b: {model.dim: 3}}", True),
        ("{a: null, b: {model: {dim: 3, dca: {last_k: null}}, train: {learning_rate: 0.1}}}", True),
        ("{b: {search: {space: {model.dim: {choice: [1]}, model.depth: null}}}}", True),
        ("{b: {search.space.model.dim: {choice: [1]}, search.space.model.depth: null}}", True),
        ("{b: {model.dimm: 3}}", False),
        ("{b: {model.dim: wide}}", False),
        ("{b: {model: {dimm: 3}}}", False),
        ("{b: {train.tokens: 3000}}", False),
        ("{b: {search: {trials: 3}}}", False),
        ("{b: {search.space.train.tokens: {choice: [1]}}}", False),
        ("{a/b: {model.dim: 3}}", False),
        ("{b: 3}", False),
    ],
)
def test_an_editor_shows_what_is_wrong_with_an_arm(text, valid):
    found = jsonschema.Draft202012Validator(schema()).iter_errors({"arms": parse(text, source="")})
    assert (not list(found)) == valid


def test_an_arm_whose_name_is_a_number_is_a_baseline_too(path):
    found = load([str(path), "arms={16: {model.dim: 16}, 32: {model.dim: 32}}", "baseline=32"])
    assert found.baseline == "32"
    assert "baseline: expected the name of an arm" in problem(path, "baseline=true")
