import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest

from pipelines.console.errors import ConfigError
from pipelines.registry.resolve import resolve_model
from pipelines.registry.versions import (
    CHAMPION,
    LOG,
    ChampionState,
    ConcurrentPromotionError,
    Registry,
)
from pipelines.tracking.store import Store
from tests.pipelines.commands import tracking_server

VERSIONS = 5


def register(store: Store, count: int = 1) -> Registry:
    """A registry with versions of models without files."""
    registry = Registry(store.client, "tiny")
    for number in range(count):
        run = store.create("fit", f"fit {number} of {count}", "fit")
        experiment = store.experiment_id
        model = store.client.create_logged_model(experiment, source_run_id=run)
        registry.register(f"models:/{model.model_id}", run, {"number": str(number)})
    return registry


def force(registry: Registry, version: int, reason: str = "test") -> None:
    registry.promote(version, "forced", reason, registry.standing())


def test_registering_twice_makes_one_version(store):
    registry = register(store)
    uri, run = registry.get(1).source, registry.get(1).run_id
    assert registry.register(uri, run, {"a": "1"}) == 1
    assert registry.register(uri, run, {"a": "2"}) == 1
    assert registry.get(1).tags == {"number": "0", "a": "2"}


def test_a_promotion_moves_the_alias_and_the_log_says_who_why_and_from_whom(store):
    registry = register(store, 2)
    assert registry.standing() == ChampionState(None, 0)
    assert registry.promotions() == []
    force(registry, 1, "the first")
    force(registry, 2, "the second")
    assert registry.aliases() == {CHAMPION: 2}
    first, second = registry.promotions()
    assert (first.version, first.previous, first.reason) == (1, None, "the first")
    assert (second.version, second.previous, second.action) == (2, 1, "forced")
    assert second.seconds > first.seconds > time.time() - 60
    assert registry.standing() == ChampionState(2, second.number)


def test_of_two_that_saw_the_same_champion_one_wins_and_the_other_says_why(store):
    registry = register(store, 3)
    force(registry, 1)
    seen = registry.standing()
    force(registry, 2)
    with pytest.raises(ConcurrentPromotionError, match="version 2 was forced by "):
        registry.promote(3, "promoted", "too late", seen)
    assert registry.aliases() == {CHAMPION: 2}
    assert [promotion.version for promotion in registry.promotions()] == [1, 2]


def test_an_entry_that_came_second_is_void_for_whoever_reads_the_log(store, monkeypatch):
    """The other one wrote its entry after this one had looked a last time."""
    registry = register(store, 3)
    seen = registry.standing()
    look = Registry._look

    def look_and_be_late(self: Registry) -> object:
        found = look(self)
        monkeypatch.setattr(Registry, "_look", look)
        force(registry, 2)
        return found

    monkeypatch.setattr(Registry, "_look", look_and_be_late)
    with pytest.raises(ConcurrentPromotionError, match="version 2 was forced"):
        registry.promote(3, "promoted", "too late", seen)
    assert [promotion.version for promotion in registry.promotions()] == [2]
    assert registry.aliases() == {CHAMPION: 2}
    void = store.client.get_model_version(registry.name + LOG, "2")
    assert void.description.startswith("void: ")


def test_killed_before_the_alias_moved_whoever_comes_next_moves_it(store, monkeypatch):
    registry = register(store, 2)
    force(registry, 1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Registry, "point", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        force(registry, 2)
    assert registry.aliases() == {CHAMPION: 1}
    assert registry.standing().champion == 2
    assert registry.aliases() == {CHAMPION: 2}
    assert len(registry.promotions()) == 2


def test_an_alias_moved_by_hand_is_the_champion_and_the_next_entry_tells(store, monkeypatch):
    monkeypatch.setattr("pipelines.registry.versions.SETTLING_SECONDS", 0)
    registry = register(store, 3)
    force(registry, 1)
    registry.point(CHAMPION, 2)
    assert registry.standing().champion == 2
    assert registry.before(2) == 1
    force(registry, 3)
    assert registry.promotions()[-1].previous == 2
    assert registry.before(3) == 2


def test_an_alias_moved_by_hand_since_one_looked_overtakes(store, monkeypatch):
    monkeypatch.setattr("pipelines.registry.versions.SETTLING_SECONDS", 0)
    registry = register(store, 3)
    force(registry, 1)
    seen = registry.standing()
    registry.point(CHAMPION, 2)
    with pytest.raises(ConcurrentPromotionError, match="by hand"):
        registry.promote(3, "promoted", "too late", seen)
    assert registry.aliases() == {CHAMPION: 2}
    assert len(registry.promotions()) == 1


def test_rolling_back_walks_back_and_not_to_and_fro(store):
    registry = register(store, 4)
    for version in (1, 2, 3):
        force(registry, version)
    assert registry.before(3) == 2
    registry.promote(2, "rolled back", "bad", registry.standing())
    assert registry.before(2) == 1
    registry.promote(1, "rolled back", "bad too", registry.standing())
    assert registry.before(1) is None
    force(registry, 4)
    assert registry.before(4) == 1


def test_a_deleted_version_is_no_champion_to_go_back_to(store):
    registry = register(store, 3)
    for version in (1, 2, 3):
        force(registry, version)
    store.client.delete_model_version(registry.name, "2")
    assert registry.before(3) == 1
    store.client.delete_model_version(registry.name, "3")
    assert registry.standing().champion is None
    assert registry.before(None) == 1


def test_the_history_of_a_model_that_was_deleted_is_not_that_of_its_namesake(store):
    registry = register(store, 2)
    for version in (1, 2):
        force(registry, version)
    store.client.delete_registered_model(registry.name)
    again = register(store, 4)
    assert again.standing().champion is None
    assert again.promotions() == []
    assert again.before(None) is None
    force(again, 2)
    assert [(p.version, p.previous) for p in again.promotions()] == [(2, None)]


def test_a_version_is_found_by_number_alias_or_as_the_latest(store):
    registry = register(store, 3)
    registry.point("candidate", 2)
    assert [registry.find(text) for text in ("3", "candidate", "@candidate", "latest")] == [
        *(3, 2, 2, 3)
    ]
    for wrong in ("4", "champion", "x\ny", ""):
        with pytest.raises(ConfigError, match="versions: 1 to 3; aliases: candidate") as raised:
            registry.find(wrong)
        assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match="no such registered model; registered: tiny"):
        Registry(store.client, "huge").find("1")


