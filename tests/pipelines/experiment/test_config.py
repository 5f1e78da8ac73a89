import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from pipelines.config.yaml_text import parse
from pipelines.console.errors import ConfigError, Problem
from pipelines.experiment import (
    FIELDS,
    Experiment,
    load,
    read_experiment,
    read_packaged,
    read_stored,
    schema,
)
from pipelines.experiment.reading import QUICKSTART
from pipelines.registry.config import GenerateConfig
from pipelines.search.config import SearchConfig

ROOT = Path(__file__).parents[3]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))
PARTS = sorted(
    path for path in (ROOT / "experiments").glob("*/*.yaml") if path.parent.name != "cluster"
)
SCHEMA = ROOT / "experiments" / "schema.json"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "e.yaml"
    file.write_text("experiment: e\ntrain: {learning_rate: 1e-3}\n")
    return file


def problem(*arguments: str) -> str:
    with pytest.raises(ConfigError) as error:
        load([str(argument) for argument in arguments])
    return str(error.value)


def test_numbers_are_read_as_in_yaml_1_2(path):
    assert load([path.as_posix()]).train.learning_rate == 0.001
    assert load([path.as_posix(), "train.learning_rate=3e-4"]).train.learning_rate == 0.0003


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.dimm=3", "model.dimm: unknown key; did you mean model.dim?"),
        ("learning_rate=1", "learning_rate: unknown key; did you mean train.learning_rate?"),
        ("train.ema=0.9", "train.ema: unknown key; did you mean train.ema_decay?"),
        (
            "model.last_k=3",
            "model.last_k: it has another name now; did you mean model.dca.last_k?",
        ),
        ("train.grn_b_rate=3", "did you mean model.dca.b_rate?"),
        (
            "search.space.model.last_k={int: [1, 3]}",
            "search.space.model.last_k: it has another name now; did you mean model.dca.last_k?",
        ),
        (
            "arms={a: {model.residual: standard}, new: {model: {residual: hyper_connections, "
            "hyper_streams: 2}}}",
            "mean model.hyper_connections.streams?",
        ),
        ("model.dca.width=3", "model.dca.width: unknown key"),
        (
            "search.space.model.mhc.streams={int: [2, 4]}",
            "search.space.model.mhc.streams: nothing reads it with residual = dca",
        ),
        (
            "search.space={model.residual: {choice: [grn_v1, frac]}, "
            "model.hyper_connections.streams: {choice: [2, 4, 8]}}",
            "model.hyper_connections.streams: nothing reads it with residual = frac, grn_v1",
        ),
        (
            "search.space={model.residual: {choice: [frac, mhc]}, "
            "model.mhc.streams: {int: [2, 4], when: {model.residual: frac}}}",
            "search.space.model.mhc.streams: nothing reads it with residual = frac",
        ),
        (
            "search.space={train.schedule: {choice: [cosine, wsd]}, "
            "train.decay_fraction: {uniform: [0.1, 0.5], when: {train.schedule: cosine}}}",
            "search.space.train.decay_fraction: expected null with schedule = cosine",
        ),
        (
            "model={residual: laurel, laurel: {rank: 100000000000000000000}, dim: 64}",
            "model.laurel.rank: expected null or at most dim = 64, got 100000000000000000000",
        ),
        ("failures.timeout_seconds=10000000000", "timeout_seconds: input should be less than or"),
        (f"search.scheduler.reduction_factor={10**30}", "reduction_factor: input should be less"),
        ("model.dca.last_k=0", "model.dca.last_k: expected at least 1 or null, got 0"),
        ("model.dca.norm=1", "model.dca.norm: input should be a valid boolean, got 1"),
        ("model.dca=2", "model.dca: "),
        ("resources.workers=0", "resources.workers: input should be greater than or equal to 1"),
        ("resources.workers=[1, 2, 3]", "resources.workers: tuple should have at most 2 items"),
        ("resources.workers=[2, 1]", "resources.workers: expected [min, max], got [2, 1]"),
        ("train.tokens=many", 'train.tokens: input should be a valid integer, got "many"'),
        ("train.compile=no", 'train.compile: input should be a valid boolean, got "no"'),
        ("model.residual=dcaa", "did you mean dca?"),
        (f"experiment={201 * 'x'}", "experiment: expected at most 200 bytes, got 201"),
        (f"promote.model={101 * 'ü'}", "promote.model: expected at most 200 bytes, got 202"),
        ("search.trials=10001", "search.trials: expected at most 10,000, got 10,001"),
        (
            "search={sampler: {name: grid}, space: {model.dca.last_k: {int: [1, 1000]}, "
            "model.depth: {int: [1, 11]}}}",
            "search.trials: expected at most 10,000, got 11,000, the points of the grid",
        ),
        (f"model.dim={10**19}", "model.dim: expected at most 1,048,576, got 10,000,000,"),
        (f"model.depth={10**9}", "model.depth: expected at most 2,000, got 1,000,000,000"),
        (
            f"search.space.model.depth={{int: [1, {10**9}]}}",
            "search.space.model.depth: expected at most 2,000, got 1,000,000,000",
        ),
        ("model.heads=3", "model.heads: dim / heads must be an even number, got 128 / 3"),
        ("train.batch_tokens=100", "train.batch_tokens: expected a multiple of seq_len = 256"),
        ("model=3", "model: "),
        ("data.corpus=files", "data.path: expected a file, folder or glob"),
        ("promote.model=a/b", "promote.model: "),
        ("promote.model='3'", "promote.model: "),
        *(
            (f"promote.model={name}", "promote.model: expected a name without control characters")
            for name in ("' '", "'a '", "-m", '"a\\0b"', '"\\u2028"', '"a\\nb"')
        ),
        ("experiment=-x", "experiment: expected letters, digits, spaces and _ - ., with no -"),
        ('generate.prompts=["a\\0b"]', "expected text without a zero byte"),
        ("promote.model=a-champions", "promote.model: a-champions would be the log of"),
        ("promote.model=latest", "promote.model: latest means a version, a logged model or a run"),
        (f"promote.model=m-{32 * 'a'}", "means a version, a logged model or a run to the commands"),
        (f"train.tokens=1{400 * '0'}", "train.tokens: expected at most 1,000,000,000,000,000, got"),
        ("train.evals=10001", "train.evals: expected at most 10,000, got 10,001"),
        ("promote.confidence=1", "promote.confidence: "),
        ("resources.workers=3", "train.batch_tokens: expected a multiple of workers x seq_len = 3"),
        (
            "fit.resources.workers=16",
            "train.batch_tokens: expected a multiple of workers x seq_len = 16",
        ),
        ("fit.resources.workers=3", "got 2048 with fit.resources.workers = 3"),
        ("fit.resources.workers=[1, 9]", "for each of fit.resources.workers = 9, got 2048"),
        ("train.learning_rate=.inf", "train.learning_rate: "),
        ("model.heads=[1", "not valid YAML"),
        ("experiment=a/b", "experiment: "),
        ("experiment=проба/1", 'got "проба/1"'),
        ("experiment='a\u202eb'", r'got "a\u202eb"'),
        ("experiment=\u0301", "experiment: expected letters"),
        ("fit.tokens=100", "fit.tokens: expected at least one step"),
        ("storage=s4://bucket/x", "storage: expected a folder, or a URI like s3://"),
        ("storage=2024", "string, got 2024; expected quotes around it, as in '\"...\"'"),
        ("data.path=2024", "string, got 2024; expected quotes around it, as in '\"...\"'"),
        ("experiment=2024", "first letter, got 2024; expected quotes around it, as in '\"...\"'"),
        ("experiment=true", "first letter, got true; expected quotes around it, as in '\"...\"'"),
        ("experiment=null", "string, got null; expected quotes around it, as in '\"...\"'"),
        ("generate.prompts=[1.5]", "string, got 1.5; expected quotes around it, as in '\"...\"'"),
        ("storage={a: s3://bucket/x, tensorboard: true}", "storage: input should be a valid str"),
        ("model.dca.init_std=.nan", "model.dca.init_std: "),
        ("model.vocab=100", "model.vocab: expected 256"),
        ("seed=&a [*a]", "expected text keys and plain values"),
    ],
)
def test_bad_input_is_one_line_with_the_key_and_what_was_expected(path, override, expected):
    message = problem(path, override)
    assert expected in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("name", ["проба 2", "प्रयोग", "ทดลองที่", "e\u0301tude"])
