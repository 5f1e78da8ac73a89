"""The stage probe: what it times, what it does not time again, and the tokens that follow."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.cluster import task
from pipelines.comparison.values import Interval, Ratio
from pipelines.console.errors import PipelineError
from pipelines.data.fingerprint import PreparedCorpus
from pipelines.data.splits import TrainValSplits
from pipelines.engine.results import StageResults
from pipelines.experiment import Experiment, read_experiment
from pipelines.registry.package import hardware
from pipelines.registry.results import Probed, training_key
from pipelines.search.results import Selected
from pipelines.stages import fit
from pipelines.stages.study import probe
from pipelines.tracking.store import Store
from pipelines.training.timing import times_in_turns
from tests.pipelines.stored import CORPUS, PROVENANCE, same_provenance
from tests.pipelines.stored_study import RATE, StoredStudy

DEPTHS = {"two": 2, "four": 4, "one": 1}
BASE_SECONDS = 1e-3


class Clock:
    """Stands for a process that times: seconds in proportion to the depth, one round disturbed."""

    def __init__(self) -> None:
        self.timed: list[tuple[int, int]] = []
        self.given: dict[str, object] = {}

    def __call__(self, work, base, arm, splits, rounds, **given) -> list[tuple[float, float]]:
        assert work is times_in_turns
        assert isinstance(splits, TrainValSplits)
        self.given = given
        depths = (base.model.depth, arm.model.depth)
        self.timed.append(depths)
        slow = [1.0, 5.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.1]
        assert rounds == len(slow)
        return [
            (BASE_SECONDS * depths[0] / 2, factor * BASE_SECONDS * depths[1] / 2) for factor in slow
        ]


@pytest.fixture
def clock(monkeypatch, tmp_path) -> Clock:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(PROVENANCE, same_provenance)
    found = Clock()
    monkeypatch.setattr(task, "run_task", found)
    return found


def of_arms(data: dict, *names: str, **more) -> Experiment:
    arms = {name: {"model.depth": DEPTHS[name]} for name in names}
    search = {"space": {RATE: {"choice": [1e-3]}}, "sampler": {"name": "grid"}}
    return read_experiment(data | {"arms": arms, "search": search} | more, source="test")


def probed(made: StoredStudy, *, fresh: bool = False) -> Probed:
    run = made.open_run("probe", ())
    found = probe.STAGE.run(replace(made.context(run), fresh=fresh), made.results)
    made.end_run(run, "probe", (), found)
    return found


def study(store: Store, config: Experiment) -> StoredStudy:
    """A study whose arms have been selected."""
    pipeline = store.create("pipeline", config.to_yaml(), "pipeline")
    selected = {(name,): Selected(0, "r", {RATE: 1e-3}, 2.0) for name in config.arm_names}
    found = {"corpus": {(): PreparedCorpus("files", CORPUS, {})}, "select": selected}
    return StoredStudy(store, config, pipeline, found)


def test_each_arm_is_timed_in_turns_with_the_baseline(store, data, clock):
    config = of_arms(data, "two", "four", fit={"resources": {"cpus_per_worker": 2}})
    found = probed(study(store, config))
    assert clock.timed == [(2, 4)]
    assert clock.given == {"resources": config.fit.resources, "key": "fit.resources"}
    assert found.token_seconds == BASE_SECONDS
    assert found.times == {"two": Ratio(1.0), "four": Ratio(2.0, Interval(2.0, 2.2))}
    assert found.tokens == {}
    (run,) = store.find("probe")
    assert run.data.metrics["step_time_ratio/four"] == 2.0


def test_an_arm_without_a_winner_is_left_out_and_timed_once_it_has_one(store, data, clock):
    config = of_arms(data, "two", "four", "one")
    made = study(store, config)
    lost = made.found["select"].pop(("four",))
    assert list(probed(made).times) == ["two", "one"]
    made.found["select"]["four",] = lost
    assert list(probed(made).times) == ["two", "four", "one"]
    assert clock.timed == [(2, 1), (2, 4)]


def test_a_probe_without_another_arm_takes_no_time_from_an_earlier_one(store, data, clock):
    first = probed(study(store, of_arms(data, "two", "four")))
    alone = study(store, of_arms(data, "two", "four", seeds=3))
    del alone.found["select"]["four",]
    assert probed(alone, fresh=True).token_seconds == 0.0
    assert probed(study(store, of_arms(data, "two", "four", seeds=4))) == first
    assert clock.timed == [(2, 4)]


def test_without_the_baselines_winner_only_equal_times_cannot_be_had(store, data, clock):
    made = study(store, of_arms(data, "two", "four"))
    del made.found["select"]["two",]
    assert probed(made) == Probed(0.0, {}, {})
    made = study(store, of_arms(data, "two", "four", budget="time"))
    del made.found["select"]["two",]
    with pytest.raises(PipelineError, match="the baseline, two, has no winner"):
        probed(made)
    assert clock.timed == []


def test_what_has_been_timed_is_not_timed_again(store, data, clock):
    first = probed(study(store, of_arms(data, "two", "four")))
    more = probed(study(store, of_arms(data, "two", "one", "four", seeds=3)))
    assert clock.timed == [(2, 4), (2, 1)]
    assert (more.times["four"], more.times["one"].value) == (first.times["four"], 0.5)
    again = probed(study(store, of_arms(data, "two", "four", seeds=4)))
    assert again == first
    other = probed(study(store, of_arms(data, "two", "four", baseline="four")))
    assert other.times["two"].value == 0.5
    assert clock.timed[2:] == [(4, 2)]
    larger = of_arms(data, "two", "four", train=data["train"] | {"batch_tokens": 512})
    probed(study(store, larger))
    assert clock.timed[3:] == [(2, 4)]


CHANGES = [
    lambda patch, project: patch.setattr(probe, "version", lambda _: "9.9"),
    lambda patch, project: patch.setattr(
        probe, "hardware", lambda: hardware() | {"processor": "b"}
    ),
    lambda patch, project: patch.setattr(probe, "hardware", lambda: hardware() | {"gpus": ["A"]}),
    lambda patch, project: edit(project / "dca" / "residuals" / "dca.py"),
    lambda patch, project: edit(project / "pipelines" / "training" / "step.py"),
]


def edit(source: Path) -> None:
    source.write_text(source.read_text() + "\nNUMBER = 1\n")


@pytest.mark.parametrize("change", CHANGES)
def test_times_of_other_code_or_another_machine_are_none(
    store, data, clock, project, monkeypatch, change
):
    made = study(store, of_arms(data, "two", "four", model=data["model"] | {"residual": "dca"}))
    probed(made)
    edit(project / "dca" / "residuals" / "mhc.py")  # of which no arm is
    probed(made)
    assert clock.timed == [(2, 4)]
    change(monkeypatch, project)
    probed(made)
    assert clock.timed == [(2, 4), (2, 4)]


def test_fresh_times_again(store, data, clock):
    made = study(store, of_arms(data, "two", "four"))
    probed(made)
    probed(made, fresh=True)
    assert clock.timed == [(2, 4), (2, 4)]


def test_for_an_equal_time_an_arm_has_tokens_in_whole_steps(store, data, clock):
    config = of_arms(data, "two", "four", "one", budget="time", fit={"tokens": 16 * 256 + 1})
    made = study(store, config)
    made.found["probe"] = {(): probed(made)}
    for arm, steps in (("two", 17), ("four", round(17 / 2)), ("one", 34)):
        of_arm = config.of_arm(arm).of_seed(3)
        needs = made.results.at((arm, 3))
        assert (
            fit.in_budget(of_arm, needs).fit_run(needs[Selected].values).train.tokens == 256 * steps
        )
        alone = StageResults({"select": needs[Selected]})
        assert fit.in_budget(of_arm, alone) == of_arm


def test_the_tokens_of_an_arm_are_in_the_key_of_its_fit_and_the_clock_is_not(data):
    config = of_arms(data, "two", "four").of_arm("four")
    selected = Selected(0, "r", {RATE: 1e-3}, 2.0)

    def key(found: Probed) -> Experiment:
        assert fit.STAGE.configured is not None
        return fit.STAGE.configured(config, StageResults({"select": selected, "probe": found}))

    run = config.fit_run(selected.values)
    found = Probed(1.0, {"four": Ratio(2.0)}, {}, {training_key(run): 2048})
    assert key(found).train.tokens == 2048
    assert key(found) == key(replace(found, token_seconds=2.0, times={"four": Ratio(2.1)}))
    assert key(replace(found, tokens={})).train.tokens == data["train"]["tokens"]
