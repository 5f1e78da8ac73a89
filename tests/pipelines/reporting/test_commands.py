import shlex
from pathlib import Path

import pytest

from pipelines.config.overrides import read_changes
from pipelines.experiment import load, read_experiment
from pipelines.reporting.commands import (
    config_path,
    next_commands,
    replication_commands,
    report_folder,
    reproduction_command,
    setup_lines,
    tracking_page_command,
)
from pipelines.reporting.page.publish import publish
from pipelines.search.config import MAX_TRIALS
from tests.pipelines.reporting.tables import results_of, trial
from tests.pipelines.stored import Made

TWO = [
    Made({"train.learning_rate": 1e-3, "model.residual": "standard"}, [3, 2.5, 2.1, 2.0]),
    Made({"train.learning_rate": 1e-2, "model.residual": "standard"}, [3, 2.6, 2.3, 2.2]),
]


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """The project lies in the current folder."""
    monkeypatch.setattr("pipelines.storage.project.ROOT", tmp_path)


def test_the_commands_name_the_scripts_as_they_are_called_from_another_folder(
    searched, monkeypatch, here
):
    monkeypatch.setattr("pipelines.storage.project.ROOT", Path("/a b"))
    results = results_of(searched, TRIALS, winner=0)
    assert reproduction_command(results) == f"python '/a b/pipelines/sweep.py' {YAML}"


def test_the_commands_name_the_file_beside_the_page(searched, made, tmp_path):
    results = made(searched, TWO, winner=0)
    publish(results)
    folder = f"runs/reports/tiny/{results.pipeline.info.run_id[:8]}"
    assert config_path(results) == f"{folder}/tiny.yaml"
    assert load([config_path(results)]) == searched
    sweep = next(one for one in next_commands(results) if one.purpose == "Run the whole pipeline")
    assert sweep.lines == [f"python pipelines/sweep.py {folder}/tiny.yaml"]


def test_the_winner_and_the_runner_up_are_trained_with_further_seeds(searched, made):
    lines = replication_commands(made(searched, TWO, winner=0))
    assert lines[0] == "for seed in 1 2 3 4; do"
    for line, one in zip(lines[1:3], TWO, strict=True):
        arguments = shlex.split(line)
        assert arguments[:2] == ["python", "pipelines/train.py"]
        assert f"train.learning_rate={one.values['train.learning_rate']}" in arguments
        assert f"model.dca.last_k={searched.model.dca.last_k}" in arguments  # the key did not apply
        assert arguments[-1] == "seed=$seed"
    assert lines[3:] == ["done", "python pipelines/report.py tiny"]


def test_behind_the_largest_seed_they_begin_at_0(searched, made):
    last = searched.model_copy(update={"seed": 2**31 - 1})
    lines = replication_commands(made(last, TWO, winner=0))
    assert lines[0] == "for seed in 0 1 2 3; do"


def test_without_a_runner_up_there_is_nothing_to_replicate(searched, made):
    assert replication_commands(made(searched, TWO[:1], winner=0)) == []


