"""Commands that run a study: its searches, and its trainings, side by side; without Ray."""

import json
import math
import re
from typing import Any

import pytest

from pipelines.console.errors import StorageError
from pipelines.registry.package import LINEAGE
from pipelines.search.jobs_progress import JobsProgress
from pipelines.tracking.models import model_id_of
from tests.pipelines.commands import STUDY, Folder, assert_whole
from tests.pipelines.local_tune import LocalTune

SEARCHES = ("sweep.py", "tiny.yaml", "--until", "select")
FITS = (
    *("sweep.py", "tiny.yaml", "--until", "fit", "arms={}", "seeds=1,2,3", "search.trials=1"),
    *("fit.evals=4", "fit.eval_tokens=512"),
)
"""Of a study of seeds alone: it needs no probe."""


@pytest.fixture
def folder(tmp_path, text) -> Folder:
    return Folder(tmp_path, text, STUDY)


def trials_of(folder: Folder) -> dict[str, dict[int, Any]]:
    """The runs of the trials of each arm, by number."""
    store = folder.store()
    found = {}
    for search in store.find("search"):
        runs = store.children(search.info.run_id, "trial")
        by_number = {int(run.data.tags["dca.trial"]): run for run in runs}
        assert len(by_number) == len(runs)
        found[search.data.tags.get("dca.instance", "search")] = by_number
    return found


def results(folder: Folder) -> dict[str, dict[str, Any]]:
    """The results of fits by their seeds; of one that has several runs there is an error."""
    runs = folder.store().find("fit")
    found = {run.data.tags["dca.instance"]: run for run in runs}
    assert len(found) == len(runs)
    return {name: json.loads(run.data.tags.get("dca.outputs", "{}")) for name, run in found.items()}


def statuses(folder: Folder) -> dict[str, str]:
    runs = folder.store().find("fit")
    return {run.data.tags["dca.instance"]: run.info.status for run in runs}


def test_the_trials_of_arms_take_turns_and_are_those_of_each_arm_alone(
    folder, local_tune: LocalTune
):
    code, out, err = folder.run(*SEARCHES)
    assert code == 0, err
    assert local_tune.started == ["plain", "grn", "plain", "grn"]
    assert re.search(r"  trial 1 of grn complete: 32 steps, best [\d.]+ bits per byte  \(", out)
    studied = trials_of(folder)
    alone = ("arms={}", "experiment=alone", "seed=1000000", "model.residual=grn_v2")
    code, _, err = folder.run(*SEARCHES, *alone)
    assert code == 0, err
    for run in folder.store("alone").find("trial"):
        same = studied["search[grn]"][int(run.data.tags["dca.trial"])]
        assert same.data.params == run.data.params
        best = "best_val_bits_per_byte"
        assert same.data.metrics[best] == run.data.metrics[best]
    local_tune.started.clear()
    code, out, err = folder.run(*SEARCHES)
    assert code == 0, err
    assert local_tune.started == []
    assert out.count("reused") == 4


@pytest.mark.extended
def test_searches_that_were_interrupted_go_on_with_what_each_arm_lacks(
    folder, local_tune: LocalTune
):
    local_tune.interrupt_at = 8  # in the third of four trials
    code, _, err = folder.run(*SEARCHES)
    assert (code, "run the same command again to go on" in err) == (130, True)
    local_tune.interrupt_at = math.inf
    code, out, err = folder.run(*SEARCHES, "search.max_tokens=8192")
    assert code == 0, err
    assert "  plain: done: 1 of 2 trials" in out
    assert "  trial 1 of plain: resumes from step" in out
    assert local_tune.started[3:] == ["plain"]  # each arm has a budget of its own
    code, _, err = folder.run(*SEARCHES)
    assert code == 0, err
    found = trials_of(folder)
    assert {name: sorted(runs) for name, runs in found.items()} == {
        **{"search[plain]": [0, 1], "search[grn]": [0, 1]},
    }
    assert_whole(folder.store(), [run for runs in found.values() for run in runs.values()])


@pytest.mark.extended
@pytest.mark.usefixtures("local_tune")
def test_an_arm_of_which_every_trial_diverges_has_a_trial_that_is_trained(folder):
    bad = "arms.grn.search.space={train.learning_rate: {choice: [1e30, 1e31]}}"
    code, out, err = folder.run(*SEARCHES, bad)
    assert code == 0, err
    assert "  grn: every trial diverged; the last to do so is trained\n" in out
    chosen = [json.loads(run.data.tags["dca.outputs"]) for run in folder.store().find("select")]
    assert {one["objective"] is None for one in chosen} == {True, False}
    code, out, err = folder.run(*SEARCHES, bad)
    assert (code, out.count("reused")) == (0, 4), err


@pytest.mark.extended
def test_an_arm_whose_trials_all_fail_costs_no_result_of_the_others(folder, local_tune: LocalTune):
    changes = ("search.trials=1", "failures.retries=0", "arms.third={model.residual: laurel}")
    local_tune.crashes = {"grn": MemoryError("no room")}
    code, out, err = folder.run(*SEARCHES, *changes)
    assert code == 1
    assert re.search(
        r"^  search\[grn\]: search: every trial failed; --retry-failed tries again\n"
        r" +trial 0: MemoryError: no room$",
        err,
        re.M,
    )
    assert "not run: select[grn]" in err
    local_tune.started.clear()
    code, out, err = folder.run(*SEARCHES, *changes, "arms.grn=null")
    assert (code, out.count("reused"), local_tune.started) == (0, 4, []), err


