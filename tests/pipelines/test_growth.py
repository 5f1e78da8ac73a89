"""Searches that grow: more trials, another range, kills in between, failed trials tried again."""

import json

from tests.pipelines.commands import TRIAL, Folder, assert_whole, below, wait_until

SEARCH = ("sweep.py", "tiny.yaml", "train.tokens=16384", "search.scheduler.name=none", "--until")
RATE = "train.learning_rate"
WIDER = f"search.space.{RATE}={{log_uniform: [1e-5, 1e-1]}}"


def ended(folder: Folder) -> dict[str, tuple[str, int]]:
    """The run, and when it ended, of each trial that has."""
    return {
        run.data.tags["dca.trial"]: (run.info.run_id, run.info.end_time)
        for run in folder.trials()
        if run.data.tags.get("dca.state") == "complete"
    }


def test_a_search_goes_on_with_what_there_is_when_it_grows_and_is_killed(tmp_path, text):
    folder = Folder(tmp_path, text)
    code, _, err = folder.run(*SEARCH, "fit", "search.trials=6")
    assert code == 0, err
    six = ended(folder)
    assert len(six) == 6
    (fit,) = folder.store().find("fit")

    code, out, err = folder.run(*SEARCH, "fit", "search.trials=8")
    assert code == 0, err
    assert "search    goes on: search.trials: 6 -> 8" in out
    eight = ended(folder)
    assert len(eight) == 8
    assert eight.items() >= six.items()

    grown = (*SEARCH, "select", "search.trials=10", WIDER)
    for number in ("8", "9"):  # each is killed while it trains
        process = folder.start(*grown)
        wait_until(lambda: below(process, *TRIAL) and number in running(folder), process)
        process.kill()
        process.communicate(timeout=60)
        if number == "8":
            folder.trials()
    code, out, err = folder.run(*grown)
    assert code == 0, err
    ten = ended(folder)
    assert sorted(ten, key=int) == [str(number) for number in range(10)]
    assert ten.items() >= eight.items()
    assert len(folder.trials()) == 10
    assert_whole(folder.store(), folder.trials())
    (search,) = folder.store().find("search")
    best = min(folder.trials(), key=lambda run: run.data.metrics["best_val_bits_per_byte"])
    assert search.data.tags["dca.best_run"] == best.info.run_id
    marked = [run.info.run_id for run in folder.trials() if run.data.tags.get("dca.best")]
    assert marked == [best.info.run_id]

    code, out, err = folder.run(*grown[:-2], "search.trials=7", WIDER)
    assert code == 0, err
    assert ended(folder) == ten
    code, out, err = folder.run(*SEARCH, "select", "search.trials=7", "seed=1", "--dry-run")
    assert code == 0, err
    assert "search    run    seed: 0 -> 1" in out


def running(folder: Folder) -> set[str]:
    """The numbers of the trials that have begun and not ended."""
    return {
        run.data.tags["dca.trial"]
        for run in folder.trials()
        if "dca.state" not in run.data.tags and "val_bits_per_byte" in run.data.metrics
    }


def test_failed_trials_alone_are_tried_again(tmp_path, text):
    folder = Folder(tmp_path, text)
    diverges = f"search.space.{RATE}={{choice: [0.001, 1e30]}}"
    grid = ("search.space.model.residual={choice: [standard]}", "search.sampler.name=grid")
    command = (*SEARCH, "select", diverges, "search.trials=2", "failures.retries=0")
    space = json.dumps({RATE: {"choice": [0.001, 1e30]}})
    command = (*SEARCH, "select", f"search.space={space}", "search.trials=2", grid[1])
    code, _, err = folder.run(*command)
    assert code == 0, err
    before = {run.data.tags["dca.trial"]: run for run in folder.trials()}
    assert before["1"].data.tags["dca.state"] == "failed"
    code, out, err = folder.run(*command)
    assert "search    reused" in out, err
    code, out, err = folder.run(*command, "--retry-failed", "--dry-run")
    assert "search    run    tries 1 failed trial again" in out, err
    code, out, err = folder.run(*command, "--retry-failed")
    assert code == 0, err
    after = {run.data.tags["dca.trial"]: run for run in folder.trials()}
    assert [run.info.run_id for run in after.values()] == [r.info.run_id for r in before.values()]
    assert after["0"].info.end_time == before["0"].info.end_time
    assert after["1"].info.end_time > before["1"].info.end_time
    assert after["1"].data.tags["dca.state"] == "failed"
