"""Cached results of stages, found in the tracking store by a key.

A cached stage's key is the hash of its name, of the configuration it reads, of the results it
depends on and of the code that can change it. A finished run with that key whose files are intact
is reused for the stage. Other stages are cheap or have side effects: they run every time.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.compat.mlflow import MAX_TAG_CHARACTERS
from pipelines.config.yaml_text import flatten
from pipelines.console.errors import PipelineError
from pipelines.engine.code import code_digest
from pipelines.engine.results import from_json, json_digest, to_json
from pipelines.engine.stage import PipelineConfig, Stage
from pipelines.tracking.schema import (
    BASIS_TAG,
    CACHE_TAG,
    DISCARDED,
    INPUTS_TAG,
    KEY_TAG,
    OUTPUTS_TAG,
    SCHEMA_VERSION,
    schema_version,
    stage_inputs,
)
from pipelines.tracking.store import Run, Store


@dataclass
class PlannedStage:
    """A stage in one invocation, with its cached result if there is one."""

    stage: Stage[Any, Any]
    inputs: dict[str, Any] = field(default_factory=dict)
    """The inputs that its key is a hash of: config, needs and sources."""
    key: str | None = None
    """The key by which a cached result is found; None for a stage that is not cached."""
    result: Any = None
    """The result, or the preview of one; None until it is known."""
    run: Run | None = None
    """The MLflow run that holds the result, or one that was left unfinished and is resumed."""
    reason: str = ""
    """Why the result is reused, or why the stage runs."""

    basis: str | None = None
    """What the key has in common with those of runs that the stage can continue; None if it cannot
    grow."""

    @property
    def reused(self) -> bool:
        """Whether a cached result is reused for the stage."""
        return self.stage.cached and self.result is not None

    @property
    def identity(self) -> str | None:
        """Identifies the result in the keys of dependent stages; None until the result is known."""
        return None if self.result is None else json_digest(to_json(self.result))

    @property
    def tags(self) -> dict[str, str]:
        """Tags of a run of the stage: its key, and the inputs unless they are too long."""
        inputs = json.dumps(self.inputs)
        tags = {
            KEY_TAG: str(self.key),
            INPUTS_TAG: inputs if len(inputs) <= MAX_TAG_CHARACTERS else "{}",
        }
        return tags if self.basis is None else {**tags, BASIS_TAG: self.basis}


def resolve(
    stage: Stage[Any, Any],
    config: PipelineConfig,
    store: Store | None,
    done: Mapping[str, PlannedStage],
    *,
    fresh: bool = False,
) -> PlannedStage:
    """Look for a cached result of a stage; writes nothing.

    Args:
        stage: The stage to plan.
        config: The configuration of the pipeline.
        store: The experiment's store; None if there is no experiment yet.
        done: The stages before it, by name.
        fresh: Whether cached results are ignored.

    """
    unknown = [name for name in stage.depends_on if done[name].identity is None]
    if unknown:
        again = fresh and stage.cached
        return PlannedStage(stage, reason="fresh" if again else f"follows {', '.join(unknown)}")
    if not stage.cached:
        result = stage.preview(config) if stage.preview else None
        return PlannedStage(stage, result=result, reason="runs every time")
    inputs = _inputs(stage, config, {name: str(done[name].identity) for name in stage.depends_on})
    planned = PlannedStage(stage, inputs, json_digest({"stage": stage.name, **inputs}))
    planned.basis = _basis(stage, inputs)
    if fresh:
        planned.reason = "fresh"
    elif store and (found := store.find(stage.name, planned.key)):
        _take(planned, found[0], store, config)
    elif grown := _usable_runs(planned, store, config):
        planned.run = grown[0]
        planned.reason = f"goes on: {_changes(inputs, stage_inputs(grown[0].data.tags))}"
    else:
        planned.reason = _difference(planned, store)
    return planned


def invalidate(planned: PlannedStage, config: PipelineConfig, store: Store) -> None:
    """Exclude earlier runs of a stage from reuse and from growth; they stay in the store."""
    same = store.find(planned.stage.name, planned.key)
    for run in [*same, *_usable_runs(planned, store, config)]:
        store.tag(run.info.run_id, {CACHE_TAG: DISCARDED})


def _basis(stage: Stage[Any, Any], inputs: Mapping[str, Any]) -> str | None:
    """A digest of what the runs that a stage can continue have in common."""
    if stage.growth is None:
        return None
    config = {key: inputs["config"][key] for key in stage.growth.identity_keys}
    return json_digest({"stage": stage.name, "config": config, "needs": inputs["needs"]})


def _usable_runs(planned: PlannedStage, store: Store | None, config: PipelineConfig) -> list[Run]:
    """The runs whose work the stage can continue with, the one with most of it first."""
    growth = planned.stage.growth
    if store is None or growth is None:
        return []
    runs = store.find(planned.stage.name, basis=planned.basis)
    usable = [(growth.usable(store, run.info.run_id, config), run) for run in runs]
    return [run for count, run in sorted(usable, key=lambda one: -one[0]) if count]


def _take(planned: PlannedStage, run: Run, store: Store, config: PipelineConfig) -> None:
    """The result of a run with the stage's key, if it is complete and its files are intact."""
    stage, text, planned.run = planned.stage, run.data.tags.get(OUTPUTS_TAG), run
    if text is None:
        planned.reason = "resumes an unfinished run"
        return
    result = from_json(stage.result, text)
    if result is None:
        planned.reason = f"the tag {OUTPUTS_TAG} of its run is not a result"
    else:
        planned.reason = store.damaged_artifact(run) or _damage(stage, result, store) or ""
    if not planned.reason and stage.growth:
        planned.reason = stage.growth.unfinished(store, run.info.run_id, config)
    if not planned.reason:
        planned.result, planned.reason = result, "cached"
    elif not stage.growth:
        planned.run = None


def _inputs(
    stage: Stage[Any, Any], config: PipelineConfig, needs: dict[str, str]
) -> dict[str, Any]:
    """The inputs of a key, in a form that can be compared."""
    values = flatten(config.model_dump(mode="json"))
    read = {
        k: v for k, v in values if any(f"{k}.".startswith(f"{part}.") for part in stage.config_keys)
    }
    code = code_digest(stage.modules(config))
    return {"config": read, "needs": needs, "sources": code, "schema": SCHEMA_VERSION}


def _damage(stage: Stage[Any, Any], result: object, store: Store) -> str | None:
    """What is wrong with the files that a result refers to, if anything is."""
    try:
        stage.verify(store, result)
    except PipelineError as error:
        return str(error)
    return None


def _difference(planned: PlannedStage, store: Store | None) -> str:
    """What differs from the latest result of the same stage."""
    latest = store.find(planned.stage.name)[:1] if store else []
    if not latest:
        return "new"
    tags, inputs = latest[0].data.tags, planned.inputs
    if (written := schema_version(tags)) != SCHEMA_VERSION:
        return f"the earlier result is of store schema {written}, this is {SCHEMA_VERSION}"
    return _changes(inputs, stage_inputs(tags))


def _changes(inputs: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """What differs from the inputs of an earlier run."""
    old, new = before.get("config", {}), inputs["config"]
    changes = [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    needs = before.get("needs", {})
    changes += [f"{k} changed" for k, v in inputs["needs"].items() if needs.get(k) != v]
    if before.get("sources") != inputs["sources"]:
        changes.append("its code changed")
    return "; ".join(changes) or "new"