def test_a_name_may_have_letters_of_any_script(path, name):
    assert load([str(path), f"experiment={name}"]).experiment == name


@pytest.mark.parametrize(
    ("key", "dimension", "expected"),
    [
        ("model.depht", "{int: [1, 2]}", "no such configuration key; did you mean model.depth?"),
        ("seed", "{int: [1, 2]}", "search.space.seed: expected a key of model or train"),
        ("sed", "{int: [1, 2]}", "expected a key of model or train; did you mean seed?"),
        ("model.depth", "{int: [2, 1]}", "expected low < high"),
        ("model.depth", "{int: [1, 2], choice: [1]}", "expected exactly one of"),
        ("model.depth", "{}", "expected exactly one of"),
        ("model.depth", "{choice: []}", "expected at least one value"),
        ("model.depth", "{choice: [1, two]}", "model.depth: input should be a valid integer"),
        ("model.heads", "{int: [5, 7]}", "dim / heads must be an even number"),
        ("model.dim", "{int: [129, 135]}", "dim / heads must be an even number, got 129 / 4"),
        ("model.depth", "{int: [0, 4]}", "expected at least 1, got 0"),
        ("train.learning_rate", "{log_uniform: [0, 1]}", "expected low > 0"),
        (
            "model.dca.last_k",
            "{int: [1, 2], when: {model.residul: dca}}",
            "did you mean model.residual?",
        ),
        (
            "model.dca.last_k",
            "{int: [1, 2], when: {model.dca.last_k: 1}}",
            "cannot depend on itself",
        ),
        ("model.dca.last_k", "{ints: [1, 2]}", "unknown key"),
        ("model.dca.last_k", "{int: [1, 2], when: {model.residual: dcaa}}", "did you mean dca?"),
        ("train.tokens", "{int: [4096, 8192]}", "cannot be searched"),
        ("train.best_metric", "{choice: [train_bits_per_byte]}", "cannot be searched"),
    ],
)
def test_a_search_space_is_checked_against_the_fields(path, key, dimension, expected):
    message = problem(path, f"search.space.{key}={dimension}")
    assert f"search.space.{key}" in message
    assert expected in message


NUMBERS = {"train.learning_rate": {"log_uniform": [1e-4, 1e-2]}, "model.depth": {"int": [1, 4]}}
GRID = {"model.depth": {"int": [1, 4]}}
CHOICE = {"model.residual": {"choice": ["standard", "dca"]}}
CONDITION = {"model.dca.last_k": {"choice": [1, 2], "when": {"model.residual": "dca"}}}


