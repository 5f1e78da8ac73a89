import importlib.util
import io
import itertools
import math
import os
import py_compile
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from safetensors.torch import load_file, save_file

from dca import build_model, registry, stream
from pipelines import generate
from pipelines.console import progress
from pipelines.console.errors import ConfigError, DamagedError, PipelineError
from pipelines.experiment import Experiment, read_experiment
from pipelines.registry.package import FILES, fetch_model, load_model
from pipelines.registry.packaged_model import (
    DEFAULTS,
    SUMS,
    _characters,
    digest,
    text_bits,
    until,
    verify,
)
from pipelines.tracking.models import ModelStore
from pipelines.tracking.store import Store
from pipelines.training.evaluation import bits_per_byte
from tests.pipelines import forked
from tests.pipelines.packages import log_untrained
from tests.pipelines.stored import put_database

TEXT = "the small cat saw a sea of été, and then 日本 as well. "


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Iterator[Store]:
    """Where models are logged."""
    folder = tmp_path_factory.mktemp("packaged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", put_database(folder / "mlflow.db"))
        yield Store.open("tiny", folder / "runs")


def tiny(**model: Any) -> Experiment:
    """An experiment with a small model."""
    return read_experiment(
        {
            "experiment": "tiny",
            "model": {"dim": 16, "depth": 2, "heads": 2, **model},
            "train": {"seq_len": 32, "batch_tokens": 256},
        },
        source="test",
    )


@pytest.fixture(scope="module")
def logged(store) -> tuple[ModelStore, str]:
    """Where a model is logged, and its id."""
    _, uri = log_untrained(store, tiny())
    return store.models, uri.removeprefix("models:/")


@pytest.fixture
def folder(logged, tmp_path) -> Path:
    """A copy to be tampered with."""
    return fetch_model(*logged, tmp_path / "copy")


@pytest.fixture(scope="module")
def packaged(logged, tmp_path_factory):
    return load_model(fetch_model(*logged, tmp_path_factory.mktemp("loaded")))


def test_every_byte_but_the_first_is_scored_once(packaged):
    data = np.frombuffer(TEXT.encode() * 7, dtype=np.uint8)
    bits = packaged.bits(data)
    assert len(bits) == len(data) - 1
    whole = (len(data) - 1) // 32 * 32
    expected = bits_per_byte(packaged.model, data, seq_len=32)
    assert bits[:whole].mean() == pytest.approx(expected, rel=1e-6)
    rest = bits_per_byte(packaged.model, data[whole:], seq_len=len(data) - whole - 1)
    assert bits[whole:].mean() == pytest.approx(rest, rel=1e-6)
    assert len(packaged.bits(data[:1])) == 0


@pytest.mark.extended
@pytest.mark.slow
@pytest.mark.parametrize("residual", registry.residual.names)
def test_a_model_of_any_residual_kind_is_packaged_loaded_and_served(store, tmp_path, residual):
    experiment = tiny(residual=residual, depth=3)
    seed = 1 + registry.residual.names.index(residual)  # a run, and so a package, of its own
    _, uri = log_untrained(store, experiment, seed)
    served = load_model(fetch_model(store.models, uri.removeprefix("models:/"), tmp_path / "it"))
    torch.manual_seed(seed)
    model = build_model(experiment.model).eval()
    answer = served.predict(None, pd.DataFrame({"prompt": [TEXT]}), {"max_new_tokens": 9})
    ids = torch.frombuffer(bytearray(TEXT.encode()), dtype=torch.uint8).long()
    bits = text_bits(model, ids.numpy().astype(np.uint8), 32)
    assert answer["log_likelihood"][0] == pytest.approx(-math.log(2) * bits.sum(), rel=1e-6)
    options = {**DEFAULTS, "max_new_tokens": 9}
    drawn = torch.Generator().manual_seed(options.pop("seed"))
    assert options.pop("stop") == ""
    new = (int(b) for (b,) in stream(model, ids[None], generator=drawn, **options))
    assert answer["text"][0] == TEXT + "".join(_characters(new))


