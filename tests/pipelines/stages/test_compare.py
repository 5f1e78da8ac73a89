"""The stage compare, on stored trainings."""

import csv
import io
import json
import math
import re
import threading
from dataclasses import replace

import pytest

from pipelines.console.errors import EditedError, PipelineError
from pipelines.data.fingerprint import PreparedCorpus
from pipelines.engine.results import StageResults, json_digest
from pipelines.experiment import Experiment, read_experiment
from pipelines.registry.results import Diverged, Fitted
from pipelines.search.results import Selected
from pipelines.stages.study import compare
from pipelines.stages.study.arms import measured_arms
from pipelines.tracking.writer import Writer
from tests.pipelines.stored import PROVENANCE, Made, same_provenance, store_trial
from tests.pipelines.stored_study import RATE, store_study

ARMS = {
    "standard": {"model.residual": "standard"},
    "dca-2": {"model.residual": "dca", "model.dca.last_k": 2},
    "value": {"model.residual": "value_residual"},
}
GAINS = {"standard": 0.0, "dca-2": 0.05, "value": 0.001}
TIMES = {"standard": 1.0, "dca-2": 1.2, "value": 1.05}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(PROVENANCE, same_provenance)


def of_arms(data: dict, *names: str, rates: int = 1, seeds: int = 2) -> Experiment:
    """A study of these arms, each with a grid of learning rates."""
    space = {RATE: {"choice": [1e-3 * 2**n for n in range(rates)]}}
    search = {"space": space, "sampler": {"name": "grid"}, "scheduler": {"name": "none"}}
    arms = {name: ARMS[name] for name in names}
    return read_experiment(data | {"arms": arms, "seeds": seeds, "search": search}, source="test")


@pytest.fixture
def plain(monkeypatch) -> None:
    """No figures are drawn."""
    monkeypatch.setattr(compare, "_draw", lambda *_: None)


def test_the_verdict_its_table_and_its_figures_are_in_the_stages_run(store, data):
    config = of_arms(data, *ARMS, rates=3, seeds=5)
    found = store_study(store, config, GAINS, times=TIMES).compare()
    assert found.winner == ("dca-2", 0)
    assert found.verdicts == {"dca-2": "better", "value": "undecided"}
    assert found.sentence.startswith("dca-2 beats standard by 0.050 bits per byte (0.045 to 0.055")
    rows = list(csv.DictReader(io.StringIO(store.read_text(found.run_id, "comparison.csv"))))
    assert [row["arm"] for row in rows] == list(ARMS)
    assert {row["replicates"] for row in rows} == {"5"}
    assert [row["step_time_ratio"] for row in rows] == ["1.0", "1.2", "1.05"]
    assert {row["peak_memory_bytes"] for row in rows} == {"600000000"}
    assert {row["best_learning_rate"] for row in rows} == {"0.002"}
    data = json.loads(store.read_text(found.run_id, "comparison.json"))
    assert (data["sentence"], data["looks"]) == (found.sentence, [5])
    run = store.client.get_run(found.run_id)
    table = store.read_text(found.run_id, "comparison.md")
    assert table.strip() in run.data.tags["mlflow.note.content"]
    assert run.data.metrics["difference/dca-2"] == pytest.approx(-0.05)
    assert run.data.metrics["step_time_ratio/value"] == 1.05
    assert "holm_p/standard" not in run.data.metrics
    figures = {file.path for file in store.client.list_artifacts(found.run_id, "figures")}
    names = {"forest", "study_curves", "quality_and_time", "rate_curves"}
    assert figures == {f"figures/{name}.png" for name in names}


def test_a_table_that_takes_long_is_followed_by_a_line(store, data, plain, monkeypatch):
    shown, texts = threading.Event(), []
    monkeypatch.setattr("pipelines.console.progress.WATCH_SECONDS", 0.01)
    monkeypatch.setattr(
        "pipelines.console.progress.Progress.update",
        lambda _, update: (texts.append(update.text), shown.set()),
    )
    monkeypatch.setattr(compare, "_draw", lambda *_: shown.wait(60))
    store_study(store, of_arms(data, *ARMS), GAINS, times=TIMES).compare()
    assert texts[0].startswith("  compare: the table and the figures, 0:0")