@pytest.mark.parametrize(
    ("space", "search", "where", "expected"),
    [
        (NUMBERS, {"sampler": {"name": "grid"}}, "space.train.learning_rate", "choice or int"),
        (
            CONDITION,
            {"sampler": {"name": "grid"}},
            "sampler.name",
            "does not support conditional keys",
        ),
        (GRID, {"sampler": {"name": "grid"}, "trials": 5}, "trials", "at most 4, the points"),
        (GRID, {"sampler": {"name": "grid"}, "try_first": [{}]}, "try_first", "its own order"),
        (CHOICE | CONDITION, {"sampler": {"name": "gp"}}, "sampler.name", "expected tpe, random"),
        (NUMBERS | CHOICE, {"sampler": {"name": "cmaes"}}, "space.model.residual", "numbers"),
        (GRID, {"sampler": {"name": "cmaes"}}, "sampler.name", "two searched keys or more, got 1"),
        (NUMBERS, {"second_objective": "parameters"}, "scheduler.name", "expected none with"),
        (
            NUMBERS,
            {"second_objective": "parameters", "scheduler": {"name": "median"}},
            "scheduler.name",
            "got median",
        ),
        (
            NUMBERS,
            {
                "second_objective": "parameters",
                "scheduler": {"name": "none"},
                "sampler": {"name": "cmaes"},
            },
            "sampler.name",
            "supports one objective",
        ),
        (
            {"train.batch_tokens": {"choice": [256, 512]}},
            {"scheduler": {"name": "median"}},
            "scheduler.name",
            "expected asha or none",
        ),
        (
            {"model.heads": {"choice": [2, 4]}, "model.dim": {"choice": [17, 20]}},
            {"sampler": {"name": "grid"}},
            "space.model.dim",
            "model.heads: dim / heads must be an even number, got 17 / 2",
        ),
        (
            {"model.heads": {"choice": [2, 4]}, "model.dim": {"choice": [16, 20]}},
            {"try_first": [{"model.heads": 4, "model.dim": 20}]},
            "try_first",
            "invalid point of the search space",
        ),
        (NUMBERS, {"second_objective": "params"}, "second_objective", "did you mean parameters?"),
        (NUMBERS, {"warm_start": ["a"], "sampler": {"name": "qmc"}}, "warm_start", "not learn"),
        (NUMBERS, {"try_first": [{"model.dept": 2}]}, "try_first.0", "did you mean model.depth?"),
        (NUMBERS, {"try_first": [{}, {"model.depth": 5}]}, "try_first.1.model.depth", "its range"),
        (NUMBERS, {"try_first": [{"model.depth": 2.0}]}, "try_first.0.model.depth", "got 2.0"),
        (NUMBERS, {"try_first": [{}] * 9}, "try_first", "at most search.trials = 8"),
        (
            CHOICE | CONDITION,
            {"try_first": [{"model.dca.last_k": 1, "model.residual": "standard"}]},
            "try_first.0.model.dca.last_k",
            'not searched with model.residual = "standard"',
        ),
    ],
)
def test_what_a_search_cannot_do_together_is_refused(experiment, space, search, where, expected):
    with pytest.raises(ConfigError) as raised:
        experiment.replace({"search": {"space": space, **search}})
    (line,) = [one for one in str(raised.value).splitlines() if f"search.{where}: " in one]
    assert expected in line


@pytest.mark.parametrize(
    ("fit", "changes", "expected"),
    [
        (
            {"resources": {"workers": 8}},
            {"search.space": {"train.batch_tokens": {"choice": [256, 128]}}},
            "search.space.train.batch_tokens: train.batch_tokens: expected a multiple of workers",
        ),
        (
            {"tokens": 256},
            {"search.space": {"train.batch_tokens": {"choice": [256, 512]}}},
            "search.space.train.batch_tokens: fit.tokens: expected at least one step of "
            "train.batch_tokens = 512, got 256",
        ),
        (
            {"tokens": 256},
            {
                "search.space": {
                    "model.depth": {"choice": [1, 2], "when": {"train.batch_tokens": 512}}
                }
            },
            "search.space.model.depth.when: fit.tokens: expected at least one step",
        ),
    ],
)
def test_a_point_that_can_be_tried_but_not_be_fitted_is_refused(experiment, fit, changes, expected):
    with pytest.raises(ConfigError) as raised:
        experiment.replace({"fit": fit, **changes})
    assert expected in str(raised.value)


@pytest.mark.parametrize(
    ("train", "where", "expected"),
    [
        ({"schedule": "cosin"}, "schedule", "did you mean cosine?"),
        ({"decay_fraction": 0.2}, "decay_fraction", "expected null with schedule = cosine"),
        ({"schedule": "inverse_sqrt", "warmup_fraction": 0}, "warmup_fraction", "more than 0"),
        (
            {"schedule": "inverse_sqrt", "final_learning_rate_fraction": 0.1},
            "final_learning_rate_fraction",
            "expected null with schedule = inverse_sqrt",
        ),
        (
            {"schedule": "wsd", "warmup_fraction": 0.5, "decay_fraction": 0.6},
            "decay_fraction",
            "at most 1 together with warmup_fraction = 0.5, got 0.6",
        ),
        ({"schedule": "wsd", "decay_fraction": 0}, "decay_fraction", "greater than 0"),
        ({"patience": 0}, "patience", "greater than or equal to 1"),
        ({"ema_decay": 1}, "ema_decay", "less than 1"),
    ],
)
def test_what_a_training_cannot_do_together_is_refused(experiment, train, where, expected):
    with pytest.raises(ConfigError) as raised:
        experiment.replace({f"train.{key}": value for key, value in train.items()})
    (line,) = str(raised.value).splitlines()
    assert f"train.{where}: " in line and expected in line


def test_an_option_that_some_trials_can_use_is_valid_for_all(experiment):
    schedules = {"train.schedule": {"choice": ["cosine", "wsd"]}}
    given = experiment.replace({"search.space": schedules, "train.decay_fraction": 0.3})
    for schedule in ("cosine", "wsd"):
        assert given.training_run({"train.schedule": schedule}).train.decay_fraction == 0.3
    schedules["train.schedule"]["choice"] = ["cosine", "inverse_sqrt"]
    with pytest.raises(ConfigError, match=r"^train\.decay_fraction: expected null with schedule"):
        experiment.replace({"search.space": schedules, "train.decay_fraction": 0.3})


def test_a_key_of_one_schedule_is_searched_under_its_condition(experiment):
    decay = {"uniform": [0.1, 0.5]}
    schedules = {"train.schedule": {"choice": ["cosine", "inverse_sqrt", "wsd"]}}
    conditional = decay | {"when": {"train.schedule": "wsd"}}
    experiment.replace({"search.space": schedules | {"train.decay_fraction": conditional}})
    with pytest.raises(ConfigError, match="expected null with schedule = cosine"):
        experiment.replace({"search.space": {"train.decay_fraction": decay}})
    with pytest.raises(ConfigError, match=r"train\.patience: cannot be searched"):
        experiment.replace({"search.space": {"train.patience": {"int": [1, 2]}}})


def test_a_grid_has_as_many_trials_as_points_and_other_searches_eight(experiment):
    space = GRID | {"train.learning_rate": {"choice": [1e-3, 2e-3]}}
    assert experiment.replace({"search": {"space": space}}).search.trial_count == 8
    grid = {"space": space, "sampler": {"name": "grid"}}
    assert experiment.replace({"search": {**grid, "trials": 5}}).search.trial_count == 5
    assert experiment.replace({"search": grid}).search.trial_count == 8
    assert experiment.replace({"search": {**grid, "space": GRID}}).search.trial_count == 4


