"""The DAG's order, its cached results, and what it records in the tracking store."""

import json
import threading
from dataclasses import dataclass
from typing import Any

import pytest

from pipelines.console import progress
from pipelines.console.errors import DamagedError, StorageError
from pipelines.console.progress import Progress
from pipelines.console.updates import OutputMode
from pipelines.engine import cache, dag
from pipelines.engine.results import StageResults
from pipelines.engine.stage import LOOKING, Context, Growth, Invocation, Stage
from pipelines.experiment import Experiment
from pipelines.storage import location
from pipelines.tracking.descriptions import describe_pipeline
from pipelines.tracking.schema import SCHEMA_TAG
from pipelines.tracking.store import Store
from tests.pipelines.commands import invocation
from tests.pipelines.stored import PROVENANCE, same_provenance

pytestmark = pytest.mark.usefixtures("tracking")

FILE = "folder/file.txt"


@dataclass(frozen=True)
class A:
    source: int


@dataclass(frozen=True)
class B:
    source: int
    run: str


@dataclass(frozen=True)
class C:
    sum: int
    note: str | None = None


class Pipeline:
    """Counts the runs of its stages: a source that always runs, two that are cached."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.source, self.broken = 1, False
        self.equal, self.grows, self.model_is_damaged = False, False, False
        self.usable, self.unfinished, self.disk_is_full = 1, "", False
        self.note: str | None = None

    def stages(self) -> list[Stage[Experiment, Any]]:
        return [
            Stage("c", C, self._c, ("a", "b"), ("promote",)),
            Stage(
                *("b", B, self._b, ("a",), ("train", "seed"), lambda _: ("dca",)),
                verify=self._verify,
                growth=self._growth if self.grows else None,
            ),
            Stage("a", A, self._a, cached=False, preview=lambda _: A(self.source)),
        ]

    @property
    def _growth(self) -> Growth[Experiment]:
        return Growth(("seed",), lambda *_: self.usable, lambda *_: self.unfinished)

    def _a(self, context: Context, needs: StageResults) -> A:
        self.ran.append("a")
        return A(self.source)

    def _b(self, context: Context, needs: StageResults) -> B:
        self.ran.append("b")
        if self.broken:
            raise RuntimeError("broken")
        context.store.log_text(context.run_id, "x" * needs[A].source, FILE)
        return B(needs[A].source, "" if self.equal else context.run_id)

    def _verify(self, store: Store, result: B) -> None:
        if self.model_is_damaged:
            raise DamagedError("models:/m-1: the weights were altered")
        if self.disk_is_full:
            raise StorageError("models:/m-1: no space left")

    def _c(self, context: Context, needs: StageResults) -> C:
        self.ran.append("c")
        return C(needs[A].source + needs[B].source, self.note)

    def run(self, config: Experiment, until: str | None = None, fresh: bool = False) -> list[str]:
        self.ran = []
        about = describe_pipeline(config.experiment, config.promote.model, ["sweep.py"])
        dag.run(
            self.stages(),
            config,
            invocation(),
            lock_name="test",
            descriptions=about,
            until=until,
            fresh=fresh,
        )
        return self.ran


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    monkeypatch.setattr(PROVENANCE, same_provenance)
    return Pipeline()


def test_stages_run_after_what_they_depend_on_and_are_cached(pipeline, experiment):
    assert pipeline.run(experiment) == ["a", "b", "c"]
    assert pipeline.run(experiment) == ["a"]


def test_a_change_runs_again_only_what_depends_on_it(pipeline, experiment):
    pipeline.run(experiment)
    for key, value, expected in [
        ("promote.min_improvement", 0.1, ["a", "c"]),
        ("train.learning_rate", 0.1, ["a", "b", "c"]),
        ("seed", 7, ["a", "b", "c"]),
        ("generate.max_new_tokens", 7, ["a"]),
        ("resources.cpus_per_worker", 2, ["a"]),
    ]:
        assert pipeline.run(experiment.replace({key: value})) == expected, key


def test_the_names_of_runs_tell_what_differs(pipeline, experiment, store):
    changed = experiment.replace({"seed": 7, "promote.min_improvement": 0.1})
    for config in (experiment, changed, experiment):
        pipeline.run(config)
    kinds = ("pipeline", "b")
    names = {kind: [run.info.run_name for run in store.find(kind)] for kind in kinds}
    assert names == {
        kind: [f"tiny {kind}, seed=7, promote.min_improvement=0.1", f"tiny {kind}"]
        for kind in kinds
    }
    runs = [run for kind in kinds for run in store.find(kind)]
    assert not [tag for run in runs for tag, value in run.data.tags.items() if not value]


def test_the_same_configuration_is_no_other_one_for_what_is_stored_without_secrets(
    pipeline, experiment, store
):
    """Nor are its secrets in names."""
    first = experiment.replace({"generate.prompts": ["token=CANARY"]})
    for config in (first, first.replace({"seed": 7})):
        pipeline.run(config)
    pipeline.run(first.replace({"generate.prompts": ["password=CANARY", "b"]}))
    assert [run.info.run_name for run in store.find("pipeline")] == [
        'tiny pipeline, generate.prompts=["password=***", "b"]',
        "tiny pipeline, seed=7",
        "tiny pipeline",
    ]


def test_a_changed_source_runs_again_what_follows(pipeline, experiment):
    pipeline.run(experiment)
    pipeline.source = 2
    assert pipeline.run(experiment) == ["a", "b", "c"]


def store_of(experiment: Experiment) -> Store:
    return Store.open(experiment.experiment, location.storage_folder(experiment.storage))


def reasons(pipeline: Pipeline, experiment: Experiment) -> list[str]:
    planned = dag.plan(pipeline.stages(), experiment, until=None, fresh=False)
    return [one.reason for one in planned]


DAMAGE = [
    (lambda file: file.unlink(), "is missing"),
    (lambda file: file.write_text(""), "is not what was logged"),
    (lambda file: file.write_text("y"), "is not what was logged"),
]


@pytest.mark.parametrize(
    ("damage", "expected", "grows"),
    [(*DAMAGE[0], False), (*DAMAGE[0], True), (*DAMAGE[1], True), (*DAMAGE[2], False)],
)
def test_a_result_whose_file_is_damaged_is_computed_again(
    pipeline, experiment, damage, expected, grows
):
    pipeline.grows = grows
    pipeline.run(experiment)
    store = store_of(experiment)
    (first,) = store.find("b")
    (file,) = location.storage_folder(experiment.storage).rglob("file.txt")
    damage(file)
    reason = f"{FILE} {expected}"
    assert reasons(pipeline, experiment) == ["runs every time", reason, "follows b"]
    assert file.exists() == (expected != "is missing")
    pipeline.broken = True
    with pytest.raises(RuntimeError, match="broken"):
        pipeline.run(experiment)
    pipeline.broken = False
    assert reasons(pipeline, experiment)[1] == "resumes an unfinished run"
    assert pipeline.run(experiment) == ["a", "b"] + (["c"] if not grows else [])
    (again,) = store.find("b")
    assert (again.info.run_id == first.info.run_id) == grows
    assert store.read_text(again.info.run_id, FILE) == "x"
    assert pipeline.run(experiment) == ["a"]


def test_a_result_too_long_for_a_tag_is_a_file(pipeline, experiment):
    pipeline.note = "x" * 9000
    assert pipeline.run(experiment) == ["a", "b", "c"]
    assert pipeline.run(experiment) == ["a"]
    store = store_of(experiment)
    (run,) = store.find("c")
    assert store.read_result(run) == {"sum": 2, "note": pipeline.note}
    (file,) = location.storage_folder(experiment.storage).rglob("result.json")
    file.write_text(file.read_text()[:-9])
    assert reasons(pipeline, experiment)[-1] == "result.json is not what was logged"
    assert pipeline.run(experiment) == ["a", "c"]


def test_a_stage_that_grows_goes_on_in_its_run(pipeline, experiment):
    pipeline.grows = True
    pipeline.run(experiment)
    (first,) = store_of(experiment).find("b")
    grown = experiment.replace({"train.learning_rate": 0.1})
    reason = "goes on: train.learning_rate: 0.01 -> 0.1"
    assert reasons(pipeline, grown) == ["runs every time", reason, "follows b"]
    pipeline.broken = True  # it is unfinished then, as after a kill
    with pytest.raises(RuntimeError, match="broken"):
        pipeline.run(grown)
    pipeline.broken = False
    assert reasons(pipeline, grown)[1] == "resumes an unfinished run"
    assert reasons(pipeline, experiment)[1] == "goes on: train.learning_rate: 0.1 -> 0.01"
    assert pipeline.run(grown) == ["a", "b"]  # c follows from the same result
    assert pipeline.run(grown) == ["a"]
    (run,) = store_of(experiment).find("b")
    assert run.info.run_id == first.info.run_id
    assert pipeline.run(experiment) == ["a", "b"]


def test_a_stage_does_not_go_on_from_a_run_that_it_cannot_use(pipeline, experiment):
    pipeline.grows = True
    pipeline.run(experiment)
    assert pipeline.run(experiment.replace({"seed": 7})) == ["a", "b", "c"]
    pipeline.usable = 0
    assert pipeline.run(experiment.replace({"train.learning_rate": 0.1})) == ["a", "b", "c"]
    pipeline.usable, pipeline.source = 1, 2
    assert reasons(pipeline, experiment)[1].endswith("a changed")
    assert len(store_of(experiment).find("b")) == 3


def test_fresh_computes_a_stage_that_grows_in_a_new_run(pipeline, experiment):
    pipeline.grows = True
    pipeline.run(experiment)
    grown = experiment.replace({"train.learning_rate": 0.1})
    assert pipeline.run(grown, fresh=True) == ["a", "b", "c"]
    (run,) = store_of(experiment).find("b")
    assert pipeline.run(experiment)[:2] == ["a", "b"]
    assert [one.info.run_id for one in store_of(experiment).find("b")] == [run.info.run_id]


def test_a_stage_does_not_grow_from_a_run_of_another_schema(pipeline, experiment, monkeypatch):
    pipeline.grows = True
    pipeline.run(experiment)
    monkeypatch.setattr(cache, "SCHEMA_VERSION", 2)
    grown = experiment.replace({"train.learning_rate": 0.1})
    assert "goes on" not in reasons(pipeline, grown)[1]


def test_a_finished_run_is_continued_if_the_stage_has_more_to_do(pipeline, experiment):
    pipeline.grows = True
    pipeline.run(experiment)
    pipeline.unfinished = "two failed"
    assert reasons(pipeline, experiment) == ["runs every time", "two failed", "follows b"]
    assert pipeline.run(experiment) == ["a", "b"]
    pipeline.unfinished = ""
    assert pipeline.run(experiment) == ["a"]
    assert len(store_of(experiment).find("b")) == 1


def test_a_result_that_refers_to_something_damaged_is_computed_again(pipeline, experiment):
    pipeline.run(experiment)
    pipeline.model_is_damaged = True
    assert reasons(pipeline, experiment)[1] == "models:/m-1: the weights were altered"
    assert pipeline.run(experiment) == ["a", "b", "c"]


def test_a_result_that_cannot_be_verified_is_not_computed_again(pipeline, experiment):
    """On a full disk a sound one was discarded, and its hours of training repeated."""
    pipeline.run(experiment)
    pipeline.disk_is_full = True
    with pytest.raises(StorageError, match="no space left"):
        reasons(pipeline, experiment)
    with pytest.raises(StorageError, match="no space left"):
        pipeline.run(experiment)
    assert pipeline.ran == ["a"]
    pipeline.disk_is_full = False
    assert pipeline.run(experiment) == ["a"]


def test_what_follows_an_unfinished_stage_is_decided_when_that_has_ended(pipeline, experiment):
    pipeline.broken = True
    with pytest.raises(RuntimeError, match="broken"):
        pipeline.run(experiment)
    assert reasons(pipeline, experiment)[1:] == ["resumes an unfinished run", "follows b"]


def test_a_stage_is_reused_if_another_run_before_it_has_the_same_result(pipeline, experiment):
    pipeline.equal = True
    pipeline.run(experiment)
    assert pipeline.run(experiment.replace({"seed": 7})) == ["a", "b"]


def test_a_stage_runs_again_if_the_same_run_before_it_has_another_result(pipeline, experiment):
    """As a search that continues with more trials."""
    pipeline.run(experiment)
    store = store_of(experiment)
    (run,) = store.find("b")
    store.tag(run.info.run_id, {"dca.outputs": json.dumps({"source": 5, "run": run.info.run_id})})
    assert reasons(pipeline, experiment) == ["runs every time", "cached", "b changed"]
    assert pipeline.run(experiment) == ["a", "c"]


def test_until_stops_after_a_stage_and_fresh_computes_again(pipeline, experiment):
    assert pipeline.run(experiment, until="b") == ["a", "b"]
    assert pipeline.run(experiment) == ["a", "c"]
    assert pipeline.run(experiment, fresh=True) == ["a", "b", "c"]
    assert pipeline.run(experiment) == ["a"]
    assert pipeline.run(experiment, until="b", fresh=True) == ["a", "b"]
    assert pipeline.run(experiment) == ["a", "c"]


def test_a_failed_stage_goes_on_in_the_same_run(pipeline, experiment):
    pipeline.broken = True
    with pytest.raises(RuntimeError, match="broken"):
        pipeline.run(experiment)
    store = store_of(experiment)
    (failed,) = store.find("b")
    assert (failed.info.status, failed.data.tags["dca.reason"]) == ("FAILED", "broken")
    pipeline.broken = False
    assert pipeline.run(experiment) == ["a", "b", "c"]
    (finished,) = store.find("b")
    assert finished.info.run_id == failed.info.run_id
    assert finished.info.status == "FINISHED"


def test_a_run_that_ended_without_its_outputs_goes_on(pipeline, experiment):
    """Killed between the end of the run and the tag that makes it count."""
    pipeline.run(experiment)
    store = store_of(experiment)
    (run,) = store.find("b")
    store.client.delete_tag(run.info.run_id, "dca.outputs")
    assert pipeline.run(experiment) == ["a", "b"]
    assert [again.info.run_id for again in store.find("b")] == [run.info.run_id]


@pytest.mark.extended
@pytest.mark.parametrize("text", ["{", "null", '{"source": 1}', '{"source": "1", "run": ""}'])
def test_a_damaged_result_is_computed_again_and_the_plan_says_so(pipeline, experiment, text):
    pipeline.run(experiment)
    store = store_of(experiment)
    (run,) = store.find("b")
    store.tag(run.info.run_id, {"dca.outputs": text})
    _, b, _ = dag.plan(pipeline.stages(), experiment, until=None, fresh=False)
    assert b.reason == "the tag dca.outputs of its run is not a result"
    assert pipeline.run(experiment) == ["a", "b", "c"]


def test_results_of_an_older_schema_are_kept_but_not_reused_and_the_plan_says_so(
    pipeline, experiment, monkeypatch
):
    with monkeypatch.context() as patch:
        for module in (cache, dag):
            patch.setattr(module, "SCHEMA_VERSION", 0)
        pipeline.run(experiment)
    store = Store.open(experiment.experiment, location.storage_folder(experiment.storage))
    older = {kind: store.find(kind)[0] for kind in ("pipeline", "b")}
    for run in older.values():
        store.client.delete_tag(run.info.run_id, SCHEMA_TAG)
    _, b, _ = dag.plan(pipeline.stages(), experiment, until=None, fresh=False)
    assert b.reason == "the earlier result is of store schema 0, this is 1"
    assert pipeline.run(experiment) == ["a", "b", "c"]
    for kind, run in older.items():
        assert [again.info.run_id for again in store.find(kind)][1:] == [run.info.run_id]
        assert store.client.get_run(run.info.run_id).data.tags.keys() == run.data.tags.keys() - {
            SCHEMA_TAG
        }
    assert pipeline.run(experiment) == ["a"]


def test_the_plan_lists_what_would_run_and_why_and_writes_nothing(pipeline, experiment):
    nodes = dag.plan(pipeline.stages(), experiment, until=None, fresh=False)
    assert [(node.stage.name, node.reused) for node in nodes] == [
        ("a", False),
        ("b", False),
        ("c", False),
    ]
    assert not location.storage_folder(experiment.storage).exists()
    pipeline.run(experiment)
    assert pipeline.ran == ["a", "b", "c"]
    changed = experiment.replace({"train.learning_rate": 0.5})
    _, b, c = dag.plan(pipeline.stages(), changed, until=None, fresh=False)
    assert b.reason == "train.learning_rate: 0.01 -> 0.5"
    assert c.reason == "follows b"
    _, b, c = dag.plan(pipeline.stages(), experiment, until=None, fresh=False)
    assert (b.reused, c.reused) == (True, True)
    _, b, c = dag.plan(pipeline.stages(), experiment, until=None, fresh=True)
    assert (b.reused, c.reused) == (False, False)
    assert (b.reason, c.reason) == ("fresh", "fresh")


def test_runs_hang_under_the_pipeline_with_their_provenance(pipeline, experiment):
    pipeline.run(experiment)
    store = store_of(experiment)
    (parent,), (b,) = store.find("pipeline"), store.find("b")
    assert b.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert json.loads(b.data.tags["dca.outputs"])["source"] == 1
    assert parent.data.params["train.learning_rate"] == "0.01"
    for tag in ("version.torch", "version.ray", "version.python", "mlflow.source.git.commit"):
        assert parent.data.tags[tag]


def test_a_long_look_for_cached_results_is_shown(pipeline, experiment, monkeypatch):
    """Files of a study on a server are read for minutes."""
    monkeypatch.setattr(progress, "WATCH_SECONDS", 0.001)
    shown, texts = threading.Event(), []

    def update(_, update) -> None:
        texts.append(update.text.partition(",")[0])
        if texts[-1] == LOOKING:
            shown.set()

    resolve = cache.Cache.resolve

    def slow(self, node, *given):
        assert not node.stage.cached or shown.wait(60)
        return resolve(self, node, *given)

    monkeypatch.setattr(Progress, "update", update)
    monkeypatch.setattr(cache.Cache, "resolve", slow)
    assert pipeline.run(experiment) == ["a", "b", "c"]
    assert list(dict.fromkeys(texts)) == ["opening the tracking store", LOOKING]


def test_stages_are_reported_with_their_reason_and_as_events(
    pipeline, experiment, capsys, monkeypatch
):
    monkeypatch.setattr(progress, "WATCH_SECONDS", 3600)  # on a slow machine too
    pipeline.run(experiment)
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert lines == [["a", "runs every time"], ["b", "new"], ["c", "new"]]
    pipeline.run(experiment.replace({"promote.min_improvement": 0.1}))
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == [["a", "runs every time"], ["b", "reused"]]
    assert lines[2] == ["c", "promote.min_improvement: 0.0 -> 0.1"]
    dag.run(
        pipeline.stages(),
        experiment,
        Invocation(("sweep.py",), Progress(OutputMode.JSON)),
        lock_name="test",
        descriptions=describe_pipeline(
            experiment.experiment, experiment.promote.model, ["sweep.py"]
        ),
    )
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["stage"], row["state"]) for row in events] == [
        ("a", "begun"),
        ("a", "done"),
        ("b", "reused"),
        ("c", "reused"),
    ]
    assert [row.get("outputs") for row in events][1] == {"source": 1}
    assert events[3]["outputs"] == {"sum": 2}


def test_a_reason_has_values_as_a_file_has_them_and_no_section_that_no_one_wrote():
    config = {"a.b.when": {}, "a.b.int": [1, 2], "flag": False, "name": "x", "most": None}
    fewer = {"a": {}, "flag": True, "name": "y", "most": 3}
    for before, after, reason in [
        (config, fewer, "a.b.int: [1, 2] -> not given; flag: false -> true; most: null -> 3; "),
        (fewer, config, "a.b.int: not given -> [1, 2]; flag: true -> false; most: 3 -> null; "),
    ]:
        stored = [{"config": one, "needs": {}, "sources": ""} for one in (after, before)]
        assert cache._changes(*stored).startswith(reason)
