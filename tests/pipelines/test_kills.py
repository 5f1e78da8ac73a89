"""Kills at random moments, of everything that can be killed: `make test-faults`, many minutes."""

import json
import random
import subprocess
import time
from collections import Counter

import psutil
import pytest

from pipelines.registry.champions import Champions
from pipelines.registry.versions import Registry
from tests.conftest import TALLY
from tests.pipelines.commands import (
    STUDY,
    TRIAL,
    WAIT_SECONDS,
    Folder,
    assert_whole,
    below,
    free_port,
    start_server,
    stop,
    training,
    wait_until,
)

pytestmark = pytest.mark.faults
KILLS = 25
KILLS_PER_SWEEP = 9
TRIALS = 5
LONGEST_SECONDS = 25
"""A kill comes at a moment up to this long after the start, or after the kill before it."""
VICTIMS = {
    "trial": TRIAL,
    "worker": ("ray::RayTrainWorker",),
    "all of Ray": ("raylet", "gcs_server", "ray::"),
}
SWEEP = (
    *("sweep.py", "tiny.yaml", f"search.trials={TRIALS}", "train.tokens=262144"),
    f"failures.retries={KILLS_PER_SWEEP}",  # chance may choose one trial every time
)
STUDY_KILLS = 4
STUDY_SWEEP = (
    *("sweep.py", "tiny.yaml", "seeds=3", "train.tokens=524288", "train.evals=16"),
    *("search.sampler.name=grid", "search.trials=null", "generate.max_new_tokens=20"),
    "search.space={train.learning_rate: {choice: [3e-3, 1e-2, 2e-2]}}",
)


@pytest.fixture
def tally(request) -> Counter:
    """Printed at the end of the session."""
    return request.config.stash.setdefault(TALLY, Counter(kills=0, resumes=0, lost=0, duplicated=0))


def test_sweeps_killed_at_random_moments_end_as_if_nothing_had_happened(
    tmp_path_factory, text, tally
):
    seed = random.randrange(2**32)
    rng, kills = random.Random(seed), 0
    while kills < KILLS:
        folder = Folder(tmp_path_factory.mktemp("killed"), text)
        kills += survive(folder, rng, tally)
        assert tally["lost"] == tally["duplicated"] == 0, seed


def survive(folder: Folder, rng: random.Random, tally: Counter) -> int:
    """Kill one sweep and whatever belongs to it until it ends all the same; returns the kills."""
    kills, ended = 0, {}
    process = folder.start(*SWEEP)
    while True:
        if kills < KILLS_PER_SWEEP:
            time.sleep(rng.uniform(0, LONGEST_SECONDS))
        if process.poll() is None and kills < KILLS_PER_SWEEP:
            what, victims = choose(process, rng)
            for victim in victims:
                try:
                    victim.kill()
                except psutil.NoSuchProcess:
                    continue
            kills += 1
            tally["kills"] += 1
            tally[what] += 1
            if what in ("trial", "worker"):
                continue  # the command survives it
        _, err = process.communicate(timeout=WAIT_SECONDS)
        ended = still_ended(folder, ended, tally)
        if process.returncode == 0:
            break
        if what == "driver":
            assert "Traceback" not in err, err
        tally["resumes"] += 1
        process = folder.start(*SWEEP)
    verify(folder, tally, err)
    return kills


def choose(process: subprocess.Popen[str], rng: random.Random) -> tuple[str, list[psutil.Process]]:
    """Something that is there to be killed."""
    there = {what: below(process, *names) for what, names in VICTIMS.items()}
    there = {what: found if what == "all of Ray" else found[-1:] for what, found in there.items()}
    there["driver"] = [psutil.Process(process.pid)]
    choices = [what for what, found in there.items() if found]
    rarely_there = [what for what in choices if what in ("trial", "worker")]
    what = rng.choice(choices + 3 * rarely_there)
    return what, there[what]


def still_ended(folder: Folder, before: dict, tally: Counter) -> dict:
    """When each trial's run ended; what has ended once must stay as it was."""
    now = {
        int(run.data.tags["dca.trial"]): (run.info.run_id, run.info.end_time)
        for run in folder.trials()
        if "dca.state" in run.data.tags and run.info.end_time
    }
    tally["lost"] += sum(now.get(number) != known for number, known in before.items())
    return now


def verify(folder: Folder, tally: Counter, err: str) -> None:
    store, trials = folder.store(), folder.trials()
    numbers = Counter(int(run.data.tags["dca.trial"]) for run in trials)
    tally["lost"] += sum(number not in numbers for number in range(TRIALS))
    tally["duplicated"] += sum(count - 1 for count in numbers.values())
    assert set(numbers) == set(range(TRIALS)), err
    assert {run.data.tags["dca.state"] for run in trials} <= {"complete", "pruned"}
    (fit,), (search,) = store.find("fit"), store.find("search")
    assert_whole(store, [*trials, fit])
    every = [*trials, fit, search, *store.find("pipeline")]
    assert "RUNNING" not in {run.info.status for run in every}
    registry = Registry(store.client, "dca-gpt")
    assert [int(version.version) for version in registry.versions()] == [1]
    assert [promotion.version for promotion in Champions(registry).promotions()] == [1]
    code, out, err = folder.run_forked(*SWEEP)
    assert code == 0, err
    assert out.count("reused") == 5


