"""What differs between two versions, of a registry that is made up."""

from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from pipelines.console.errors import DamagedError, GoneError, RefusedError
from pipelines.registry.differences import compare_versions, lineage_of
from pipelines.registry.package import CONFIG, LINEAGE
from tests.pipelines.registry.registered import register
from tests.pipelines.stored import purge

FILES = {
    (1, CONFIG): {"model": {"dim": 16, "depth": 2}, "seed": 0},
    (2, CONFIG): {"model": {"dim": 32, "depth": 2}, "seed": 0, "later": 1},
    (1, LINEAGE): {"run": "a", "corpus": {"name": "files"}},
    (2, LINEAGE): {"run": "b", "corpus": {"name": "files"}},
}
HISTORIES = {
    ("a", "tokens"): {4: 1024.0, 8: 2048.0},
    ("a", "val_bits_per_byte"): {4: 3.0, 8: 2.5, 12: 2.0},
    ("b", "tokens"): {2: 1024.0, 4: 4096.0},
    ("b", "val_bits_per_byte"): {2: 2.9, 4: 2.4},
}


def registry(runs: dict[int, str], tags: dict[int, dict[str, str]]) -> SimpleNamespace:
    """Versions by number, of these runs and with these tags."""
    metrics = {"a": {"seconds": 1.0, "same": 2.0}, "b": {"seconds": 3.0, "same": 2.0}}
    client = SimpleNamespace(
        find_run=lambda run: (
            SimpleNamespace(
                info=SimpleNamespace(run_id=run), data=SimpleNamespace(metrics=metrics[run])
            )
            if run
            else None
        ),
        get_metric_history=lambda run, metric: [
            SimpleNamespace(step=step, value=value)
            for step, value in HISTORIES[run, metric].items()
        ],
    )
    return SimpleNamespace(
        client=client,
        get=lambda number: SimpleNamespace(
            name="tiny", version=number, run_id=runs[number], tags=tags.get(number, {})
        ),
        read_packaged=lambda number, file: FILES.get((number, file)),
    )


def test_only_what_differs_is_compared_and_the_curves_are_whole():
    tags = {1: {"test.bits_per_byte": "2.5", "parameters": "7"}, 2: {"parameters": "7"}}
    found = compare_versions(registry({1: "a", 2: "b"}, tags), 1, 2)
    assert found.versions == [1, 2]
    assert found.configuration == {"model.dim": [16, 32], "later": [None, 1]}
    assert found.lineage == {"run": ["a", "b"]}
    assert found.metrics == {"test.bits_per_byte": [2.5, None], "seconds": [1.0, 3.0]}
    assert found.curves == {1024: [3.0, 2.9], 2048: [2.5, None], 4096: [None, 2.4]}


def test_versions_whose_runs_were_removed_are_compared_by_their_tags(store):
    found = register(store, 2)
    for version in (1, 2):
        purge(store, found.get(version).run_id)
        found.tag(version, {"parameters": str(version)})
    differences = compare_versions(found, 1, 2)
    assert differences.metrics == {"parameters": [1, 2]}
    assert differences.curves == {}


def test_a_version_without_a_run_or_files_is_compared_by_what_it_has():
    found = compare_versions(registry({1: "a", 3: ""}, {3: {"parameters": "9"}}), 1, 3)
    assert found.configuration["model.dim"] == [16, None]
    assert found.metrics == {"parameters": [None, 9], "seconds": [1.0, None], "same": [2.0, None]}
    assert found.curves == {1024: [3.0, None], 2048: [2.5, None]}


@pytest.mark.parametrize("error", [GoneError, RefusedError])
def test_files_that_cannot_be_read_keep_nothing_else_from_being_compared(error, monkeypatch):
    made = registry({1: "a", 2: "b"}, {})
    read = made.read_packaged

    def read_packaged(number: int, file: str) -> dict:
        if number == 1:
            raise error("its files are gone")
        return read(number, file)

    monkeypatch.setattr(made, "read_packaged", read_packaged)
    found = compare_versions(made, 1, 2)
    assert (found.configuration, found.lineage) == ({}, {})
    assert found.metrics == {"seconds": [1.0, 3.0]}
    assert len(found.curves) == 3
    assert found.unread == {1: "its files are gone"}
    assert lineage_of(made, 1) == {"lineage": None, "damaged": "its files are gone"}
    monkeypatch.setattr(made, "read_packaged", Mock(side_effect=DamagedError("was altered")))
    with pytest.raises(DamagedError, match="was altered"):
        compare_versions(made, 1, 2)


def test_a_run_that_may_not_be_read_is_as_one_that_was_removed(monkeypatch):
    made = registry({1: "a", 2: "b"}, {1: {"parameters": "7"}})
    find = made.client.find_run

    def find_run(run: str) -> SimpleNamespace:
        if run == "a":
            raise RefusedError("the server refuses it")
        return find(run)

    monkeypatch.setattr(made.client, "find_run", find_run)
    found = compare_versions(made, 1, 2)
    assert found.metrics == {"parameters": [7, None], "seconds": [None, 3.0], "same": [None, 2.0]}
    assert found.curves == {1024: [None, 2.9], 4096: [None, 2.4]}
    assert found.configuration["model.dim"] == [16, 32]
    assert found.unread == {1: "the server refuses it"}
