"""The instances of a stage in one call: a study of arms and seeds, in a real store."""

from collections.abc import Callable
from typing import Any

import pytest

from pipelines.console.errors import ConfigError, PipelineError, StorageError
from pipelines.engine import dag
from pipelines.experiment import Experiment
from pipelines.tracking.descriptions import describe_pipeline
from tests.pipelines.commands import invocation
from tests.pipelines.engine.toy_study import Lost, Study, Trained
from tests.pipelines.stored import PROVENANCE, same_provenance

pytestmark = pytest.mark.usefixtures("tracking")
ALL = ["slow, 0", "slow, 1", "fast, 0", "fast, 1"]


@pytest.fixture
def study(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setattr(PROVENANCE, same_provenance)
    study = Study(experiment)
    study.fit_together = study.together
    return study


def statuses(study: Study) -> dict[str, str]:
    """How the run of each fit ended; the runs of one that has several are a list."""
    runs = study.store.find("fit")
    found = {run.data.tags["dca.instance"]: run.info.status for run in runs}
    assert len(found) == len(runs)
    return found


def test_all_that_have_to_be_computed_are_run_in_one_call_and_no_others(study):
    fits = study.run().all(Trained)
    assert study.calls == [ALL]
    assert {at: (fit.rate, fit.seed) for at, fit in fits.items()} == {
        **{("slow", 0): (0.1, 0), ("slow", 1): (0.1, 1)},
        **{("fast", 0): (0.5, 0), ("fast", 1): (0.5, 1)},
    }
    assert len({fit.run for fit in fits.values()}) == 4
    study.run()
    assert study.calls == []
    study.seeds, study.arms["fast"] = [0, 1, 2], 0.7
    again = study.run().all(Trained)
    assert study.calls == [["slow, 2", "fast, 0", "fast, 1", "fast, 2"]]
    assert again["slow", 1] == fits["slow", 1]


def test_the_result_of_each_is_stored_as_it_ends(study):
    seen = []

    def together(instances: list[Any], ended: Callable[..., None]) -> None:
        for place, instance in enumerate(instances):
            ended(place, study._fit(*instance))
            seen.append(sorted(statuses(study).values()))

    study.fit_together = together
    study.run()
    assert seen == [["FINISHED"] * count + ["RUNNING"] * (4 - count) for count in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "KILLED"), (OSError(), "FAILED")]
)
def test_what_had_ended_before_the_call_did_is_kept_and_the_rest_resumed(study, error, status):
    def together(instances: list[Any], ended: Callable[..., None]) -> None:
        ended(2, study._fit(*instances[2]))
        raise error

    study.fit_together = together
    with pytest.raises(type(error)):
        study.run()
    assert statuses(study) == {
        **{"fit[slow, 0]": status, "fit[slow, 1]": status, "fit[fast, 1]": status},
        "fit[fast, 0]": "FINISHED",
    }
    before = {run.info.run_id for run in study.store.find("fit")}
    study.fit_together = study.together
    study.run()
    assert study.calls == [["slow, 0", "slow, 1", "fast, 1"]]
    assert {run.info.run_id for run in study.store.find("fit")} == before
    assert set(statuses(study).values()) == {"FINISHED"}


def test_if_one_fails_the_others_go_on_and_it_alone_is_tried_again(study, capsys):
    study.errors = {(0.1, 1): PipelineError("no room"), (0.5, 0): KeyError("bug")}
    with pytest.raises(PipelineError) as raised:
        study.run()
    assert str(raised.value).splitlines()[:3] == [
        "2 of 10 failed",
        "  fit[fast, 0]: KeyError: 'bug'",
        "  fit[slow, 1]: no room",
    ]
    out, err = capsys.readouterr()
    assert "fit[slow, 1] failed: no room" in [" ".join(line.split()) for line in out.splitlines()]
    assert err.count("Traceback") == 1  # of the bug
    ends = {"fit[slow, 0]": "FINISHED", "fit[slow, 1]": "FAILED"}
    assert statuses(study) == ends | {"fit[fast, 0]": "FAILED", "fit[fast, 1]": "FINISHED"}
    study.errors = {}
    study.run()
    assert study.calls == [["slow, 1", "fast, 0"]]
    assert set(statuses(study).values()) == {"FINISHED"}


def test_a_stage_may_run_with_the_results_that_there_are(study):
    study.partial, study.errors = True, {(0.1, 1): PipelineError("no room")}
    with pytest.raises(PipelineError, match="no room") as raised:
        study.run()
    assert str(raised.value).splitlines()[2:] == ["  not run: mean[slow]"]
    assert [name for name in study.ran if name in ("compare", "show")] == ["compare", "show"]
    study.seeds = [2, 3]
    study.errors = {(rate, seed): PipelineError("all") for rate in (0.1, 0.5) for seed in (2, 3)}
    with pytest.raises(PipelineError, match="compare, show"):
        study.run()


@pytest.mark.parametrize("error", [ConfigError("wrong"), StorageError("no room")])
def test_bad_input_and_a_full_disk_of_one_end_all(study, error):
    study.errors = {(0.1, 1): error}
    with pytest.raises(type(error)):
        study.run()
    assert study.ran == ["select 0.1", "select 0.5", "fit 0.5 1", "fit 0.5 0", "fit 0.1 1"]
    assert sorted(statuses(study).values()) == ["FAILED", "FAILED", "FINISHED", "FINISHED"]


def test_of_those_with_equal_keys_one_is_run(study):
    study.arms["same"] = 0.5
    study.errors = {(0.5, 1): PipelineError("no room")}
    with pytest.raises(PipelineError) as raised:
        study.run()
    assert study.calls == [ALL]
    assert "  fit[same, 1]: no room" in str(raised.value).splitlines()
    study.errors = {}
    fits = study.run().all(Trained)
    assert study.calls == [["fast, 1"]]
    assert (fits["same", 0], fits["same", 1]) == (fits["fast", 0], fits["fast", 1])


def test_one_that_the_call_leaves_out_is_a_mistake(study):
    study.fit_together = lambda instances, ended: ended(0, study._fit(*instances[0]))
    with pytest.raises(AssertionError, match=r"not ended: fit\[slow, 1\], fit\[fast, 0\]"):
        study.run()


def test_results_of_a_stage_may_be_of_two_types(study):
    study.lost = {(0.5, 1)}
    study.run()
    results = study.run()
    assert study.calls == []
    assert results.all(Lost) == {("fast", 1): Lost("diverged")}
    assert list(results.all(Trained)) == [("slow", 0), ("slow", 1), ("fast", 0)]


def test_a_stage_without_instances_is_run_by_itself(study):
    config = study.experiment
    about = describe_pipeline(config.experiment, config.promote.model, ["sweep.py"])
    options = {"lock_name": "test", "descriptions": about, "until": "fit"}
    results = dag.run(study.stages(), config, invocation(), **options)
    assert results[Trained].seed == 0
    assert study.calls == []
