"""The registry as people use it: a real tracking server, sweeps, promotions, a served champion."""

import json
import re
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

import mlflow.artifacts
import numpy as np
import pytest
import requests

from pipelines.registry.champions import CHAMPION, Champions, Promotion
from pipelines.registry.versions import Registry
from pipelines.stages import promote
from pipelines.storage.digests import format_digests, plain_files
from pipelines.tracking.models import DIGESTS, model_id_of
from tests.pipelines.commands import ROOT, Folder, free_port, start_and_wait, stop
from tests.pipelines.local_tune import LocalTune
from tests.pipelines.packages import isolated_forked

SWEEP = ("sweep.py", "tiny.yaml", "search.trials=1", "search.space={}", "train.tokens=4096")
SWEEP += ("fit.resources.workers=1",)
TO_THE_GATE = ("--until", "promote")
FIRST = (*SWEEP, "fit.tokens=16384")
BETTER = (*SWEEP, "fit.tokens=65536")
WORSE = (*SWEEP, "fit.tokens=8192")


@dataclass
class Story:
    """Three sweeps on a server: a first, interrupted before the gate, a better, a worse one."""

    folder: Folder
    registry: Registry

    def promote(self, *arguments: str) -> object:
        """What promote.py says in JSON."""
        code, out, err = self.folder.run("promote.py", *arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    def promotions(self) -> list[Promotion]:
        return Champions(self.registry).promotions()

    @property
    def champion(self) -> int | None:
        return self.registry.aliases().get(CHAMPION)


@pytest.fixture(scope="module")
def story(tmp_path_factory, text, tracking_address):
    path = tmp_path_factory.mktemp("promotion")
    folder = Folder(path, text)
    folder.environment["MLFLOW_TRACKING_URI"] = tracking_address
    registry = Registry(folder.store().client, "dca-gpt")
    with pytest.MonkeyPatch.context() as patch:
        LocalTune(path, patch)
        isolated_forked(patch)
        with patch.context() as interrupted:
            interrupted.setattr(promote, "gate_lock", press_ctrl_c)
            code, _, err = folder.run(*FIRST)
            assert code == 130, err
            assert registry.aliases() == {"challenger": 1}
        for command in (FIRST, BETTER, WORSE):
            code, _, err = folder.run(*command, *TO_THE_GATE)
            assert code == 0, err
        yield Story(folder, registry)


def press_ctrl_c(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_better_version_takes_over_a_worse_one_does_not_and_a_kill_costs_nothing(story):
    assert [int(version.version) for version in story.registry.versions()] == [1, 2, 3]
    moves = [(p.version, p.previous) for p in story.promotions()]
    assert moves[:2] == [(1, None), (2, 1)]
    assert story.champion == 2
    tags = {int(v.version): v.tags for v in story.registry.versions()}
    assert tags[1]["gate.decision"].startswith("promoted: ")
    assert tags[2]["gate.decision"].startswith("promoted: ")
    assert tags[3]["gate.decision"].startswith("kept version 2: ")
    assert [tags[v]["gate.promoted"] for v in (1, 2, 3)] == ["true", "true", "false"]
    assert float(tags[2]["gate.least_gain"]) > 0 > float(tags[3]["gate.gain"])


def test_the_list_has_results_lineage_age_and_decision(story):
    rows = {row["version"]: row for row in story.promote("list")}
    assert rows[2]["aliases"] == ["champion"]
    assert rows[3]["aliases"] == ["challenger"]
    store = story.folder.store()
    tags, lineage = rows[3]["tags"], rows[3]["lineage"]
    (search,) = {run.info.run_id for run in store.find("search")}
    assert tags["search_run"] == search
    assert tags["trial_run"] in {run.info.run_id for run in store.find("trial")}
    assert tags["pipeline_run"] in {run.info.run_id for run in store.find("pipeline")}
    assert tags["fit_run"] == rows[3]["run"] == lineage["run"]
    assert tags["test.fingerprint"] == lineage["corpus"]["fingerprint"]
    assert "torch 2.13.0" in tags["packages"]
    assert lineage["hardware"]["cpus"] >= 1
    if (ROOT / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}", tags["commit"])
        assert tags["dirty"] in ("true", "false")
    code, out, err = story.folder.run("promote.py", "list")
    assert (code, err) == (0, "")
    assert re.search(r"^2 +champion +\d\.\d{4} ", out, re.M)
    assert "kept version 2" in out


def test_two_versions_are_compared(story):
    found = story.promote("compare", "1", "champion")
    assert found["versions"] == [1, 2]
    assert found["configuration"] == {
        "train.tokens": [16384, 65536],
        "fit.tokens": [16384, 65536],
    }
    first, second = found["metrics"]["test.bits_per_byte"]
    assert second < first
    last = max(found["curves"], key=int)
    assert found["curves"][last] == [None, pytest.approx(second, abs=0.1)]
    code, out, err = story.folder.run("promote.py", "compare", "1", "2")
    assert (code, err) == (0, "")
    assert re.search(r"^train\.tokens +16384 +65536", out, re.M)


def test_a_dry_run_of_the_gate_says_what_would_happen_and_changes_nothing(story):
    before = story.registry.get(1).tags, story.promotions()
    found = story.promote("promote", "1", "--dry-run")
    assert (found["promoted"], found["champion_now"]) == (False, 2)
    assert found["numbers"]["gain"] < 0
    found = story.promote("promote", "1", "--dry-run", "--force", "why not")
    assert found["promoted"]
    assert story.promote("rollback", "--dry-run") == {
        "champion": 1,
        "instead_of": 2,
        "dry_run": True,
    }
    assert (story.registry.get(1).tags, story.promotions()) == before
    assert story.champion == 2


@pytest.mark.extended
def test_rollback_restores_and_history_tells_the_story(story):
    """It ends as it began."""
    story.promote("rollback", "--reason", "it was rude")
    assert story.champion == 1
    code, out, _ = story.folder.run(*BETTER)
    assert code == 0
    assert "replaced by version 1; `promote.py promote 2` restores it" in out
    assert story.champion == 1
    assert story.registry.aliases()["challenger"] == 3  # not that sweep's own, which is older
    code, _, err = story.folder.run("promote.py", "rollback")
    assert (code, err) == (2, "dca-gpt: there is no earlier champion to go back to\n")
    found = story.promote("promote", "2", "promote.max_parameters=1")
    assert (found["promoted"], story.champion) == (False, 1)
    assert "over promote.max_parameters = 1" in found["reason"]
    assert story.promote("promote", "2")["promoted"]
    assert story.champion == 2
    history = story.promote("history")
    told = [(row["version"], row["previous"], row["action"]) for row in history]
    assert told == [
        (1, None, "promoted"),
        (2, 1, "promoted"),
        (1, 2, "rolled back"),
        (2, 1, "promoted"),
    ]
    assert history[2]["reason"] == "it was rude"
    assert all(row["user"] and row["seconds"] > time.time() - 3600 for row in history)
    code, out, err = story.folder.run("promote.py", "history")
    assert (code, err) == (0, "")
    assert "it was rude" in out


@pytest.fixture(scope="module")
def served(story) -> str:
    """Where the champion answers."""
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    arguments = ["models", "serve", "-m", "models:/dca-gpt@champion", "--env-manager", "local"]
    server = start_and_wait(
        [*arguments, "--port", str(port)],
        f"{uri}/health",
        story.folder.path,
        story.folder.environment,
    )
    yield f"{uri}/invocations"
    stop(server)


def ask(served: str, prompts: list, **params: object) -> requests.Response:
    table = {"columns": ["prompt"], "data": [[prompt] for prompt in prompts]}
    return requests.post(served, json={"dataframe_split": table, "params": params}, timeout=60)


def test_the_served_text_is_that_of_generate_with_the_same_seed(story, served):
    prompts = ["the é", "a old "]
    options = {"max_new_tokens": 30, "temperature": 0.9, "top_k": 20, "top_p": 0.9, "seed": 5}
    answer = ask(served, prompts, **options, stop="\n")
    assert answer.status_code == 200, answer.text
    rows = answer.json()["predictions"]
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
    flags += [f"--prompt={prompt}" for prompt in prompts]
    code, out, err = story.folder.run("generate.py", *flags, "--stop", "\n", "--json")
    assert (code, err) == (0, "models:/dca-gpt/2 (champion)\n")  # what was served
    texts = [json.loads(line)["text"] for line in out.splitlines()]
    assert [row["text"] for row in rows] == texts
    assert all(row["log_likelihood"] < 0 for row in rows)
    (default,) = ask(served, ["the "]).json()["predictions"]
    code, out, _ = story.folder.run("generate.py", "--prompt", "the ")
    assert out == f"{default['text']}\n"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"dataframe_split": {"columns": ["text"], "data": [["a"]]}}, "missing inputs"),
        (
            {"dataframe_split": {"columns": ["prompt"], "data": [[1]]}},
            "prompt: expected text, got 1",
        ),
        ({"dataframe_split": {"columns": ["prompt"], "data": [[""]]}}, "prompt: expected 1 to"),
        ({"dataframe_split": {"columns": ["prompt"], "data": [[None]]}}, "prompt: expected text"),
        ({"inputs": ["a"], "params": {"top_k": "x"}}, "top_k"),
        ({"inputs": {"prompt": ["a"]}, "params": {"temperature": -1.0}}, "temperature: expected"),
        ({"inputs": {"prompt": ["a"]}, "params": {"max_new_tokens": 10**7}}, "at most 65536"),
        ({}, "dataframe_split"),
    ],
)
def test_a_bad_request_gets_a_4xx_with_a_reason(served, body, expected):
    answer = requests.post(served, json=body, timeout=60)
    assert 400 <= answer.status_code < 500
    assert expected in answer.text