def test_every_way_to_name_a_model_leads_to_it(store):
    registry = register(store, 2)
    force(registry, 2)
    model_id = registry.model_id(2)
    named = [
        *("tiny", "tiny@champion", "tiny/2", "tiny/latest", "2", "latest", "@champion"),
        *("models:/tiny/2", "models:/tiny@champion"),
    ]
    for text in named:
        label = "models:/tiny/2 (champion)"
        assert resolve_model(store.client, text, name="tiny") == (model_id, label), text
    for text in (model_id, f"models:/{model_id}"):
        assert resolve_model(store.client, text, name="tiny") == (model_id, f"models:/{model_id}")
    wrong_names = ("models:/tiny/9", "tiny@x", "nobody", "m-" + 32 * "0", 32 * "0", "runs:/x")
    for wrong in (*wrong_names, "", "@", "tiny@", "tiny/", "models:/", "http://x/y", "a\nb"):
        with pytest.raises(ConfigError):
            resolve_model(store.client, wrong, name="tiny")
    with pytest.raises(ConfigError, match="that run has logged no model"):
        resolve_model(store.client, f"runs:/{registry.get(1).run_id}/model", name="tiny")


PROMOTER = """
import random, sys, time
from pipelines.registry.versions import Overtaken, Registry
from pipelines.tracking.client import alone, connect_existing
name, count, versions = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
registry, rng = Registry(connect_existing(), "tiny"), random.Random(name)
overtaken = promoted = 0
while promoted < count:
    try:
        with alone("champion of tiny", wait_seconds=300):
            seen = registry.standing()
            reason = f"{name} {promoted}"
            registry.promote(rng.randint(1, versions), "promoted", reason, seen)
        promoted += 1
    except Overtaken:
        overtaken += 1
        time.sleep(rng.uniform(0, 3))
print(overtaken)
"""


@pytest.mark.parametrize(
    ("remote", "promotions", "at_once"),
    [
        pytest.param(False, 12, 4, id="SQLite, one host, twelve"),
        pytest.param(True, 12, 4, id="a server, four hosts, twelve"),
        pytest.param(False, 50, 8, id="SQLite, one host, fifty", marks=pytest.mark.faults),
        pytest.param(True, 50, 8, id="a server, eight hosts, fifty", marks=pytest.mark.faults),
    ],
)
def test_promotions_at_the_same_time_leave_one_champion_and_a_consistent_history(
    remote, promotions, at_once, tmp_path, monkeypatch
):
    with tracking_server(tmp_path) if remote else nullcontext(f"sqlite:///{tmp_path}/m.db") as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        registry = register(Store.open("tiny", tmp_path / "runs"), VERSIONS)
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
        assert (overtaken > 0) is remote  # on one host the lock lets nobody be late
        history = registry.promotions()
        reasons = Counter(promotion.reason for promotion in history)
        asked = {f"{number} {i}" for number, share in enumerate(shares) for i in range(share)}
        assert reasons == Counter(asked)
        before = [None, *(promotion.version for promotion in history[:-1])]
        assert [promotion.previous for promotion in history] == before
        assert registry.aliases() == {CHAMPION: history[-1].version}
        assert registry.standing() == ChampionState(history[-1].version, history[-1].number)


def start_promoter(
    folder: Path, number: int, share: int, *, own_host: bool
) -> subprocess.Popen[str]:
    """On a host of its own it sees none of the others' lock files."""
    host = folder / f"host {number if own_host else 0}"
    host.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", PROMOTER, str(number), str(share), str(VERSIONS)],
        env={**os.environ, "TMPDIR": str(host)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
