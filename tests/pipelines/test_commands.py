"""Commands that need no Ray: bad input, one training run, two commands in one process."""

import errno
import io
import json
import logging
import os
import re
import signal
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from pipelines import generate, promote, report, sweep, train
from pipelines.cluster import connection
from pipelines.cluster.connection import _set_defaults, ray_session
from pipelines.compat.mlflow import ignore_warnings, is_filter
from pipelines.console.command import run_command
from pipelines.console.errors import ConfigError
from pipelines.console.process import LOGGERS, GuardedStream, output_guarded
from pipelines.console.progress import Progress
from pipelines.engine import dag
from pipelines.registry import differences, gate, package, resolve
from pipelines.registry.champions import Champions, ChampionState
from pipelines.stages.corpus import CorpusStage
from pipelines.storage.location import Storage
from pipelines.tracking import client
from pipelines.tracking.locks import exclusive_lock
from pipelines.training import checkpoint
from tests.pipelines import forked
from tests.pipelines.commands import (
    ROOT,
    Folder,
    assert_whole,
    invocation,
    saved,
    training,
)
from tests.pipelines.conftest import KEYS

DIGITS = 5000 * "9"
"""More than Python makes an integer of."""


def test_two_trainings_that_would_write_one_run_have_one_lock(experiment, monkeypatch):
    """Else the second waits for the folder of the checkpoints, and marks the run as failed."""
    names: list[str] = []
    monkeypatch.setattr(dag, "run", lambda *_, lock_name, **__: names.append(lock_name))
    other = {"promote.model": "other", "generate.max_new_tokens": 3, "tensorboard": True}
    other |= {"resources.cpus_per_worker": 2, "search.trials": 3, "model.mhc.streams": 3}
    own = {"experiment": "x", "seed": 9, "model.depth": 1, "train.tokens": 512, "data.max_bytes": 9}
    for changes in ({}, other, *({key: value} for key, value in own.items())):
        changed = experiment.replace(changes)
        train._run(changed, CorpusStage(), invocation(), fresh=False)
    assert names[0] == names[1]
    assert len(set(names)) == 1 + len(own)


@pytest.mark.slow
def test_an_experiment_that_runs_is_refused_before_ray_is_started(tmp_path, text, monkeypatch):
    started = Mock()
    monkeypatch.setattr(connection, "start_early", started)
    folder = Folder(tmp_path, text)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with exclusive_lock("experiment tiny"):
        code, out, err = folder.run("sweep.py", "tiny.yaml")
        assert (code, out) == (1, "")
        assert re.match(rf"experiment tiny: already running \(process {os.getpid()}: ", err)
    assert not started.called


