import os
import re
import shutil
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipelines.console.errors import (
    ConfigError,
    DamagedError,
    PipelineError,
    RefusedError,
    StorageError,
)
from pipelines.experiment import load, read_experiment
from pipelines.reporting.commands import config_path, report_folder
from pipelines.reporting.loading import load_results
from pipelines.reporting.mixing import read_mixing
from pipelines.reporting.page import content
from pipelines.reporting.page import publish as publishing
from pipelines.reporting.page.leaderboard import leaderboard_section
from pipelines.reporting.page.publish import publish, write
from pipelines.reporting.statistics import ranking
from pipelines.storage.digests import sha256_of, write_digests
from pipelines.tracking.schema import PAGE_FILE
from tests.pipelines.reporting.tables import results_of, trial
from tests.pipelines.stored import Made, store_sweep

SECTIONS = [
    *("summary", "leaderboard", "importance", "history", "parallel", "slices", "curves"),
    *("pruning", "failures", "winner", "mixing", "samples", "lineage", "next"),
]


class Outline(HTMLParser):
    """The ids of headings, and what the page would load from elsewhere."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "h2":
            self.headings.append(given["id"])
        if "id" in given:
            self.ids.append(given["id"])
        found = [given.get(name) or "" for name in ("src", "href", "xlink:href")]
        self.loaded += [one for one in found if one and not one.startswith(("#", "data:"))]
        self.loaded += [tag] if tag in ("script", "iframe", "object", "embed") else []


def standard(rate: float, bits: list[float], state: str = "complete", reason: str = "") -> Made:
    return Made({"train.learning_rate": rate, "model.residual": "standard"}, bits, state, reason)


def dca(rate: float, last_k: int | None, bits: list[float], state: str = "complete") -> Made:
    values = {"train.learning_rate": rate, "model.residual": "dca", "model.dca.last_k": last_k}
    return Made(values, bits, state)


MIXED = [
    standard(1e-3, [4, 3, 2.5, 2.0]),
    dca(2e-3, None, [4, 3, 2.5, 1.9]),
    dca(5e-3, 2, [5, 4], "pruned"),
    standard(3e-2, [], "failed", "diverged at step 3: <script>alert(1)</script>"),
    standard(9e-2, [5.0], "unfinished"),
    dca(8e-3, 1, [5, 4.5, 3.9], "pruned"),
]


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """PNG files of a quarter of the size in each direction."""
    monkeypatch.setattr(content, "DOTS_PER_INCH", 38)


def test_the_page_is_self_contained_and_has_every_section(store, searched, tmp_path):
    store_sweep(store, searched, MIXED, winner=1)
    path = write(load_results("tiny"), tmp_path / "page")
    page = path.read_text()
    outline = Outline(page)
    assert outline.headings == SECTIONS
    assert outline.loaded == []
    assert len(outline.ids) == len(set(outline.ids))
    assert "&lt;script&gt;alert(1)" in page
    assert {"history.png", "parallel.png", "slices.png", "curves.png"} <= {
        file.name for file in path.parent.iterdir()
    }
    assert "Trial 1 won with 1.9000 bits per byte, 0.1000 better than trial 0" in page
    assert load([str(tmp_path / "page" / "tiny.yaml")]) == searched


CASES = {
    "no trial": ({}, [], None),
    "one trial": ({}, [standard(1e-3, [3, 2, 1.5, 1.2])], 0),
    "all equal": ({}, [standard(1e-3, [2, 2, 2, 2])] * 5, 0),
    "all pruned": ({}, [standard(10**-i, [3, 2 + i], "pruned") for i in (1, 2, 3, 4)], 0),
    "all failed": ({}, [standard(1e-3, [], "failed", "no memory")] * 2, None),
    "no space": ({"space": {}}, [Made({}, [3, 2, 1.5, 1.2]), Made({}, [3, 2, 1.5, 1.2])], 0),
    "unfinished": ({}, MIXED, None),
    "two objectives": (
        {"second_objective": "parameters", "scheduler": {"name": "none"}},
        [dca(1e-3 * i, 1 + i % 2, [3, 2, 2, 2 - 0.1 * i]) for i in range(1, 6)],
        4,
    ),
    "one whose values do not go together": (
        {"space": {"model.heads": {"choice": [2, 4]}, "model.dim": {"choice": [16, 20]}}},
        [
            Made({"model.heads": 2, "model.dim": 20}, [3, 2, 2, 1]),
            Made({"model.heads": 4, "model.dim": 20}, [], "failed", "model.heads: dim / heads"),
        ],
        0,
    ),
    "one value": (
        {"space": {"model.depth": {"choice": [2]}, "train.weight_decay": {"uniform": [0, 1]}}},
        [
            Made({"model.depth": 2, "train.weight_decay": 0.2 * i}, [3, 2, 2, 1 + i])
            for i in range(5)
        ],
        0,
    ),
}


@pytest.mark.parametrize(
    "case",
    [
        case
        if case in ("unfinished", "all failed", "two objectives")
        else pytest.param(case, marks=pytest.mark.extended)
        for case in CASES
    ],
)
def test_there_is_a_page_for_any_state_of_a_sweep(case, store, data, searched, tmp_path):
    search, trials, winner = CASES[case]
    base = searched.search.model_dump(mode="json", exclude_defaults=True)
    config = read_experiment(data | {"search": base | search}, source="test")
    store_sweep(store, config, trials, winner=winner)
    page = write(load_results("tiny"), tmp_path / "page").read_text()
    assert Outline(page).headings == SECTIONS
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.S).lower().split()


@pytest.mark.extended
def test_a_report_replaces_an_earlier_one_and_is_an_artifact_of_the_pipelines_run(store, searched):
    run = store_sweep(store, searched, MIXED, winner=1)
    folder = report_folder(searched)
    folder.mkdir(parents=True)
    (folder / "old.png").write_text("")
    (folder / PAGE_FILE).write_text("")
    (folder / "SHA256SUMS").write_text(f"{sha256_of(folder / 'old.png')}  old.png\n")
    path = publish(load_results("tiny"))
    assert (path.parent, path.name) == (folder, PAGE_FILE)
    names = {file.path for file in store.client.list_artifacts(run, "report")}
    assert {"report/report.html", "report/history.png", "report/tiny.yaml"} <= names
    assert not (folder / "old.png").exists()
    assert path.stat().st_size > 0
    own = folder / run[:8]  # a later pipeline run's report does not replace it
    assert (own / PAGE_FILE).read_text() == path.read_text()
    assert f"runs/reports/tiny/{run[:8]}/tiny.yaml" in path.read_text()
    assert load([str(own / "tiny.yaml")]) == searched
    other = searched.replace({"seed": 7})
    store_sweep(store, other, MIXED, winner=1)
    assert publish(load_results("tiny")) == path
    assert load([str(folder / "tiny.yaml")]) == other
    assert load([str(own / "tiny.yaml")]) == searched


@pytest.fixture
def empty(monkeypatch):
    """Pages without sections: figures take seconds."""
    monkeypatch.setattr("pipelines.reporting.page.publish.all_sections", lambda _: [])


@pytest.mark.usefixtures("empty")
def test_a_report_waits_for_another_one(store, searched, tmp_path, monkeypatch):
    store_sweep(store, searched, MIXED, winner=1)
    results, folder = load_results("tiny"), report_folder(searched)
    monkeypatch.setattr(publishing, "LOCK_WAIT_SECONDS", 0)
    with publishing._alone(folder):
        for write_one in (publish, partial(publishing.publish_against, baseline="a")):
            with pytest.raises(PipelineError, match=rf"^reports in {folder}: already running"):
                write_one(results)
    assert publish(results).is_file()


@pytest.mark.usefixtures("empty")
def test_a_report_of_a_user_who_may_only_read_is_written_all_the_same(
    store, searched, monkeypatch, caplog
):
    run = store_sweep(store, searched, MIXED, winner=1)
    results = load_results("tiny")

    def refuse(*_) -> None:
        raise RefusedError("the server refuses the user bob")

    with monkeypatch.context() as patch:
        patch.setattr(type(results.store), "log_files", refuse)
        path = publish(results)
    (line,) = caplog.messages
    assert line.endswith("on this machine only, not with its run: the server refuses the user bob")
    assert path.is_file()
    assert store.client.list_artifacts(run, "report") == []


@pytest.mark.usefixtures("empty")
def test_a_report_in_a_copied_folder_names_the_place_of_its_artifacts(
    store, searched, tmp_path, caplog
):
    store_sweep(store, searched, MIXED, winner=1)
    results = load_results("tiny")
    publish(results)
    assert caplog.messages == []
    copy = replace(results, config=searched.replace({"storage": str(tmp_path / "copy")}))
    assert publish(copy).is_relative_to(tmp_path / "copy")
    (line,) = caplog.messages
    assert re.fullmatch(r"tiny: its artifacts go to .*, where they were .*/copy/artifacts", line)


@pytest.mark.usefixtures("empty")
def test_beside_another_baseline_the_configuration_of_the_commands_is_written(store, searched):
    store_sweep(store, searched, MIXED, winner=1)
    results = load_results("tiny")
    page = publishing.publish_against(results, "a")
    assert page == report_folder(searched) / "against-a" / PAGE_FILE
    config = Path(config_path(results))
    assert load([str(config)]) == searched
    config.write_text(before := f"# as it was\n{config.read_text()}")
    publishing.publish_against(results, "a")
    assert config.read_text() == before


@pytest.mark.usefixtures("empty")
def test_a_report_deletes_and_uploads_no_file_that_is_not_its_own(store, searched):
    run = store_sweep(store, searched, MIXED, winner=1)
    path = publish(load_results("tiny"))
    mine = [path.parent / name for name in ("mine.png", "mine.yaml")]
    for file in mine:
        file.write_text("mine")
    outside, digest = path.parents[1] / "outside.png", sha256_of(mine[0])
    shutil.copy(mine[0], outside)
    listed = path.parent / "SHA256SUMS"
    before = listed.read_text()
    for line in (f"{64 * '0'}  mine.png\n", f"{digest}  ../outside.png\n"):
        listed.write_text(before + line)
        publish(load_results("tiny"))
    assert outside.read_text() == mine[0].read_text() == mine[1].read_text() == "mine"
    names = {file.path for file in store.client.list_artifacts(run, "report")}
    assert not {"report/mine.png", "report/mine.yaml", "report/SHA256SUMS"} & names


@pytest.mark.usefixtures("empty")
def test_a_report_does_not_write_through_a_link(store, searched, tmp_path):
    store_sweep(store, searched, MIXED, winner=1)
    folder, victim = tmp_path / "page", tmp_path / "victim"
    folder.mkdir()
    victim.write_text("mine")
    (folder / "report.html").symlink_to(victim)
    (folder / "tiny.yaml").hardlink_to(victim)
    os.mkfifo(folder / "SHA256SUMS")
    page = write(load_results("tiny"), folder)
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert victim.read_text() == "mine"
    page.unlink()
    page.mkdir()
    with pytest.raises(StorageError, match=r"report\.html: cannot be written: Is a directory$"):
        write(load_results("tiny"), folder)


@pytest.mark.usefixtures("empty")
def test_a_folder_behind_a_link_is_not_that_of_a_report(store, searched, tmp_path):
    """What its list of digests names would be deleted."""
    store_sweep(store, searched, MIXED, winner=1)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("mine")
    write_digests(outside, ["mine"])
    (tmp_path / "reports").symlink_to(outside)
    for folder in (tmp_path / "reports", tmp_path / "reports" / "tiny"):
        with pytest.raises(StorageError, match=r"reports is a link; expected a folder of reports$"):
            write(load_results("tiny"), folder)
    assert {path.name for path in outside.iterdir()} == {"mine", "SHA256SUMS"}


@pytest.mark.extended
@pytest.mark.parametrize("name", ["..", ".", "a/b", "../b"])
def test_an_experiment_that_would_be_another_folder_has_no_report(store, searched, tmp_path, name):
    """Its name is read from the store, and checked as if it were typed."""
    made = store.client.create_experiment(name, artifact_location=str(tmp_path / "artifacts"))
    other = replace(store, experiment_id=made)
    pipeline = store_sweep(other, searched, MIXED, winner=1)
    other.log_text(pipeline, searched.to_yaml().replace("tiny", name, 1), "experiment.yaml")
    outside = tmp_path / "runs" / "mine.yaml"
    outside.parent.mkdir(exist_ok=True)
    outside.write_text("mine")
    with pytest.raises(ConfigError, match=r"^experiment\.yaml.*: experiment: "):
        load_results(name)
    assert outside.exists()


def test_a_configuration_in_the_artifact_store_that_was_edited_is_not_read(store, searched):
    run = store_sweep(store, searched, MIXED, winner=1)
    (path,) = Path(searched.storage).rglob(f"{run}/artifacts/experiment.yaml")
    path.write_text(path.read_text().replace("runs", "other"))
    with pytest.raises(DamagedError, match=r"^run \w+: experiment\.yaml is not what was logged; "):
        load_results("tiny")
    path.unlink()
    with pytest.raises(DamagedError, match=r"is missing; `python .*sweep\.py` .* again$"):
        load_results("tiny")


def test_null_differs_from_a_key_that_did_not_apply(store, searched):
    store_sweep(store, searched, MIXED, winner=1)
    values = load_results("tiny").trials["model.dca.last_k"]
    assert values.tolist() == ["n/a", None, 2, "n/a", "n/a", 1]


def test_a_long_leaderboard_is_cut_and_counted(searched):
    results = results_of(searched, [trial("complete", [3, 2 - 0.001 * i]) for i in range(60)])
    assert ranking(results).index[0] == 59
    (table,) = leaderboard_section(results).tables
    assert "the best 50 of 60" in table.caption
    assert len(table.rows) == 50


def test_without_a_model_there_is_a_note_instead_of_the_mixing(store, searched):
    store_sweep(store, searched, MIXED)
    assert "no model has been trained" in read_mixing(load_results("tiny")).note
