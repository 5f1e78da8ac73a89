"""Cached results of stages, found in the tracking store by a key.

A cached stage's key is the hash of its name, of the configuration it reads, of the results it
depends on and of the code that can change it. A finished run with that key whose files are intact
is reused for the stage. Other stages are cheap or have side effects: they run every time.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.compat.mlflow import MAX_TAG_CHARACTERS
from pipelines.console.errors import DamagedError
from pipelines.console.secrets import redact_all
from pipelines.engine.code import CodeDigests
from pipelines.engine.instances import Node
from pipelines.engine.results import (
    StageResults,
    Values,
    from_json,
    json_digest,
    label,
    to_json,
)
from pipelines.engine.stage import PipelineConfig, Stage
from pipelines.tracking.encoding import encode_param
from pipelines.tracking.schema import (
    BASIS_TAG,
    CACHE_TAG,
    DISCARDED,
    INPUTS_TAG,
    INSTANCE_TAG,
    KEY_TAG,
    OUTPUTS_TAG,
    SCHEMA_VERSION,
    schema_version,
    stage_inputs,
)
from pipelines.tracking.store import Run, Store

MAX_NAMES = 3
"""Names of instances in a line for people."""


@dataclass
class PlannedStage:
    """An instance of a stage in one invocation, with its cached result if there is one."""

    node: Node
    inputs: dict[str, Any] = field(default_factory=dict)
    """The inputs that its key is a hash of: config, needs and sources."""
    key: str | None = None
    """The key by which a cached result is found; None for a stage that is not cached."""
    result: Any = None
    """The result, or the preview of one; None until it is known."""
    run: Run | None = None
    """The MLflow run that holds the result, or one that was left unfinished and is resumed."""
    found: Sequence[Run] = ()
    """The runs that have the key and may be reused, newest first."""
    basis: str | None = None
    """What the key has in common with those of runs that the stage can continue; None if it cannot
    grow."""
    run_id: str = ""
    """Of the run that holds the result; empty until it is known."""
    same_as: "PlannedStage | None" = None
    """An instance before it that has the same key, whose run it shares."""
    reason: str = ""
    """Why the result is reused, or why the stage runs."""

    @property
    def stage(self) -> Stage[Any, Any]:
        """The stage that it is an instance of."""
        return self.node.stage

    @property
    def reused(self) -> bool:
        """Whether a cached result, or that of another instance, is reused."""
        return self.same_as is not None or (self.stage.cached and self.result is not None)

    @property
    def identity(self) -> str | None:
        """Identifies the result in the keys of dependent stages; None until the result is known."""
        return None if self.result is None else json_digest(to_json(self.result))

    @property
    def tags(self) -> dict[str, str]:
        """Tags of its run: the key, the inputs unless they are too long, which instance it is."""
        inputs = json.dumps(self.inputs)
        tags = {
            KEY_TAG: str(self.key),
            INPUTS_TAG: inputs if len(inputs) <= MAX_TAG_CHARACTERS else "{}",
            INSTANCE_TAG: str(self.node) if self.node.position else None,
            BASIS_TAG: self.basis,
        }
        return {tag: value for tag, value in tags.items() if value is not None}


class Cache:
    """The cached results of one invocation."""

    def __init__(self, store: Store | None, nodes: Iterable[Node], *, fresh: bool) -> None:
        """Those in an experiment's store for the nodes of a DAG; none if `fresh`.

        The store is None if there is no experiment yet.
        """
        self._store, self._fresh = store, fresh
        self._names = {str(node) for node in nodes}
        self._codes = CodeDigests()
        self._by_key: dict[str, PlannedStage] = {}
        self._used_run_ids: set[str] = set()
        """The runs that an instance has reused or continues."""
        self._runs: dict[str, list[Run]] = {}
        """The runs of a stage, newest first, as they were when one was first compared with them:
        to read all of them for each of hundreds of instances would take minutes."""

    def resolve(
        self, node: Node, config: PipelineConfig, needs: Sequence[PlannedStage]
    ) -> PlannedStage:
        """Look for a cached result of an instance of a stage; writes nothing.

        Args:
            node: The instance.
            config: Its configuration.
            needs: The instances it depends on.

        """
        stage = node.stage
        unknown = dict.fromkeys(one.stage.name for one in needs if one.identity is None)
        if unknown:
            again = self._fresh and stage.cached
            return PlannedStage(node, reason="fresh" if again else f"follows {', '.join(unknown)}")
        if not stage.cached:
            result = stage.preview(config) if stage.preview else None
            return PlannedStage(node, result=result, reason="runs every time")
        inputs = self._inputs(node, config, needs)
        planned = PlannedStage(node, inputs, json_digest({"stage": stage.name, **inputs}))
        planned.basis = _basis(stage, inputs)
        assert planned.key is not None
        same = self._by_key.setdefault(planned.key, planned)
        if same is not planned:
            planned.same_as, planned.reason = same, f"the same as {same.node}"
            planned.result, planned.run_id = same.result, same.run_id
        elif self._fresh:
            planned.reason = "fresh"
        elif self._store and (found := self._store.find(stage.name, planned.key)):
            planned.found = found
            _reuse_or_resume(planned, found[0], self._store, config)
        elif growable := self._usable_runs(planned, config):
            planned.run = growable[0]
            changes = _changes(inputs, stage_inputs(growable[0].data.tags))
            planned.reason = f"goes on: {changes}" if changes else "goes on"
        else:
            planned.reason = self._difference(planned)
        if planned.run is not None:
            self._used_run_ids.add(planned.run.info.run_id)
        return planned

    def invalidate(self, planned: PlannedStage, config: PipelineConfig) -> None:
        """Exclude earlier runs of an instance from reuse and growth; they stay in the store."""
        assert self._store is not None
        same = planned.found
        if self._fresh:  # they were not looked for
            same = self._store.find(planned.stage.name, planned.key)
        usable = self._usable_runs(planned, config) if self._fresh else []  # else there is none
        for run in [*same, *usable]:
            self._store.tag(run.info.run_id, {CACHE_TAG: DISCARDED})

    def _usable_runs(self, planned: PlannedStage, config: PipelineConfig) -> list[Run]:
        """The runs whose work an instance can continue with, the one with most of it first.

        Not those of another instance of this DAG.
        """
        growth, name = planned.stage.growth, str(planned.node)
        if self._store is None or growth is None:
            return []
        runs = [
            run
            for run in self._store.find(planned.stage.name, basis=planned.basis)
            if run.info.run_id not in self._used_run_ids
            and run.data.tags.get(INSTANCE_TAG, name) not in self._names - {name}
        ]
        usable = [(growth.usable(self._store, run.info.run_id, config), run) for run in runs]
        return [run for count, run in sorted(usable, key=lambda one: -one[0]) if count]

    def _difference(self, planned: PlannedStage) -> str:
        """What differs from the latest result of the same stage."""
        stage = planned.stage.name
        if stage not in self._runs:
            self._runs[stage] = self._store.find(stage) if self._store else []
        earlier = self._runs[stage]
        if planned.node.position:
            name = str(planned.node)
            earlier = [run for run in earlier if run.data.tags.get(INSTANCE_TAG) == name]
        if not earlier:
            return "new"
        tags, inputs = earlier[0].data.tags, planned.inputs
        if (written := schema_version(tags)) != SCHEMA_VERSION:
            return f"the earlier result is of store schema {written}, this is {SCHEMA_VERSION}"
        return _changes(inputs, stage_inputs(tags)) or "new"

    def _inputs(
        self, node: Node, config: PipelineConfig, needs: Sequence[PlannedStage]
    ) -> dict[str, Any]:
        """The inputs of a key, in a form that can be compared.

        Of the values of instances only those that the instance can see are among them: they name
        the results that it is given by `StageResults.all`.
        """
        stage = node.stage
        if stage.configured is not None:
            config = stage.configured(config, results_for(node, needs))
        values, keys = config.key_values(), stage.config_keys
        return {
            "config": {
                k: v for k, v in values if any(f"{k}.".startswith(f"{part}.") for part in keys)
            },
            "needs": {
                label(*_seen_from(node, one)): one.identity
                for one in needs
                if one.stage.name not in stage.absorbed
            },
            "sources": self._codes[tuple(stage.modules(config))],
            "schema": SCHEMA_VERSION,
        }


def shortened(names: Sequence[str]) -> str:
    """Names in a line, of many the first ones."""
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def results_for(node: Node | None, needs: Iterable[PlannedStage]) -> StageResults:
    """The results of instances as another instance sees them; for None, with all their values."""
    one: dict[str, object] = {}
    several: dict[str, dict[Values, object]] = {}
    for planned in needs:
        stage, values = _seen_from(node, planned)
        if values:
            several.setdefault(stage, {})[values] = planned.result
        else:
            one[stage] = planned.result
    return StageResults(one, several)


def _seen_from(node: Node | None, planned: PlannedStage) -> tuple[str, Values]:
    """The stage of an instance, and its values in the dimensions that `node` does not have."""
    own = [name for name, _ in node.position] if node else []
    return planned.stage.name, planned.node.values_beyond(own)


def _basis(stage: Stage[Any, Any], inputs: Mapping[str, Any]) -> str | None:
    """A digest of what the runs that a stage can continue have in common."""
    if stage.growth is None:
        return None
    config = {key: inputs["config"][key] for key in stage.growth.identity_keys}
    same = {key: inputs[key] for key in ("needs", "schema")}
    return json_digest({"stage": stage.name, "config": config, **same})


def _reuse_or_resume(planned: PlannedStage, run: Run, store: Store, config: PipelineConfig) -> None:
    """The result of a run with the stage's key, if it is complete and its files are intact."""
    stage, planned.run = planned.stage, run
    if OUTPUTS_TAG not in run.data.tags:
        planned.reason = "resumes an unfinished run"
        return
    result = from_json(stage.result, json.dumps(store.read_result(run)))
    planned.reason = store.damaged_artifact(run) or ""
    if not planned.reason and result is None:
        planned.reason = f"the tag {OUTPUTS_TAG} of its run is not a result"
    elif not planned.reason:
        planned.reason = _damage(stage, result, store) or ""
    if not planned.reason and stage.growth:
        planned.reason = stage.growth.unfinished(store, run.info.run_id, config)
    if not planned.reason:
        planned.result, planned.run_id, planned.reason = result, run.info.run_id, "cached"
    elif not stage.growth:
        planned.run = None


def _damage(stage: Stage[Any, Any], result: object, store: Store) -> str | None:
    """What is wrong with the files that a result refers to, if anything is.

    What keeps them from being read, as a full disk, is raised: the result may be sound, and it
    would be computed again.
    """
    try:
        stage.verify(store, result)
    except DamagedError as error:
        return str(error)
    return None


def _value(config: Mapping[str, Any], key: str) -> str:
    """A value as an experiment's file has it."""
    return encode_param(config[key]) if key in config else "not given"


def _changes(inputs: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """What differs from the inputs of an earlier run."""
    if not before:
        return "its inputs were too many to be stored, and to be compared"
    old, new = before.get("config", {}), redact_all(inputs["config"])  # as it was stored
    changes = [
        f"{key}: {_value(old, key)} -> {_value(new, key)}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
        # a section that is empty, as `when` of a key that is added, which no one has written
        and (key in old or new[key] != {})
        and (key in new or old[key] != {})
    ]
    needs = before.get("needs", {})
    changes += [f"{k} changed" for k, v in inputs["needs"].items() if needs.get(k) != v]
    if before.get("sources") != inputs["sources"]:
        changes.append("its code changed")
    return "; ".join(changes)