def test_a_table_of_prompts_gives_texts_and_their_prompts_log_likelihoods(packaged):
    table = pd.DataFrame({"prompt": ["the é", "a"]})
    answer = packaged.predict(None, table, {"max_new_tokens": 8})
    assert list(answer.columns) == ["text", "log_likelihood"]
    options = {**DEFAULTS, "max_new_tokens": 8}
    for prompt, text in zip(table["prompt"], answer["text"], strict=True):
        assert text == prompt + "".join(packaged.continuation(prompt, **options))
    nats = packaged.bits(np.frombuffer("the é".encode(), dtype=np.uint8)).sum() * math.log(2)
    assert list(answer["log_likelihood"]) == pytest.approx([-nats, 0.0])
    null = dict.fromkeys(("temperature", "seed", "stop"))
    assert packaged.predict(None, table, {"max_new_tokens": 8, **null}).equals(answer)
    whole = packaged.predict(None, table, {"max_new_tokens": 8, "top_k": None, "top_p": None})
    assert whole.equals(packaged.predict(None, table, {"max_new_tokens": 8, "top_k": 256}))
    some = packaged.predict(None, table[table["prompt"] == "a"], {"max_new_tokens": 8})
    assert some["text"].to_dict() == {1: answer["text"][1]}  # its rows are those of the table
    one = packaged.predict(None, {"prompt": np.str_("the é")}, {"max_new_tokens": 8})
    assert one["text"].tolist() == answer["text"].tolist()[:1]  # JSON's "inputs", without a list


@pytest.mark.parametrize(
    ("prompt", "options", "expected"),
    [
        ("", {}, "prompt: expected 1 to"),
        (None, {}, "prompt: expected text, got"),
        ("x" * 65_537, {}, "prompt: expected 1 to"),
        ("a", {"max_new_tokens": -1}, "max_new_tokens: "),
        ("a", {"max_new_tokens": 10**9}, "max_new_tokens: expected at most"),
        ("a", {"temperature": float("nan")}, "temperature: "),
        ("a", {"top_k": 0}, "top_k: "),
        ("a", {"top_p": 1.5}, "top_p: "),
        ("a", {"seed": -1}, "seed: "),
        ("a", {"stop": "x" * 1025}, "stop: expected at most 1024 characters, got 1025"),
    ],
)
def test_what_cannot_be_continued_is_an_invalid_parameter(packaged, prompt, options, expected):
    with pytest.raises(MlflowException, match=expected) as raised:
        packaged.predict(None, pd.DataFrame({"prompt": [prompt]}), options)
    assert raised.value.get_http_status_code() == 400


@pytest.mark.parametrize(
    ("key", "taken", "refused"),
    [
        ("max_new_tokens", [0, 65_536], [-1, 65_537]),
        ("temperature", [0.0, sys.float_info.max], [-1e-9, math.inf, math.nan]),
        ("top_k", [1, 2**70], [0]),
        ("top_p", [sys.float_info.min, 1.0], [0.0, 1.0000001, math.nan]),
        ("seed", [0, 2**63 - 1], [-1, 2**63]),
        ("stop", ["", "é" * 1024], ["é" * 1025]),
    ],
)
def test_the_command_refuses_what_a_model_refuses_before_it_loads_one(
    packaged, key, taken, refused
):
    option = f"--{key.replace('_', '-')}"
    for value in taken:
        packaged.check(["a"], **{**DEFAULTS, key: value})
        assert vars(generate._parse(["--prompt=a", f"{option}={value}"]))[key] == value
    for value in refused:
        with pytest.raises(ValueError, match=key):
            packaged.check(["a"], **{**DEFAULTS, key: value})
        with pytest.raises(ConfigError, match=f"^{option}: expected "):
            generate._parse(["--prompt=a", f"{option}={value}"])


def test_the_command_takes_a_prompt_of_the_size_that_a_model_takes(packaged):
    for size in (1, 32_768):
        prompt = "é" * size
        packaged.check([prompt], **DEFAULTS)
        assert generate._prompts(generate._parse(["--prompt", prompt])) == [prompt]
    too_long = "é" * 32_769
    with pytest.raises(ValueError, match="prompt: expected 1 to 65536 bytes, got 65538"):
        packaged.check([too_long], **DEFAULTS)
    with pytest.raises(ConfigError, match=r"^--prompt: expected at most 65536 bytes, got 65538"):
        generate._prompts(generate._parse(["--prompt", too_long]))