def test_a_study_killed_four_times_ends_with_each_trial_and_each_training_once(
    tmp_path, text, tally
):
    """As it would have ended undisturbed, bit for bit."""
    seed = random.randrange(2**32)
    rng, folder = random.Random(seed), Folder(tmp_path, text, STUDY)
    ended: dict[str, tuple] = {}
    for _ in range(STUDY_KILLS):
        process = folder.start(*STUDY_SWEEP)
        time.sleep(rng.uniform(8, 40))
        tally["kills"] += process.poll() is None
        process.kill()
        process.communicate(timeout=WAIT_SECONDS)
        now = whole_results(folder)
        assert now.items() >= ended.items(), seed
        ended = now
        tally["resumes"] += 1
    run_to_end(folder, *STUDY_SWEEP)
    found = whole_results(folder)
    assert found.items() >= ended.items(), seed
    names = {f"fit[{arm}, {seed}]" for arm in ("plain", "grn") for seed in range(3)}
    assert {name for name in found if name.startswith("fit")} == names
    store, trials = folder.store(), folder.trials()
    fits = store.find("fit")
    assert len(fits) == len(names)
    parents = Counter(run.data.tags["mlflow.parentRunId"] for run in trials)
    assert sorted(parents.values()) == [3, 3]
    assert {run.info.status for run in [*trials, *fits]} == {"FINISHED"}
    assert_whole(store, [*trials, *fits])
    undisturbed = Folder(tmp_path / "undisturbed", text, STUDY)
    run_to_end(undisturbed, *STUDY_SWEEP, "--until", "fit")
    assert values_of(folder) == values_of(undisturbed)


def run_to_end(folder: Folder, *command: str) -> None:
    process = folder.start(*command)
    _, err = process.communicate(timeout=3 * WAIT_SECONDS)
    assert process.returncode == 0, err


def whole_results(folder: Folder) -> dict[str, tuple]:
    """The run and the end of each instance of a stage that has a result."""
    if not (folder.path / "mlflow.db").exists():
        return {}
    runs = [run for kind in ("search", "fit", "evaluate") for run in folder.store().find(kind)]
    return {
        run.data.tags["dca.instance"]: (run.info.run_id, run.data.tags["dca.outputs"])
        for run in runs
        if "dca.outputs" in run.data.tags
    }


def values_of(folder: Folder) -> dict[str, float]:
    """Validation bits of each training."""
    found = whole_results(folder).items()
    fits = {name: json.loads(outputs) for name, (_, outputs) in found if name.startswith("fit")}
    return {name: fit["val_bits_per_byte"] for name, fit in fits.items()}


def test_a_training_killed_at_random_moments_is_bitwise_that_of_an_undisturbed_one(
    tmp_path_factory, text, tally
):
    command = ("train.py", "tiny.yaml", "train.evals=32", "failures.checkpoint_seconds=0.2")
    undisturbed = Folder(tmp_path_factory.mktemp("undisturbed"), text)
    code, _, err = undisturbed.run_forked(*command)
    assert code == 0, err
    rng, folder = random.Random(), Folder(tmp_path_factory.mktemp("killed"), text)
    for _ in range(6):
        process = folder.start(*command)
        begun = len(list(folder.path.glob("runs/fits/*/0*")))
        wait_until(lambda: list(folder.path.glob("runs/fits/*/lock")), process)
        time.sleep(rng.uniform(0, 3 if begun else 5))
        tally["kills"] += process.poll() is None
        process.kill()
        process.communicate(timeout=60)
    tally["resumes"] += 6
    code, _, err = folder.run_forked(*command)
    assert code == 0, err
    assert training(folder) == training(undisturbed)
    assert_whole(folder.store(), folder.store().find("train"))


def test_a_tracking_server_that_is_away_for_a_minute_costs_no_metric_and_no_time(tmp_path, text):
    """The training goes on meanwhile: its checkpoints move."""
    port = free_port()
    folder = Folder(tmp_path, text)
    folder.environment["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port}"
    server = start_server(tmp_path, port)
    command = ("sweep.py", "tiny.yaml", "--until", "search", "search.trials=3")
    process = folder.start(*command, "train.tokens=2621440", "train.evals=128")
    wait_until(folder.checkpoints, process)
    stop(server)
    before, away = newest(folder), time.monotonic()
    wait_until(lambda: time.monotonic() > away + 60, process)
    after = newest(folder)
    server = start_server(tmp_path, port)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert "trying again" in err
    assert any(after[trial] > step + 128 for trial, step in before.items()), (before, after)
    runs = folder.store().find("trial")
    assert len(runs) == 3, out
    assert {run.data.tags["dca.state"] for run in runs} <= {"complete", "pruned"}
    assert_whole(folder.store(), runs)
    stop(server)


def newest(folder: Folder) -> dict[str, int]:
    """The last checkpoint's step, by trial."""
    steps: dict[str, int] = {}
    for path in folder.checkpoints():
        steps[path.parent.name] = max(steps.get(path.parent.name, 0), int(path.name))
    return steps