def test_each_training_of_a_study_is_that_training_alone_bit_for_bit(folder, local_tune: LocalTune):
    code, out, err = folder.run(*FITS)
    assert code == 0, err
    assert local_tune.started[1:] == ["fit[1]", "fit[2]", "fit[3]"]
    assert re.search(r"  fit\[2\] complete: 32 steps, best [\d.]+ bits per byte", out)
    found, store = results(folder), folder.store()
    assert len({one["val_bits_per_byte"] for one in found.values()}) == 3
    assert_whole(store, store.find("fit"))
    (fit,) = [run for run in store.find("fit") if run.data.tags["dca.instance"] == "fit[2]"]
    rate = fit.data.params["train.learning_rate"]
    code, _, err = folder.run(
        "train.py", "tiny.yaml", "arms={}", "seed=2", f"train.learning_rate={rate}"
    )
    assert code == 0, err
    (alone,) = [json.loads(run.data.tags["dca.outputs"]) for run in store.find("train")]
    assert weights(folder, found["fit[2]"]) == weights(folder, alone)
    code, out, err = folder.run(*FITS)
    assert code == 0, err
    assert out.count("reused") == 5
    code, out, err = folder.run(*FITS, "seeds=1,2,3,4")
    assert code == 0, err
    assert local_tune.started[4:] == ["fit[4]"]


def weights(folder: Folder, fitted: dict[str, Any]) -> str:
    """The digest of a packaged model's weights."""
    lineage = folder.store().models.read_packaged(model_id_of(fitted["model_uri"]), LINEAGE)
    return str(lineage["weights_sha256"])


@pytest.mark.extended
def test_a_training_that_crashes_goes_on_and_one_that_crashes_too_often_fails_alone(
    folder, local_tune: LocalTune, monkeypatch
):
    local_tune.crashes = {"fit[1]": MemoryError("no room"), "fit[3]": MemoryError("none at all")}
    code, out, err = folder.run(*FITS, "failures.retries=0")
    assert code == 1
    assert err.splitlines()[:3] == [
        "2 of 6 failed",
        *("  fit[1]: MemoryError: no room", "  fit[3]: MemoryError: none at all"),
    ]
    assert statuses(folder) == {"fit[1]": "FAILED", "fit[2]": "FINISHED", "fit[3]": "FAILED"}
    local_tune.started.clear()
    local_tune.crashes = {"fit[3]": MemoryError("again")}
    code, out, err = folder.run(*FITS)
    assert code == 0, err
    assert local_tune.started == ["fit[1]", "fit[3]", "fit[3]"]
    crash = "  fit[3] crashed: MemoryError: again; resumes from its last checkpoint (retry 1 of 1)"
    assert crash in out.splitlines()
    assert "  fit[3]: resumes from step" in out
    assert set(statuses(folder).values()) == {"FINISHED"}
    assert len(results(folder)) == 3
    assert_whole(folder.store(), folder.store().find("fit"))


def test_a_training_that_diverges_is_a_result_and_is_not_tried_again(folder, local_tune: LocalTune):
    local_tune.diverge = {"fit[2]"}
    for _ in range(2):
        code, out, err = folder.run(*FITS, "--json")
        assert code == 0, err
        found = results(folder)["fit[2]"]
        assert found["reason"] == "diverged at step 1"
        result = json.loads(out.splitlines()[-1])["outputs"]["fit[2]"]
        assert result == found
        assert local_tune.started.count("fit[2]") == 1
    (run,) = [one for one in folder.store().find("fit") if one.info.run_id == found["run_id"]]
    assert run.info.status == "FINISHED"


@pytest.mark.extended
def test_ctrl_c_among_trainings_keeps_those_that_have_ended(
    folder, local_tune: LocalTune, monkeypatch
):
    local_tune.interrupt_at = 3 + 3 + 2  # in the second
    code, _, err = folder.run(*FITS)
    assert (code, "run the same command again to go on" in err) == (130, True)
    assert statuses(folder) == {"fit[1]": "FINISHED", "fit[2]": "KILLED", "fit[3]": "KILLED"}
    local_tune.interrupt_at = math.inf
    begun: list[dict[str, float]] = []
    expect = JobsProgress.expect
    noting = lambda jobs, *given: begun.append(given[2]) or expect(jobs, *given)  # noqa: E731
    monkeypatch.setattr(JobsProgress, "expect", noting)
    code, out, err = folder.run(*FITS)
    assert code == 0, err
    assert begun == [{"fit[2]": 0.5, "fit[3]": 0.0}]
    assert local_tune.started[3:] == ["fit[2]", "fit[3]"]
    assert "  fit[2]: resumes from step" in out
    assert_whole(folder.store(), folder.store().find("fit"))


@pytest.mark.extended
def test_storage_that_takes_no_checkpoint_ends_all_at_once(folder, local_tune: LocalTune):
    local_tune.crashes = {"fit[2]": StorageError("/runs: no room")}
    code, _, err = folder.run(*FITS)
    assert (code, err) == (1, "fit[2]: /runs: no room\n")
    assert local_tune.started[1:] == ["fit[1]", "fit[2]"]
    assert statuses(folder) == {"fit[1]": "FINISHED", "fit[2]": "FAILED", "fit[3]": "FAILED"}