def test_prompts_of_windows_have_no_mark_and_no_carriage_returns(tmp_path):
    (tmp_path / "prompts.txt").write_bytes(b"\xef\xbb\xbfa \r\nb\r\n")
    arguments = generate._parse(["--prompts", str(tmp_path / "prompts.txt")])
    assert generate._prompts(arguments) == ["a ", "b"]
    (tmp_path / "prompts.txt").write_bytes(b"a\r\n\r\nb\r\n")
    with pytest.raises(ConfigError, match=r"prompts\.txt: line 2 is empty; expected a prompt in"):
        generate._prompts(arguments)


def test_a_pipe_of_prompts_that_nothing_writes_yet_is_shown(tmp_path, monkeypatch):
    shown, pipe = io.StringIO(), tmp_path / "pipe"
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(progress, "WATCH_SECONDS", 0.001)
    os.mkfifo(pipe)

    def write() -> None:
        while "reading" not in shown.getvalue():
            time.sleep(0.001)
        pipe.write_text("a")

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    assert generate._prompts(generate._parse(["--prompts", str(pipe)])) == ["a"]
    assert shown.getvalue().strip() == f"reading {pipe}, 0:00"


def test_the_last_samples_seed_is_within_the_limit_too():
    options = ["--prompt=a", "--samples=2", f"--seed={2**63 - 2}"]
    assert generate._parse(options).samples == 2
    with pytest.raises(ConfigError, match=r"^--samples: expected at most 2\*\*63 - 1 as the seed"):
        generate._parse([*options, "--samples=3"])
    with pytest.raises(ConfigError, match=r"^--samples: expected 1 to 2\*\*63 - 1, got 92"):
        generate._parse(["--prompt=a", f"--samples={2**63}"])


def test_while_a_text_is_scored_standard_error_shows_what_is_done(packaged, monkeypatch, capsys):
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(progress, "WATCH_SECONDS", 0.001)
    monkeypatch.setattr(progress.time, "monotonic", itertools.count(step=20).__next__)

    class Slow:
        def bits(self, data):
            while not shown.getvalue():
                time.sleep(0.001)
            return packaged.bits(data)

    generate._score(Slow(), b"a text", "label", generate._parse(["--score", "some.txt"]))
    assert shown.getvalue().startswith("  scoring 6 bytes of some.txt, ")
    assert capsys.readouterr().out.endswith(" bits per byte of 6 bytes of some.txt\n")


def test_the_score_of_a_model_that_gives_no_number_is_null_in_json(capsys):
    class Diverged:
        def bits(self, data):
            return np.full(data.size - 1, np.nan)

    generate._score(Diverged(), b"a text", "label", generate._parse(["--score", "a", "--json"]))
    assert capsys.readouterr().out.endswith('"bits_per_byte": null}\n')


def test_a_terminal_shows_the_controls_of_a_text(packaged, monkeypatch):
    arguments = generate._parse(["--prompt", "a", "--max-new-tokens", "0"])
    for is_terminal, shown in ((True, r"\x1b[1m"), (False, "\x1b[1m")):
        written = io.StringIO()
        written.isatty = lambda: is_terminal  # noqa: B023
        monkeypatch.setattr(sys, "stdout", written)
        generate._generate(packaged, ["\x1b[1m"], "label", arguments)
        assert written.getvalue() == f"{shown}\n"


def test_a_terminal_shows_the_controls_of_a_line_of_json(packaged, monkeypatch):
    arguments = generate._parse(["--prompt", "a", "--max-new-tokens", "0", "--json"])
    for is_terminal, shown in ((True, r"\u009b\u00e9"), (False, "\x9bé")):
        written = io.StringIO()
        written.isatty = lambda: is_terminal  # noqa: B023
        monkeypatch.setattr(sys, "stdout", written)
        generate._generate(packaged, ["\x9bé"], "label", arguments)
        assert f'"text": "{shown}"' in written.getvalue()


