import argparse
import os
import re
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from pipelines.console.errors import (
    ConfigError,
    DamagedError,
    EditedError,
    GoneError,
    RefusedError,
)
from pipelines.promote import _decide
from pipelines.registry import champions as champions_module
from pipelines.registry.champions import (
    CHAMPION,
    Champions,
    ChampionState,
    ConcurrentPromotionError,
)
from pipelines.registry.gate import force as gate_force
from pipelines.registry.gate import rollback
from pipelines.registry.versions import Registry
from pipelines.tracking.schema import (
    ACTION_TAG,
    DONE_TAG,
    ENTRY_SECONDS_TAG,
    ENTRY_VERSION_TAG,
    FOLLOWS_TAG,
    IDENTITY_TAG,
    PREVIOUS_TAG,
)
from pipelines.tracking.store import Store
from tests.pipelines.forked import Command
from tests.pipelines.packages import log_untrained
from tests.pipelines.registry.registered import force, register

VERSIONS = 5


def test_a_promotion_moves_the_alias_and_the_log_has_who_why_and_from_whom(store):
    champions = Champions(register(store, 2))
    assert champions.state() == ChampionState(None, 0)
    assert champions.promotions() == []
    force(champions, 1, "the first")
    force(champions, 2, "as http://user:CANARY@host says")
    assert champions.registry.aliases() == {CHAMPION: 2}
    first, second = champions.promotions()
    assert second.reason == "as http://***@host says"
    assert (first.version, first.previous, first.reason) == (1, None, "the first")
    assert (second.version, second.previous, second.action) == (2, 1, "forced")
    assert second.seconds > first.seconds > time.time() - 60
    assert champions.state() == ChampionState(2, second.number)


@pytest.mark.parametrize(
    ("tag", "value", "got"),
    [
        (ACTION_TAG, None, "got none, expected what was written, as in the entry's description"),
        (ENTRY_VERSION_TAG, None, "got none, "),
        (ENTRY_VERSION_TAG, "x", 'got "x", '),
        (PREVIOUS_TAG, "", 'got "", '),
        *((ENTRY_SECONDS_TAG, value, f'got "{value}", ') for value in ("1e30", "nan", "inf", "-")),
    ],
)
def test_an_entry_of_the_log_whose_tags_were_edited_is_one_line(store, tag, value, got):
    champions = Champions(register(store, 1))
    force(champions, 1, "the first")
    edit = champions.registry.client.set_model_version_tag
    if value is None:
        store.client.delete_model_version_tag(champions.log.name, "1", tag)
    else:
        edit(champions.log.name, "1", tag, value)
    line = f"tiny-champions version 1: tag {tag}: {got}"
    with pytest.raises(EditedError, match=re.escape(line)):
        champions.promotions()
    store.client.delete_model_version_tag(champions.log.name, "1", DONE_TAG)
    if tag == ENTRY_VERSION_TAG:
        with pytest.raises(EditedError, match=re.escape(line)):
            champions.state()


def test_of_two_that_saw_the_same_champion_one_wins_and_the_other_fails_with_the_reason(store):
    champions = Champions(register(store, 3))
    force(champions, 1)
    seen = champions.state()
    force(champions, 2)
    with pytest.raises(ConcurrentPromotionError, match="version 2 was forced by "):
        champions.promote(3, "promoted", "too late", seen)
    assert champions.registry.aliases() == {CHAMPION: 2}
    assert [promotion.version for promotion in champions.promotions()] == [1, 2]


@pytest.mark.extended
@pytest.mark.parametrize("deleted", [1, 2, 3])
def test_an_entry_that_was_deleted_leaves_those_behind_it_valid(store, deleted):
    champions = Champions(register(store, 4))
    for version in (1, 2, 3):
        force(champions, version)
    store.client.delete_model_version(champions.log.name, str(deleted))
    left = [number for number in (1, 2, 3) if number != deleted]
    assert [promotion.number for promotion in champions.promotions()] == left
    force(champions, 4)
    assert [promotion.version for promotion in champions.promotions()] == [*left, 4]
    assert champions.previous_champion(4) == 3
    assert champions.registry.aliases() == {CHAMPION: 4}


