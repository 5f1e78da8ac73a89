"""The stage promote decides once, and stages with side effects are never taken from the cache."""

import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from pipelines.console.progress import Progress
from pipelines.engine.results import StageResults
from pipelines.registry.results import Promoted, Registered, Tested
from pipelines.stages import promote as module
from pipelines.stages import register, report


@pytest.mark.parametrize(
    ("earlier", "decided", "decision"),
    [(None, [(5, "test.bin")], "promoted: the first"), ("kept version 4: worse", [], None)],
)
def test_an_earlier_decision_that_holds_is_kept(
    experiment, monkeypatch, earlier, decided, decision
):
    asked, locked, shown, texts = [], [], threading.Event(), []
    monkeypatch.setattr("pipelines.console.progress.WATCH_SECONDS", 0.01)

    class Gate:
        def __init__(self, registry, settings, test, fingerprint, storage, progress) -> None:
            assert (registry.name, settings, fingerprint) == ("m", experiment.promote, "f")
            assert storage == "runs"
            self.test = test

        def decide(self, version: int):
            asked.append((version, self.test))
            return SimpleNamespace(summary="promoted: the first")

    @contextmanager
    def gate_lock(registry):
        locked.append(registry.name)
        yield

    @contextmanager
    def temporary_copy(file):
        assert shown.wait(60)  # a line follows a copy that takes long
        yield file

    monkeypatch.setattr(module, "Gate", Gate)
    monkeypatch.setattr(module, "gate_lock", gate_lock)
    monkeypatch.setattr(module, "temporary_copy", temporary_copy)
    monkeypatch.setattr(module, "sealed_test", lambda storage, fingerprint: "test.bin")
    monkeypatch.setattr(module, "earlier_decision", lambda *_: earlier)
    state = SimpleNamespace(champion=5)
    champions = SimpleNamespace(state=lambda: state)
    monkeypatch.setattr(module, "Champions", lambda registry: champions)
    context = SimpleNamespace(
        config=experiment, storage="runs", store=SimpleNamespace(client=None), progress=Progress()
    )
    context.progress.update = lambda update: (texts.append(update.text), shown.set())
    needs = StageResults({"register": Registered("m", 5), "evaluate": Tested(2.0, "f", {})})
    assert module.promote(context, needs) == Promoted("m", 5, decision or earlier)
    assert (asked, locked) == (decided, ["m"])
    assert any("promote: copying the test split" in text for text in texts) == bool(decided)


@pytest.mark.parametrize("stage", [module.STAGE, register.STAGE, report.STAGE])
def test_what_a_stage_does_elsewhere_is_done_every_time(stage):
    assert not stage.cached