def test_prompts_come_from_a_file_or_standard_input_and_stop_and_samples_work(story):
    folder = story.folder
    (folder.path / "prompts.txt").write_text("the \na é\n")
    common = ("--max-new-tokens", "20", "--stop", "a", "--samples", "2", "--json")
    code, out, err = folder.run("generate.py", "--prompts", "prompts.txt", *common)
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["prompt"], row["seed"]) for row in rows] == [
        *(("the ", 0), ("the ", 1), ("a é", 0), ("a é", 1)),
    ]
    assert all("a" not in row["text"].removeprefix(row["prompt"]) for row in rows)
    given = (folder.path / "prompts.txt").read_text()
    code, piped, err = folder.run_forked("generate.py", *common, given=given)
    assert (code, piped) == (0, out), err


def test_a_text_is_scored_and_every_name_of_a_model_leads_to_it(story, text):
    folder, registry = story.folder, story.registry
    test = next((folder.path / "runs" / "corpora" / "sealed").glob("*.bin"))
    version = registry.get(2)
    expected = pytest.approx(float(version.tags["test.bits_per_byte"]), abs=1e-6)
    for model in ("dca-gpt/2", version.run_id):
        code, out, err = folder.run("generate.py", "--score", str(test), "--json", "--model", model)
        assert code == 0, err
        assert json.loads(out)["bits_per_byte"] == expected
    uri = folder.environment["MLFLOW_TRACKING_URI"]
    where = mlflow.artifacts.download_artifacts(
        "models:/dca-gpt/2", dst_path=str(folder.path / "local"), tracking_uri=uri
    )
    code, out, err = folder.run("generate.py", "--score", str(test), "--json", "--model", where)
    assert code == 0, err
    assert json.loads(out)["bits_per_byte"] == expected
    weights = Path(folder.path, where, "artifacts/model/model.safetensors")
    data = np.fromfile(weights, dtype=np.uint8)
    data[-1] ^= 1
    data.tofile(weights)
    code, out, err = folder.run("generate.py", "--prompt", "a", "--model", where)
    assert (code, out) == (1, "")
    assert "model.safetensors was altered" in err