def test_each_number_of_seeds_with_which_a_verdict_was_shown_is_a_look(store):
    def shown(number: int, *looks: range, **tags: str) -> str:
        tags = {"dca.basis": "b", "dca.looks": json.dumps([[*look] for look in looks])} | tags
        return store.create("compare", str(number), "compare", tags=tags)

    def looks(run: str, present: range, *bases: str) -> list[list[int]]:
        found = compare._earlier_looks(store, run, bases or ["b"], tuple(present))
        return [[*seeds] for seeds in found]

    first = shown(1, range(5))
    assert looks(first, range(5)) == []
    assert looks("", range(5)) == []
    assert looks("", range(8)) == [[*range(5)]]
    second = shown(2, range(5), range(8))
    store.tag(second, {"dca.memory": "forgotten"})  # by --fresh
    assert looks("", range(10)) == [[*range(5)], [*range(8)]]
    shown(3, range(4, -1, -1), range(9, -1, -1))
    assert looks("", range(10)) == [[*range(5)], [*range(8)]]
    shown(5, range(9), **{"dca.basis": "former"})
    assert looks("", range(8), "former", "b")[:2] == [[*range(9)], [*range(5)]]
    store.create("compare", "4", "compare", tags={"dca.basis": "b"})  # killed before its verdict
    assert looks("", range(8)) == [[*range(5)], [*range(10)]]
    for edited in ("[[0", "5", '[["a"]]'):
        store.tag(first, {"dca.looks": edited})
        line = f"run {first}: tag dca.looks: expected the seeds of each look, as in [[0, 1], "
        with pytest.raises(EditedError, match=re.escape(line)):
            looks("", range(8))


@pytest.mark.extended
@pytest.mark.usefixtures("plain")
def test_more_seeds_spend_what_the_looks_before_have_left(store, data):
    made = store_study(store, of_arms(data, "standard", "dca-2"), {"standard": 0, "dca-2": 0.05})
    made.compare()
    more = store_study(store, of_arms(data, *ARMS, seeds=3), GAINS)
    found = json.loads(store.read_text(more.compare().run_id, "comparison.json"))
    assert (found["looks"], found["level"]) == ([2, 3], pytest.approx(0.005))


def bases(config: Experiment, *, corpus: str = "a") -> list[str]:
    """The digests by which looks are found, the one that is stored last."""
    arms = [(arm,) for arm in config.arm_names] or [()]
    selected = {arm: Selected(0, "r", {RATE: 1e-3}, 2.0) for arm in arms}
    needs = {"corpus": PreparedCorpus("files", corpus, {})}
    return compare._bases(config, StageResults(needs, {"select": selected}))


def test_the_looks_are_those_at_one_baseline_on_one_text(data, text, tmp_path):
    """Wherever it lies and whatever the baseline is called: as the key of the trainings."""
    config, moved = of_arms(data, *ARMS), tmp_path / "moved"
    moved.write_bytes(text.read_bytes())
    renamed = {"plain": ARMS["standard"], "dca-2": ARMS["dca-2"]}
    same = [
        *(config.replace(one) for one in ({"seeds": 7}, {"data.path": str(moved)})),
        config.replace({"model.dca.last_k": 3}),
        config.replace({"arms": renamed}),
        of_arms(data, "standard", "value"),
    ]
    (basis,) = {bases(one)[-1] for one in (config, *same)}
    others = [bases(config.replace({key: value}))[-1] for key, value in OTHERS.items()]
    alone = config.replace({"arms": {}, "model.residual": "standard"})
    others += [bases(config, corpus="b")[-1], bases(alone)[-1]]
    assert len({basis, *others}) == 5


OTHERS = {"baseline": "value", "train.tokens": 8192}