@pytest.mark.parametrize(
    ("prompts", "new", "expected"),
    [
        (
            ["a" * 65_536] * 17,
            0,
            "prompt: expected at most 1048576 bytes in a request, got 1114112",
        ),
        (257, 1, "prompt: expected at most 256 in a request, got 257"),
        (17, 65_536, "max_new_tokens: expected at most 61680 for 17 prompts, got 65536"),
    ],
)
def test_a_request_has_a_size(packaged, prompts, new, expected):
    with pytest.raises(MlflowException, match=expected) as raised:
        table = prompts if isinstance(prompts, list) else ["a"] * prompts
        packaged.predict(None, pd.DataFrame({"prompt": table}), {"max_new_tokens": new})
    assert raised.value.get_http_status_code() == 400


def test_the_signature_is_typed_and_has_an_example(folder):
    model = Model.load(folder)
    assert model.signature.inputs.input_names() == ["prompt"]
    assert model.signature.outputs.input_names() == ["text", "log_likelihood"]
    kinds = {spec.name: spec.dtype.name for spec in model.signature.params.params}
    assert kinds == {
        "max_new_tokens": "long",
        "temperature": "double",
        "top_k": "long",
        "top_p": "double",
        "seed": "long",
        "stop": "string",
    }
    assert model.load_input_example(str(folder))["prompt"].tolist() == ["def ", "class "]


@pytest.mark.parametrize("cut", range(1, 6))
def test_a_text_ends_before_the_stop_wherever_it_is_cut_into_parts(cut):
    text = "one stop two stop"
    parts = [text[i : i + cut] for i in range(0, len(text), cut)]
    assert "".join(until(" stop", iter(parts))) == "one"
    assert "".join(until("sto!", iter(parts))) == text
    assert "".join(until("", iter(parts))) == text
    assert list(until("xyz", iter(["a", "x", "xy"]))) == ["a", "x", "xy"]


def test_no_character_is_cut(packaged):
    codes = "é日".encode()
    assert "".join(_characters(iter(codes))) == "é日"
    assert "".join(_characters(iter(codes[:-1]))) == "é"
    assert "".join(_characters(iter(b"a\xffb"))) == "a\N{REPLACEMENT CHARACTER}b"
    hot = {**DEFAULTS, "temperature": 50.0, "top_k": 256, "max_new_tokens": 300}
    for text in packaged.continuation("a", **hot):
        assert text.encode().decode() == text


def altered(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "file",
    [
        *("artifacts/model/model.safetensors", "artifacts/model/config.json"),
        *("code/dca/model.py", "packaged_model.py"),
    ],
)
def test_an_altered_file_is_refused_by_name(folder, file):
    altered(folder / file)
    with pytest.raises(PipelineError, match=f"{file} was altered"):
        load_model(folder)
    (folder / file).unlink()
    with pytest.raises(PipelineError, match=f"{file} is missing"):
        load_model(folder)


def spoil(file: Path) -> None:
    """Weights as of a training that has diverged."""
    save_file({name: w.fill_(math.nan) for name, w in load_file(file).items()}, file)


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("model.safetensors", spoil, "model.safetensors: has weights that are no finite numbers"),
        ("model.safetensors", lambda file: file.write_bytes(b"x"), "model.safetensors: .*header"),
        ("model.safetensors", Path.unlink, "model.safetensors: No such file"),
        ("config.json", Path.unlink, "config.json: .*No such file"),
        ("config.json", lambda file: file.write_text("{}"), "config.json: KeyError 'model'"),
        (
            "config.json",
            lambda file: file.write_text(file.read_text().replace('"vocab": 256', '"vocab": 3')),
            "cannot be loaded: RuntimeError: Error.* loading state_dict",
        ),
    ],
)
def test_a_package_whose_checksums_agree_with_damaged_files_is_one_line(
    folder, name, change, expected
):
    change(folder / FILES / name)
    sums = folder / FILES / SUMS
    names = [row.split(maxsplit=1)[1] for row in sums.read_text().splitlines()]
    present = [name for name in names if (folder / name).is_file()]
    sums.write_text("".join(f"{digest(folder / name)}  {name}\n" for name in present))
    with pytest.raises(DamagedError, match=f"^{re.escape(str(folder))}: .*{expected}") as error:
        load_model(folder)
    assert "\n" not in str(error.value)


