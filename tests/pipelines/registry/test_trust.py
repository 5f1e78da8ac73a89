"""What is loaded is what was logged: attacks on the files of a model, each refused in one line."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from pipelines import generate, promote, train
from pipelines.console.command import run_command
from pipelines.console.errors import ConfigError, DamagedError, PipelineError
from pipelines.experiment import read_experiment
from pipelines.registry.package import CONFIG, FILES, LINEAGE, fetch_model, load_model
from pipelines.registry.versions import Registry
from pipelines.storage.digests import DIGESTS_FILE as SUMS
from pipelines.storage.digests import format_digests, plain_files
from pipelines.tracking.models import verify_model_folder
from pipelines.tracking.schema import SCHEMA_TAG, SHA256_TAG, SIZE_TAG
from pipelines.tracking.store import Store
from pipelines.tracking.uri import local_path
from tests.pipelines.packages import log_untrained
from tests.pipelines.stored import put_database

EXPERIMENT = {
    "experiment": "tiny",
    "model": {"dim": 16, "depth": 2, "heads": 2},
    "train": {"seq_len": 32, "batch_tokens": 256},
}
PLANTED = "import pathlib; pathlib.Path('planted').write_text('')"
"""What would show that foreign code was run."""


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Iterator[Store]:
    """A store with one model, tiny/1."""
    folder = tmp_path_factory.mktemp("trust")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", put_database(folder / "mlflow.db"))
        made = Store.open("tiny", folder / "runs")
        run, uri = log_untrained(made, read_experiment(EXPERIMENT, source="test"))
        Registry(made.client, "tiny").register(uri, run, {})
        yield made


@pytest.fixture
def logged(store, tmp_path, monkeypatch) -> Iterator[Path]:
    """The folder of the model in the artifact store, as it was once the test has ended."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.client.uri)
    (tmp_path / "working").mkdir()
    monkeypatch.chdir(tmp_path / "working")
    model = store.client.get_logged_model(Registry(store.client, "tiny").model_id(1))
    folder = Path(model.artifact_location.removeprefix("file://"))
    shutil.copytree(folder, tmp_path / "before")
    yield folder
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "before", folder)
    store.client.set_logged_model_tags(model.model_id, model.tags)


def list_again(folder: Path) -> None:
    """Make the list of digests match the files, as one can who writes the artifact store."""
    digests = folder / FILES / SUMS
    digests.unlink()
    files = {name: folder / name for name in plain_files(folder)}
    digests.write_text(format_digests(files))


def add_data(folder: Path) -> None:
    """Let MLflow take another folder for the model's data."""
    description = folder / "MLmodel"
    line = "  python_function:\n"
    description.write_text(description.read_text().replace(line, f"{line}    data: extra\n"))
    (folder / "extra").mkdir()
    (folder / "extra" / "MLmodel").write_text(description.read_text())
    (folder / "extra" / "packaged_model.py").write_text(PLANTED)


def append(name: str, text: str) -> Callable[[Path], None]:
    """A change to the end of a file."""

    def change(folder: Path) -> None:
        with (folder / name).open("a") as file:
            file.write(text)

    return change


def write(name: str, text: str) -> Callable[[Path], None]:
    """A new file."""

    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    return change


def link_folder(folder: Path) -> None:
    """A link to a folder of code beside the sources."""
    elsewhere = Path("elsewhere").absolute()
    elsewhere.mkdir()
    (elsewhere / "__init__.py").write_text(PLANTED)
    (folder / "code" / "torch").symlink_to(elsewhere)


def link_sources(folder: Path) -> None:
    """The sources themselves, behind a link."""
    elsewhere = Path("elsewhere").absolute()
    shutil.move(folder / "code" / "dca", elsewhere)
    (folder / "code" / "dca").symlink_to(elsewhere)


def swap(folder: Path) -> None:
    """Other weights, with the digests of these."""
    weights = folder / FILES / "model.safetensors"
    save_file({name: 0 * tensor for name, tensor in load_file(weights).items()}, weights)
    list_again(folder)