def test_all_problems_of_a_file_are_reported_together(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("experiment: e\nseed: x\nmodel: {dim: 1.5}\ntrain: {tokns: 5}\n")
    lines = problem(file).splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{file}: ") for line in lines)


def test_a_problem_of_the_command_line_does_not_name_the_file(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("experiment: e\nseed: x\n")
    first, second = problem(file, "model.dim=wide").splitlines()
    assert first.startswith(f"{file}: seed: ")
    assert second.startswith("command line: model.dim: ")


def test_a_change_that_does_not_agree_with_the_file_is_wrong_and_not_the_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("experiment: e\ntrain: {batch_tokens: 4096}\nmodel: {heads: 3}\n")
    assert problem(file).startswith(f"{file}: model.heads: ")
    file.write_text("experiment: e\ntrain: {batch_tokens: 4096}\n")
    expected = "command line: train.batch_tokens: expected a multiple of seq_len = 100, got 4096"
    assert problem(file, "train.seq_len=100") == expected
    schedule = ["train.schedule=wsd", "train.warmup_fraction=1"]
    assert problem(file, *schedule).startswith("command line: train.decay_fraction: expected at ")


def test_a_missing_file_may_be_meant_as_one_of_the_projects(tmp_path):
    shipped = os.path.relpath(ROOT / "experiments" / "zoo.yaml")
    for name in ("zoo", "zoo.yaml"):
        message = problem(tmp_path / name)
        assert message == f"{tmp_path / name}: no such file; did you mean {shipped}?"


def test_a_duplicate_key_and_a_syntax_error_name_the_line(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("experiment: e\nseed: 1\nseed: 2\n")
    assert problem(file).startswith(f"{file}:3: ")
    file.write_text("experiment: e\nmodel: [\n")
    assert problem(file).startswith(f"{file}:")


@pytest.mark.parametrize("content", ["", "- a\n", "text", "\x00", "experiment:\n"])
def test_a_file_that_is_no_configuration_is_refused(tmp_path, content):
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    assert str(file) in problem(file)


def test_a_missing_file_names_the_nearest(tmp_path):
    assert "did you mean experiments/quickstart.yaml?" in problem("experiments/quickstrat.yaml")
    assert "no such file" in problem(tmp_path / "none.yaml")
    assert "expected a file, got a folder" in problem(tmp_path)
    for name in ("zoo", "zoo.yaml"):
        assert problem(tmp_path / name).endswith("did you mean experiments/zoo.yaml?")


def test_a_replaced_value_is_validated_and_survives_a_round_trip(experiment):
    changed = experiment.replace({"model.dim": 32, "train.learning_rate": 0.5})
    assert (changed.model.dim, changed.train.learning_rate) == (32, 0.5)
    assert read_experiment(changed.model_dump(mode="json"), source="again") == changed
    with pytest.raises(ConfigError):
        experiment.replace({"model.dim": 31})


def test_the_fit_has_its_own_budget_and_resources(experiment):
    fit = experiment.replace({"fit": {"tokens": 8192, "resources": {"workers": 2}}}).fit_run()
    assert (fit.train.tokens, fit.resources.workers) == (8192, 2)
    assert experiment.fit_run().train.tokens == experiment.train.tokens


@pytest.mark.parametrize("path", EXPERIMENTS, ids=str)
def test_every_shipped_experiment_is_valid_as_it_is_and_shrunk(path):
    assert load([str(path)]).experiment
    small = load([str(path)], smoke=True)
    assert small.experiment.endswith("-smoke")
    assert small.promote.model.endswith("-smoke")


@pytest.mark.parametrize("path", PARTS, ids=str)
def test_every_shipped_part_is_valid_by_itself_and_over_the_quickstart(path, tmp_path):
    assert load([str(path), "experiment=part"]) != load(["experiment=part"])
    both = tmp_path / "e.yaml"
    both.write_text(f"extends: [{QUICKSTART}, {path}]")
    assert load([str(both)]).experiment == "quickstart"


@pytest.mark.parametrize("path", [*EXPERIMENTS, *PARTS], ids=str)
def test_every_shipped_yaml_names_the_schema_and_its_purpose(path):
    first, second, _ = path.read_text().split("\n", 2)
    assert first.startswith("# yaml-language-server: $schema=")
    assert (path.parent / first.partition("=")[2]).resolve() == SCHEMA
    assert second.startswith("# ")


def complaints(text: str) -> list[str]:
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    return [error.message for error in validator.iter_errors(parse(text, source="test"))]


def test_the_shipped_schema_is_that_of_the_fields():
    wanted = f"{json.dumps(schema(), indent=2)}\n"
    command = "python -m pipelines.experiment --schema > experiments/schema.json"
    assert SCHEMA.read_text() == wanted, command
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("path", [*EXPERIMENTS, *PARTS], ids=str)
def test_every_shipped_yaml_is_valid_by_the_schema(path):
    assert complaints(path.read_text()) == []


def test_the_schema_takes_any_whole_configuration(experiment):
    assert complaints(json.dumps(experiment.model_dump(mode="json"))) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {dimm: 3}", "'dimm' was unexpected"),
        ("modle: {}", "'modle' was unexpected"),
        ("model: {dim: wide}", "'wide' is not of type 'integer'"),
        ("model: {residual: dcaa}", "'dcaa' is not one of ['attention_residuals', 'dca', "),
        ("data: {corpus: enwik9}", "'enwik9' is not one of ["),
        ("extends: 3", "3 is not valid under any"),
        ("search: {space: {model.depht: {int: [1, 2]}}}", "'model.depht' is not one of ["),
        ("search: {space: {train.tokens: {int: [1, 2]}}}", "'train.tokens' is not one of ["),
        ("search: {space: {model.depth: {ints: [1, 2]}}}", "is not valid under any"),
        ("search: {space: {model.depth: {int: [1, 2], when: {x: 1}}}}", "is not valid under any"),
        (
            "search: {space: {model.depth: {int: [1, 2], when: {search.trials: 1}}}}",
            "is not valid under any",
        ),
    ],
)
def test_the_schema_shows_an_editor_the_mistake(text, expected):
    (message,) = complaints(text)
    assert expected in message


def test_the_schema_takes_parts_and_null_for_a_dimension():
    assert complaints("extends: [a.yaml, b.yaml]\nsearch: {space: {model.depth: null}}") == []


def test_the_schema_describes_every_field_with_its_default():
    def fields(section, prefix=""):
        for name, field in section["properties"].items():
            kind = whole["$defs"].get(field.get("$ref", "").rpartition("/")[2])
            if kind:
                yield from fields(kind, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", field

    whole = json.loads(SCHEMA.read_text())
    found = dict(fields(whole))
    assert set(found) == {"extends", *FIELDS}
    assert all(field["description"] for field in found.values())
    assert {key: field["default"] for key, field in found.items() if "default" in field} == {
        key: value for key, value in FIELDS.items() if key != "experiment"
    }


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, which ends with the libraries it has imported."""
    script = (
        "import runpy, sys; sys.argv = sys.argv[1:]; "
        "sys.path[0] = sys.argv[0].rpartition('/')[0]; "
        "runpy.run_path(sys.argv[0], run_name='__main__'); "
        "print(*sys.modules, file=sys.stderr)"
    )
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("sweep.py", ["train.learning_rate=1e-4,3e-4", "model.depth=2,4"]),
        ("train.py", ["train.compile=true", "--smoke"]),
    ],
)
def test_a_printed_configuration_is_an_experiment_with_the_same_result(
    name, overrides, path, tmp_path
):
    result = command(str(ROOT / "pipelines" / name), str(path), "--print-config", *overrides)
    assert result.returncode == 0, result.stderr
    assert not {"ray", "mlflow", "optuna", "pandas"} & set(result.stderr.split())
    saved = tmp_path / "saved.yaml"
    saved.write_text(result.stdout)
    assert "uniform: null" not in result.stdout  # a dimension is what it is
    smoke = "--smoke" in overrides
    changes = [override for override in overrides if "=" in override]
    assert load([str(saved)]) == load([str(path), *changes], smoke=smoke, grids=True)


@pytest.mark.process
def test_a_printed_configuration_is_checked_first(path):
    grid = "model.depth=2,4"
    result = command(str(ROOT / "pipelines" / "train.py"), str(path), "--print-config", grid)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"command line: {grid}: a comma list is a grid, for sweep.py")
    assert len(result.stderr.splitlines()) == 1


def test_evaluations_are_evenly_spaced_and_the_last_is_at_the_end(experiment):
    assert experiment.train.eval_steps == [4, 8, 12, 16]
    assert experiment.replace({"train.evals": 99}).train.eval_steps == list(range(1, 17))


def test_a_configuration_cannot_be_changed(experiment):
    with pytest.raises(ValueError, match="frozen"):
        experiment.seed = 1


def test_every_field_is_documented():
    def undocumented(model, prefix=""):
        for name, field in model.model_fields.items():
            kind = field.annotation
            if hasattr(kind, "model_fields"):
                yield from undocumented(kind, f"{prefix}{name}.")
            elif name != "model" and not field.description:
                yield f"{prefix}{name}"

    assert list(undocumented(Experiment)) == []
    assert "train.learning_rate" in FIELDS


def problems_of(*arguments: str) -> list[Problem]:
    with pytest.raises(ConfigError) as error:
        load(arguments, grids=True)
    return error.value.problems


def test_a_problem_is_an_object_with_its_key_source_and_nearest_name(tmp_path):
    file = tmp_path / "e.yaml"
    file.write_text("experiment: e\nmodel: {dimm: 3}\ntrain: {schedule: cosin}\n")
    assert problems_of(str(file), "train.tokens=many", "resources.workers=3") == [
        Problem("unknown key", "model.dimm", str(file), "model.dim"),
        Problem('input should be a valid integer, got "many"', "train.tokens", "command line"),
        Problem(
            "input should be 'cosine', 'inverse_sqrt' or 'wsd', got \"cosin\"",
            "train.schedule",
            str(file),
            "cosine",
        ),
    ]


def test_a_problem_of_the_space_has_the_key_of_its_dimension(path):
    (found,) = problems_of(str(path), "search.space.model.depht={int: [1, 2]}")
    assert found == Problem(
        "no such configuration key", "search.space.model.depht", "command line", "model.depth"
    )


@pytest.mark.parametrize(
    ("change", "key", "nearest"),
    [
        ("train.schedule=wsdd", "train.schedule", "wsd"),
        ("search.second_objective=parameter", "search.second_objective", "parameters"),
        ("search.sampler.name=tpee", "search.sampler.name", "tpe"),
        ("data.corpus=enwik", "data.corpus", "enwik8"),
        ("model.residual=standrad", "model.residual", "standard"),
        ("model.residual=hyper", "model.residual", "hyper_connections"),
        ("train.schedule=nothing-like-it", "train.schedule", ""),
    ],
)
def test_the_nearest_choice_comes_from_the_schema(path, change, key, nearest):
    (found,) = problems_of(str(path), change)
    assert (found.key, found.nearest) == (key, nearest)


@pytest.mark.parametrize(
    ("change", "nearest"),
    [
        ("search.space.model.depth={ints: [1, 2]}", "search.space.model.depth.int"),
        ("fit.resources.worker=2", "fit.resources.workers"),
        ("workers=2", "resources.workers"),
        ("serach={}", "search"),
    ],
)
def test_the_nearest_key_is_a_sibling_or_the_same_name_elsewhere(path, change, nearest):
    found = problems_of(str(path), change)
    assert nearest in {problem.nearest for problem in found if problem.message == "unknown key"}


def test_two_loads_in_one_process_do_not_influence_one_another(path):
    first = load([str(path), "model.depth=2"])
    before = first.model_dump_json()
    grid = load([str(path), "model.depth=2,4", "train.tokens=8192"], grids=True)
    with pytest.raises(ConfigError):
        load([str(path), "model.depth=none"])
    assert (grid.model.depth, grid.train.tokens) != (2, first.train.tokens)
    assert first.model_dump_json() == before
    assert load([str(path), "model.depth=2"]) == first
    assert load([str(path)]).search.space == {}


DEPENDENT = {
    "model.heads": {"choice": [2, 4]},
    "model.dim": {"choice": [8, 12], "when": {"model.heads": 2}},
}


def test_a_trial_is_validated_as_a_run_and_not_against_the_space(experiment):
    """With four heads a width of 12 is no point of the space, but it is checked when the space is,
    not again by every trial: a run has the rules of a run."""
    searched = experiment.replace({"search.space": DEPENDENT})
    run = searched.training_run({"model.heads": 4, "model.dim": 24})
    assert (run.model.heads, run.model.dim) == (4, 24)
    assert "search" not in run.model_dump()
    with pytest.raises(ConfigError) as error:
        searched.training_run({"model.heads": 4, "model.dim": 12})
    assert [problem.key for problem in error.value.problems] == ["model.heads"]


def test_values_that_fit_only_together_are_a_run_although_one_without_the_other_is_not(experiment):
    run = experiment.training_run({"model.heads": 5, "model.dim": 20})
    assert (run.model.heads, run.model.dim) == (5, 20)
    with pytest.raises(ConfigError, match=r"model\.heads"):
        experiment.training_run({"model.heads": 5})


def test_a_changed_experiment_is_checked_like_one_from_a_file(experiment):
    with pytest.raises(ConfigError) as error:
        experiment.replace({"search.space": {"seed": {"int": [1, 2]}}})
    assert [problem.key for problem in error.value.problems] == ["search.space.seed"]


def test_a_packaged_configuration_is_read_although_its_search_space_is_not_valid_on_it(experiment):
    """A width that only the two heads of the base divide; the packaged trial has another number."""
    searched = experiment.replace({"search.space": {"model.dim": {"choice": [16, 20]}}})
    packaged = searched.with_run(searched.fit_run({"model.dim": 24, "model.heads": 4}))
    with pytest.raises(ConfigError, match=r"search\.space\.model\.dim"):
        read_experiment(packaged, source="version 1")
    read = read_packaged(packaged, ["promote.min_improvement=0.25"], source="version 1")
    assert (read.model.dim, read.model.heads, read.promote.min_improvement) == (24, 4, 0.25)
    assert read.search.space == {}


def test_a_path_is_relative_to_its_file_or_on_the_command_line_to_the_working_folder(
    tmp_path, monkeypatch
):
    folder = tmp_path / "a [b]"
    (folder / "parts").mkdir(parents=True)
    part = folder / "parts" / "data.yaml"
    part.write_text("data: {corpus: files, path: 'text/*.txt', validation_path: v, test_path: /t}")
    file = folder / "e.yaml"
    file.write_text("extends: parts/data.yaml\nexperiment: e\n")
    monkeypatch.chdir(tmp_path)
    found = load(["a [b]/e.yaml"]).data
    escaped = str(folder / "parts").replace("[", "[[]")
    assert found.path == f"{escaped}/text/*.txt"  # the folder's name is no pattern
    assert (found.validation_path, found.test_path) == (str(folder / "parts" / "v"), "/t")
    (folder / "parts" / "text").mkdir()
    (folder / "parts" / "text" / "*.txt").touch()
    assert load([str(file)]).data.path == str(folder / "parts" / "text" / "*.txt")
    given = load([str(file), "data.path=c.txt", "data.test_path=d"]).data
    assert (given.path, given.test_path) == (str(tmp_path / "c.txt"), str(tmp_path / "d"))
    assert load(["data={corpus: files, path: e}"]).data.path == str(tmp_path / "e")
    assert load(["data.corpus=files", "data.path=http://x//y"]).data.path == "http://x//y"
    loaded = load([str(file)])
    assert read_packaged(loaded.model_dump(mode="json"), source="v").data == loaded.data


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {dca.last_k: 3}", "model.dca.last_k: {}model: {{dca: {{last_k: ...}}}}"),
        ("model.dca.last_k: 3", "model.dca.last_k: {}model: {{dca: {{last_k: ...}}}}"),
        (
            "model.dca.lst_k: 3",
            "model.dca.lst_k: {}model: {{dca: {{last_k: ...}}}}; did you mean model.dca.last_k?",
        ),
        ("x.y: 3", "x.y: {}model: {{dim: ...}}"),
    ],
)
def test_dots_in_a_file_are_answered_with_what_to_write(tmp_path, text, expected):
    file = tmp_path / "e.yaml"
    file.write_text(f"experiment: e\n{text}\n")
    shown = expected.format("unknown key: expected sections in place of dots, as in ")
    assert problem(str(file)) == f"{file}: {shown}"


def test_a_key_of_an_earlier_version_hides_no_other_problem(tmp_path):
    file = tmp_path / "e.yaml"
    file.write_text("experiment: e\nmodel: {last_k: 3, dimm: 4}\ntrain: {tokens: x}\n")
    found = problems_of(str(file), "model.hyper_streams=2", "seed=-1")
    assert [(one.key, one.source) for one in found] == [
        ("model.last_k", str(file)),
        ("model.hyper_streams", "command line"),
        ("seed", "command line"),
        ("model.dimm", str(file)),
        ("train.tokens", str(file)),
    ]
    file.write_text("experiment: e\nmodel: {last_k: 3}\n")
    (found,) = problems_of(str(file))
    assert found.nearest == "model.dca.last_k"


def test_a_version_to_start_from_needs_no_quotes_but_an_alias_in_a_file(tmp_path):
    file = tmp_path / "e.yaml"
    file.write_text("experiment: e\ntrain: {start_from: 3}\n")
    assert load([str(file)]).train.start_from == "3"
    for given in ("12", "@champion", "dca-gpt@champion", "'@a,b'", "@a,b"):
        found = load([str(file), f"train.start_from={given}"]).train.start_from
        assert found == given.strip("'")
    for wrong in ("1.5", "true", "[1]"):
        assert "train.start_from: input should be a valid string" in problem(
            str(file), f"train.start_from={wrong}"
        )
    file.write_text("experiment: e\ntrain: {start_from: @champion}\n")
    assert problem(str(file)).endswith("a text that begins with @ in quotes, as in \"'@...'\"")


def test_a_tilde_is_the_home_of_the_user_and_of_no_other(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "part.yaml").write_text("data: {corpus: files, path: ~/a.txt}\nstorage: ~/runs\n")
    file = tmp_path / "sub" / "e.yaml"
    file.parent.mkdir()
    file.write_text("extends: ~/part.yaml\nexperiment: e\n")
    held_out = ("data.validation_path=~/v", "data.test_path=./~/t")
    found = load([str(file), "train.start_from=~/model"])
    typed = load([str(file), "data.path=~/b/*.txt", "storage=~/", *held_out])
    assert (found.data.path, found.storage) == (f"{tmp_path}/a.txt", f"{tmp_path}/runs")
    assert found.train.start_from == f"{tmp_path}/model"
    assert (typed.data.path, typed.storage) == (f"{tmp_path}/b/*.txt", str(tmp_path))
    assert typed.data.validation_path == f"{tmp_path}/v"
    assert typed.data.test_path == str(Path.cwd() / "~/t")
    assert load([str(file), "data.path=~/../x"]).data.path == f"{tmp_path}/../x"
    for change in ("storage=~ana/runs", "data.path=~ana", "train.start_from=~m"):
        message = problem(str(file), change)
        key, _, value = change.partition("=")
        assert message == (
            f"command line: {key}: expected ~/... or a whole path, or ./{value} for one of that "
            f"name"
        )


@pytest.mark.parametrize("search", ["sampler: {name: cmaes}", "sampler: {name: grid}, trials: 3"])
def test_a_search_of_which_no_key_is_left_has_no_sampler_that_needs_one(tmp_path, search):
    path = tmp_path / "e.yaml"
    space = "space: {model.depth: {int: [2, 3]}, model.ff_mult: {int: [1, 4]}}"
    path.write_text(f"experiment: e\nsearch: {{{space}, {search}}}\n")
    found = load([str(path), "model.depth=2", "model.ff_mult=3"])
    assert found.search == SearchConfig()
    typed = problem(path, "model.depth=2", "model.ff_mult=3", "search.sampler.name=cmaes")
    assert "cmaes needs two searched keys" in typed


def test_a_key_that_the_command_line_leaves_without_its_condition_is_no_longer_searched(tmp_path):
    searched = load([]).search.space
    assert "model.dca.last_k" in searched
    fixed = load(["model.residual=standard"]).search.space
    assert fixed.keys() == searched.keys() - {"model.dca.last_k"}
    assert load(["model.residual=dca"]).search.space == searched
    file = tmp_path / "e.yaml"
    file.write_text(f"extends: {QUICKSTART}\nmodel: {{residual: standard}}\n")
    expected = 'last_k.when: it can never apply: model.residual is "standard", not "dca"'
    assert expected in problem(file)
    assert len(problem(file).splitlines()) == 1


@pytest.mark.parametrize("last_k", [2, 3])
def test_keys_that_depend_on_one_that_drops_out_are_left_out_in_turn(tmp_path, last_k):
    """They were refused: nothing reads them, or they can never apply."""
    file, kind = tmp_path / "e.yaml", "model.residual: {choice: [dca, standard]}"
    memory = "model.dca.last_k: {choice: [2, 3], when: {model.residual: dca}}"
    scale = f"model.dca.init_std: {{choice: [0.01, 0.1], when: {{model.dca.last_k: {last_k}}}}}"
    depth = f"model.depth: {{choice: [1, 2], when: {{model.dca.last_k: {last_k}}}}}"
    file.write_text(f"experiment: e\nsearch: {{space: {{{kind}, {memory}, {scale}, {depth}}}}}\n")
    assert len(load([str(file)]).search.space) == 4
    applies = {"model.depth"} if load([str(file)]).model.dca.last_k == last_k else set()
    assert load([str(file), "model.residual=standard"]).search.space.keys() == applies
    both = load([str(file), "model.residual=dca"]).search.space
    assert len(both) == 3
    chosen = load([str(file), f"model.dca.last_k={5 - last_k}"]).search.space
    assert chosen.keys() == {"model.residual"}


@pytest.mark.parametrize(
    "changes",
    [
        ["model.dim=64,128", "model.dim=64"],
        ["model.dim=64", "model.dim=64,128", "model.depth=1,2", "model={dim: 128}"],
    ],
)
def test_a_grid_that_another_change_would_end_is_refused(changes):
    """It was one of nothing, in place of the file's space."""
    with pytest.raises(ConfigError) as error:
        load(changes, grids=True)
    expected = f"model.dim: expected one value or several, got {changes[-1]} as well"
    assert str(error.value) == f"command line: {expected}"


def test_a_grid_may_follow_the_value_that_its_key_has_without_it():
    found = load(["model.dim=64", "model.dim=64,128", "model.depth=1"], grids=True)
    assert found.search.space.keys() == {"model.dim"}
    assert (found.model.dim, found.model.depth) == (64, 1)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ("{model.depth: {uniform: [2, 6]}}", "model.depth: expected integers, as in {int: [2, 6]}"),
        ("{model.depth: {log_uniform: [1.5, 6]}}", "as in {int: [2, 6], log: true}, got real"),
        ("{train.learning_rate: {choice: [1e-3, 0.001]}}", "rate.choice: expected each value once"),
        ("{train.compile: {choice: [true, false, true]}}", "expected each value once"),
        ("{train.precision: {choice: [auto, float32]}}", "precision.choice: expected float32 or b"),
        (f"{{train.weight_decay: {{uniform: [0, 1{400 * '0'}]}}}}", "weight_decay.uniform"),
        (f"{{model.dca.last_k: {{int: [1, 1{400 * '0'}]}}}}", "last_k.int"),
        (
            "{model: {dca: {last_k: {int: [1, 2]}}}}",
            "space.model.dca: unknown key; expected dots in place of sections, as in "
            "model.dca.last_k: ...",
        ),
        (
            "{model.depth: {int: [1, 2], when: {model: {residual: dca}}}}",
            'got {"residual": "dca"}; expected dots in place of sections, as in model.residual: ..',
        ),
        ("{model: {detph: {int: [1, 2]}}}", "search.space.model.detph: unknown key"),
        (
            "{model.heads: {choice: [2, 4]}, model.kv_heads: {choice: [1, 3]}}",
            "got 3; none of 2 points with this value is valid",
        ),
        ("{model.residual: [standard, dca]}", 'did you mean {choice: ["standard", "dca"]}?'),
        (
            "{train.learning_rate: {loguniform: [1, 2]}}",
            "did you mean search.space.train.learning_",
        ),
        (
            "{model.depth: {int: [1, 8], step: 3}}",
            "a multiple of step = 3, as in [1, 7], got [1, 8]",
        ),
        (
            "{model.depth: {int: [1, 8], step: 9}}",
            "multiple of step = 9, as in [1, 10], got [1, 8]",
        ),
        ("{model.depth: {int: [0, 8], log: true}}", "expected low > 0 with log: true, got 0"),
        ("{model.depth: {int: [1, 9], log: true, step: 2}}", "expected 1 with log: true, got 2"),
        ("{model.depth: {choice: [1], step: 2}}", "step: expected with int only"),
        ("{model.depth: {int: [1, 2], when: {model.heads: 2}}}", "model.heads is 4, not 2"),
        (
            "{model.depth: {int: [1, 2], when: {model.heads: 8}}, model.heads: {choice: [1, 2]}}",
            "depth.when: it can never apply: model.heads is never 8",
        ),
        (
            "{model.dca.last_k: {int: [1, 2], when: {model.depth: 1, model.heads: 1}}, "
            "model.depth: {int: [1, 2], when: {model.heads: 2}}, model.heads: {choice: [1, 2]}}",
            "it can never apply: model.heads would have to be 1 and 2",
        ),
        (
            "{train.batch_tokens: {choice: [2048, 4096]}, "
            "train.micro_batch_tokens: {choice: [1280]}, model.depth: {int: [1, 900]}}",
            "train.micro_batch_tokens: train.micro_batch_tokens: expected a multiple of",
        ),
    ],
)
def test_a_range_that_is_wrong_is_one_line(path, space, expected):
    message = problem(path, f"search.space={space}")
    assert expected in message
    assert len(message.splitlines()) == 1


