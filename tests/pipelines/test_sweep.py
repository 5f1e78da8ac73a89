"""The whole pipeline: a sweep on real Ray that was killed, and sweeps without Ray."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import optuna
import pytest
from click.testing import CliRunner

from pipelines.registry.champions import Champions
from pipelines.registry.versions import Registry
from pipelines.tracking.store import Store
from pipelines.training import checkpoint
from tests.pipelines.commands import (
    ROOT,
    WAIT_SECONDS,
    Folder,
    assert_whole,
    files_with_canary,
)
from tests.pipelines.packages import timed_forked


@pytest.fixture(scope="module")
def swept(finished: Folder) -> tuple[Folder, str]:
    """A sweep that was killed and finished, and its screen."""
    return finished, (finished.path / "screen.txt").read_text()


def test_a_killed_sweep_ends_with_the_trials_asked_for_one_run_each(swept):
    folder, out = swept
    trials = folder.trials()
    assert sorted(int(run.data.tags["dca.trial"]) for run in trials) == [0, 1, 2, 3]
    assert {run.data.tags["dca.state"] for run in trials} <= {"complete", "pruned"}
    assert len({frozenset(run.data.params) for run in trials}) == 1
    (search,), (fit,) = folder.store().find("search"), folder.store().find("fit")
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {search.info.run_id}
    assert fit.info.status == search.info.status == "FINISHED"
    assert "4 trials" in out


def test_a_killed_trial_goes_on_from_its_checkpoint(finished):
    screen = (finished.path / "killed.txt").read_text()
    crashed = r"trial (\d) crashed: its process died.+ resumes from its last checkpoint"
    (number,) = re.findall(crashed + r" \(retry 1 of 2\)", screen)
    assert int(re.search(rf"trial {number}: resumes from step (\d+)/640", screen)[1]) >= 20
    assert "(raylet)" not in screen  # Ray's own message about it


def test_no_history_has_a_gap_or_a_duplicate(swept):
    store = swept[0].store()
    runs = [*store.find("trial"), *store.find("fit")]
    assert len(runs) == 5
    assert_whole(store, runs)


def test_a_sweep_on_ray_writes_no_secret_of_the_environment_nor_do_rays_logs(finished):
    (private,) = finished.path.with_name("ray").iterdir()  # Ray opens what is in it to all
    assert private.stat().st_mode & 0o777 == 0o700
    logs = list(private.rglob("session_*/logs/*"))
    assert {"raylet.out", "runtime_env_agent.log"} <= {log.name for log in logs}
    assert files_with_canary([finished.path, finished.path.with_name("ray")]) == []


def test_nothing_is_left_of_trials_that_ended(swept):
    folder, _ = swept
    assert list((folder.path / "runs" / "trials").iterdir()) == []
    (fit,) = (folder.path / "runs" / "fits").iterdir()
    assert 2 <= len(list(fit.glob("0*"))) <= 3


def test_checkpoints_are_signed_by_keys_that_are_in_the_tracking_store_alone(swept):
    """The fit's by two workers of Ray Train. Tune's state in Ray's session has pickled ones."""
    folder, screen = swept
    store = folder.store()
    (fit,) = store.find("fit")
    runs = [*store.find("trial"), fit]
    keys = {str(store.checkpoint_key(run.info.run_id)) for run in runs}
    assert len(keys) == len(runs) == 5
    assert not any(key in screen for key in keys)
    for path in checkpoint.list_checkpoints(folder.path / "runs" / "fits" / fit.info.run_id):
        checkpoint.read_weights(path, key=store.checkpoint_key(fit.info.run_id))
    ray = folder.path.with_name("ray")
    assert len(list(ray.rglob("session_*/logs/*"))) > 9
    files = [path for place in (folder.path, ray) for path in place.rglob("*") if path.is_file()]
    found = [path for path in files if any(key.encode() in path.read_bytes() for key in keys)]
    assert found == [folder.path / "mlflow.db"]


def test_the_best_complete_trial_is_marked_and_trained_by_two_workers(swept):
    store = swept[0].store()
    (search,), (fit,) = store.find("search"), store.find("fit")
    complete = [run for run in store.find("trial") if run.data.tags["dca.state"] == "complete"]
    best = min(complete, key=lambda run: run.data.metrics["best_val_bits_per_byte"])
    assert search.data.tags["dca.best_run"] == best.info.run_id
    assert fit.data.params["train.learning_rate"] == best.data.params["train.learning_rate"]
    assert fit.data.params["train.tokens"] == "131072"
    assert json.loads(fit.data.tags["dca.outputs"])["workers"] == "2"


