import json
import math
import re
import shutil
import threading
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.console.errors import (
    BlockedError,
    ConfigError,
    DamagedError,
    GoneError,
    PipelineError,
    StorageError,
)
from pipelines.console.progress import Progress
from pipelines.data.config import DataConfig
from pipelines.data.splits import measure_corpus, sealed_test, write_splits
from pipelines.engine.results import StageResults
from pipelines.engine.stage import Context, Invocation
from pipelines.registry import gate as module
from pipelines.registry.champions import (
    CHAMPION,
    Champions,
    ConcurrentPromotionError,
    Promotion,
)
from pipelines.registry.gate import Decision, Gate, force, rollback
from pipelines.registry.results import Registered, Tested
from pipelines.registry.score import NotCausalError, Score, block_edges
from pipelines.registry.score import score as real_score
from pipelines.registry.versions import Registry
from pipelines.stages.promote import promote
from pipelines.tracking.models import ModelStore
from pipelines.tracking.schema import TRIED_TAG
from pipelines.tracking.store import Store
from tests.pipelines.stored import purge

TEXT_BYTES = 60_001


@pytest.fixture
def context(experiment, store, tmp_path) -> Context:
    invocation = Invocation(["pipelines/sweep.py"], Progress())
    return Context(experiment, tmp_path / "runs", store, invocation, pipeline_run="")