def plant(folder: Path) -> None:
    """Code in the sources, with the digests of these."""
    append("code/dca/__init__.py", PLANTED)(folder)
    list_again(folder)


def escape(folder: Path) -> None:
    """A list that names a file outside the folder."""
    append(f"{FILES}/{SUMS}", f"{64 * '0'}  ../evil.py\n")(folder)


ATTACKS = {
    "data in MLmodel": (add_data, r"extra/MLmodel was added"),
    "MLmodel": (append("MLmodel", "a: 1\n"), r"MLmodel was altered"),
    "a second MLmodel": (write("artifacts/MLmodel", "flavors: {}"), r"artifacts/MLmodel was added"),
    "requirements": (append("requirements.txt", "\nevil"), r"requirements\.txt was altered"),
    "conda": (append("conda.yaml", "\n- evil"), r"conda\.yaml was altered"),
    "configuration": (append(CONFIG, " "), rf"{CONFIG} was altered"),
    "added code": (write("code/torch.py", PLANTED), r"code/torch\.py was added"),
    "added to dca": (write("code/dca/evil.py", PLANTED), r"code/dca/evil\.py was added"),
    "linked folder": (link_folder, r"code/torch is a link"),
    "linked sources": (link_sources, r"code/dca is a link"),
    "pipe": (lambda folder: os.mkfifo(folder / "code" / "pipe"), r"code/pipe is no file"),
    "cache": (write("code/__pycache__", ""), r"code/__pycache__ was added"),
    "swapped": (swap, rf"its {SUMS} is not the one that was logged"),
    "planted": (plant, rf"its {SUMS} is not the one that was logged"),
    "outside": (escape, rf"its {SUMS} is not the one that was logged"),
    "no list": (lambda folder: (folder / FILES / SUMS).unlink(), rf"no {SUMS}"),
    "score": (write("scores/0.json", "{}"), r"scores/0\.json was added"),
}


def everything(*folders: Path) -> set[Path]:
    """All files and folders below some."""
    return {path for folder in folders for path in folder.rglob("*")}


def fails(main, *argv: str) -> int:
    return run_command(main, ["command", *argv])


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_altered_model_is_refused_in_one_line_and_nothing_of_it_is_run(
    logged, attack, capsys, tmp_path
):
    change, expected = ATTACKS[attack]
    change(logged)
    before = everything(logged, tmp_path)
    assert fails(generate.main, "--model=tiny/1", "--prompt=a", "--max-new-tokens=1") == 1
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("models:/m-")
    assert re.search(expected, line), line
    assert everything(logged, tmp_path) == before


@pytest.mark.parametrize("attack", ["configuration", "swapped"])
@pytest.mark.parametrize(
    ("main", "argv"),
    [
        (train.main, ["--from-version=tiny/1"]),
        (promote.main, ["promote", "1", "--model=tiny"]),
        (promote.main, ["compare", "1", "1", "--model=tiny"]),
    ],
)
def test_no_command_takes_a_configuration_that_was_not_logged(
    logged, attack, main, argv, capsys, tmp_path
):
    config = json.loads((logged / CONFIG).read_text())
    config |= {"storage": str(tmp_path / "other"), "experiment": ".."}
    (logged / CONFIG).write_text(json.dumps(config))
    (logged / LINEAGE).write_text((logged / LINEAGE).read_text().replace("files", "other"))
    if attack == "swapped":
        list_again(logged)
    before = everything(logged, tmp_path)
    assert fails(main, *argv) == 1
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("models:/m-")
    assert "was altered" in line or "is not the one that was logged" in line
    assert everything(logged, tmp_path) == before


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (append(LINEAGE, " "), rf"{LINEAGE} was altered"),
        (swap, rf"its {SUMS} is not the one that was logged"),
        (lambda folder: (folder / LINEAGE).unlink(), rf"its {LINEAGE} is gone"),
        (shutil.rmtree, r"its files are gone from "),
    ],
)
def test_the_list_names_a_damaged_version_and_shows_the_others(
    logged, change, expected, capsys, store
):
    listed = ["list", "--json", "--model=tiny"]
    run, uri = log_untrained(store, read_experiment(EXPERIMENT, source="test"), seed=1)
    Registry(store.client, "tiny").register(uri, run, {})
    change(logged)
    assert fails(promote.main, *listed) == 0
    other, row = json.loads(capsys.readouterr().out)
    assert (row["version"], row["lineage"]) == (1, None)
    assert re.search(f"^models:/m-.*{expected}", row["damaged"])
    assert (other["lineage"]["run"], other["damaged"]) == (run, None)
    logged.mkdir(exist_ok=True)