def test_optunas_study_is_an_artifact_and_has_every_trial_as_it_ended(swept, tmp_path):
    store = swept[0].store()
    (search,) = store.find("search")
    path = store.client.download_artifacts(search.info.run_id, "study.db", tmp_path)
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{path}")
    runs = {int(run.data.tags["dca.trial"]): run for run in store.find("trial")}
    assert [trial.number for trial in study.trials] == sorted(runs) == [0, 1, 2, 3]
    for trial in study.trials:
        run = runs[trial.number]
        assert trial.state.name.lower() == run.data.tags["dca.state"]
        assert trial.user_attrs["mlflow_run"] == run.info.run_id
        assert trial.params == json.loads(run.data.tags["dca.values"])
    assert study.best_trial.user_attrs["mlflow_run"] == search.data.tags["dca.best_run"]


def test_runs_say_what_they_are_and_the_command_in_a_note_trains_a_trial(
    swept, tmp_path, monkeypatch
):
    folder = swept[0].copy(tmp_path / "copy")
    store = folder.store()
    trial = next(run for run in store.find("trial") if run.data.tags["dca.state"] == "complete")
    note = trial.data.tags["mlflow.note.content"]
    fetch, train = re.findall(r"^(?:mlflow|python) .*$", note, re.M)
    monkeypatch.chdir(folder.path)
    from mlflow.cli import cli  # seconds, which no unit test needs

    fetched = CliRunner().invoke(cli, shlex.split(fetch)[1:])
    assert fetched.exit_code == 0, fetched.output
    _, script, *arguments = shlex.split(train)
    code, out, err = folder.run(Path(script).name, *arguments, "--json")
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])["outputs"]["train"]
    assert result["val_bits_per_byte"] == trial.data.metrics["best_val_bits_per_byte"]


def test_the_screen_shows_the_result_the_baselines_and_what_to_run_next(swept):
    _folder, out = swept
    for expected in ("gzip", "order-0 entropy", "champion  models:/dca-gpt@champion", "def "):
        assert expected in out
    assert re.search(r"gate +version 1 promoted: [\d.]+ bits per byte; there was no champion", out)
    assert "Traceback" not in out


def test_the_same_command_again_reuses_everything_and_promote_only_what_follows(swept, tmp_path):
    folder = swept[0].copy(tmp_path / "copy")
    store = folder.store()
    kinds = ("pipeline", "search", "select", "fit", "evaluate", "sample", "trial")
    before = {kind: [r.info.run_id for r in store.find(kind)] for kind in kinds}
    code, out, err = folder.run("sweep.py", "tiny.yaml")
    assert code == 0, err
    assert {kind: [r.info.run_id for r in store.find(kind)] for kind in kinds} == before
    assert Counter(re.findall(r"reused", out))["reused"] == 5
    code, out, err = folder.run("sweep.py", "tiny.yaml", "promote.min_improvement=0.5")
    assert code == 0, err
    for kind in ("search", "select", "fit", "evaluate", "trial"):
        assert [r.info.run_id for r in store.find(kind)] == before[kind]
    registry = Registry(store.client, "dca-gpt")
    assert len(registry.versions()) == len(Champions(registry).promotions()) == 1


@pytest.mark.process
def test_a_dry_run_says_what_is_reused_and_what_it_would_cost(swept, monkeypatch):
    timed_forked(monkeypatch)
    code, out, err = swept[0].run("sweep.py", "tiny.yaml", "seed=3", "--dry-run")
    assert code == 0, err
    assert re.search(r"search +run +seed: 0 -> 3", out)
    assert "4 trials of 163,840 bytes" in out
    assert re.search(r"^all +about \d+:\d\d \(", out, re.M)
    code, out, err = swept[0].run("sweep.py", "tiny.yaml", "fit.tokens=65536", "--dry-run")
    assert code == 0, err
    assert re.search(r"select +reuse", out)
    assert re.search(r"fit +run +train.tokens: 131072 -> 65536", out)
    assert re.search(r"^fit +about \d+:\d\d", out, re.M)
    assert not re.search(r"^search +about", out, re.M)