def test_a_void_entry_stays_void_where_the_one_before_it_was_deleted(store):
    champions = Champions(register(store, 4))
    force(champions, 1)
    seen = champions.state()
    force(champions, 2)
    champions._append(3, "promoted", "too late", seen)
    force(champions, 4)
    store.client.delete_model_version(champions.log.name, "2")
    assert [promotion.version for promotion in champions.promotions()] == [1, 4]


@pytest.mark.parametrize("edited", ["", "x", "7", "9" * 5000])
def test_an_entry_whose_place_was_edited_is_void(store, edited):
    champions = Champions(register(store, 2))
    for version in (1, 2):
        force(champions, version)
    store.client.set_model_version_tag(champions.log.name, "2", FOLLOWS_TAG, edited)
    assert [promotion.version for promotion in champions.promotions()] == [1]


def test_an_entry_that_came_second_is_void_for_every_reader_of_the_log(store, monkeypatch):
    """The other one wrote its entry after this one had looked a last time."""
    champions = Champions(register(store, 3))
    seen = champions.state()
    read = Champions._read

    def read_and_be_late(self: Champions) -> object:
        found = read(self)
        monkeypatch.setattr(Champions, "_read", read)
        force(champions, 2)
        return found

    monkeypatch.setattr(Champions, "_read", read_and_be_late)
    with pytest.raises(ConcurrentPromotionError, match="version 2 was forced"):
        champions.promote(3, "promoted", "too late", seen)
    assert [promotion.version for promotion in champions.promotions()] == [2]
    assert champions.registry.aliases() == {CHAMPION: 2}
    void = store.client.get_model_version(champions.log.name, "2")
    assert void.description.startswith("void: ")