def test_a_new_shell_needs_the_environment_and_another_stores_uri(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert setup_lines(tmp_path) == []
    activate = tmp_path / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text("")
    assert setup_lines(tmp_path) == ["source .venv/bin/activate"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    assert setup_lines(tmp_path)[1:] == ["export MLFLOW_TRACKING_URI=http://localhost:5000"]


@pytest.mark.parametrize(
    ("uri", "command"),
    [
        ("", "mlflow ui"),
        ("sqlite:////tmp/a.db", "mlflow ui --backend-store-uri sqlite:////tmp/a.db"),
        ("http://localhost:5000", "python -m webbrowser http://localhost:5000"),
    ],
)
def test_the_tracking_pages_are_opened_where_the_store_is(uri, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert tracking_page_command() == command


def test_where_mlflow_would_take_an_older_store_of_the_folder_its_commands_have_the_uri(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").touch()
    for given in ("", "sqlite:///mlflow.db"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
        uri = f"sqlite:///{tmp_path}/mlflow.db"
        assert setup_lines(tmp_path) == [f"export MLFLOW_TRACKING_URI={uri}"]
        assert tracking_page_command() == f"mlflow ui --backend-store-uri {uri}"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://store:5000")


VALUES = [
    {"train.learning_rate": 1e-3, "model.residual": "dca", "model.dca.last_k": 1},
    {"train.learning_rate": 2e-3, "model.residual": "standard", "model.dca.last_k": 2},
]
TRIALS = [
    trial("complete", [2.0 + n], **{key.replace(".", "__"): value for key, value in one.items()})
    for n, one in enumerate(VALUES)
]
YAML = "runs/reports/tiny/aaaaaaaa/tiny.yaml"


def purposes(results) -> dict[str, list[str]]:
    return {one.purpose: one.lines for one in next_commands(results)}


def test_without_a_model_the_whole_pipeline_reproduces_the_result(searched, here):
    results = results_of(searched, TRIALS, winner=0)
    assert reproduction_command(results) == f"python pipelines/sweep.py {YAML}"
    found = purposes(results)
    assert list(found) == [
        "Run the whole pipeline",
        "Train the winner and the runner-up with more seeds, and compare them",
        "Start a new search from the results of these trials",
        "Train the winner longer; the search is reused",
        "Show all runs, curves and versions",
        "Write this page again",
    ]
    new = found["Start a new search from the results of these trials"]
    changes = "experiment=tiny-2 'search.warm_start=[tiny]' search.trials=16"
    assert new == [f"python pipelines/sweep.py {YAML} {changes}"]
    longer = found["Train the winner longer; the search is reused"]
    assert longer == [f"python pipelines/sweep.py {YAML} fit.tokens={4 * 4096}"]
    assert found["Write this page again"] == ["python pipelines/report.py tiny"]


@pytest.mark.parametrize("name", ["2024", "1e3", "true", "null"])
def test_a_name_that_reads_as_a_number_is_a_text_in_commands(searched, here, name):
    results = results_of(searched.model_copy(update={"experiment": name}), TRIALS, winner=0)
    (line,) = purposes(results)["Start a new search from the results of these trials"]
    values = {one.key: one.value for one in read_changes(shlex.split(line)[3:])}
    assert values["search.warm_start"] == [name]
    assert values["experiment"] == f"{name}-2"


def test_a_model_is_trained_again_and_generates(searched, here):
    outputs = {"fit": {"model_uri": "models:/m-1"}}
    results = results_of(searched, TRIALS, winner=0, outputs=outputs)
    values = "train.learning_rate=0.001 model.residual=dca model.dca.last_k=1"
    assert reproduction_command(results) == f"python pipelines/train.py {YAML} {values}"
    found = purposes(results)
    generate = "python pipelines/generate.py --model models:/m-1 --prompt 'def '"
    assert found["Generate text with the model"] == [generate]
    assert found["Train the winner again"] == [reproduction_command(results)]
    versioned = results_of(searched, TRIALS, winner=0, outputs=outputs, version=3)
    assert reproduction_command(versioned) == ("python pipelines/train.py --from-version dca-gpt/3")
    found = purposes(versioned)
    assert found["Generate text with the model"] == [generate.replace("models:/m-1", "dca-gpt/3")]
    again = found["Train the model again, and compare its weights bit for bit"]
    assert again == [reproduction_command(versioned)]
    lines = replication_commands(versioned)
    train = "  python pipelines/train.py --from-version dca-gpt/3"
    assert lines[1] == f"{train} seed=$seed"
    second = "train.learning_rate=0.002 model.residual=standard model.dca.last_k=2"
    assert lines[2] == f"{train} {second} seed=$seed"


def test_without_a_version_the_winner_and_the_runner_up_are_trained_as_the_fit(searched, here):
    fit = {"tokens": 8192, "evals": 16, "eval_tokens": "all", "compile": True}
    config = searched.replace({"fit": fit | {"resources": {"workers": 2, "cpus_per_worker": 3}}})
    outputs = {"fit": {"model_uri": "models:/m-1"}}
    results = results_of(config, TRIALS, winner=0, outputs=outputs)
    Path(YAML).parent.mkdir(parents=True)
    Path(YAML).write_text(config.to_yaml())
    _, *both, _, _ = replication_commands(results)
    for number, line in enumerate([reproduction_command(results), *both], -1):
        assert line.split()[:3] == ["python", "pipelines/train.py", YAML]
        values = VALUES[max(number, 0)] | ({} if number < 0 else {"seed": 7})
        found = load(shlex.split(line.replace("$seed", "7"))[2:])
        assert found.training_run() == config.fit_run(values)


def test_a_runner_up_that_the_fit_cannot_train_is_not_to_be_trained_with_more_seeds(data, here):
    space = {"train.batch_tokens": {"int": [64, 256], "step": 32}}
    more = {"search": {"space": space}, "fit": {"resources": {"workers": 2}}}
    trials = [trial("complete", [2.0 + n], train__batch_tokens=n) for n in (128, 96)]
    config = read_experiment(data | more, source="test")
    fitted = results_of(config, trials, winner=0, outputs={"fit": {}})
    assert replication_commands(fitted) == []
    assert len(replication_commands(results_of(config, trials, winner=0))) == 5


@pytest.mark.parametrize("search", [{"name": "cmaes"}, {"name": "grid"}])
def test_after_a_search_by_any_sampler_the_trainings_are_valid(data, here, search):
    space = {"model.depth": {"int": [1, 3]}, "model.dim": {"int": [16, 48], "step": 16}}
    more = {"search": {"space": space, "sampler": search, "trials": 4}}
    config = read_experiment(data | more, source="test")
    trials = [trial("complete", [2.0 + n], model__depth=n, model__dim=32) for n in (2, 1)]
    Path(YAML).parent.mkdir(parents=True)
    Path(YAML).write_text(config.to_yaml())
    _, *both, _, _ = replication_commands(results_of(config, trials, winner=0))
    found = [load(shlex.split(line.replace("$seed", "7"))[2:]) for line in both]
    assert [one.model.depth for one in found] == [2, 1]


def test_a_winner_whose_trial_was_deleted_is_trained_again_by_the_whole_pipeline(searched, here):
    results = results_of(searched, TRIALS, outputs={"fit": {"model_uri": "models:/m-1"}})
    assert reproduction_command(results) == f"python pipelines/sweep.py {YAML}"
    assert not any("again" in name and "Train" in name for name in purposes(results))


def test_a_training_without_a_search_is_run_by_its_own_command(searched, here):
    results = results_of(searched, outputs={"train": {"model_uri": "models:/m-1"}})
    train = f"python pipelines/train.py {YAML}"
    assert reproduction_command(results) == train
    found = purposes(results)
    assert list(found) == [
        "Run the whole pipeline",
        "Train longer",
        "Generate text with the model",
        "Show all runs, curves and versions",
        "Write this page again",
    ]
    assert found["Run the whole pipeline"] == [train]
    assert found["Train longer"] == [f"{train} train.tokens={4 * 4096}"]


def test_a_new_search_has_no_more_trials_than_a_search_may_have(searched, here):
    large = searched.replace({"search.trials": MAX_TRIALS - 1})
    (line,) = purposes(results_of(large, TRIALS))[
        "Start a new search from the results of these trials"
    ]
    assert line.endswith(f"search.trials={MAX_TRIALS}")


def test_a_search_that_does_not_learn_starts_no_other(searched, here):
    random = results_of(searched.replace({"search.sampler.name": "random"}), TRIALS, winner=0)
    assert "Start a new search from the results of these trials" not in purposes(random)


def test_further_seeds_follow_the_experiments_and_values_are_quoted(searched, here):
    trials = [TRIALS[0], trial("complete", [2.5], train__learning_rate=2e-3, model__residual="a b")]
    lines = replication_commands(results_of(searched.replace({"seed": 7}), trials, winner=0))
    assert lines[0] == "for seed in 8 9 10 11; do"
    assert "model.residual=dca" in shlex.split(lines[1])
    assert 'model.residual="a b"' in shlex.split(lines[2])


def test_the_report_of_shared_storage_is_in_the_current_folder(searched, here, tmp_path):
    assert report_folder(searched) == tmp_path / "runs" / "reports" / "tiny"
    shared = searched.replace({"storage": "s3://bucket/x"})
    assert report_folder(shared) == tmp_path / "reports" / "tiny"
