import json
import re
from functools import partialmethod
from unittest.mock import Mock

import pytest
from mlflow import MlflowClient

from pipelines.console.errors import ConfigError, DamagedError, EditedError, RefusedError
from pipelines.engine.results import json_digest
from pipelines.experiment import read_experiment
from pipelines.registry.champions import Champions
from pipelines.registry.gate import force, rollback
from pipelines.registry.versions import Registry
from pipelines.reporting.loading import experiment_lines, load_results
from pipelines.reporting.page.model_sections import winner_section
from pipelines.reporting.page.provenance_sections import lineage_section
from pipelines.reporting.page.publish import all_sections
from pipelines.reporting.summary import summary
from pipelines.storage.project import ROOT, command_line
from pipelines.tracking.provenance import this_process
from pipelines.tracking.schema import PROCESS_TAG, STAGE_TAG
from pipelines.tracking.store import Store
from pipelines.tracking.writer import Writer
from tests.pipelines.packages import log_untrained
from tests.pipelines.stored import Made, purge, store_sweep, store_training, store_trial


def test_an_unknown_experiment_is_named_with_the_nearest(store, searched, made):
    made(searched, [])
    with pytest.raises(ConfigError, match=r"tinny: no such experiment in .*did you mean tiny"):
        load_results("tinny")