def test_versions_are_compared_by_what_is_left_of_one_whose_files_were_deleted(logged, capsys):
    shutil.rmtree(logged)
    assert fails(promote.main, "compare", "1", "1", "--model=tiny") == 0
    first, *_, curves = filter(None, capsys.readouterr().out.splitlines())
    assert re.match(r"version 1 is not compared as a whole: models:/m-\w+: its files are", first)
    assert curves.startswith("validation bits per byte")
    logged.mkdir()


@pytest.mark.parametrize("name", ["artifacts/model/model.safetensors", SUMS, "extra"])
def test_a_file_with_holes_is_refused_before_it_is_copied(store, logged, tmp_path, name):
    """It takes no room itself; a copy would fill the disk."""
    file = logged / (FILES / SUMS if name == SUMS else name)
    with file.open("ab"):
        os.truncate(file, 1 << 30)
    with pytest.raises(DamagedError, match=r"^models:/m-\w+: its files have 1,07\d,\d+,\d+ bytes"):
        fetch_model(store.models, logged.parent.name, tmp_path / "copy")
    assert not [*(tmp_path / "copy").iterdir()]
    with file.open("ab"):
        os.truncate(file, 1 << 43)
    store.client.delete_logged_model_tag(logged.parent.name, SIZE_TAG)  # as of an earlier model
    with pytest.raises(PipelineError, match=r"bytes, more than the [\d,]+ free in"):
        fetch_model(store.models, logged.parent.name, tmp_path / "copy")


def test_a_folder_of_a_run_or_of_a_model_stands_for_the_model(store, logged, tmp_path):
    model = store.client.get_logged_model(logged.parent.name)
    run = local_path(store.client.get_run(model.source_run_id).info.artifact_uri)
    run.mkdir(parents=True, exist_ok=True)
    copy = shutil.copytree(logged, tmp_path / "copy")
    for folder in (logged, copy, run, run.parent):
        assert store.models.of_folder(folder) == model.model_id
    (tmp_path / ("0" * 32)).mkdir()
    for folder in (tmp_path / ("0" * 32), tmp_path):
        with pytest.raises(ConfigError, match="expected a packaged model, with its MLmodel, or"):
            store.models.of_folder(folder)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (append("MLmodel", "data: extra\n"), DamagedError, "MLmodel was altered after it was"),
        (swap, DamagedError, f"its {SUMS} is not the one that was logged"),
        (link_folder, DamagedError, "code/torch is a link"),
        (
            lambda folder: os.truncate(folder / "MLmodel", 1 << 40),
            DamagedError,
            "its files have 1,",
        ),
        (write(LINEAGE, '{"run": "' + "0" * 32 + '"}'), ConfigError, "does not have the run that"),
        (write(LINEAGE, "[" * 10_000), ConfigError, "does not have the run that"),
    ],
)
def test_an_altered_folder_is_no_model(store, logged, tmp_path, change, error, message):
    copy = shutil.copytree(logged, tmp_path / "copy")
    change(copy)
    with pytest.raises(error, match=f"{re.escape(str(copy))}: .*{message}"):
        store.models.of_folder(copy)


