"""Real searches that grow and are killed meanwhile, or run their failed trials again: a part of
`make test-faults`. Without Ray in stages/test_growth.py."""

import json
from functools import partial
from typing import Any

import pytest

from tests.pipelines.commands import Command, Folder, assert_whole, wait_until

pytestmark = pytest.mark.faults
RATE = "train.learning_rate"
SEARCH = ("sweep.py", "tiny.yaml", "train.tokens=32768", "search.scheduler.name=none", "--until")


def by_number(folder: Folder) -> dict[int, Any]:
    """The runs of the trials."""
    trials = folder.trials()
    runs = {int(run.data.tags["dca.trial"]): run for run in trials}
    assert len(runs) == len(trials)
    return runs


def ended(folder: Folder) -> dict[int, tuple[str, int]]:
    """The run, and when it ended, of each trial that has."""
    return {
        number: (run.info.run_id, run.info.end_time)
        for number, run in by_number(folder).items()
        if run.data.tags.get("dca.state") == "complete"
    }


def trains(folder: Folder, number: int) -> bool:
    """Whether a trial has begun and not ended."""
    run = by_number(folder).get(number)
    return run is not None and "tokens" in run.data.metrics and "dca.state" not in run.data.tags


def kill(folder: Folder, process: Command, number: int) -> None:
    """Kill a sweep while a trial of it trains."""
    wait_until(partial(trains, folder, number), process)
    process.kill()
    process.communicate(timeout=60)


def test_a_search_goes_on_with_what_there_is_when_it_grows_and_is_killed(tmp_path, text):
    folder = Folder(tmp_path, text)
    code, _, err = folder.run_forked(*SEARCH, "select", "search.trials=10")
    assert code == 0, err
    ten = ended(folder)
    assert len(ten) == 10

    more = (*SEARCH, "select", "search.trials=14")
    wider = (*more, f"search.space.{RATE}={{log_uniform: [1e-5, 1e-1]}}")
    kill(folder, folder.start(*more), 10)
    kill(folder, folder.start(*wider), 12)
    code, out, err = folder.run_forked(*wider)
    assert code == 0, err
    assert "resumes an unfinished run" in out
    fourteen = ended(folder)
    assert sorted(fourteen) == list(range(14))
    assert fourteen.items() >= ten.items()
    runs = by_number(folder)
    assert_whole(folder.store(), [*runs.values()])
    (search,) = folder.store().find("search")
    best = min(runs.values(), key=lambda run: run.data.metrics["best_val_bits_per_byte"])
    assert search.data.tags["dca.best_run"] == best.info.run_id
    marked = [run.info.run_id for run in runs.values() if "dca.best" in run.data.tags]
    assert marked == [best.info.run_id]

    code, out, err = folder.run_forked(*wider, "search.trials=7")
    assert code == 0, err
    assert "search    goes on: search.trials: 14 -> 7" in out
    assert ended(folder) == fourteen
    code, out, err = folder.run_forked(*wider, "seed=1", "--dry-run")
    assert code == 0, err
    assert "seed: 0 -> 1" in out
    assert "goes on" not in out


def test_failed_trials_alone_are_run_again(tmp_path, text):
    folder = Folder(tmp_path, text)
    space = json.dumps({RATE: {"choice": [0.001, 1e30]}})
    search = ("search.sampler.name=grid", "search.trials=2", f"search.space={space}")
    code, _, err = folder.run_forked(*SEARCH, "select", *search)
    assert code == 0, err
    before = by_number(folder)
    assert [before[n].data.tags["dca.state"] for n in (0, 1)] == ["complete", "failed"]
    code, out, err = folder.run_forked(*SEARCH, "select", *search, "--retry-failed", "--dry-run")
    assert "search    run    failed trials run again: 1" in out, err
    code, out, err = folder.run_forked(*SEARCH, "select", *search, "--retry-failed")
    assert code == 0, err
    after = by_number(folder)
    assert {n: run.info.run_id for n, run in after.items()} == {
        n: run.info.run_id for n, run in before.items()
    }
    assert after[0].info.end_time == before[0].info.end_time
    assert after[1].info.end_time > before[1].info.end_time
    assert after[1].data.tags["dca.state"] == "failed"
    code, out, err = folder.run_forked(*SEARCH, "select", *search, "--retry-failed", "--fresh")
    assert (code, "not allowed with" in err) == (2, True)