def test_killed_before_the_alias_moved_the_next_command_moves_it(store, monkeypatch):
    champions = Champions(register(store, 2))
    force(champions, 1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Registry, "set_alias", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        force(champions, 2)
    assert champions.registry.aliases() == {CHAMPION: 1}
    assert champions.state().champion == 2
    assert champions.registry.aliases() == {CHAMPION: 2}
    assert len(champions.promotions()) == 2


def test_an_alias_that_a_slower_process_has_just_moved_back_is_not_one_moved_by_hand(
    store, monkeypatch
):
    """It has read the log before the second promotion, and sets the alias after it."""
    champions = Champions(register(store, 2))
    force(champions, 1)
    set_alias, seen = Registry.set_alias, []

    def late(registry: Registry, alias: str, version: int) -> None:
        monkeypatch.setattr(Registry, "set_alias", set_alias)
        force(champions, 2)
        set_alias(registry, alias, version)
        seen.extend((registry.aliases(), champions.state(reconcile=False).champion))

    monkeypatch.setattr(Registry, "set_alias", late)
    champions.reconcile_alias()
    assert seen == [{CHAMPION: 1}, 2]
    assert champions.registry.aliases() == {CHAMPION: 2}
    assert marks_of(champions) == []


def force_and_keep_the_mark(champions: Champions, version: int) -> None:
    """As a process of a host that never comes back, of which nobody can find out that it ended."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Registry, "remove_tags", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        force(champions, version)


def marks_of(champions: Champions) -> list[str]:
    return [tag for entry in champions._valid_entries() for tag in entry.tags if "moving" in tag]


def test_killed_before_its_mark_was_removed_what_is_moved_by_hand_later_stays(store, monkeypatch):
    champions = Champions(register(store, 3))
    force(champions, 1)
    force_and_keep_the_mark(champions, 2)
    champions.registry.set_alias(CHAMPION, 3)
    assert champions.state().champion == 3
    assert champions.registry.aliases() == {CHAMPION: 3}
    assert len(marks_of(champions)) == 1
    monkeypatch.setattr(champions_module, "process_has_ended", lambda _: True)
    champions.reconcile_alias()
    assert marks_of(champions) == []


def test_a_mark_of_an_earlier_entry_accounts_for_one_move_to_its_version(store, caplog):
    champions = Champions(register(store, 3))
    force_and_keep_the_mark(champions, 1)
    force(champions, 2)
    for moved, champion in ((3, 3), (1, 2), (1, 1)):
        champions.registry.set_alias(CHAMPION, moved)
        assert champions.state().champion == champion
        assert champions.registry.aliases() == {CHAMPION: champion}
    assert (
        caplog.text.count("is moved back from version 1 to version 2: an interrupted promot") == 1
    )


@pytest.mark.parametrize("seconds", [0.0, 4e9])
def test_no_clock_decides_who_is_champion(store, monkeypatch, seconds):
    champions = Champions(register(store, 2))
    monkeypatch.setattr(champions_module.time, "time", lambda: seconds)
    force(champions, 1)
    assert champions.state().champion == 1
    champions.registry.set_alias(CHAMPION, 2)
    assert champions.state().champion == 2


def test_an_alias_moved_by_hand_is_champion_and_the_next_entry_follows_it(store):
    champions = Champions(register(store, 3))
    force(champions, 1)
    champions.registry.set_alias(CHAMPION, 2)
    assert champions.state().champion == 2
    assert champions.previous_champion(2) == 1
    force(champions, 3)
    assert champions.promotions()[-1].previous == 2
    assert champions.previous_champion(3) == 2


def test_an_alias_moved_by_hand_meanwhile_counts_as_a_promotion(store):
    champions = Champions(register(store, 3))
    force(champions, 1)
    seen = champions.state()
    champions.registry.set_alias(CHAMPION, 2)
    with pytest.raises(ConcurrentPromotionError, match="by hand"):
        champions.promote(3, "promoted", "too late", seen)
    assert champions.registry.aliases() == {CHAMPION: 2}
    assert len(champions.promotions()) == 1


def test_rolling_back_walks_back_and_not_to_and_fro(store):
    champions = Champions(register(store, 4))
    for version in (1, 2, 3):
        force(champions, version)
    assert champions.previous_champion(3) == 2
    champions.promote(2, "rolled back", "bad", champions.state())
    assert champions.previous_champion(2) == 1
    champions.promote(1, "rolled back", "bad too", champions.state())
    assert champions.previous_champion(1) is None
    force(champions, 4)
    assert champions.previous_champion(4) == 1


def test_a_deleted_version_is_no_champion_to_go_back_to(store):
    champions = Champions(register(store, 3))
    for version in (1, 2, 3):
        force(champions, version)
    store.client.delete_model_version(champions.registry.name, "2")
    assert champions.previous_champion(3) == 1
    store.client.delete_model_version(champions.registry.name, "3")
    assert champions.state().champion is None
    assert champions.previous_champion(None) == 1


def test_what_is_no_logged_model_is_no_champion_to_go_back_to(store):
    champions = Champions(register(store, 1))
    force(champions, 1)
    store.client.create_model_version("tiny", "s3://elsewhere/model")
    champions.registry.set_alias(CHAMPION, 2)
    force(champions, 1)
    assert champions.previous_champion(1) is None
    with pytest.raises(ConfigError, match="tiny version 2: expected a model logged by MLflow 3"):
        _decide(champions.registry, 2, argparse.Namespace(changes=[]))


def test_the_history_of_a_model_that_was_deleted_is_not_that_of_its_namesake(store):
    champions = Champions(register(store, 2))
    for version in (1, 2):
        force(champions, version)
    store.client.delete_registered_model(champions.registry.name)
    again = Champions(register(store, 4))
    assert again.state().champion is None
    assert again.promotions() == []
    assert again.previous_champion(None) is None
    force(again, 2)
    assert [(p.version, p.previous) for p in again.promotions()] == [(2, None)]


def test_a_namesake_has_no_history_of_versions_that_it_does_not_have_yet_or_has_again(store):
    champions = Champions(register(store, 2))
    sources = [version.source for version in champions.registry.versions()]
    runs = [version.run_id for version in champions.registry.versions()]
    for version in (1, 2):
        force(champions, version)
    store.client.delete_registered_model("tiny")
    again = champions.registry.register(sources[0], runs[0], {})
    assert (again, champions.promotions(), champions.state().champion) == (1, [], None)
    force(champions, 1)
    assert [(p.version, p.previous) for p in champions.promotions()] == [(1, None)]
    store.client.delete_registered_model_tag("tiny", IDENTITY_TAG)
    assert [p.version for p in champions.promotions()] == [1, 2, 1]


def test_a_model_of_others_has_its_history(store):
    registry = register(store, 2)
    store.client.delete_registered_model_tag("tiny", IDENTITY_TAG)
    champions = Champions(registry)
    for version in (1, 2):
        force(champions, version)
    assert [p.version for p in champions.promotions()] == [1, 2]


PROMOTER = """
import random, sys, tempfile, time
from pipelines.registry.champions import Champions, ConcurrentPromotionError
from pipelines.registry.gate import gate_lock
from pipelines.registry.versions import Registry
from pipelines.storage import private
from pipelines.tracking.client import connect_existing
private.SHARED = tempfile.gettempdir()
name, count, versions = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
registry, rng = Registry(connect_existing(), "tiny"), random.Random(name)
champions = Champions(registry)
overtaken = promoted = 0
while promoted < count:
    try:
        with gate_lock(registry):
            seen = champions.state()
            reason = f"{name} {promoted}"
            champions.promote(rng.randint(1, versions), "promoted", reason, seen)
        promoted += 1
    except ConcurrentPromotionError:
        overtaken += 1
        time.sleep(rng.uniform(0, 3))
print(overtaken)
"""


@pytest.mark.parametrize(
    ("remote", "promotions", "at_once"),
    [
        pytest.param(False, 6, 3, id="SQLite, one host, six"),
        pytest.param(True, 6, 3, id="a server, three hosts, six", marks=pytest.mark.extended),
        pytest.param(False, 50, 8, id="SQLite, one host, fifty", marks=pytest.mark.faults),
        pytest.param(True, 50, 8, id="a server, eight hosts, fifty", marks=pytest.mark.faults),
    ],
)
def test_promotions_at_the_same_time_leave_one_champion_and_a_consistent_history(
    remote, promotions, at_once, tmp_path, tracking_address, monkeypatch
):
    uri = tracking_address if remote else f"sqlite:///{tmp_path}/m.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    champions = Champions(register(Store.open("promotions", tmp_path / "runs"), VERSIONS))
    shares = [len(range(i, promotions, at_once)) for i in range(at_once)]
    promoters = [
        start_promoter(tmp_path, number, share, own_host=remote)
        for number, share in enumerate(shares)
    ]
    overtaken = 0
    for promoter in promoters:
        out, err = promoter.communicate(timeout=400)
        assert promoter.returncode == 0, err
        overtaken += int(out)
    assert (overtaken > 0) is remote  # on one host the lock lets no two promote at once
    history = champions.promotions()
    reasons = Counter(promotion.reason for promotion in history)
    asked = {f"{number} {i}" for number, share in enumerate(shares) for i in range(share)}
    assert reasons == Counter(asked)
    before = [None, *(promotion.version for promotion in history[:-1])]
    assert [promotion.previous for promotion in history] == before
    assert champions.registry.aliases() == {CHAMPION: history[-1].version}
    assert champions.state() == ChampionState(history[-1].version, history[-1].number)


def start_promoter(folder: Path, number: int, share: int, *, own_host: bool) -> Command:
    """On a host of its own it sees none of the others' lock files."""
    host = folder / f"host {number if own_host else 0}"
    host.mkdir(mode=0o700, exist_ok=True)
    script = host / f"promoter{number}.py"  # never one that another process is reading
    script.write_text(PROMOTER)
    arguments = map(str, (number, share, VERSIONS))
    return Command(script, [*arguments], host, {**os.environ, "TMPDIR": str(host)})


def test_a_version_whose_files_are_gone_or_altered_is_neither_forced_nor_rolled_back_to(
    store, experiment
):
    registry, champions = Registry(store.client, "tiny"), Champions(Registry(store.client, "tiny"))
    for number in range(3):
        run, uri = log_untrained(store, experiment, number)
        registry.register(uri, run, {})
    for version in (1, 2, 3):
        force(champions, version)
    location = store.client.get_logged_model(registry.model_id(2)).artifact_location
    shutil.rmtree(location.removeprefix("file://"))
    assert rollback(registry, "test", dry_run=True) == (3, 1)
    with pytest.raises(GoneError, match="its files are gone"):
        gate_force(registry, 2, "test")
    assert champions.ways_on(3, 2).startswith(
        "`python pipelines/promote.py rollback --model tiny`, which makes version 1 champion, or `"
    )
    location = store.client.get_logged_model(registry.model_id(1)).artifact_location
    (weights,) = Path(location.removeprefix("file://")).rglob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(DamagedError, match=r"safetensors was altered after it was packaged"):
        gate_force(registry, 1, "test")
    but = "to go back to, but for version 2, version 1: the files are gone or were altered"
    with pytest.raises(ConfigError, match=f"no earlier champion {but}"):
        rollback(registry, "test")
    assert registry.aliases() == {CHAMPION: 3}
    assert champions.ways_on(3) == (
        "`python pipelines/promote.py promote VERSION --model tiny --force REASON`"
    )


def test_a_log_that_the_user_may_not_read_is_not_taken_for_an_empty_one(store, monkeypatch):
    """A server lists no versions of it then."""
    champions = Champions(register(store, 1))
    force(champions, 1)
    search = store.client._client.search_model_versions

    def listed(query: str, **options: object) -> object:
        return search("name = 'none'" if "-champions" in query else query, **options)

    monkeypatch.setattr(store.client._client, "search_model_versions", listed)
    refuse(store, monkeypatch, champions.log.name)
    for reconcile in (True, False):
        with pytest.raises(
            RefusedError, match=r"^models:/tiny-champions may not be read: .*Permis"
        ):
            champions.state(reconcile=reconcile)


def refuse(store: Store, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let the store refuse to read registered models, as a server with grants does."""
    get = store.client._client.get_registered_model

    def refused(name: str) -> object:
        if name in names:
            raise MlflowException("Permission denied", error_code=PERMISSION_DENIED)
        return get(name)

    monkeypatch.setattr(store.client._client, "get_registered_model", refused)


def test_a_log_that_is_not_there_may_be_refused_and_is_made(store, monkeypatch):
    """By a server with grants, which are looked up first; who makes a model has one of it."""
    champions = Champions(register(store, 1))
    with monkeypatch.context() as patch:
        refuse(store, patch, champions.log.name)
        assert champions.state(reconcile=False) == ChampionState(None, 0)
        assert champions.number_challenger("text", "same", "m-1", dry_run=True) == (1, 1)
        create = store.client._client.create_registered_model

        def create_with_a_grant(*arguments: object, **options: object) -> object:
            patch.undo()
            return create(*arguments, **options)

        patch.setattr(store.client._client, "create_registered_model", create_with_a_grant)
        assert champions.state() == ChampionState(None, 0)
    assert champions.log.own_tags() == {}
    force(champions, 1)
    assert champions.state() == ChampionState(1, 1)


def test_the_log_of_champions_is_no_model_whose_versions_can_be_listed(store):
    champions = Champions(register(store, 1))
    force(champions, 1)
    name = champions.registry.name
    with pytest.raises(ConfigError, match=rf"the champions of {name}; .+ did you mean {name}\?$"):
        Registry(store.client, champions.log.name).versions()