def test_looks_that_earlier_versions_have_stored_are_found(data):
    """They did so under a digest that has the baseline's name and all parameters."""
    config = of_arms(data, *ARMS, seeds=3)
    params = config.of_arm("standard").fit_run({RATE: 1e-3}).params
    del params["seed"]
    assert json_digest([["standard"], "a", params]) in bases(config)


@pytest.mark.usefixtures("plain")
def test_an_arm_that_diverges_is_never_better(store, data):
    config = of_arms(data, "standard", "dca-2", seeds=4)
    gains = {"standard": 0.0, "dca-2": 0.5}
    found = store_study(store, config, gains, diverged=[("dca-2", 3)]).compare()
    assert found.verdicts == {"dca-2": "undecided"}
    assert "1 diverged" in found.sentence
    assert found.winner == ("dca-2", 0)


@pytest.mark.extended
@pytest.mark.parametrize("bits", [math.inf, math.nan])
@pytest.mark.usefixtures("plain")
def test_a_model_without_a_finite_score_counts_as_one_that_diverged(store, data, bits):
    config = of_arms(data, "standard", "dca-2", seeds=4)
    made = store_study(store, config, {"standard": 0.0, "dca-2": 0.5})
    tested = made.found["evaluate"]
    tested["dca-2", 3] = replace(tested["dca-2", 3], test_bits_per_byte=bits)
    found = made.compare()
    assert found.verdicts == {"dca-2": "undecided"}
    assert "1 diverged" in found.sentence


def test_the_winner_is_of_the_arm_with_the_best_mean_on_validation():
    bits = {("a", 0): 2.0, ("a", 1): 2.5, ("b", 0): 2.2, ("b", 1): 2.1}
    fits = {values: Fitted("r", "", b, 1, 1, 1.0, "1") for values, b in bits.items()}
    assert compare._winner(StageResults({}, {"fit": fits})) == ("b", 1)


def test_a_study_whose_trainings_all_diverged_has_no_winner():
    with pytest.raises(PipelineError, match="every training diverged"):
        compare._winner(StageResults({}, {"fit": {("a", 0): Diverged("r", "diverged")}}))


@pytest.mark.usefixtures("plain")
def test_a_study_of_seeds_alone_has_the_interval_of_its_mean(store, data):
    config = of_arms(data, *ARMS).replace({"arms": {}, "seeds": [3, 4]})
    found = store_study(store, config, {"tiny": 0.1}).compare()
    assert (found.winner, found.verdicts) == ((3,), {})
    assert found.sentence.startswith("tiny reaches 2.4")
    assert found.sentence.endswith(", 2 seeds).")


def test_of_the_trials_the_best_of_each_rate_counts_and_those_that_diverged(store, data):
    changes = {"arms": {}, "seeds": 1, "search.space.model.depth": {"choice": [1, 2]}}
    config = of_arms(data, *ARMS, rates=4).replace(changes)
    made = store_study(store, config, {"tiny": 0.1})
    ((searched,),) = [made.found["search"].values()]
    trials = [
        Made({RATE: 1e-3, "model.depth": 1}, [3.0]),
        Made({RATE: 1e-3, "model.depth": 2}, [2.9]),
        Made({RATE: 2e-3, "model.depth": 2}, [2.8], "pruned"),
        Made({RATE: 4e-3, "model.depth": 1}, [], "failed", "diverged at step 2: ..."),
        Made({RATE: 8e-3, "model.depth": 1}, [], "failed", "its process died"),
    ]
    run = made.open_run("search", ("again",))
    writer = Writer(store)
    for number, trial in enumerate(trials):
        store_trial(store, writer, config.of_seed(0), run, number, trial)
    writer.close()
    made.found["search"][()] = replace(searched, search_run=run, selection="0-4")
    (arm,) = measured_arms(store, config, made.results)
    assert arm.rates is not None
    assert (arm.rates.rates, arm.rates.bits) == ((1e-3, 2e-3, 4e-3), (2.9, 2.8, None))