@pytest.mark.parametrize(
    ("command", "arguments", "expected"),
    [
        ("sweep.py", ["model.dimm=3"], "model.dimm: unknown key; did you mean model.dim?"),
        ("sweep.py", ["none.yaml"], "none.yaml: no such file"),
        ("sweep.py", ["--until", "fitt"], 'report, got "fitt"; did you mean fit?'),
        ("sweep.py", ["--dryrun"], "unrecognized arguments: --dryrun; did you mean --dry-run?"),
        (
            "sweep.py",
            [f"train.tokens={DIGITS}"],
            "expected an integer of at most 4,300 digits, got",
        ),
        ("sweep.py", [f"{DIGITS}=1"], "9...: unknown key"),
        ("sweep.py", ["seed=1", "--until", "fit", "seed=x"], "command line: seed: "),
        ("sweep.py", ["data={corpus: files, path: none.txt}"], "none.txt: no such file"),
        (
            "sweep.py",
            ["resources.cpus_per_worker=99"],
            "workers=1 of 99 CPUs each; there is room for 0",
        ),
        (
            "sweep.py",
            ["fit.resources.gpus_per_worker=1"],
            "fit.resources: workers=2 of 1 CPU and 1 GPU each",
        ),
        (
            "sweep.py",
            [f"{ROOT}/experiments/enwik8.yaml", "--dry-run"],
            "workers=1 of 4 CPUs and 1 GPU each",
        ),
        ("train.py", ["train.tokens=x"], 'train.tokens: input should be a valid integer, got "x"'),
        ("train.py", ["storage=s3://AKIA:secret@bucket/x"], "storage: expected a folder, or a URI"),
        (
            "sweep.py",
            ["storage=s3://b/x", "tensorboard=true"],
            "tensorboard: expected storage to be",
        ),
        ("train.py", ["--from-version", "1", "a.yaml"], "got a.yaml as well"),
        ("train.py", ["--from-version", "1"], "there is no "),
        ("sweep.py", ["--json", "--dry-run"], "--json: expected without --dry-run"),
        ("train.py", ["--json", "--quiet"], "not allowed with argument --json"),
        ("generate.py", ["--prompt", "a", "--model", "nobody"], "there is no "),
        ("generate.py", ["--prompt", ""], "--prompt: expected"),
        (
            "generate.py",
            ["--prompt", "a", "--prompt", ""],
            "--prompt: expected at least one character, got none in number 2",
        ),
        ("generate.py", ["--prompt", "a", "--prompts", "b"], "--prompts: expected without"),
        ("generate.py", ["--prompt", "\udcff"], "command line: \\udcff: expected text in UTF-8"),
        ("promote.py", ["list", "--model", "b\udcff"], "command line: b\\udcff: expected text in"),
        ("train.py", ["\udcff.yaml"], "command line: \\udcff.yaml: expected text in UTF-8"),
        ("generate.py", ["--prompts", "none.txt"], "none.txt: cannot be read: No such file"),
        ("generate.py", ["--prompt", "a", "--model", "./no"], "./no: no such folder"),
        ("generate.py", ["--prompt", "a", "--model", "."], "expected a packaged model"),
        (
            "generate.py",
            ["--prompt", "a", "--samples", "0"],
            "--samples: expected 1 to 2**63 - 1, got 0",
        ),
        ("generate.py", ["--samples", DIGITS], "--samples: expected an integer, got 999"),
        ("generate.py", ["--max-new-tokens", DIGITS[:4000]], "expected 0 to 65536, got 999"),
        ("generate.py", ["--seed", "7", "--samples", DIGITS[:4000]], "--samples: expected 1 to"),
        ("generate.py", ["--temperature", "warm"], "--temperature: expected a number, got warm"),
        ("train.py", ["experiment=2024"], "letters, digits"),
        ("generate.py", ["--top-p", ""], "--top-p: expected a number, got no text"),
        ("generate.py", ["--score", "a", "--samples", "2"], "--score: expected without --samples"),
        ("generate.py", ["--prompt", "a", "--score", "b"], "--score: expected without --prompt"),
        ("generate.py", ["--score", "/dev/zero"], "/dev/zero: has more than 100,000,000 bytes"),
        ("generate.py", ["--score", "a", "--top-k=3"], "--score: expected without --top-k"),
        ("train.py", ["seeds=3"], "command line: seeds=3: train.py trains one configuration"),
        ("train.py", ["arms.a.model.dim=16"], "train.py trains one configuration; expected seed="),
        ("train.py", ["arms.a.model.dim=16"], "model and train; did you mean model.dim?"),
        ("train.py", ["fit.tokens=5000000"], "model and train; did you mean train.tokens?"),
        ("train.py", ["fit.resources.workers=2"], "train; did you mean resources.workers?"),
        ("train.py", ["search.trials=3"], "train.py trains one configuration; expected seed="),
        (
            "train.py",
            ["search.space.train.beta1={choice: [0.8, 0.9]}"],
            "model and train; did you mean train.beta1?",
        ),
        ("train.py", ["compare.single_look=true"], "train.py trains one configuration; expected"),
        ("clean.py", ["--storage=nope"], "--storage=nope: no such folder"),
        ("clean.py", ["--storage="], "--storage: expected a folder or a URI, got no text"),
        ("train.py", ["storage=' '"], "storage: expected a folder or a URI, got no text"),
        ("clean.py", ["--storage=/dev/null"], "--storage=/dev/null: is no folder"),
        ("clean.py", [f"--storage={300 * 'a'}"], ": File name too long"),
        ("generate.py", [], "standard input: is empty; expected a prompt in each line or --prompt"),
        (
            "generate.py",
            ["--prompts", "/dev/null"],
            "/dev/null: is empty; expected a prompt in each",
        ),
        ("report.py", [""], "EXPERIMENT: expected the name of an experiment, got no text; without"),
        ("promote.py", [], "required: COMMAND"),
        ("promote.py", ["lits"], 'history, got "lits"; did you mean list?'),
        ("promote.py", ["rollback", "--jsn"], "unexpected argument: --jsn; did you mean --json?"),
        ("promote.py", [DIGITS], "COMMAND: expected one of list, compare, "),
        ("promote.py", ["list"], "there is no "),
        ("promote.py", ["promote", "1", "2"], "unexpected argument: 2"),
        ("promote.py", ["promote", "1", "--force", " "], "--force: expected a reason"),
        ("promote.py", ["rollback", "--force"], "unexpected argument: --force"),
        ("promote.py", ["list", "--dry-run"], "argument: --dry-run; list has no such option\n"),
        ("promote.py", ["register", "x", "--force", "why"], "--force; register has no such option"),
        ("promote.py", ["rollback", "--force", "x"], "--force; rollback has no such option\n"),
        ("promote.py", ["promote", "3", "--reason", "x"], "--reason; promote has no such option"),
        ("promote.py", ["promote", "3", "--reason=x"], "--reason=x; promote has no such option"),
        ("promote.py", ["--json", "list"], "unexpected argument: --json; expected after list\n"),
        ("promote.py", ["rollback", "--model", ""], "--model: expected the name of a registered"),
        ("generate.py", ["--prompt", "a", "--top-k", "0"], "--top-k: expected at least 1, got 0"),
        ("generate.py", ["--prompt", "a", "--top-k", "x"], "--top-k: expected an integer, got x"),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_leaves_nothing(
    tmp_path, command, arguments, expected
):
    code, _, err = Folder(tmp_path).run(command, *arguments)
    assert code == 2, err
    assert expected in err
    assert len(err.strip().splitlines()) == 1
    assert len(err) < 600
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (Mock(side_effect=OSError(errno.EBADF, "Bad file descriptor")), "cannot be read: Bad file"),
        (Mock(side_effect=io.UnsupportedOperation("read")), "cannot be read: read; expected --pr"),
        (Mock(return_value=None), "is empty; expected a prompt in each line or --prompt TEXT or"),
    ],
)
def test_a_standard_input_that_cannot_be_read_is_refused(monkeypatch, read, message):
    monkeypatch.setattr(sys, "stdin", Mock(isatty=lambda: False, buffer=Mock(read=read)))
    with pytest.raises(ConfigError, match=f"^standard input: {message}"):
        generate.main([])