def test_code_that_was_added_is_refused(folder):
    (folder / "code" / "torch.py").write_text("print('gotcha')")
    with pytest.raises(PipelineError, match=r"code/torch\.py was added"):
        load_model(folder)


def test_what_mlflow_would_load_instead_is_refused(folder):
    description = folder / "MLmodel"
    before = description.read_text()
    path = re.search(r"model_code_path: (.*)", before)[1]
    other = before.replace("path: artifacts/model", "path: artifacts/other")
    for text in (before.replace(path, "evil.py"), other, "garbage: [", "a: 1", "[]", "\N{NULL}"):
        description.write_text(text)
        with pytest.raises(PipelineError, match="MLmodel was altered"):
            load_model(folder)
    description.write_text(before)
    shutil.copytree(folder / FILES, folder / "artifacts" / "other")
    with pytest.raises(PipelineError, match=r"artifacts/other/\S+ was added"):
        load_model(folder)


@pytest.mark.parametrize("file", ["MLmodel", "requirements.txt"])
def test_a_package_refuses_by_itself_what_was_added_and_any_link(folder, file, tmp_path):
    verify(folder)
    (folder / "registered_model_meta").write_text("model_name: tiny")  # as MLflow does
    verify(folder)
    altered(folder / file)
    with pytest.raises(ValueError, match=f"^{file} was altered"):
        verify(folder)
    altered(folder / file)
    (folder / "extra").mkdir()
    (folder / "extra" / file).write_text("")
    with pytest.raises(ValueError, match=f"^extra/{file} was added"):
        verify(folder)
    shutil.rmtree(folder / "extra")
    (folder / "code" / "extra").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"^code/extra is a link"):
        verify(folder)


@pytest.mark.process
def test_a_cache_with_other_code_is_not_read_and_none_is_left(folder):
    source = folder / "code" / "dca" / "sampling.py"
    cache = Path(importlib.util.cache_from_source(str(source)))
    cache.parent.mkdir()
    evil = folder.parent / "evil.py"
    evil.write_text("raise SystemExit('gotcha')")
    py_compile.compile(
        str(evil), str(cache), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    load = f"import mlflow; mlflow.pyfunc.load_model({str(folder)!r})"
    code = f"import sys; sys.dont_write_bytecode = False; {load}"  # as the default is
    command = [sys.executable, "-c", code]
    child = forked.run(command, without=["dca", "pipelines"], cwd=folder.parent)
    assert child.returncode == 0, child.stderr
    assert list(cache.parent.iterdir()) == [cache]


@pytest.mark.process
def test_mlflow_itself_refuses_altered_weights(folder):
    """Loading it without this project is protected, too."""
    altered(folder / FILES / "model.safetensors")
    code = f"import mlflow; mlflow.pyfunc.load_model({str(folder)!r})"
    child = forked.run([sys.executable, "-c", code], without=["dca", "pipelines"])
    assert child.returncode == 1
    assert "model.safetensors was altered" in child.stderr


def test_digests_rewritten_to_match_are_refused_by_the_one_in_the_store(logged, tmp_path):
    models, model_id = logged
    stored = models.download(model_id, tmp_path / "where")
    assert stored.is_relative_to(tmp_path)
    location = models.client.get_logged_model(model_id).artifact_location
    origin = Path(location.removeprefix("file://"))
    weights, sums = origin / FILES / "model.safetensors", origin / FILES / SUMS
    before = weights.read_bytes(), sums.read_text()
    try:
        altered(weights)
        rows = [row for row in before[1].splitlines() if "model.safetensors" not in row]
        rows.append(f"{digest(weights)}  {(FILES / 'model.safetensors').as_posix()}")
        sums.write_text("\n".join(rows) + "\n")
        with pytest.raises(PipelineError, match="not the one that was logged"):
            fetch_model(models, model_id, tmp_path / "fetched")
    finally:
        weights.write_bytes(before[0])
        sums.write_text(before[1])


def test_a_folder_without_a_model_is_bad_input(tmp_path):
    with pytest.raises(ConfigError, match="expected a packaged model"):
        load_model(tmp_path)