def test_a_space_without_a_valid_point_is_refused_before_anything_starts(path):
    """Each value is valid with another key's own value, but not with one that is searched."""
    space = "{model.dim: {choice: [32, 64]}, model.heads: {choice: [20, 40]}}"
    message = problem(path, "model.dim=160", "model.heads=4", f"search.space={space}")
    assert message.startswith("command line: search.space: no valid point among 4; of model.dim=32")
    assert "got 32 / 20" in message
    real = space[:-1] + ", train.learning_rate: {uniform: [0.1, 0.2]}}"
    assert "no valid point among 2,000" in problem(
        path, "model.dim=160", "model.heads=4", f"search.space={real}"
    )


@pytest.mark.parametrize(
    ("key", "bounds"),
    [("model.heads", "[4, 5]"), ("model.heads", "[3, 9]"), ("model.dim", "[126, 136]")],
)
def test_an_integer_range_may_have_invalid_values_among_valid_ones(path, key, bounds):
    searched = load([str(path), f"search.space={{{key}: {{int: {bounds}}}}}"])
    assert key in searched.search.space
    low, high = map(int, bounds.strip("[]").split(", "))
    listed = ", ".join(map(str, range(low, high + 1)))
    message = problem(path, f"search.space={{{key}: {{choice: [{listed}]}}}}")
    assert "must be an even number" in message