def test_generate_writes_from_the_champion_and_a_seed_repeats_it(swept):
    folder, _ = swept
    arguments = ("--prompt", "the é", "--max-new-tokens", "30", "--seed", "1")
    first, second = (folder.run("generate.py", *arguments) for _ in range(2))
    assert first == second
    code, out, err = first
    assert (code, err) == (0, "models:/dca-gpt/1 (challenger, champion)\n")
    assert out.startswith("the é")
    assert len(out) > 10


ELSEWHERE = """
import importlib, sys
root = sys.argv[1]
sys.path[:] = [p for p in sys.path if p.rstrip("/") not in (root, "")]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[2])
model = mlflow.pyfunc.load_model("models:/dca-gpt@champion")
import dca
assert not dca.__file__.startswith(root + "/dca"), dca.__file__
try:
    importlib.import_module("pipelines")
except ImportError:
    pass
else:
    raise SystemExit("the repository can be seen")
table = pandas.DataFrame({"prompt": ["the ", "a "]})
options = {"max_new_tokens": 8, "temperature": 0.0}
answers = model.predict(table, params=options)
assert list(answers.columns) == ["text", "log_likelihood"], answers
assert (answers["log_likelihood"] < 0).all(), answers
print(list(answers["text"]))
"""


def test_the_champion_answers_where_this_repository_cannot_be_seen(swept, tmp_path):
    script = tmp_path / "elsewhere.py"
    script.write_text(ELSEWHERE)
    uri = f"sqlite:///{swept[0].path}/mlflow.db"
    result = subprocess.run(
        [sys.executable, str(script), str(ROOT), uri],
        cwd=tmp_path,
        env={**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("['the ")
    model = next((swept[0].path / "runs" / "artifacts").rglob("MLmodel")).parent
    assert not [p for p in model.rglob("*") if p.suffix in (".pkl", ".pickle", ".pt", ".pth")]


@pytest.mark.extended
@pytest.mark.parametrize("below", ["", "../copy/"])
def test_a_database_may_have_options_and_lie_in_another_folder(swept, tmp_path, below):
    folder = swept[0].copy(tmp_path / "copy")
    here = Folder(tmp_path / "elsewhere") if below else folder
    here.environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{below}mlflow.db?timeout=60"
    storage = f"storage={folder.path}/runs"
    for command, expected in {
        ("sweep.py", f"{below}tiny.yaml", storage, "--dry-run"): r"fit +reuse +cached",
        ("generate.py", "--prompt", "a", "--max-new-tokens", "2"): r"^a",
        ("promote.py", "list"): r"\n1 +challenger, champion ",
        ("report.py", "tiny"): r"reports/tiny/report\.html",
    }.items():
        code, out, err = here.run(*command)
        assert code == 0, err
        assert re.search(expected, out)
    assert not [*(tmp_path / "elsewhere").glob("*.db*")]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "dca-gpt@best"], "no version or alias best; versions: 1 to 1; aliases: chall"),
        (["--model", "nobody"], "no such registered model; registered: dca-gpt"),
        (["--model", "9"], "no version or alias 9"),
        (["--top-p", "2"], "--top-p: expected more than 0"),
        (["--temperature", "-1"], "--temperature: expected a finite number"),
        (["--seed", "-1"], "--seed: expected 0"),
    ],
)
def test_what_generate_cannot_do_is_one_line_on_stderr(swept, arguments, expected):
    code, out, err = swept[0].run("generate.py", "--prompt", "a", *arguments)
    assert (code, out) == (2, "")
    assert expected in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.usefixtures("local_tune")