class Versions:
    """Versions of models without weights, whose scores are made up."""

    def __init__(self, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
        self.context, self.registry = context, Registry(context.store.client, "tiny")
        self.scores: dict[str, Score | Exception] = {}
        self.scored: list[str] = []
        monkeypatch.setattr(module, "score", self.score)

    def score(
        self,
        models: ModelStore,
        model_id: str,
        text: Path,
        *_: object,
        max_seq_len: int | None = None,
    ) -> Score:
        self.scored.append(model_id)
        found = self.scores[model_id]
        if isinstance(found, Exception):
            raise found
        return replace(found, seq_len=min(found.seq_len, max_seq_len or found.seq_len))

    def add(
        self,
        bits: float,
        *,
        evaluated: float | None = None,
        noise: float = 0.0,
        seed: int | None = None,
        seq_len: int = 128,
        **facts,
    ) -> int:
        """A version with so many bits per byte on the test text, more in some blocks."""
        edges = np.diff(block_edges(TEXT_BYTES))
        rng = np.random.default_rng(len(self.scores) if seed is None else seed)
        wave = noise * rng.standard_normal(len(edges))
        blocks = (edges * (bits + wave - wave.mean())).tolist()
        defaults = {"parameters": 10, "bytes_per_second": 100.0, "latency_seconds": 0.01}
        score = Score(blocks, TEXT_BYTES, seq_len, seq_len, **{**defaults, **facts})
        store = self.context.store
        run = store.create("fit", f"fit {len(self.scores)}", "fit")
        model = store.client.create_logged_model(store.experiment_id, source_run_id=run)
        self.scores[model.model_id] = score
        tags = {
            "test.fingerprint": "same",
            "test.bits_per_byte": repr(score.bits_per_byte if evaluated is None else evaluated),
        }
        return self.registry.register(f"models:/{model.model_id}", run, tags)

    def sweep(self, version: int, fingerprint: str = "same", **settings) -> str:
        """What the stage decides about a version."""
        changes = {f"promote.{key}": value for key, value in settings.items()}
        context = replace(self.context, config=self.context.config.replace(changes))
        registered, tested = Registered("tiny", version), Tested(2.0, fingerprint, {})
        self.test(fingerprint)
        promoted = promote(context, StageResults({"register": registered, "evaluate": tested}))
        assert promoted.champion == self.champion
        return promoted.decision

    def decide(self, version: int, fingerprint: str = "same", **options) -> Decision:
        """The gate's decision, without the stage."""
        settings, storage = self.context.config.promote, self.context.storage
        test = self.test(fingerprint)
        return Gate(self.registry, settings, test, fingerprint, storage, **options).decide(version)

    def test(self, fingerprint: str) -> Path:
        """The sealed test bytes of a corpus, which are other ones for each."""
        path = sealed_test(self.context.storage, fingerprint)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(fingerprint)
        return path

    def promotions(self) -> list[Promotion]:
        return Champions(self.registry).promotions()

    @property
    def champion(self) -> int | None:
        return self.registry.aliases().get(CHAMPION)


@pytest.fixture
def versions(context, monkeypatch) -> Versions:
    return Versions(context, monkeypatch)


def promote_before(registry: Registry, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a version become champion just before the next promotion."""
    move = Champions.promote

    def late(self: Champions, *args) -> None:
        monkeypatch.setattr(Champions, "promote", move)
        force(registry, version, "faster")
        move(self, *args)

    monkeypatch.setattr(Champions, "promote", late)


def test_the_first_version_becomes_champion_and_again_changes_nothing(versions):
    version = versions.add(2.0)
    first = versions.sweep(version)
    assert first == "promoted: 2.0000 bits per byte; there was no champion"
    assert versions.champion == version
    assert versions.sweep(version) == first
    assert len(versions.promotions()) == len(versions.scored) == 1


def test_a_challenger_must_surely_be_better_by_the_margin(versions):
    best = 2.0
    versions.sweep(champion := versions.add(best))
    for gain, noise, margin, wins in [
        (0.1, 0.01, 0.2, False),
        (0.0, 0.0, 0.0, False),
        (-0.1, 0.01, 0.0, False),
        (0.01, 1.0, 0.0, False),  # better by chance
        (0.1, 0.01, 0.0, True),
        (0.1, 0.01, 0.05, True),
    ]:
        version = versions.add(best - gain, noise=noise)
        decision = versions.sweep(version, min_improvement=margin)
        assert decision.startswith("promoted: " if wins else f"kept version {champion}: ")
        assert f", {'' if wins else 'not '}over {margin:g}; challenger " in decision
        champion, best = (version, best - gain) if wins else (champion, best)
        assert versions.champion == champion
        tags = versions.registry.get(version).tags
        assert tags["gate.decision"] == decision
        assert float(tags["gate.gain"]) == pytest.approx(gain, abs=1e-3)
        assert float(tags["gate.least_gain"]) <= float(tags["gate.gain"]) + 1e-9
        asked = len(versions.scored)
        assert versions.sweep(version, min_improvement=margin) == decision
        assert len(versions.scored) == asked


def test_a_small_gain_in_every_block_is_sure_however_much_the_blocks_differ(versions):
    versions.sweep(versions.add(2.0, noise=1.0, seed=0))
    versions.sweep(version := versions.add(1.99, noise=1.0, seed=0))
    assert versions.champion == version


LIMITS = [
    ({"bits": math.nan}, {}, "its bits per byte are not finite: nan"),
    (
        {"bits": 1.0, "evaluated": 1.1},
        {},
        "re-measured at 1.0000 bits per byte, but evaluated at 1.1000",
    ),
    (
        {"bits": 1.0, "evaluated": math.nan},
        {},
        "re-measured at 1.0000 bits per byte, but evaluated at nan",
    ),
    ({"parameters": 11}, {"max_parameters": 10}, "11 parameters, over promote.max_par"),
    ({"bytes_per_second": 9.0}, {"min_bytes_per_second": 10.0}, "9.0 bytes per second, under"),
    (
        {"latency_seconds": 0.2},
        {"max_latency_seconds": 0.1},
        "0.2000 s to the first byte, over",
    ),
]


@pytest.mark.extended
def test_limits_hold_with_and_without_a_champion(versions):
    champion, kept = None, "not promoted"
    for _ in range(2):
        for facts, settings, reason in LIMITS:
            version = versions.add(**{"bits": 1.0, **facts})
            assert versions.sweep(version, **settings).startswith(f"{kept}: {reason}")
            assert versions.champion == champion
        versions.sweep(champion := versions.add(2.0))
        kept = f"kept version {champion}"


def test_a_version_that_cannot_be_read_back_is_not_promoted_and_the_reason_is_kept(versions):
    version = versions.add(1.0)
    versions.scores[versions.registry.model_id(version)] = DamagedError("altered")
    assert versions.sweep(version) == "not promoted: it cannot be read back: altered"
    assert versions.champion is None


def test_a_transient_failure_is_no_decision(versions):
    version = versions.add(1.0)
    model_id = versions.registry.model_id(version)
    score, versions.scores[model_id] = versions.scores[model_id], PipelineError("out of memory")
    with pytest.raises(PipelineError, match="out of memory"):
        versions.sweep(version)
    assert "gate.decision" not in versions.registry.get(version).tags
    versions.scores[model_id] = score
    assert versions.sweep(version).startswith("promoted")


@pytest.mark.extended
def test_an_incomplete_or_foreign_score_is_measured_again(versions):
    versions.sweep(first := versions.add(1.5))
    champion = versions.registry.model_id(first)
    whole = asdict(versions.scores[champion])
    for damaged in (
        {"text_bytes": 3},
        [],
        {**whole, "block_bits": [1]},
        {**whole, "block_bits": [math.nan, *whole["block_bits"][1:]]},
        {**whole, "block_bits": [str(bits) for bits in whole["block_bits"]]},
        {**whole, "latency_seconds": -1.0},
        {**whole, "seq_len": 129},
        {key: value for key, value in whole.items() if "seq_len" not in key},  # of version 0
    ):
        versions.registry.write_json(first, "scores/same-128.json", damaged)
        versions.scored.clear()
        versions.sweep(versions.add(1.6))
        assert champion in versions.scored


def test_a_score_that_was_edited_in_storage_lets_no_worse_version_win(versions):
    versions.sweep(first := versions.add(1.5))
    champion = versions.registry.model_id(first)
    registry, file = versions.registry, "scores/same-128.json"
    registry.write_json(first, file, asdict(versions.scores[champion]))
    assert registry.read_json(first, file)
    model = registry.client.get_logged_model(champion)
    (stored,) = Path(versions.context.storage).rglob(f"{model.source_run_id}/artifacts/{file}")
    score = versions.scores[champion]
    worse = replace(score, block_bits=[1.1 * bits for bits in score.block_bits])
    stored.write_text(json.dumps(asdict(worse), indent=1))
    assert registry.read_json(first, file) is None
    versions.scored.clear()
    assert versions.sweep(versions.add(1.6)).startswith("kept version 1")
    assert champion in versions.scored


def test_on_other_test_bytes_the_champion_is_evaluated_once(versions):
    versions.sweep(first := versions.add(1.5))
    champion = versions.registry.model_id(first)
    versions.scored.clear()
    for _ in range(2):
        version = versions.add(1.6)
        versions.registry.tag(version, {"test.fingerprint": "new"})
        versions.sweep(version, "new")
        assert versions.champion == first
    assert versions.scored.count(champion) == 1
    assert versions.registry.read_json(first, "scores/new-128.json")["text_bytes"] == TEXT_BYTES


def test_the_tags_are_those_of_the_last_decision_only(versions):
    versions.sweep(versions.add(2.0))
    version = versions.add(1.99, noise=1.0, parameters=12_345_678)
    versions.sweep(version)
    assert "gate.gain" in versions.registry.get(version).tags
    versions.sweep(version, max_parameters=1)
    tags = versions.registry.get(version).tags
    assert "over promote.max_parameters" in tags["gate.decision"]
    assert "gate.gain" not in tags
    assert tags["gate.parameters"] == "12345678"


@pytest.mark.extended
def test_both_models_are_compared_in_the_windows_of_the_one_with_the_shorter(versions):
    """Whichever it is; what was measured in other windows is measured again, once."""
    versions.sweep(first := versions.add(2.0, seq_len=256))
    champion = versions.registry.model_id(first)
    for seq_len, windows, measured in (
        (256, "256,", 1),
        (64, "64 (trained with 64 and 256),", 1),
        (64, "64 (trained with 64 and 256),", 0),
        (512, "256 (trained with 512 and 256),", 1),
        (512, "256 (trained with 512 and 256),", 0),
        (256, "256,", 0),
    ):
        versions.scored.clear()
        version = versions.add(2.1, seq_len=seq_len)
        decision = versions.sweep(version)
        assert f"on the same test bytes in the same windows of {windows} a gain of -0.1" in decision
        assert versions.scored.count(champion) == measured
        again = versions.scored.count(versions.registry.model_id(version))
        assert again == 1 + (seq_len > 256)
        assert versions.registry.get(version).tags["gate.seq_len"] == str(min(seq_len, 256))


def test_a_model_that_sees_the_future_is_refused_as_a_challenger_and_as_the_champion(versions):
    versions.sweep(first := versions.add(2.0))
    version = versions.add(1.0)
    model_id = versions.registry.model_id(version)
    versions.scores[model_id] = NotCausalError("it sees what it predicts")
    decision = versions.sweep(version)
    assert decision == f"kept version {first}: it sees what it predicts"
    force(versions.registry, version, "who needs a probe")
    other = versions.add(3.0)
    decision = versions.sweep(other)
    assert decision == f"promoted: version {version} cannot be compared: it sees what it predicts"
    assert versions.champion == other


@pytest.mark.extended
def test_different_challengers_of_a_test_text_are_counted_and_deleted_ones_too(versions):
    versions.sweep(versions.add(2.0))
    second, third = versions.add(2.1), versions.add(2.2)
    assert versions.sweep(second).endswith("; challenger 1 of 1 tried on this test text")
    assert versions.sweep(third).endswith("; challenger 2 of 2 tried on this test text")
    again = versions.sweep(second, min_improvement=0.1)
    assert again.endswith("; challenger 1 of 2 tried on this test text")
    refused = versions.sweep(versions.add(2.0), max_parameters=1)
    assert refused.endswith("; challengers tried on this test text: 2")
    versions.registry.client.delete_model_version("tiny", str(third))
    assert versions.sweep(versions.add(2.1)).endswith("; challenger 3 of 3 tried on this test text")
    tags = versions.registry.get(second).tags
    assert (tags["gate.challenger"], tags["gate.challengers"]) == ("1", "2")
    other = versions.add(2.1)
    assert "challenger 4 of 4" in versions.decide(other, dry_run=True).summary
    assert "challenger 4 of 4" in versions.decide(versions.add(2.1)).summary  # not counted before
    assert "challenger 1 of 1" in versions.sweep(other, "another text")


def test_challengers_of_an_earlier_version_of_the_project_are_counted_by_their_tags(versions):
    versions.sweep(versions.add(2.0))
    versions.registry.tag(versions.add(2.1), {"gate.gain": "-0.1"})
    assert "challenger 2 of 2" in versions.sweep(versions.add(2.1))


@pytest.mark.extended
@pytest.mark.parametrize("edited", ["0", "-1", "x", "1.5", "9" * 5000])
def test_a_challenger_whose_number_was_edited_gets_another(versions, edited):
    champions = Champions(versions.registry)
    versions.sweep(versions.add(2.0))
    assert champions.number_challenger("text", "same", "m-1") == (1, 1)
    assert champions.number_challenger("text", "same", "m-2") == (2, 2)
    champions.log.tag_itself(TRIED_TAG.format("text", "m-1"), edited)
    assert champions.number_challenger("text", "same", "m-1") == (2, 2)


def test_of_two_challengers_at_once_none_misses_the_other(versions, monkeypatch):
    versions.sweep(versions.add(2.0))
    champions, tag = Champions(versions.registry), Registry.tag_itself
    numbers = []

    def late(self: Registry, *args) -> None:
        """Another process is numbered between two steps of this one."""
        tag(self, *args)
        monkeypatch.setattr(Registry, "tag_itself", tag)
        numbers.append(champions.number_challenger("text", "same", "m-2"))

    monkeypatch.setattr(Registry, "tag_itself", late)
    numbers.append(champions.number_challenger("text", "same", "m-1"))
    assert numbers == [(2, 2), (2, 2)]
    assert champions.number_challenger("text", "same", "m-3") == (3, 3)
    assert champions.number_challenger("text", "same", "m-1") == (2, 3)


@pytest.mark.extended
def test_a_level_that_is_spent_asks_more_of_each_challenger(versions):
    """With 30 blocks, 6 cosines: 2.3 standard errors of the first, 3.4 of the second."""
    champion = versions.add(2.0, noise=0.1, seed=1)
    versions.sweep(champion)
    worse, gains = versions.add(2.1), {}
    assert "must gain 2.3 standard errors" in versions.sweep(worse, multiplicity="spend")
    for number, promoted in ((2, False), (3, False), (3, True)):
        setting = "count" if promoted else "spend"
        version = gains.get(number) or versions.add(1.9, noise=0.18, seed=2)
        gains[number] = version
        decision = versions.sweep(version, multiplicity=setting)
        tags = versions.registry.get(version).tags
        errors = float(tags["gate.gain"]) / float(tags["gate.gain_standard_error"])
        assert 2.0 < errors < 3.3
        assert decision.startswith("promoted" if promoted else "kept")
        level = 0.05 if promoted else 0.05 * 6 / (math.pi * number) ** 2
        assert float(tags["gate.confidence"]) == pytest.approx(1 - level)
        assert tags["gate.challenger"] == str(number)
        if not promoted:
            asked = re.search(r"must gain (.*) standard errors, the next one (.*); a", decision)
            assert [float(text) for text in asked.groups()] == {2: [3.4, 4.0], 3: [4.0, 4.6]}[
                number
            ]
            assert decision.endswith("a fresh test text opens the gate again, at 2.3")


@pytest.fixture
def other_text(context, tmp_path) -> str:
    """The fingerprint of a corpus in storage, whose training text has the word `same`."""
    (tmp_path / "other.txt").write_text("a line of another text\n" * 400)
    data = DataConfig(corpus="files", path=str(tmp_path / "other.txt"))
    corpus = measure_corpus(data, seq_len=32)
    write_splits(data, corpus, context.storage)
    return corpus.fingerprint


def test_a_champion_of_another_text_may_have_seen_this_one(versions, other_text, monkeypatch):
    """How much of it is told if its text is in storage, else that it cannot be known."""
    versions.sweep(first := versions.add(2.0))
    known = "; version 1 was trained on another text"
    assert known not in versions.sweep(versions.add(2.1))
    versions.registry.tag(first, {"test.fingerprint": other_text})
    train = Path(versions.context.storage, "corpora", other_text, "train.bin").read_bytes()
    monkeypatch.setattr(versions, "test", lambda name: write(versions, name, train[:300]))
    overlap = "100.0 % of the test bytes lie in strings of 64 bytes that the training text has too"
    assert versions.sweep(versions.add(2.1)).endswith(f"{known}: {overlap}")
    full = StorageError("/tmp/x: cannot be written: no room")
    monkeypatch.setattr(module, "local_copy", lambda _: (_ for _ in ()).throw(full))
    assert versions.sweep(versions.add(2.1)).endswith(
        f"{known}: whether it has these bytes cannot be known: {full}"
    )
    shutil.rmtree(Path(versions.context.storage, "corpora", other_text))
    unknown = ", which is not in storage: whether it has these bytes cannot be known"
    assert versions.sweep(versions.add(2.1)).endswith(f"{known}{unknown}")


def test_a_look_at_the_text_of_the_champion_is_followed_by_a_line(
    versions, other_text, monkeypatch
):
    shown, texts = threading.Event(), []
    monkeypatch.setattr("pipelines.console.progress.WATCH_SECONDS", 0.01)
    monkeypatch.setattr(Progress, "update", lambda _, one: (texts.append(one.text), shown.set()))
    monkeypatch.setattr(module, "overlap_share", lambda *_: float(shown.wait(60)))
    versions.sweep(first := versions.add(2.0))
    versions.registry.tag(first, {"test.fingerprint": other_text})
    assert ": 100.0 % of the test bytes" in versions.sweep(versions.add(2.1))
    assert texts[0].startswith("  promote: what the champion's training text has too, 0:0")


def write(versions: Versions, fingerprint: str, content: bytes) -> Path:
    path = sealed_test(versions.context.storage, fingerprint)
    path.write_bytes(content)
    return path


def test_the_champion_compared_with_itself_stays_as_it_was(versions):
    versions.sweep(version := versions.add(2.0))
    before = versions.registry.get(version).tags
    decision = versions.decide(version)
    assert (decision.promoted, decision.reason) == (False, "it is the champion already")
    assert versions.registry.get(version).tags == before


def test_forced_too_late_its_tags_do_not_have_it(versions, monkeypatch):
    versions.sweep(versions.add(2.0))
    mine, other = versions.add(3.0), versions.add(1.0)
    promote_before(versions.registry, other, monkeypatch)
    with pytest.raises(ConcurrentPromotionError, match=f"version {other} was forced"):
        force(versions.registry, mine, "urgent")
    assert "gate.forced" not in versions.registry.get(mine).tags


def test_an_alias_moved_by_hand_is_reported_as_that(versions):
    versions.sweep(versions.add(1.0))
    versions.sweep(worse := versions.add(2.0))
    versions.registry.set_alias(CHAMPION, worse)
    assert versions.sweep(worse) == "promoted: by hand"


def test_the_decision_and_its_numbers_are_an_artifact_whichever_way_it_went(versions):
    for bits in (2.0, 1.0, 3.0):
        version = versions.add(bits)
        versions.sweep(version)
        model = versions.context.store.client.get_logged_model(versions.registry.model_id(version))
        (tag,) = (tag for tag in model.tags if tag.startswith("dca.sha256.gate/"))
        kept = versions.registry.read_json(version, tag.removeprefix("dca.sha256."))
        assert kept["promoted"] is (bits < 3)
        assert kept["numbers"]["bits_per_byte"] == pytest.approx(bits)
        assert kept["fingerprint"] == "same"
        assert kept["settings"]["confidence"] == 0.95
        assert kept["reason"] in versions.registry.get(version).tags["gate.decision"]


def test_killed_before_the_champion_moved_a_rerun_promotes_once(versions, monkeypatch):
    versions.sweep(versions.add(2.0))
    version = versions.add(1.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Champions, "promote", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        versions.sweep(version)
    assert versions.champion == 1
    versions.sweep(version)
    assert versions.champion == version
    versions.sweep(version)
    assert [p.version for p in versions.promotions()] == [1, version]


@pytest.mark.extended
def test_a_version_that_is_late_is_compared_with_the_new_champion(versions, monkeypatch):
    versions.sweep(versions.add(2.0))
    mine, best = versions.add(1.5), versions.add(1.0)
    promote_before(versions.registry, best, monkeypatch)
    assert versions.sweep(mine).startswith(f"kept version {best}: 1.5000 against 1.0000")
    assert [p.version for p in versions.promotions()] == [1, best]


def test_versions_whose_runs_were_removed_are_compared_promoted_and_forced(versions):
    for bits in (2.0, 1.9, 1.8):
        version = versions.add(bits)
        purge(versions.context.store, versions.registry.get(version).run_id)
        assert versions.sweep(version).startswith("promoted: ")
    force(versions.registry, 1, "test")
    assert versions.champion == 1
    assert versions.registry.get(1).tags["gate.decision"] == "promoted: forced: test"


def test_a_decision_that_was_edited_is_made_again(versions):
    versions.sweep(versions.add(1.0))
    decision = versions.sweep(version := versions.add(2.0))
    scored = len(versions.scored)
    assert versions.sweep(version) == decision
    assert len(versions.scored) == scored
    versions.registry.tag(version, {"gate.decision": "promoted: by me"})
    assert versions.sweep(version) == decision
    assert versions.registry.get(version).tags["gate.decision"] == decision


def test_a_sweep_leaves_a_version_that_was_rolled_back(versions):
    versions.sweep(versions.add(2.0))
    versions.sweep(better := versions.add(1.0))
    assert rollback(versions.registry, "it swears", dry_run=True) == (better, 1)
    assert versions.champion == better
    assert rollback(versions.registry, "it swears") == (better, 1)
    assert versions.sweep(better) == (
        "was champion and has been replaced by version 1; `promote.py promote 2` restores it"
    )
    assert versions.champion == 1
    with pytest.raises(ConfigError, match="no earlier champion"):
        rollback(versions.registry, "again")


def test_what_was_forced_keeps_that_in_its_tags(versions):
    versions.sweep(versions.add(1.0))
    worse = versions.add(2.0)
    assert force(versions.registry, worse, "the other is too slow", dry_run=True).promoted
    assert versions.champion == 1
    force(versions.registry, worse, "the other is too slow")
    assert versions.champion == worse
    versions.sweep(versions.add(0.5))
    assert versions.registry.get(worse).tags["gate.forced"] == "forced: the other is too slow"
    _, forced, _ = versions.promotions()
    assert (forced.action, forced.reason) == ("forced", "the other is too slow")
    with pytest.raises(ConfigError, match="is the champion already"):
        force(versions.registry, versions.champion, "again")


def test_a_dry_run_decides_and_writes_nothing(versions):
    versions.sweep(versions.add(2.0))
    version = versions.add(1.0)
    before = versions.registry.get(version).tags, versions.promotions()
    decision = versions.decide(version, "other bytes", dry_run=True)
    assert decision.promoted
    assert (versions.registry.get(version).tags, versions.promotions()) == before
    assert versions.registry.read_json(1, "scores/other bytes-128.json") is None


def lose(versions: Versions, version: int) -> None:
    """Delete a version's files, and let nobody score it."""
    model_id = versions.registry.model_id(version)
    location = versions.context.store.client.get_logged_model(model_id).artifact_location
    shutil.rmtree(location.removeprefix("file://"), ignore_errors=True)
    versions.scores[model_id] = GoneError(f"models:/{model_id}: no SHA256SUMS")


@pytest.mark.extended
def test_a_champion_whose_files_are_gone_counts_with_its_stored_score(versions):
    versions.sweep(versions.add(2.0))
    versions.sweep(versions.add(1.9))
    versions.sweep(versions.add(2.5))  # has stored the score of version 2
    lose(versions, 2)
    assert "kept version 2" in versions.sweep(versions.add(2.2))
    assert "promoted" in versions.sweep(versions.add(1.5))


@pytest.mark.extended
def test_a_champion_that_is_gone_names_both_ways_on_and_each_works(versions):
    versions.sweep(versions.add(2.0))
    lose(versions, 1)
    new = versions.add(1.9)
    with pytest.raises(BlockedError) as error:
        versions.sweep(new)
    message = str(error.value)
    assert "\n" not in message
    assert (
        "the champion, version 1, whose score on this text is not stored, or gone with" in message
    )
    assert message.endswith("promote.py promote 2 --model tiny --force REASON`")
    force(versions.registry, new, "the champion is gone")
    lose(versions, new)
    third = versions.add(1.8)
    with pytest.raises(PipelineError, match=r"rollback --model tiny`, which makes version 1 champ"):
        versions.sweep(third)
    versions.scores[versions.registry.model_id(1)] = versions.scores[
        versions.registry.model_id(third)
    ]
    rollback(versions.registry, "version 2 is gone")
    assert "kept version 1" in versions.sweep(third)


@pytest.mark.parametrize("error", [StorageError("disk full"), PipelineError("exit code -9")])
def test_trouble_that_is_not_the_champions_is_not_blamed_on_it(versions, error):
    """An outage had a rollback advised, or to promote past the gate."""
    versions.sweep(versions.add(2.0))
    versions.scores[versions.registry.model_id(1)] = error
    with pytest.raises(type(error)) as raised:
        versions.sweep(versions.add(1.9))
    assert raised.value is error


def test_a_champion_whose_logged_model_was_deleted_is_told(versions, monkeypatch):
    versions.sweep(versions.add(2.0))
    monkeypatch.setattr(module, "score", real_score)
    versions.context.store.client.delete_logged_model(versions.registry.model_id(1))
    version = versions.add(1.9)
    monkeypatch.setattr(
        module,
        "score",
        lambda models, model_id, text, *_, **__: (
            versions.score(models, model_id, text)
            if model_id == versions.registry.model_id(version)
            else real_score(models, model_id, text)
        ),
    )
    with pytest.raises(
        PipelineError, match=r"version 1, whose score .* stored, .*not found.*--force"
    ):
        versions.sweep(version)


@pytest.mark.extended
def test_a_decision_about_a_name_that_would_end_an_address_is_stored_whole(
    experiment, tracking_address, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_address)
    store = Store.open("names", tmp_path)
    run = store.create("fit", "fit", "fit")
    model = store.client.create_logged_model(store.experiment_id, source_run_id=run)
    registry = Registry(store.client, "what? #1")
    version = registry.register(f"models:/{model.model_id}", run, {})
    module._record(registry, Decision(version, True, "it is better", None, "", {}))
    (file,) = store.client.list_artifacts(run, "gate")
    assert re.fullmatch(r"gate/what- -1-1-\d{8}T[\d.]+Z\.json", file.path)
    assert registry.read_json(version, file.path)["model"] == "what? #1"
