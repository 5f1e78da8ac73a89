"""A whole study on real Ray; what is reused of it, and what is added to it later."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from pipelines.registry.score import Score
from pipelines.registry.versions import Registry
from pipelines.stages import evaluate
from pipelines.tracking.store import Run, Store
from tests.pipelines.commands import Folder, assert_whole
from tests.pipelines.packages import timed_forked

ARMS, SEEDS = ("standard", "dca-2"), (0, 1)
pytestmark = pytest.mark.extended
REPLICATES = [f"fit[{arm}, {seed}]" for arm in ARMS for seed in SEEDS]


@pytest.fixture(scope="module")
def screen(studied: Folder) -> str:
    return (studied.path / "screen.txt").read_text()


@pytest.fixture
def copy(studied: Folder, tmp_path: Path) -> Folder:
    """The finished study, to go on from."""
    return studied.copy(tmp_path / "copy")


def instances(store: Store, kind: str) -> dict[str, Run]:
    """The runs of a stage by the instance that they are of; each has one."""
    runs = store.find(kind)
    found = {run.data.tags.get("dca.instance", kind): run for run in runs}
    assert len(found) == len(runs)
    return found


def computed(out: str) -> Counter[str]:
    """How often each stage was computed; those that were reused do not count."""
    lines = out.partition("\n\n")[0]
    return Counter(re.findall(r"^(\w+)(?:\[.*?\])? +(?!reused)\w", lines, re.M))


def test_each_arm_is_trained_with_each_seed_once(studied):
    store = studied.store()
    fits = instances(store, "fit")
    assert sorted(fits) == sorted(REPLICATES)
    assert {run.info.status for run in fits.values()} == {"FINISHED"}
    assert_whole(store, list(fits.values()))
    assert len(store.find("trial")) == 4
    assert len(store.find("probe")) == len(store.find("compare")) == 1


def test_the_trials_of_each_arm_and_the_trainings_are_shown_and_left_whole(studied, screen):
    store, trials = studied.store(), studied.trials()
    parents = Counter(run.data.tags["mlflow.parentRunId"] for run in trials)
    assert sorted(parents.values()) == [2, 2]
    assert {run.data.tags["dca.state"] for run in trials} == {"complete"}
    assert_whole(store, trials)
    for arm in ARMS:
        ends = re.findall(rf"^  trial (\d) of {arm} complete: 32 steps, best ", screen, re.M)
        assert sorted(ends) == ["0", "1"]
    for name in REPLICATES:
        assert screen.count(f"  {name} complete: 32 steps, best ") == 1
    assert "Traceback" not in screen
    assert not list(studied.path.glob("runs/trials/*/*"))  # checkpoints of trials that ended


def test_the_verdict_is_the_last_line_of_the_screen(studied, screen):
    (run,) = studied.store().find("compare")
    found = json.loads(run.data.tags["dca.outputs"])
    assert screen.splitlines()[-1] == f"verdict   {found['sentence']}"
    assert "\ntiny: 2 arms, 4 trials, 4 of 4 trainings\n" in screen
    assert re.search(r"^  dca-2 +(better|worse|undecided) ", screen, re.M)
    store = studied.store()
    assert found["sentence"] in run.data.tags["mlflow.note.content"]
    rows = store.read_text(run.info.run_id, "comparison.csv").splitlines()
    assert [row.split(",")[0] for row in rows] == ["arm", *ARMS]


def test_the_registered_version_is_the_winner_and_names_its_study(studied, screen):
    store = studied.store()
    (compared,), fits = store.find("compare"), instances(store, "fit")
    arm, seed = json.loads(compared.data.tags["dca.outputs"])["winner"]
    (version,) = Registry(store.client, "dca-gpt").versions()
    fit = fits[f"fit[{arm}, {seed}]"]
    assert version.tags["fit_run"] == version.run_id == fit.info.run_id
    assert version.tags["study_run"] == compared.info.run_id
    assert version.tags["arm"] == arm
    assert screen.endswith(f"verdict   {version.tags['study']}\n")
    assert f"/runs/{compared.info.run_id}" in version.description
    best = {name: run.data.metrics["best_val_bits_per_byte"] for name, run in fits.items()}
    means = {a: sum(best[f"fit[{a}, {s}]"] for s in SEEDS) for a in ARMS}
    assert min(means, key=lambda name: means[name]) == arm
    assert best[f"fit[{arm}, {seed}]"] == min(best[f"fit[{arm}, {s}]"] for s in SEEDS)
    trial = store.client.get_run(version.tags["trial_run"])
    assert trial.data.params["seed"] == "1000000"
    assert trial.data.params["model.residual"] == fit.data.params["model.residual"]


def test_the_command_in_a_note_trains_the_arm_and_seed_that_it_is_of(studied):
    store = studied.store()
    note = instances(store, "fit")["fit[standard, 1]"].data.tags["mlflow.note.content"]
    assert {"model.residual=standard", "seed=1", "train.evals=32"} <= set(note.split())
    (search,) = [run for run in store.find("search") if "standard" in run.info.run_name]
    for trial in store.children(search.info.run_id, "trial"):
        note = trial.data.tags["mlflow.note.content"]
        assert {"model.residual=standard", "seed=1000000"} <= set(note.split())


@pytest.mark.usefixtures("local_tune")
def test_the_same_command_reuses_all_and_repeats_the_verdict(copy, screen):
    last = screen.splitlines()[-1]
    code, out, err = copy.run("sweep.py", "tiny.yaml", "--quiet", "--until", "compare")
    assert (code, out.splitlines()[-1]) == (0, last), err
    code, out, err = copy.run("sweep.py", "tiny.yaml", "--json", "--until", "compare")
    assert code == 0, err
    *events, result = map(json.loads, out.splitlines())
    states = Counter(e["state"] for e in events if e["event"] == "stage" and "outputs" in e)
    assert states == {"reused": 2 * 2 + 1 + 4 + 4 + 1, "done": 1}  # the corpus is looked at
    assert result["outputs"]["compare"]["sentence"] == last.removeprefix("verdict   ")


@pytest.mark.usefixtures("local_tune")
def test_more_seeds_and_another_arm_add_what_is_missing(copy, monkeypatch):
    monkeypatch.setattr(evaluate, "score", lambda *_: Score([3e4], 3137, 32, 32, 7000, 1.0, 1.0))
    timed_forked(monkeypatch)
    before = {kind: instances(copy.store(), kind) for kind in ("search", "select", "fit")}
    another = "arms.value={model.residual: value_residual}"
    code, out, err = copy.run("sweep.py", "tiny.yaml", "seeds=3", another, "--until", "compare")
    assert code == 0, err
    assert computed(out) == {
        **{"corpus": 1, "search": 1, "select": 1, "probe": 1},
        **{"fit": 2 + 3, "evaluate": 2 + 3, "compare": 1},
    }
    for kind, runs in before.items():
        after = instances(copy.store(), kind)
        assert after.keys() > runs.keys()
        assert all(after[name].info.run_id == run.info.run_id for name, run in runs.items())
    probes = [json.loads(run.data.tags["dca.outputs"]) for run in copy.store().find("probe")]
    assert [list(found["times"]) for found in probes] == [[*ARMS, "value"], [*ARMS]]
    assert probes[0]["times"]["dca-2"] == probes[1]["times"]["dca-2"]
    newest = copy.store().find("compare")[0]
    assert json.loads(newest.data.tags["dca.looks"]) == [[0, 1], [0, 1, 2]]


def test_the_gate_shows_the_verdict_beside_its_own(copy, screen):
    code, out, err = copy.run("promote.py", "promote", "1", "--dry-run")
    assert code == 0, err
    verdict = screen.splitlines()[-1].removeprefix("verdict   ")
    assert out.splitlines()[1] == f"its study: {verdict}"
    code, out, err = copy.run("promote.py", "promote", "1", "--dry-run", "--json")
    assert json.loads(out)["study"] == verdict


@pytest.mark.usefixtures("local_tune")
def test_only_a_study_has_its_stages(copy):
    code, _, err = copy.run("sweep.py", "tiny.yaml", "arms={}", "seeds=null", "--until", "compare")
    assert code == 2
    assert err.startswith("--until: only a study has the stage compare; expected one of corpus, ")
    code, _, err = copy.run("sweep.py", "tiny.yaml", "arms={}", "seeds=1,2", "--until", "probe")
    assert code == 2
    assert err.startswith("--until: only a study with arms has the stage probe; expected one of ")
