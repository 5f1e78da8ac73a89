"""Corpora by name, and a published text as a folder or a server has it."""

import functools
import gzip
import hashlib
import inspect
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipelines.console.errors import ConfigError
from pipelines.console.progress import Progress
from pipelines.console.updates import OutputMode
from pipelines.data import corpora
from pipelines.data.config import DataConfig
from pipelines.data.corpora import CORPORA, ENWIK8, corpus
from pipelines.data.published import PublishedText, read_published
from pipelines.data.splits import measure_corpus, write_splits
from pipelines.experiment import Experiment, load, reference
from pipelines.stages.corpus import CorpusStage
from pipelines.sweep import _resolve_inputs
from tests.pages import example
from tests.sections import fields, shipped_fields

TEXT = b"text of long ago, " * 1000


def zipped(text: bytes, name: str = "old8") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, text)
    return file.getvalue()


FILES = {"old8": TEXT, "old8.gz": gzip.compress(TEXT), "old8.zip": zipped(TEXT)}


class Handler(SimpleHTTPRequestHandler):
    """A server of a folder: it ignores Range, prints nothing and keeps the paths it served."""

    requested: list[str] = []

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        self.requested.append(self.path)


@pytest.fixture
def served(tmp_path, monkeypatch) -> Iterator[PublishedText]:
    """A small text that is published on a server of this machine."""
    monkeypatch.setattr(Handler, "requested", [])
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "old8.zip").write_bytes(FILES["old8.zip"])
    handler = functools.partial(Handler, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/old8.zip"
        size, sha256 = len(TEXT), hashlib.sha256(TEXT).hexdigest()
        yield PublishedText("old8", url, len(FILES["old8.zip"]), size, sha256)
        server.shutdown()
        thread.join()


def read(text: PublishedText, folder: Path) -> bytes:
    return b"".join(read_published(text, folder))


@pytest.mark.server
def test_a_published_text_is_downloaded_once(served, tmp_path):
    folder = tmp_path / "data"
    assert read(served, folder) == read(served, folder) == TEXT
    assert Handler.requested == ["/old8.zip"]
    assert [path.name for path in folder.iterdir()] == ["old8.zip"]


@pytest.mark.server
@pytest.mark.parametrize("name", FILES)
def test_a_published_text_is_found_plain_zipped_or_gzipped(served, tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    assert read(served, tmp_path) == TEXT
    assert Handler.requested == []


OTHER = TEXT.swapcase()
HALF_GZIP = gzip.compress(TEXT)[:40]


@pytest.mark.server
@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("old8", TEXT[:-1], "17,999 bytes, expected 18,000"),
        ("old8", OTHER, f"sha256 {hashlib.sha256(OTHER).hexdigest()}"),
        ("old8.gz", gzip.compress(OTHER), f"sha256 {hashlib.sha256(OTHER).hexdigest()}"),
        ("old8.gz", gzip.compress(TEXT[:-1]), "17,999 bytes of 18,000"),
        ("old8.gz", gzip.compress(TEXT * 10), "more than 18,000 bytes"),
        ("old8.gz", HALF_GZIP, "Compressed file ended"),
        ("old8.gz", TEXT, "Not a gzipped file"),
        ("old8.gz", HALF_GZIP[:12] + b"\xff" * 60, "Error -3 while decompressing"),
        ("old8.zip", FILES["old8.zip"][:-1], "bytes, expected "),
        ("old8.zip", b"x" * len(FILES["old8.zip"]), "File is not a zip file"),
        ("old8.zip", zipped(TEXT, "odd8"), "no item named 'old8'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "bytes",
)
def test_another_file_of_that_name_is_refused_with_what_to_do(
    served, tmp_path, name, content, found
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read(served, tmp_path)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / name}: not the old8 that is published: ")
    assert found in message
    assert message.endswith("; delete it to download it again")
    assert message.isprintable()
    assert Handler.requested == []


@pytest.mark.server
@pytest.mark.parametrize("where", ["found", "downloaded"])
def test_another_text_never_becomes_a_corpus(served, registry, tmp_path, where):
    corpus("old8", published=served)(lambda path: read_published(served, Path(path)))
    zips = {"found": tmp_path / "data", "downloaded": tmp_path / "served"}
    zips[where].mkdir(exist_ok=True)
    other = zipped(OTHER)  # not compressed: as many bytes
    (zips[where] / "old8.zip").write_bytes(other)
    assert len(other) == served.zip_bytes
    config = DataConfig(corpus="old8", path=str(tmp_path / "data"))
    measured = measure_corpus(config, seq_len=32)
    with pytest.raises(
        ConfigError, match=r"data/old8\.zip: not the old8 that is published: sha256"
    ):
        write_splits(config, measured, tmp_path / "runs")
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]


@pytest.mark.server
def test_an_empty_path_is_the_current_folder_and_not_the_default(
    served, registry, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    corpus("old8", published=served)(lambda path="data": read_published(served, Path(path)))
    CORPORA["old8"].fetch("", OutputMode.TEXT)
    assert (tmp_path / "old8.zip").is_file()
    assert not (tmp_path / "data").exists()


@pytest.mark.server
def test_a_file_in_place_of_the_folder_is_refused(served, tmp_path):
    (tmp_path / "file").write_bytes(TEXT)
    with pytest.raises(ConfigError, match=r"data\.path: .*file: expected a folder, got a file"):
        read(served, tmp_path / "file")


def test_enwik8_is_measured_before_it_is_downloaded(tmp_path):
    measured = measure_corpus(DataConfig(corpus="enwik8", path=str(tmp_path)), seq_len=256)
    assert measured.fingerprint == ENWIK8.sha256[:32]
    assert measured.sizes == {"train": 90_000_000, "validation": 5_000_000, "test": 5_000_000}
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def registry() -> Iterator[None]:
    """The registry as it was, after the test."""
    names = dict(CORPORA)
    yield
    CORPORA.clear()
    CORPORA.update(names)


def problem(*arguments: str) -> str:
    with pytest.raises(ConfigError) as error:
        load(arguments)
    return str(error.value)


def test_a_dry_run_does_not_download_a_text_for_its_first_bytes(tmp_path):
    def prepare(*changes: str) -> None:
        arguments = ["data.corpus=enwik8", f"data.path={tmp_path}", *changes]
        _resolve_inputs(load(arguments), CorpusStage(), Progress(), write=False)

    with pytest.raises(ConfigError, match=r"^data\.max_bytes: a dry run downloads no text"):
        prepare("data.max_bytes=4000000")
    prepare("data.max_bytes=100000000")
    prepare()
    (tmp_path / "enwik8.zip").write_bytes(b"")
    prepare("data.max_bytes=4000000")


def test_the_documentations_example_adds_a_corpus(registry, tmp_path):
    block = example("extending", "Add a corpus", "python")
    assert "did you mean" not in problem("data.corpus=messages")
    exec(block, vars(corpora).copy())
    lines = [json.dumps({"text": f"message {number}"}) for number in range(1000)]
    (tmp_path / "chat.jsonl").write_text("\n".join(lines))
    config = load(["data.corpus=messages", f"data.path={tmp_path / 'chat.jsonl'}"])
    (tmp_path / "plain").write_text("".join(f"message {number}\n" for number in range(1000)))
    files = DataConfig(corpus="files", path=str(tmp_path / "plain"))
    assert measure_corpus(config.data, seq_len=32) == measure_corpus(files, seq_len=32)
    assert "`files`, `messages`. |" in reference()
    schema = Experiment.model_json_schema()["$defs"]["DataConfig"]["properties"]["corpus"]
    assert schema["enum"] == ["python-stdlib", "enwik8", "files", "messages"]
    assert problem("data.corpus=mesages", "data.path=x") == (
        "command line: data.corpus: input should be 'python-stdlib' or 'enwik8' or 'files' or "
        "'messages', got \"mesages\"; did you mean messages?"
    )
    assert "data.path: expected a file, folder or glob with data.corpus=messages" in problem(
        "data.corpus=messages"
    )
    message = r"^data\.path: .*none: No such file or directory$"
    with pytest.raises(ConfigError, match=message):
        measure_corpus(config.data.model_copy(update={"path": str(tmp_path / "none")}), seq_len=32)


def test_the_parameter_of_a_corpus_decides_whether_it_takes_a_path(registry):
    corpus("without")(lambda: [b"x"])
    corpus("may")(lambda path="here": [path.encode() * 100])
    assert "data.path: without takes none" in problem("data.corpus=without", "data.path=x")
    assert load(["data.corpus=without"]).data.path is None
    assert measure_corpus(load(["data.corpus=may"]).data, seq_len=4).sizes["train"] == 360
    given = measure_corpus(load(["data.corpus=may", "data.path=x"]).data, seq_len=4)
    assert given.sizes["train"] == 90 * len(str(Path("x").absolute()))


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="the corpus files is registered already"):
        corpus("files")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["data.corpus=enwik"], "data.corpus: input should be 'python-stdlib' or"),
        (["data.corpus=enwik"], "did you mean enwik8?"),
        (["data.path=x"], "data.path: python-stdlib takes none; did you mean data.corpus=files?"),
        (
            ["data.corpus=files", "data.path=x", "data.test_path=y"],
            "data.test_path: expected data.validation_path as well",
        ),
        (
            ["data.corpus=files", "data.path=x", "data.validation_path=y"],
            "data.validation_path: expected data.test_path as well",
        ),
        (
            ["data.corpus=files", "data.path=x", "data.validation_path=y", "data.test_path=''"],
            "data.test_path: string should have at least 1 character",
        ),
        (
            ["data.corpus=enwik8", "data.validation_path=y", "data.test_path=z"],
            "data.validation_path: expected data.corpus=files, got enwik8",
        ),
        (["data.max_bytes=0"], "data.max_bytes: input should be greater than or equal to 1, got 0"),
        (
            [
                *("data.corpus=files", "data.path=x", "data.validation_path=y"),
                *("data.test_path=z", "data.max_bytes=4000000"),
            ],
            "data.max_bytes: expected null with data.validation_path: three texts",
        ),
    ],
)
def test_wrong_use_of_a_corpus_is_one_line_with_its_key(arguments, expected):
    message = problem(*arguments)
    assert expected in message
    assert message.startswith("command line: data.")
    assert "\n" not in message