def test_a_version_is_trained_again_bit_for_bit(story):
    code, out, err = story.folder.run("train.py", "--from-version", "1")
    assert code == 0, err
    assert "weights    bit for bit those of models:/dca-gpt/1" in out
    code, out, err = story.folder.run("train.py", "--from-version", "1", "seed=1")
    assert code == 0, err
    assert "weights    other than those of models:/dca-gpt/1" in out


@pytest.mark.extended
def test_a_model_of_train_is_registered_and_passes_the_gate_as_a_sweeps(story, text):
    folder, name = story.folder, "longer"
    train = ("train.py", "tiny.yaml", "train.tokens=8192", "seed=3", "--json")
    code, out, err = folder.run(*train)
    assert code == 0, err
    fit = json.loads(out.splitlines()[-1])["outputs"]["train"]
    copy = folder.path / "downloaded"
    copy.mkdir()
    copy = story.registry.models.download(model_id_of(fit["model_uri"]), copy)
    found = [
        story.promote("register", str(one), "--model", name)
        for one in (fit["model_uri"], fit["run_id"], copy, "1")
    ]
    assert all(one == found[0] for one in found)  # each time the same version
    (copy / "MLmodel").write_text((copy / "MLmodel").read_text() + "data: extra\n")
    code, out, err = folder.run("promote.py", "register", str(copy), "--model", name)
    assert (code, out, err) == (1, "", f"{copy}: MLmodel was altered after it was packaged\n")
    files = {name: copy / name for name in plain_files(copy) if name != DIGESTS}
    (copy / DIGESTS).write_text(format_digests(files))
    code, out, err = folder.run("promote.py", "register", str(copy), "--model", name)
    assert (code, out) == (1, "")
    assert err == f"{copy}: its SHA256SUMS is not the one that was logged\n"
    assert (found[0]["version"], found[0]["model_uri"]) == (1, fit["model_uri"])
    changes = ("promote.confidence=0.9", "storage=./runs", f"data.path={text}")
    code, out, err = folder.run("promote.py", "register", fit["run_id"], "--model", name, *changes)
    assert code == 0, err
    assert out.startswith(f"longer version 1 is {fit['model_uri']}: ")
    command = shlex.split(out.splitlines()[-1].partition(": ")[2])
    assert (command[0], Path(command[1]).name) == ("python", "promote.py")
    assert command[-2:] == [*changes[1:]]  # where the text is now
    decision = story.promote(*command[2:])
    assert decision["promoted"]
    assert decision["numbers"]["bits_per_byte"] == found[0]["test_bits_per_byte"]
    (row,) = story.promote("list", "--model", name)
    assert row["tags"]["fit_run"] == fit["run_id"]
    assert "" not in row["tags"].values()
    assert "trial" not in row["tags"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("0" * 32,), f"{'0' * 32}: "),
        (("nothing",), "models:/nothing: no such registered model"),
        (("2", "seed=1"), "command line: seed=1: expected a setting of the gate"),
        (("./runs",), "runs: expected a packaged model, with its MLmodel, or the folder"),
        (("./nowhere",), "./nowhere: no such folder"),
    ],
)
def test_what_cannot_be_registered_is_one_line(story, arguments, message):
    code, out, err = story.folder.run("promote.py", "register", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