def test_experiments_are_listed_and_named_where_there_is_no_such(
    store, searched, made, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (line,) = experiment_lines()
    sweep = command_line(ROOT / "pipelines/sweep.py")
    assert re.fullmatch(f"no experiment in sqlite:.* yet; {re.escape(sweep)} makes one", line)
    made(searched, [])
    made(searched.replace({"seed": 1}), [])
    store.client.create_experiment("of another project")
    (line,) = experiment_lines()
    assert re.fullmatch(r"tiny: 2 pipeline runs, the newest \d{4}-\d\d-\d\d \d\d:\d\d, \w+", line)
    with pytest.raises(ConfigError, match=r"; experiments: tiny$"):
        load_results("something")


def test_a_pipeline_that_is_running_is_the_last_one(store, searched, tmp_path):
    """Resumed, it keeps the end of before; of a command that was killed the end is not known."""
    other = Store.open("other", tmp_path / "runs")
    first, second, third = (
        store_sweep(of, searched.replace({"seed": seed, "experiment": name}), [])
        for seed, (of, name) in enumerate([(store, "tiny"), (store, "tiny"), (other, "other")])
    )
    for run in (first, second, third):
        store.end(run)
    names = lambda: [line.partition(":")[0] for line in experiment_lines()]  # noqa: E731
    assert (load_results("tiny").config.seed, names()) == (1, ["other", "tiny"])
    store.resume(first)
    assert (load_results("tiny").config.seed, names()) == (0, ["tiny", "other"])
    assert experiment_lines()[0].endswith(", running")
    store.tag(first, {PROCESS_TAG: f"{this_process().split()[0]} {2**30} 1"})
    assert (load_results("tiny").config.seed, names()) == (1, ["other", "tiny"])


def test_an_experiment_is_found_on_every_page(store, searched, made, monkeypatch):
    made(searched, [])
    for name in ("a", "b"):
        store.client.create_experiment(name)
    one = partialmethod(MlflowClient.search_experiments, max_results=1)
    monkeypatch.setattr(MlflowClient, "search_experiments", one)
    assert load_results("tiny").experiment.experiment == "tiny"
    (line,) = experiment_lines()
    assert line.startswith("tiny: 1 pipeline run, ")


def test_the_champion_and_its_moves_are_shown(store, searched, made):
    registry = Registry(store.client, "dca-gpt")
    for seed in range(2):
        run, uri = log_untrained(store, searched, seed)
        force(registry, registry.register(uri, run, {}), f"reason {seed}")
    rollback(registry, "<it was worse>")
    section = lineage_section(made(searched, []))
    assert ("champion now", "dca-gpt 1") in section.tables[0].rows
    moves = [(row[1], row[2], row[3], row[5]) for row in section.tables[1].rows]
    assert moves == [
        ("version 1", "version 2", "rolled back", "<it was worse>"),
        ("version 2", "version 1", "forced", "reason 1"),
        ("version 1", "none", "forced", "reason 0"),
    ]


def test_a_champion_whose_log_may_not_be_read_is_left_out_with_a_line(
    store, searched, made, monkeypatch, caplog
):
    registry = Registry(store.client, "dca-gpt")
    run, uri = log_untrained(store, searched)
    force(registry, registry.register(uri, run, {}), "reason")

    def refuse(*_, **__) -> None:
        raise RefusedError("models:/dca-gpt-champions may not be read")

    monkeypatch.setattr(Champions, "state", refuse)
    results = made(searched, [])
    assert (results.champion, results.promotions) == (None, ())
    assert caplog.messages == [
        "the champion is not shown: models:/dca-gpt-champions may not be read"
    ]


def test_a_damaged_store_has_the_command_that_writes_it_again_but_for_edited_tags(
    store, searched, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    store_sweep(store, searched, [])
    sweep = re.escape(command_line(ROOT / "pipelines/sweep.py"))
    for error, advice in ((DamagedError, f"; `{sweep}` "), (EditedError, "")):
        raised = error("a tag")
        monkeypatch.setattr(Store, "read_text", Mock(side_effect=raised))
        with pytest.raises(error, match=f"^a tag{advice}" if advice else "^a tag$"):
            load_results("tiny")


def test_curves_have_a_column_for_each_searched_key(searched, made):
    values = {"train.learning_rate": 1e-3, "model.residual": "dca", "model.dca.last_k": 2}
    curves = made(searched, [Made(values, [3, 2])], winner=0).curves
    of_trial = curves[curves["number"] == 0]
    assert {key: of_trial[key].unique().tolist() for key in values} == {
        key: [value] for key, value in values.items()
    }
    assert list(values) == list(curves.columns)[-3:]
    assert made(searched.replace({"seed": 1}), []).curves.empty


def test_a_stage_of_another_searchs_result_is_left_out(store, searched):
    values = {"train.learning_rate": 1e-3, "model.residual": "standard"}
    pipeline = store_sweep(store, searched, [Made(values, [3, 2])], winner=0)
    assert load_results("tiny").winner == 0
    select = store.client.get_run(pipeline).data.tags[STAGE_TAG.format("select")]
    store.tag(select, {"dca.inputs": json.dumps({"needs": {"search": "another run"}})})
    assert load_results("tiny").winner is None


@pytest.mark.parametrize("older", [False, True])
def test_a_stage_of_this_searchs_result_is_kept(store, searched, older):
    """Inputs have the digest of a result, in older stores its run."""
    values = {"train.learning_rate": 1e-3, "model.residual": "standard"}
    pipeline = store_sweep(store, searched, [Made(values, [3, 2])], winner=0)
    tags = store.client.get_run(pipeline).data.tags
    search, select = (tags[STAGE_TAG.format(name)] for name in ("search", "select"))
    result = {"search_run": search, "trials": {"complete": 1}}
    store.tag(search, {"dca.outputs": json.dumps(result)})
    identity = search if older else json_digest(result)
    store.tag(select, {"dca.inputs": json.dumps({"needs": {"search": identity}})})
    assert load_results("tiny").winner == 0
    store.tag(search, {"dca.outputs": json.dumps(result | {"trials": {"complete": 2}})})
    assert load_results("tiny").winner == (0 if older else None)


def test_a_stage_whose_run_was_removed_is_left_out(store, searched):
    values = {"train.learning_rate": 1e-3, "model.residual": "standard"}
    pipeline = store_sweep(store, searched, [Made(values, [3, 2])], winner=0)
    purge(store, store.client.get_run(pipeline).data.tags[STAGE_TAG.format("select")])
    results = load_results("tiny")
    assert list(results.stages) == ["search"]
    assert results.winner is None


def test_a_search_whose_run_was_deleted_still_has_its_trials(store, searched):
    values = {"train.learning_rate": 1e-3, "model.residual": "standard"}
    pipeline = store_sweep(store, searched, [Made(values, [3, 2])], winner=0)
    store.client.delete_run(store.client.get_run(pipeline).data.tags[STAGE_TAG.format("search")])
    results = load_results("tiny")
    assert list(results.trials["bits_per_byte"]) == [2.0]
    assert len(results.completed_runs) == 1


def test_a_registration_after_a_training_is_not_the_result_of_the_experiment(store, experiment):
    training = store_training(store, experiment.training_run(), 2.5)
    for seed, tags in ((0, {STAGE_TAG.format("train"): training}), (1, {})):
        config = experiment.replace({"seed": seed})
        data = config.model_dump(mode="json")
        pipeline = store.create("pipeline", f"{seed} pipeline", "pipeline", params=data)
        store.log_text(pipeline, config.to_yaml(), "experiment.yaml")
        store.tag(pipeline, tags)
        store.end(pipeline)
    results = load_results(experiment.experiment)
    assert (results.config.seed, [*results.stages]) == (0, ["train"])


def test_a_winner_whose_run_was_deleted_is_none(store, searched):
    values = {"train.learning_rate": 1e-3, "model.residual": "standard"}
    store_sweep(store, searched, [Made(values, [3, 2]), Made(values, [3, 2.5])], winner=0)
    store.client.delete_run(load_results("tiny").trials.at[0, "run_id"])
    results = load_results("tiny")
    assert results.winner is None
    assert summary(results)[1].startswith("No winner is selected yet: trial 1, complete, leads")
    assert winner_section(results).paragraphs[0].startswith("No version is registered yet")
    assert "winning trial's run" not in dict(lineage_section(results).tables[0].rows)


def test_a_failed_trial_whose_values_do_not_go_together_has_no_parameter_count(store, searched):
    space = {"model.heads": {"choice": [2, 4]}, "model.dim": {"choice": [16, 20]}}
    config = searched.replace({"search.space": space})
    good, bad = {"model.heads": 4, "model.dim": 16}, {"model.heads": 4, "model.dim": 20}
    trials = [Made(good, [3, 2]), Made(bad, state="failed", reason="model.heads: no")]
    store_sweep(store, config, trials, winner=0)
    results = load_results("tiny")
    assert list(results.trials["parameters"].isna()) == [False, True]
    assert str(results.trials.at[0, "parameters"]).isdecimal()


def test_a_trial_that_begins_while_the_trials_are_read_is_left_out(store, searched, monkeypatch):
    values = {"train.learning_rate": 1e-3, "model.residual": "standard"}
    pipeline = store_sweep(store, searched, [Made(values, [3, 2])])
    search, find = store.client.get_run(pipeline).data.tags[STAGE_TAG.format("search")], Store.find

    def find_and_begin(self: Store, kind: str, *query: str, **basis: str) -> list:
        found = find(self, kind, *query, **basis)
        if kind == "trial":
            monkeypatch.setattr(Store, "find", find)
            writer = Writer(store)
            store_trial(store, writer, searched, search, 1, Made(values, state="unfinished"))
            writer.close()
        return found

    monkeypatch.setattr(Store, "find", find_and_begin)
    assert list(load_results("tiny").trials.index) == [0]
    assert list(load_results("tiny").trials.index) == [0, 1]


def test_a_fit_that_cannot_train_the_winner_any_more_is_not_its_fit(store, data):
    """Other workers do not make another search: the same winner is selected."""
    batch = "train.batch_tokens"
    more = {"search": {"space": {batch: {"int": [64, 256], "step": 32}}}}
    config = read_experiment(data | more, source="test")
    pipeline = store_sweep(store, config, [Made({batch: 96}, [3, 2])], winner=0)
    select = store.client.get_run(pipeline).data.tags[STAGE_TAG.format("select")]
    store.tag(select, {"dca.outputs": json.dumps({"trial": 0, "values": {batch: 96}})})
    fit = store.create("fit", "fit", "fit", params=config.fit_run({batch: 96}).params)
    store.tag(pipeline, {STAGE_TAG.format("fit"): fit})
    assert "fit" in load_results("tiny").stages
    changed = config.replace({"fit.resources.workers": 2})
    store.log_text(pipeline, changed.to_yaml(), "experiment.yaml")
    results = load_results("tiny")
    assert (results.winner, "fit" in results.stages) == (0, False)
    assert [section.id for section in all_sections(results)]


def test_damaged_samples_are_named_beside_all_the_rest(store, searched, tmp_path):
    pipeline = store_sweep(store, searched, [Made({"train.learning_rate": 1e-3}, [3, 2])])
    for name in ("evaluate", "sample"):
        run = store.create(name, name, name)
        store.tag(pipeline, {STAGE_TAG.format(name): run})
        store.tag(run, {"dca.outputs": json.dumps({"run_id": run})})
    store.log_text(run, "a text", "samples.txt")
    assert load_results("tiny").samples == "a text"
    (tmp_path / f"runs/artifacts/{run}/artifacts/samples.txt").write_text("another")
    results = load_results("tiny")
    assert results.samples == f"(no samples: run {run}: samples.txt is not what was logged)"


def test_a_training_whose_parameters_were_deleted_is_none_of_the_completed_runs(store, searched):
    store_sweep(store, searched, [])
    for params in (searched.fit_run().params, {}):
        fit = store.create("fit", "fit", "fit", params=params)
        store.tag(fit, {"dca.outputs": json.dumps({"bits_per_byte": 2.0})})
        store.client.log_metric(fit, f"best_{searched.train.best_metric}", 2.0)
        store.end(fit)
    assert list(load_results("tiny").completed_runs["seed"]) == [0]


def test_the_trials_are_those_that_the_search_consists_of(store, searched):
    values = {"train.learning_rate": 1e-3, "model.residual": "standard"}
    pipeline = store_sweep(store, searched, [Made(values, [3, 2 + n]) for n in range(3)])
    search = store.client.get_run(pipeline).data.tags[STAGE_TAG.format("search")]
    assert list(load_results("tiny").trials.index) == [0, 1, 2]
    store.tag(search, {"dca.outputs": json.dumps({"search_run": search, "selection": "0,2"})})
    assert list(load_results("tiny").trials.index) == [0, 2]
