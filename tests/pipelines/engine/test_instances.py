"""Stages with several instances: a study of arms and seeds, in a real store."""

import json
import time
from collections import Counter
from unittest.mock import Mock

import pytest

from pipelines.console.errors import ConfigError, PipelineError
from pipelines.console.updates import OutputMode
from pipelines.engine import dag
from pipelines.engine.instances import FanOut, Node, expand
from pipelines.engine.stage import Growth, Stage
from pipelines.experiment import Experiment
from pipelines.storage import location
from pipelines.tracking.schema import stage_runs
from pipelines.tracking.store import Store
from tests.pipelines.engine.toy_study import Compared, Study, Trained
from tests.pipelines.stored import PROVENANCE, same_provenance

pytestmark = pytest.mark.usefixtures("tracking")


@pytest.fixture
def study(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setattr(PROVENANCE, same_provenance)
    return Study(experiment)


FITS = ["fit 0.1 0", "fit 0.1 1", "fit 0.5 0", "fit 0.5 1"]
SELECTS = ["select 0.1", "select 0.5"]


def names(study: Study, until: str | None = None) -> dict[str, list[str]]:
    nodes = expand(study.stages(), study.fan_out, until)
    return {str(node): [str(need) for need in needs] for node, needs in nodes.items()}


def test_an_instance_depends_on_those_that_agree_in_the_dimensions_of_both(study):
    found = names(study)
    assert found["fit[fast, 1]"] == ["select[fast]"]
    assert found["mean[slow]"] == ["fit[slow, 0]", "fit[slow, 1]"]
    assert found["compare"] == ["fit[slow, 0]", "fit[slow, 1]", "fit[fast, 0]", "fit[fast, 1]"]
    order = list(found)
    assert len(order) == 2 + 4 + 2 + 1 + 1
    for name, needs in found.items():
        assert all(order.index(need) < order.index(name) for need in needs)
    assert list(names(study, until="select")) == ["select[slow]", "select[fast]"]


def test_the_instances_of_a_large_study_are_found_at_once(study):
    dimensions = {"arm": [f"a{n}" for n in range(64)], "seed": range(64)}
    score = Stage("score", Trained, Mock(), ("fit",), over=("arm", "seed"))
    start = time.process_time()
    found = expand([*study.stages(), score], FanOut(dimensions, study.fan_out.configure), None)
    assert time.process_time() - start < 3  # compared with each other, 20 seconds
    assert len(found) == 64 + 64 * 64 + 64 * 64 + 64 + 1 + 1
    needs = {str(node): list(map(str, others)) for node, others in found.items()}
    assert needs["mean[a7]"] == [f"fit[a7, {seed}]" for seed in range(64)]
    assert needs["score[a63, 5]"] == ["fit[a63, 5]"]
    assert needs["fit[a63, 5]"] == ["select[a63]"]


def test_without_a_fan_out_each_stage_is_one_node(study):
    nodes = expand(study.stages(), None, "compare")
    assert list(map(str, nodes)) == ["select", "fit", "compare"]
    assert Node(study.stages()[0]).path == "show"


def test_each_instance_has_its_own_configuration_and_what_reads_several_has_all(study):
    results = study.run()
    assert sorted(study.ran) == sorted([*SELECTS, *FITS, "mean", "mean", "compare", "show"])
    fits = results.all(Trained)
    assert {at: (fit.rate, fit.seed) for at, fit in fits.items()} == {
        ("slow", 0): (0.1, 0),
        ("slow", 1): (0.1, 1),
        ("fast", 0): (0.5, 0),
        ("fast", 1): (0.5, 1),
    }
    found = results.to_json()
    assert found["compare"] == {
        "rates": {"slow 0": 0.1, "slow 1": 0.1, "fast 0": 0.5, "fast 1": 0.5}
    }
    # The arm is its own: it sees the seeds alone.
    assert found["mean[fast]"] == {"rates": {"0": 0.5, "1": 0.5}}
    assert found["fit[fast, 1]"]["seed"] == 1


def test_the_runs_of_instances_are_tags_of_the_pipelines_run(study):
    fits = study.run().all(Trained)
    (pipeline,) = study.store.find("pipeline")
    runs = stage_runs(pipeline.data.tags)
    assert runs["fit/fast/1"] == fits["fast", 1].run
    assert {name for name in runs if name.startswith("fit")} == {
        *("fit/slow/0", "fit/slow/1", "fit/fast/0", "fit/fast/1")
    }
    assert "compare" in runs
    run = study.store.client.get_run(fits["fast", 1].run)
    assert run.info.run_name == "tiny fit[fast, 1]"


def test_all_is_reused_and_a_changed_arm_repeats_its_own_instances_alone(study):
    study.run()
    study.run()
    assert study.ran == ["show"]
    study.arms["fast"] = 0.7
    study.run()
    assert sorted(study.ran) == sorted(
        ["select 0.7", "fit 0.7 0", "fit 0.7 1", "mean", "compare", "show"]
    )
    study.seeds = [0, 1, 2]
    study.run()
    assert sorted(study.ran) == sorted(
        ["fit 0.1 2", "fit 0.7 2", "mean", "mean", "compare", "show"]
    )


def test_the_runs_of_a_stage_are_read_once_however_many_instances_are_new(study, monkeypatch):
    study.run()
    study.seeds = [0, 1, 2, 3, 4]
    find, read = Store.find, Counter[str]()

    def counted(self: Store, kind: str, key: str | None = None, **options: str | None) -> object:
        read[kind] += key is None and not any(options.values())
        return find(self, kind, key, **options)

    monkeypatch.setattr(Store, "find", counted)
    assert "fit[slow, 2], fit[slow, 3], fit[slow, 4] and 3 more run new" in study.plan()
    assert read["fit"] == 1


def test_a_renamed_arm_repeats_only_what_sees_its_name(study):
    before = study.run().all(Trained)
    study.arms = {"slow": 0.1, "quick": 0.5}
    after = study.run().all(Trained)
    assert study.ran == ["compare", "show"]
    assert after["quick", 1] == before["fast", 1]


def test_exchanged_names_are_not_mistaken_for_each_other(study):
    study.run()
    study.arms = {"slow": 0.5, "fast": 0.1}
    found = study.run().to_json()
    assert study.ran == ["compare", "show"]
    assert found["compare"]["rates"]["slow 0"] == 0.5


@pytest.mark.extended
@pytest.mark.parametrize("fresh", [False, True])
def test_instances_with_equal_keys_share_one_run(study, fresh):
    study.run()
    study.arms["same"] = 0.5
    assert "fit[same, 1] reuse the same as fit[fast, 1]" in study.plan()
    fits = study.run(fresh=fresh).all(Trained)
    assert fits["same", 1] == fits["fast", 1]
    expected = [*SELECTS, *FITS, "mean", "mean"] if fresh else []
    assert sorted(study.ran) == sorted([*expected, "compare", "show"])
    (pipeline,) = [
        run for run in study.store.find("pipeline") if "dca.stage.fit/same/1" in run.data.tags
    ]
    runs = stage_runs(pipeline.data.tags)
    assert runs["fit/same/1"] == runs["fit/fast/1"] == fits["fast", 1].run


def selects(study: Study) -> dict[str, str]:
    """The runs of the stage that grows, by instance."""
    runs = study.store.find("select")
    assert len({run.info.run_id for run in runs}) == len(runs)
    return {run.data.tags["dca.instance"]: run.info.run_id for run in runs}


@pytest.mark.extended
@pytest.mark.parametrize("rates", [(0.2, 0.6), (0.5, 0.1), (0.5, 0.6), (0.2, 0.1)])
def test_each_instance_that_grows_goes_on_in_its_own_run(study, rates):
    study.growth = Growth((), lambda *_: 1, lambda *_: "")
    study.run(until="select")
    before = selects(study)
    assert before.keys() == {"select[slow]", "select[fast]"}
    study.arms = dict(zip(study.arms, rates, strict=True))
    for fresh in (False, True):
        study.run(until="select", fresh=fresh)
        found = selects(study)
        study.run(until="select")
        assert study.ran == []
        assert selects(study) == found
        assert found.keys() == before.keys()


def test_an_instance_that_grows_goes_on_under_another_name(study):
    study.growth = Growth((), lambda *_: 1, lambda *_: "")
    study.run(until="select")
    before = selects(study)
    study.arms = {"slow": 0.1, "quick": 0.5}
    study.run(until="select")
    assert study.ran == []
    study.arms["quick"] = 0.6
    lines = study.plan(until="select")
    assert lines[1] == "select[quick] run goes on: train.learning_rate: 0.5 -> 0.6"
    study.run(until="select")
    after = selects(study)
    assert after == {
        "select[slow]": before["select[slow]"],
        "select[quick]": before["select[fast]"],
    }


def test_the_plan_has_a_line_for_all_instances_that_run_for_one_reason(study):
    assert study.plan() == [
        *("select (2) run new", "fit (4) run follows select", "mean (2) run follows fit"),
        *("compare run follows fit", "show run follows compare"),
    ]
    study.run()
    assert study.plan()[:2] == ["select (2) reuse cached", "fit (4) reuse cached"]
    study.arms["fast"], study.seeds = 0.7, [0, 1, 2]
    assert study.plan()[:5] == [
        "select[slow] reuse cached",
        "select[fast] run train.learning_rate: 0.5 -> 0.7",
        "fit[slow, 0], fit[slow, 1] reuse cached",
        "fit[slow, 2] run new",
        "fit[fast, 0], fit[fast, 1], fit[fast, 2] run follows select",
    ]
    assert study.plan(fresh=True)[1] == "fit (6) run fresh"


@pytest.mark.parametrize("name", ["", "a,b", "a/b", "it's", " a", "x" * 61, "\n"])
def test_a_name_that_cannot_be_in_a_tag_is_refused_before_anything_runs(name):
    with pytest.raises(ConfigError, match="arm: expected 1 to 60 letters"):
        FanOut({"arm": ["dca-2", name]}, lambda _: None)


def test_the_names_are_a_column(study):
    planned = dag.plan(
        study.stages(), study.experiment, until="fit", fresh=False, fan_out=study.fan_out
    )
    assert dag.plan_lines(planned) == [
        "select (2) run    new",
        "fit (4)    run    follows select",
    ]


def test_if_an_instance_fails_the_others_go_on_and_what_depends_on_it_does_not_run(study, capsys):
    study.errors = {(0.1, 1): PipelineError("no room"), (0.5, 0): KeyError("bug")}
    with pytest.raises(PipelineError) as raised:
        study.run()
    assert sorted(study.ran) == sorted([*SELECTS, *FITS])
    assert str(raised.value).splitlines() == [
        "2 of 10 failed",
        "  fit[slow, 1]: no room",
        "  fit[fast, 0]: KeyError: 'bug'",
        "  not run: " + str(raised.value).rpartition("not run: ")[2],
    ]
    assert set(str(raised.value).rpartition("not run: ")[2].split(", ")) == {
        *("mean[slow]", "mean[fast]", "compare", "show")
    }
    out, err = capsys.readouterr()
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "fit[slow, 1] failed: no room" in lines
    assert "mean[slow] not run: fit[slow, 1] failed" in lines
    assert "show not run: fit[slow, 1], fit[fast, 0] failed" in lines
    assert "Traceback" in err  # of the bug
    assert err.count("Traceback") == 1
    runs = {run.info.run_name: run.info.status for run in study.store.find("fit")}
    assert runs == {
        **{"tiny fit[slow, 0]": "FINISHED", "tiny fit[slow, 1]": "FAILED"},
        **{"tiny fit[fast, 0]": "FAILED", "tiny fit[fast, 1]": "FINISHED"},
    }
    (pipeline,) = study.store.find("pipeline")
    assert pipeline.info.status == "FAILED"
    study.errors = {}
    study.run()
    assert sorted(study.ran) == sorted(
        ["fit 0.1 1", "fit 0.5 0", "mean", "mean", "compare", "show"]
    )
    assert len(study.store.find("fit")) == 4


def test_calls_of_the_store_are_still_repeated_after_an_instance_has_failed(study, monkeypatch):
    cancelled: list[str] = []
    monkeypatch.setattr(
        "pipelines.tracking.client.RetryingClient.cancel_retries",
        lambda _: cancelled.append(study.ran[-1]),
    )
    study.errors = {(0.1, 0): PipelineError("no room")}
    with pytest.raises(PipelineError):
        study.run()
    assert cancelled == ["mean"]  # at the end, when the pipeline's run fails


def test_an_instance_with_the_key_of_a_failed_one_fails_as_that_does(study):
    study.arms["same"] = 0.5
    study.errors = {(0.5, 1): PipelineError("no room")}
    with pytest.raises(PipelineError) as raised:
        study.run()
    assert study.ran.count("fit 0.5 1") == 1
    assert "  fit[same, 1]: no room" in str(raised.value).splitlines()


def test_the_events_of_instances_have_their_names(study, capsys):
    study.errors = {(0.1, 1): PipelineError("no room")}
    with pytest.raises(PipelineError):
        study.run(OutputMode.JSON)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    rows = [(row["stage"], row["state"], row.get("reason")) for row in events]
    assert ("fit[slow, 0]", "begun", "new") in rows
    assert ("fit[slow, 0]", "done", None) in rows
    assert ("fit[slow, 1]", "failed", "failed: no room") in rows
    assert ("compare", "skipped", "not run: fit[slow, 1] failed") in rows


@pytest.mark.parametrize("error", [ConfigError("wrong"), KeyboardInterrupt()])
def test_bad_input_and_ctrl_c_end_at_once_and_the_same_command_resumes(study, error):
    study.errors = {(0.1, 1): error}
    with pytest.raises(type(error)):
        study.run()
    assert study.ran == [*SELECTS, "fit 0.1 0", "fit 0.1 1"]
    (broken,) = [run for run in study.store.find("fit") if run.info.status != "FINISHED"]
    status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
    assert broken.info.status == status
    assert "fit[slow, 1] run resumes an unfinished run" in study.plan()
    study.errors = {}
    fits = study.run().all(Trained)
    assert sorted(study.ran) == sorted([*FITS[1:], "mean", "mean", "compare", "show"])
    assert fits["slow", 1].run == broken.info.run_id


def test_an_instance_that_was_killed_goes_on_in_its_run(study):
    fits = study.run().all(Trained)
    killed = fits["fast", 0].run
    study.store.client.delete_tag(killed, "dca.outputs")
    study.store.client.update_run(killed, status="RUNNING")
    assert study.run().all(Trained) == fits
    assert study.ran == ["fit 0.5 0", "show"]
    assert study.store.client.get_run(killed).info.status == "FINISHED"


def test_a_stage_without_instances_fails_at_once(study, monkeypatch):
    def broken(*_: object) -> Compared:
        raise PipelineError("cannot compare")

    monkeypatch.setattr(study, "_compare", broken)
    with pytest.raises(PipelineError, match=r"^cannot compare$"):
        study.run()


def test_what_is_wrong_with_an_instance_is_found_before_anything_is_written(study):
    study.arms["bad"] = -1.0
    with pytest.raises(ConfigError, match="learning_rate"):
        study.run()
    assert study.ran == []
    assert not location.storage_folder(study.experiment.storage).exists()