def test_a_name_that_would_control_a_terminal_is_shown_as_escapes(logged):
    write("code/\n\x1b[2J.py", "")(logged)
    with pytest.raises(DamagedError, match=r"^folder: code/\\n\\x1b\[2J\.py was added"):
        verify_model_folder(logged, "folder")


def test_a_folder_in_place_of_a_configuration_is_one_line(store, logged):
    (logged / CONFIG).unlink()
    (logged / CONFIG).mkdir()
    with pytest.raises(DamagedError, match=r"^models:/m-\w+: .*Is a directory"):
        store.models.read_packaged(logged.parent.name, CONFIG)


def test_a_model_without_a_digest_in_the_tracking_store_is_refused_but_for_an_old_one(
    store, logged, tmp_path, caplog
):
    model_id = logged.parent.name
    store.client.delete_logged_model_tag(model_id, SHA256_TAG)
    for read in (
        lambda: fetch_model(store.models, model_id, tmp_path / "copy"),
        lambda: store.models.read_packaged(model_id, CONFIG),
    ):
        with pytest.raises(DamagedError, match=f"the tracking store has no digest of its {SUMS}"):
            read()
    store.client.delete_logged_model_tag(model_id, SCHEMA_TAG)
    assert not caplog.records
    fetch_model(store.models, model_id, tmp_path / "copy")
    (record,) = caplog.records
    assert "logged before the tracking store had digests" in record.getMessage()


def test_an_earlier_package_may_have_what_its_list_did_not_name_and_none_of_it_is_read(
    store, logged, tmp_path
):
    """Its list has neither the files of MLflow nor the scores that were stored beside them."""
    model_id, digests = logged.parent.name, logged / FILES / SUMS
    rows = digests.read_text().splitlines(keepends=True)
    kept = [row for row in rows if row[66:].startswith(("code/", "artifacts/", "packaged_model"))]
    assert len(rows) - len(kept) == 6
    digests.write_text("".join(kept))
    for tag in (SHA256_TAG, SCHEMA_TAG):
        store.client.delete_logged_model_tag(model_id, tag)
    write("scores/0.json", "{}")(logged)
    write("gate/tiny-1.json", "{}")(logged)
    append("MLmodel", "\n: [ not YAML\n")(logged)
    assert fetch_model(store.models, model_id, tmp_path / "copy")
    assert store.models.read_packaged(model_id, CONFIG)
    write("scores/evil.py", PLANTED)(logged)
    with pytest.raises(DamagedError, match=r"scores/evil\.py was added"):
        fetch_model(store.models, model_id, tmp_path / "again")


@pytest.mark.parametrize(
    "sizes", [{"depth": 10**9}, {"dim": 2**20}, {"ff_mult": 10**9}, {"vocab": 10**12}]
)
def test_a_package_of_absurd_sizes_is_refused_before_memory_is_taken(store, logged, sizes):
    config = json.loads((logged / CONFIG).read_text())
    config["model"] |= sizes
    (logged / CONFIG).write_text(json.dumps(config))
    list_again(logged)
    with pytest.raises(
        DamagedError, match=r"config\.json: expected a model of [\d,]+ weights, got"
    ):
        load_model(logged)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"model": {"depth": "2"}}',
        '{"model": {"depth": 2, "dim": 2000000000000, "ff_mult": 4}}',
        pytest.param(100_000 * "[", id="nested"),
        "not JSON",
    ],
)
def test_a_package_with_a_configuration_of_another_form_is_one_line(logged, text):
    (logged / CONFIG).write_text(text)
    list_again(logged)
    with pytest.raises(DamagedError, match=r"config\.json: "):
        load_model(logged)


def test_what_mlflow_and_python_leave_beside_a_model_is_not_an_attack(store, logged, tmp_path):
    write("registered_model_meta", "model_name: tiny\n")(logged)
    write("code/dca/__pycache__/model.cpython-311.pyc", "not code")(logged)
    copy = fetch_model(store.models, logged.parent.name, tmp_path / "copy")
    assert not [*copy.rglob("__pycache__")]
    assert load_model(copy)