def test_a_prompt_that_is_too_long_is_named_by_its_line(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text(f"a\n{70_000 * 'a'}\n")
    with pytest.raises(ConfigError) as error:
        generate.main(["--prompts", str(file)])
    assert str(error.value) == f"{file}: line 2: expected at most 65536 bytes, got 70000"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_text_in_json_is_json_in_the_encoding_of_standard_output(monkeypatch, encoding):
    out = io.TextIOWrapper(io.BytesIO(), encoding)
    packaged = SimpleNamespace(check=lambda *_, **__: 0, continuation=lambda *_, **__: ["😀"])
    with monkeypatch.context() as patch, output_guarded():
        patch.setattr(sys, "stdout", GuardedStream(out))
        generate._generate(packaged, ["é"], "m", generate._parse(["--prompt", "é", "--json"]))
    written = out.buffer.getvalue().decode(encoding)
    assert json.loads(written)["text"] == "é😀"
    assert ("😀" in written) is (encoding == "utf-8")


def test_what_reads_whole_models_shows_it_on_standard_error(monkeypatch, capsys):
    """It was silent for minutes where a model is large, or a store slow."""
    shown, waiting = [], Progress.waiting

    def noted(progress: Progress, text: str) -> AbstractContextManager[None]:
        assert progress.console.stderr
        shown.append(text)
        return waiting(progress, text)

    monkeypatch.setattr(Progress, "waiting", noted)
    decision = gate.Decision(2, True, "forced", None, "", {})
    for module, name, result in (
        (gate, "gate_lock", nullcontext()),
        (gate, "rollback", (2, 1)),
        (gate, "force", decision),
        (Champions, "state", ChampionState(2, 1)),
        (differences, "lineage_of", {"lineage": {}}),
        (client, "connect_existing", None),
        (resolve, "resolve_model", ("m-1", "models:/dca-gpt/1")),
        (package, "fetch_model", Path("model")),
    ):
        monkeypatch.setattr(module, name, lambda *_, result=result, **__: result)
    version = Mock(version="2", creation_timestamp=0, run_id="r", source="m", tags={})
    registry = Mock(find=lambda _: 2, aliases=dict, versions=lambda: [version])
    registry.get.return_value = version
    promote._list(registry, promote._parse(["list", "--json"]))
    promote._promote(registry, promote._parse(["promote", "2", "--force", "it is better"]))
    promote._rollback(registry, promote._parse(["rollback"]))
    with generate._fetched("dca-gpt") as (folder, _):
        assert folder == Path("model")
    assert shown == [
        "reading 1 version",
        "checking the files of version 2",
        "checking the files of the earlier champions",
        "fetching models:/dca-gpt/1",
    ]


@pytest.mark.process
@pytest.mark.parametrize("command", ["sweep", "train", "promote", "generate", "report"])
def test_the_exit_code_of_a_process_is_that_of_its_command(tmp_path, command):
    code, out, err = Folder(tmp_path).run_forked(f"{command}.py", "--nothing")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    code, out, err = Folder(tmp_path).run_forked(f"{command}.py", "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: {command}.py")


@pytest.mark.parametrize("command", ["sweep.py", "train.py"])
def test_an_idle_tpu_is_reported_before_anything_else(tmp_path, text, command):
    folder = Folder(tmp_path, text)
    folder.environment |= {"TPU_NAME": "local", "CUDA_VISIBLE_DEVICES": ""}
    code, _, err = folder.run(command, "tiny.yaml", "resources.cpus_per_worker=999")
    tpu, refused = err.splitlines()
    assert code == 2
    assert (
        tpu == "this machine looks like a TPU host, but torch_xla is not installed: using the CPU"
    )
    assert "999 CPUs each" in refused


@pytest.mark.parametrize("command", ["sweep.py", "train.py"])
def test_what_cannot_fit_is_refused_before_it_runs(tmp_path, text, command):
    folder = Folder(tmp_path, text, fresh=True)
    code, out, err = folder.run(command, "tiny.yaml", "model.dim=262144")
    assert (code, out) == (2, "")
    assert err.startswith("model.dim: ") and "expected a smaller model.dim" in err
    assert len(err.splitlines()) == 1
    assert [path.name for path in folder.path.iterdir()] == ["tiny.yaml"]


def test_a_bucket_that_is_not_there_is_one_line_and_leaves_nothing(
    tmp_path, text, s3, object_store
):
    folder = Folder(tmp_path / "here", text, fresh=True)
    code, out, err = folder.run("train.py", "tiny.yaml", f"storage={object_store.uri('none/x')}")
    assert (code, out) == (2, "")
    assert re.fullmatch(
        r"storage: s3://none/x/probe-.+: cannot be written: .+NO_SUCH_BUCKET.+\n", err
    )
    assert [path.name for path in folder.path.iterdir()] == ["tiny.yaml"]


KILLED = """
import os, signal, sys
from pipelines import train
from pipelines.console.command import run_command
from pipelines.storage.remote import RemoteDirectory
put, digests = RemoteDirectory.put, []
def put_or_be_killed(folder, source, *names):
    digests.extend(name for name in names if name == "SHA256SUMS")
    if len(digests) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    put(folder, source, *names)
RemoteDirectory.put = put_or_be_killed
sys.exit(run_command(train.main, ["train.py", *sys.argv[1:]], resumes=True))
"""
"""train.py that is killed while it uploads its third checkpoint."""


@pytest.mark.extended
@pytest.mark.process
def test_a_training_in_an_object_store_that_was_killed_goes_on_bitwise_and_generates(
    tmp_path, text, s3
):
    command = ("train.py", "tiny.yaml", "train.tokens=32768", "train.evals=16")
    whole, folder = Folder(tmp_path / "whole", text), Folder(tmp_path / "killed", text)
    code, _, err = whole.run(*command)
    assert code == 0, err
    shared = Storage.of(s3).folder
    killed = forked.run(
        [sys.executable, "-c", KILLED, *command[1:], f"storage={s3}"],
        cwd=folder.path,
        env=folder.environment,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert sum(name.endswith("SHA256SUMS") for name in shared.files()) == 2
    code, out, err = folder.run(*command, f"storage={s3}")
    assert code == 0, err
    assert "resumes from step 16" in out
    assert not (folder.path / "runs").exists()
    (run,) = {name.split("/")[1] for name in shared.files() if name.startswith("fits/")}
    assert saved(checkpoint.list_checkpoints(shared / "fits" / run)[-1]) == training(whole)
    assert_whole(folder.store(), folder.store().find("train"))
    uri = re.search(r"models:/m-\w+", out).group()
    code, written, err = folder.run("generate.py", "--prompt", "a ", "--model", uri)
    assert (code, err) == (0, f"{uri}\n")
    kept = [path.read_bytes() for path in folder.path.rglob("*") if path.is_file()]
    written_bytes = b"".join([*kept, out.encode(), written.encode()])
    assert s3.partition("?")[0].encode() in written_bytes
    assert not any(KEYS[name].encode() in written_bytes for name in KEYS if "KEY" in name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["corpora", "artifacts"])
def test_a_file_in_place_of_a_folder_of_the_storage_is_one_line(tmp_path, text, name):
    folder = Folder(tmp_path, text)
    (folder.path / "runs").mkdir()
    (folder.path / "runs" / name).touch()
    code, _, err = folder.run("train.py", "tiny.yaml", "train.tokens=512", "train.evals=1")
    assert (code, err) == (2, f"{folder.path}/runs/{name}: expected a folder, got a file\n")


@pytest.mark.slow
def test_train_makes_a_model_that_generates(tmp_path, text):
    folder = Folder(tmp_path, text)
    command = ("train.py", "tiny.yaml", "train.tokens=8192", "model.dim=32", "tensorboard=true")
    code, out, err = folder.run(*command)
    assert code == 0, err
    (events,) = folder.path.glob("runs/tensorboard/tiny/*/events*")
    assert events.read_bytes().count(b"val_bits_per_byte") == 8
    uri = re.search(r"models:/m-\w+", out).group()
    code, out, err = folder.run("generate.py", "--prompt", "a ", "--model", uri)
    assert (code, err) == (0, f"{uri}\n")
    assert out.startswith("a ")


@pytest.mark.slow
def test_a_machine_reads_a_training_and_quiet_prints_only_its_result(tmp_path, text):
    folder = Folder(tmp_path, text)
    command = ("train.py", "tiny.yaml", "train.tokens=8192")
    code, out, err = folder.run(*command, "--json")
    assert (code, err) == (0, "")
    events = [json.loads(line) for line in out.splitlines()]
    assert [row["state"] for row in events if row["event"] == "stage"] == ["begun", "done"] * 2
    assert any(row["event"] == "progress" and row.get("of_steps") == 32 for row in events)
    result = events[-1]
    assert result["event"] == "result"
    code, out, err = folder.run(*command, "--quiet")
    assert (code, out, err) == (0, f"{result['text']}\n", "")
    assert result["outputs"]["train"]["model_uri"] in out


@pytest.mark.slow
def test_a_logged_transformer_can_be_trained_on_as_dca(tmp_path, text):
    folder = Folder(tmp_path, text)
    standard = ["tiny.yaml", "model.residual=standard", "train.tokens=8192", "train.evals=2"]
    code, out, err = folder.run("train.py", *standard)
    assert code == 0, err
    (uri,) = re.findall(r"^model +(models:/m-\w+)", out, re.M)
    retrofit = [*standard[:1], "model.residual=dca", *standard[2:], f"train.start_from={uri}"]
    code, again, err = folder.run("train.py", *retrofit)
    assert code == 0, err
    before, after = (float(re.search(r"validation ([\d.]+)", x)[1]) for x in (out, again))
    assert after < before
    code, _, err = folder.run("train.py", *retrofit, "model.dim=32")
    assert code == 2
    assert "model.dim: expected 16" in err
    code, _, err = folder.run("train.py", *standard, "train.start_from=models:/nowhere@champion")
    assert code == 2
    assert "nowhere" in err


def process_state() -> dict:
    """What a command could leave behind for the next one."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    return {
        "environment": dict(os.environ),
        "handlers": [signal.getsignal(number) for number in numbers],
        "levels": [logging.getLogger(name).level for name in (None, *LOGGERS)],
        "warnings": [one for one in warnings.filters if is_filter(one)],
        "threads": torch.get_num_threads(),
        "folder": Path.cwd(),
    }


@pytest.mark.extended
@pytest.mark.slow
@pytest.mark.parametrize(
    ("main", "arguments", "code"),
    [
        (sweep.main, ["tiny.yaml", "--print-config"], 0),
        (sweep.main, ["tiny.yaml", "model.dimm=3"], 2),
        (sweep.main, ["tiny.yaml", "resources.cpus_per_worker=999"], 2),
        (sweep.main, ["tiny.yaml", "--dry-run", "--until", "corpus"], 0),
        (train.main, ["tiny.yaml", "--print-config"], 0),
        (train.main, ["tiny.yaml", "train.tokens=x"], 2),
        (train.main, ["--from-version", "1"], 2),
        (train.main, ["tiny.yaml", "train.tokens=4096", "--fresh"], 0),
        (promote.main, ["list"], 2),
        (promote.main, ["list", "--model", "other"], 2),
        (generate.main, ["--prompt", "a"], 2),
        (generate.main, ["--prompt", "a", "--model", "./none"], 2),
        (report.main, ["quickstart"], 2),
    ],
)
def test_two_commands_in_one_process_behave_as_in_two(
    tmp_path, text, monkeypatch, capsys, main, arguments, code
):
    Folder(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "7")  # a user's own value is kept
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    script = f"{ROOT}/pipelines/{main.__module__.rpartition('.')[2]}.py"
    before = process_state()

    def run() -> tuple[int, str, str]:
        found = run_command(main, [script, *arguments], resumes=True)
        out, err = capsys.readouterr()
        return found, re.sub(r"m-\w+", "MODEL", out), err

    first = run()
    assert first[0] == code, first
    assert process_state() == before
    assert run() == first
    assert process_state() == before


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (promote.main, ["list"]),
        (generate.main, ["--prompt", "a"]),
        (report.main, ["tiny"]),
        (train.main, ["--from-version", "1"]),
    ],
)
def test_a_command_reads_the_store_of_its_own_folder_and_leaves_nothing(
    tmp_path, text, monkeypatch, main, arguments
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    logging.getLogger("mlflow").setLevel(logging.INFO)
    Folder(tmp_path / "first", text)
    Folder(tmp_path / "second", text, fresh=True)
    before = process_state()
    for name, expected in (("first", "no "), ("second", "there is no ")):
        monkeypatch.chdir(tmp_path / name)
        with pytest.raises(ConfigError) as error:
            main(arguments)
        assert expected in str(error.value)
        assert process_state() | {"folder": None} == before | {"folder": None}
    assert not (tmp_path / "second" / "mlflow.db").exists()


def test_a_session_restores_what_ray_and_a_command_change(monkeypatch):
    monkeypatch.setenv("OWN", "before")
    before = process_state()
    with ray_session():
        _set_defaults({"RAY_TRAIN_METRICS_ENABLED": "0", "OWN": "not set again"})
        os.environ |= {"OWN": "changed", "GLOO_SOCKET_IFNAME": "eth0"}
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        ignore_warnings()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        assert process_state() != before
    assert process_state() == before
