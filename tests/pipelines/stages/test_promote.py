import pytest

from pipelines.runtime.dag import Context
from pipelines.runtime.progress import Progress
from pipelines.runtime.tracking import Registry, Store
from pipelines.stages import promote as stage
from pipelines.stages.promote import promote


@pytest.fixture
def context(config, tmp_path, monkeypatch) -> Context:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    store = Store.open("tiny", tmp_path / "runs")
    return Context(config, tmp_path / "runs", store, Progress(), pipeline_run="")


def registered(context: Context, bits: float, fingerprint: str = "same") -> int:
    """A version with a test result, and no weights: the gate reads the result."""
    run = context.store.create("fit", str(bits), "fit")
    model = context.store.client.create_logged_model(context.store.experiment_id, source_run_id=run)
    tags = {"test.fingerprint": fingerprint, "test.bits_per_byte": repr(bits)}
    return Registry(context.store.client, "tiny").register(f"models:/{model.model_id}", run, tags)


def decide(context: Context, version: int, bits: float, fingerprint: str = "same") -> dict:
    needs = {
        "register": {"model": "tiny", "version": version},
        "evaluate": {"test_bits_per_byte": bits, "fingerprint": fingerprint},
    }
    return promote(context, needs)


def champion(context: Context) -> int:
    return int(Registry(context.store.client, "tiny").by_alias("champion").version)


def test_the_first_version_becomes_champion_and_again_changes_nothing(context):
    first = decide(context, registered(context, 2.0), 2.0)
    assert first == {
        "model": "tiny",
        "champion": 1,
        "decision": "promoted: there was no champion",
    }
    assert decide(context, 1, 2.0) == first
    assert champion(context) == 1


@pytest.mark.parametrize(
    ("bits", "margin", "expected"),
    [(1.9, 0.0, 2), (1.9, 0.05, 2), (1.9, 0.2, 1), (2.0, 0.0, 1), (2.1, 0.0, 1)],
)
def test_a_challenger_must_be_better_by_the_margin(context, bits, margin, expected):
    decide(context, registered(context, 2.0), 2.0)
    config = context.config.replace({"promote.min_improvement": margin})
    strict = Context(config, context.storage, context.store, context.progress, "")
    version = registered(context, bits)
    result = decide(strict, version, bits)
    assert result["champion"] == champion(context) == expected
    decision = Registry(context.store.client, "tiny").get(version).tags["gate.decision"]
    assert decision == result["decision"]
    assert decision.startswith("promoted" if expected == 2 else "kept version 1")
    assert decide(strict, version, bits) == result


def test_killed_before_the_alias_moved_a_rerun_decides_again(context, monkeypatch):
    decide(context, registered(context, 2.0), 2.0)
    version = registered(context, 1.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Registry, "point", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        decide(context, version, 1.0)
    assert champion(context) == 1
    assert decide(context, version, 1.0)["champion"] == champion(context) == version


def test_on_other_test_bytes_the_champion_is_evaluated_afresh_and_once(context, monkeypatch):
    asked: list[str] = []

    def measured(context: Context, uri: str, fingerprint: str) -> float:
        asked.append(f"{uri} {fingerprint}")
        return 1.5

    monkeypatch.setattr(stage, "test_bits_per_byte", measured)
    decide(context, registered(context, 1.0, "old"), 1.0, "old")
    version = registered(context, 1.4, "new")
    assert decide(context, version, 1.4, "new")["champion"] == version
    worse = registered(context, 1.6, "new")
    assert decide(context, worse, 1.6, "new")["champion"] == version
    assert asked == ["models:/tiny/1 new"]