def test_values_that_are_valid_with_other_searched_ones_only_are_a_space(path):
    space = "{model.dim: {choice: [48, 64]}, model.heads: {choice: [2, 3]}}"
    assert load([str(path), f"search.space={space}"]).model.dim == 128
    shares = (
        "{train.warmup_fraction: {uniform: [0, 0.9]}, train.decay_fraction: {uniform: [0.2, 1]}}"
    )
    assert load([str(path), "train.schedule=wsd", f"search.space={shares}"])
    assert load([str(path), "search.space={model.dim: {int: [30, 1030]}}"])


def test_what_is_stored_is_read_whatever_a_new_search_may_not_have(experiment):
    data = experiment.model_dump(mode="json")
    data["search"]["space"] = {"model.depth": {"uniform": [2, 6]}}
    with pytest.raises(ConfigError):
        read_experiment(data, source="new")
    assert read_stored(data, source="old").search.space.keys() == {"model.depth"}


def test_an_earlier_run_can_be_read_with_values_that_are_refused_now():
    old = {"generate": {"prompts": [], "top_k": 7}, "compare": {"smallest_difference": 1e-9}}
    read = read_stored({"experiment": "old", **old}, source="old")
    assert read.generate.prompts == GenerateConfig().prompts
    assert read.generate.top_k == 7
    assert read.compare.smallest_difference == 0.01
    with pytest.raises(ConfigError, match=r"model\.depth"):
        read_stored({"model": {"depth": 0}, **old}, source="old")