def test_a_failed_trial_has_a_reason_and_no_number(tmp_path, text):
    folder = Folder(tmp_path, text)
    command = ("sweep.py", "tiny.yaml", "--until", "select", "train.tokens=8192")
    grid = ("search.sampler.name=grid", "search.trials=null")
    rates = "search.space={train.learning_rate: {choice: [1e-2, 1e30]}}"
    code, out, err = folder.run(*command, *grid, rates, "--json")
    assert (code, err) == (0, "")
    events = [json.loads(line) for line in out.splitlines()]
    ends = {row["trial"]: row for row in events if row["event"] == "trial"}
    assert {row["event"] for row in events} == {"corpus", "stage", "trial", "progress", "result"}
    assert events[-2] | {"stage": "select", "state": "done"} == events[-2]
    assert events[-1]["event"] == "result"  # the last word, of whatever was asked for
    winner = events[-1]["outputs"]["select"]
    assert winner["values"] == {"train.learning_rate": 0.01}
    shown = f"winner   trial {winner['trial']}, {winner['objective']:.4f} bits per byte: train."
    assert shown in events[-1]["text"]
    code, out, err = folder.run(*command, *grid, rates, "--quiet")
    assert (code, err) == (0, "")
    assert out.splitlines()[1].startswith(shown)
    code, out, err = folder.run(*command, *grid, rates, "--quiet", "--until", "search")
    assert (code, err) == (0, "")
    assert out.splitlines()[1].startswith(shown)
    states = {run.data.params["train.learning_rate"]: run for run in folder.trials()}
    failed = states["1e+30"]
    assert (failed.info.status, failed.data.tags["dca.state"]) == ("FAILED", "failed")
    assert "the gradient is not finite" in failed.data.tags["dca.reason"]
    assert "best_val_bits_per_byte" not in failed.data.metrics
    number = int(failed.data.tags["dca.trial"])
    assert ends[number]["reason"] == failed.data.tags["dca.reason"]
    assert {ends[int(run.data.tags["dca.trial"])]["state"] for run in folder.trials()} == {
        run.data.tags["dca.state"] for run in folder.trials()
    }
    code, _out, err = folder.run(*command, "train.learning_rate=1e30", "search.space={}")
    assert code == 1
    assert "every trial failed" in err
    assert err.count("the gradient is not finite") == 1  # equal trials are not trained again


@pytest.mark.ray
@pytest.mark.faults  # two minutes
def test_trials_of_several_workers_are_stopped_early_without_hanging(tmp_path, text):
    folder = Folder(tmp_path, text)
    code, _out, err = folder.run_forked(
        "sweep.py",
        "tiny.yaml",
        "resources.workers=2",
        "search.trials=3",
        "search.scheduler.grace_evals=1",
        "train.tokens=8192",
        "search.space.train.learning_rate={choice: [1e-2, 1e-5]}",
        "--until",
        "search",
    )
    assert code == 0, err
    states = Counter(run.data.tags["dca.state"] for run in folder.trials())
    assert sum(states.values()) == 3
    assert states["failed"] == 0


@pytest.mark.usefixtures("local_tune")
def test_a_grid_of_two_objectives_has_a_front_and_another_search_learns_from_it(tmp_path, text):
    folder = Folder(tmp_path, text)
    space = "{model.depth: {int: [1, 2]}, train.learning_rate: {choice: [1e-4, 1e-2]}}"
    common = ("sweep.py", "tiny.yaml", "train.tokens=4096", f"search.space={space}", "--until")
    common += ("select", "search.scheduler.name=none", "search.second_objective=parameters")
    common += ("tensorboard=true",)
    code, _, err = folder.run(*common, "search.sampler.name=grid", "search.trials=null")
    assert code == 0, err
    keys = ("model.depth", "train.learning_rate")
    tried = {tuple(run.data.params[key] for key in keys) for run in folder.trials()}
    assert tried == {(d, r) for d in ("1", "2") for r in ("0.0001", "0.01")}
    assert len([*tmp_path.glob("runs/tensorboard/tiny/*/events*")]) == 4
    front = {
        run.data.params["model.depth"] for run in folder.trials() if "dca.pareto" in run.data.tags
    }
    assert "1" in front
    again = ("experiment=again", "search.warm_start=[tiny]", "search.max_tokens=4097")
    code, out, err = folder.run(*common, *again)
    assert code == 0, err
    assert "warm start with 4 trials of earlier searches" in out
    store = Store.open("again", tmp_path / "runs")
    assert [run.data.tags["dca.trial"] for run in store.find("trial")] == ["1", "0"]
    code, _, err = folder.run(*common, *again, "train.tokens=8192")
    assert code == 2
    assert (
        "search.warm_start: tiny: none of its trials, of which there are 4, lies in the space"
        in err
    )
    assert "its train.tokens is 4096, here 8192" in err
    assert len(store.find("trial")) == 2


@pytest.mark.ray
@pytest.mark.faults  # half a minute
def test_a_training_of_several_workers_that_diverges_says_so_once(tmp_path, text):
    folder = Folder(tmp_path, text)
    code, _, err = folder.run_forked(
        "train.py", "tiny.yaml", "resources.workers=2", "train.learning_rate=1e30"
    )
    assert code == 1
    assert err.startswith("diverged at step ")
    assert len(err.strip().splitlines()) == 1
