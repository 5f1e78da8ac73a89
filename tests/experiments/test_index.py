"""Every experiment is in the index, and can be run."""

import re
import shlex

import pytest

from pipelines.data.splits import measure_corpus, train_val_splits, write_splits
from pipelines.experiment import Experiment, load
from pipelines.search.space import Space
from pipelines.search.study import build_study
from pipelines.sweep import _parse
from pipelines.training.config import TrainingRun
from pipelines.training.history import finished
from pipelines.training.loop import train
from tests.pipelines.commands import ROOT

FOLDER = ROOT / "experiments"
INDEX = (FOLDER / "README.md").read_text()
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
COMMANDS = re.findall(r"^(python .*)$", INDEX, re.M)


def loaded(command: str, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """The configuration that a command of the index runs."""
    _, script, *arguments = shlex.split(command)
    assert script == "pipelines/sweep.py"
    monkeypatch.chdir(ROOT)
    return load(_parse(arguments).arguments, grids=True)


@pytest.mark.parametrize("name", NAMES)
def test_the_index_has_the_question_and_a_command_of_every_experiment(name):
    question = (FOLDER / f"{name}.yaml").read_text().splitlines()[1].removeprefix("# ")
    assert question.endswith("?")
    assert f"| [{name}.yaml]({name}.yaml) | {question} |" in INDEX
    (section,) = re.findall(rf"^## {name}\n(.*?)(?=^## )", INDEX, re.M | re.S)
    assert f"python pipelines/sweep.py experiments/{name}.yaml" in section


@pytest.mark.parametrize("command", COMMANDS)
def test_the_indexs_commands_are_valid(command, monkeypatch):
    assert loaded(command, monkeypatch).experiment.partition("-")[0] in NAMES


def test_the_commands_of_an_experiment_are_searches_of_their_own(monkeypatch):
    configs = [loaded(command, monkeypatch).model_dump_json() for command in COMMANDS]
    assert len(set(configs)) == len(configs) > len(NAMES)


def test_the_indexs_example_composes(tmp_path, monkeypatch):
    for path in FOLDER.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (example,) = re.findall(r"```yaml\n(.*?)```", INDEX, re.S)
    (tmp_path / "mine.yaml").write_text(example)
    mine = load([str(tmp_path / "mine.yaml")])
    assert (mine.model.dim, mine.model.depth, mine.data.corpus) == (512, 6, "enwik8")
    assert mine.resources.gpus_per_worker == 1
    assert mine.data.max_bytes is None
    assert mine.arm_names == ("standard", "dca-2", "grn_v2")
    assert [arm.search.trial_count for arm in mine.by_arm.values()] == [2, 2, 2]
    assert all(mine.of_arm(name).resources.gpus_per_worker == 1 for name in mine.arms)


def test_the_enwik8_experiment_is_the_papers_deep_model():
    experiment = load([str(FOLDER / "enwik8.yaml")])
    model = experiment.model
    assert (model.depth, model.dim, model.ff_mult, model.residual) == (24, 512, 4, "dca")
    assert {1, 2} <= set(experiment.search.space["model.dca.last_k"].examples)
    assert experiment.train.schedule == "inverse_sqrt"
    assert experiment.fit_run().train.steps == 27_466
    assert "27,466 steps" in INDEX


STUDIES = {
    "residuals": {"standard", "dca-2", "grn_v2"},
    "width": {"standard", "dca-2"},
    "depth": {"standard", "dca-2"},
    "windows": {"whole", "three scales", "near"},
}


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_has_arms_with_a_tuned_rate_each_and_five_seeds(name):
    study = load([str(FOLDER / f"{name}.yaml")])
    assert set(study.arms) == STUDIES[name]
    assert study.replicate_seeds == (0, 1, 2, 3, 4)
    for arm in study.by_arm.values():
        assert list(arm.search.space) == ["train.learning_rate"]
        assert arm.search.trial_count == 4
        assert arm.fit_run().train.evals == 32


TRAINED: set[TrainingRun] = set()
"""Made so small, arms of several experiments are the same training: each is trained once."""


@pytest.mark.extended
@pytest.mark.slow
@pytest.mark.parametrize("trained", [1, pytest.param(3, marks=pytest.mark.faults)])
@pytest.mark.parametrize("name", NAMES)
def test_the_trials_of_every_experiment_train_tiny(name, trained, tmp_path, text):
    """As `--smoke` trains them, proposed by the experiment's own sampler, and in this process: the
    stages behind the search are the same for all, and the README's commands run them."""
    changes = ["data.corpus=files", f"data.path={text}", "resources={}", "train.compile=false"]
    experiment = load([str(FOLDER / f"{name}.yaml"), *changes], smoke=True)
    found = measure_corpus(experiment.data, seq_len=experiment.train.seq_len)
    write_splits(experiment.data, found, tmp_path)
    for arm_name, arm in experiment.by_arm.items():
        task = arm.search_task()
        space, study = Space(task), build_study(task, [])
        tried = []
        for number in range(arm.search.trial_count):
            values = space.suggest(study.ask())
            tried.append(tuple(values.items()))
            run = arm.training_run(values)
            if number >= trained or run in TRAINED:
                continue
            corpus = train_val_splits(tmp_path, found.fingerprint)
            folder = tmp_path / f"{arm_name} {number}"
            rows = [row for rows in train(run, corpus, folder, print) for row in rows]
            assert finished(rows, run.train)
            assert rows[-1]["val_bits_per_byte"] < 9
            TRAINED.add(run)
        assert len(set(tried)) == arm.search.trial_count == 3