def test_integers_have_a_step_or_a_logarithm_and_are_stored_as_before_without(experiment):
    space = {"model.depth": {"int": [2, 10], "step": 4}, "model.dca.last_k": {"int": [1, 8]}}
    searched = experiment.replace({"search.space": space})
    dumped = searched.model_dump(mode="json")["search"]["space"]
    assert dumped["model.depth"]["step"] == 4
    assert dumped["model.dca.last_k"].keys() == {"log_uniform", "uniform", "int", "choice", "when"}
    assert read_experiment(parse(searched.to_yaml(), source="x"), source="x") == searched
    assert searched.search.space["model.depth"].examples == [2, 6, 10]
    assert not searched.search.space["model.depth"].contains(4)


def test_a_wrong_value_of_a_searched_key_is_named_as_its_own(data):
    """It is in no trial, but conditions and costs are computed with it."""
    ranges = {"model.heads": {"choice": [2, 4]}, "model.dim": {"choice": [16, 24]}}
    wrong = data | {"model": {"dim": 16, "heads": 3}, "search": {"space": ranges}}
    with pytest.raises(ConfigError) as raised:
        read_experiment(wrong, source="test")
    assert str(raised.value).endswith("(its own value, beside its range, must be valid, too)")
    with pytest.raises(ConfigError) as raised:
        read_experiment(data | {"model": {"dim": 16, "heads": 3}}, source="test")
    assert "its own value" not in str(raised.value)