def test_the_standard_library_is_read_in_a_fixed_order_without_tests_and_packages(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(corpora.sysconfig, "get_path", lambda name: f"{tmp_path}/{name}")
    files = ["a.py", "b/c.py", "b/d.txt", "test/e.py", "b/tests/f.py", "site-packages/g.py"]
    for name in [*files, "idle_test/h.py", "i/dist-packages/j.py", "__pycache__/k.py"]:
        path = tmp_path / "stdlib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name} ")
    expected = sorted(["a.py", "b/c.py"], key=lambda name: hashlib.sha256(name.encode()).digest())
    assert b"".join(CORPORA["python-stdlib"].read()) == "".join(f"{n} " for n in expected).encode()


def test_the_standard_library_of_this_interpreter_is_megabytes_of_its_modules():
    text = b"".join(CORPORA["python-stdlib"].read())
    assert len(text) > 8_000_000
    assert all(inspect.getsource(module).encode() in text for module in (hashlib, inspect, json))


def test_enwik8_is_the_file_that_is_published():
    assert ENWIK8.url == "http://mattmahoney.net/dc/enwik8.zip"
    assert (ENWIK8.zip_bytes, ENWIK8.text_bytes) == (36_445_475, 100_000_000)
    assert ENWIK8.sha256.startswith("2b49720ec4d78c3c9fabaee6e4179a5e")


def test_defaults_and_limits_are_those_of_the_shipped_schema():
    assert fields(DataConfig) == shipped_fields(DataConfig)
