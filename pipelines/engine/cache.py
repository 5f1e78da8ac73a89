"""The order of the stages and their memory.

A stage is a function from the configuration and its needs' outputs to small JSON outputs. A
remembered stage has a key: the hash of its name, of the configuration it reads, of its needs'
results and of the sources it lists. A finished run with that key, whose artifacts still exist,
stands for it. The other stages are cheap or have side effects: they run every time and are
idempotent.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.config.yaml_text import flatten
from pipelines.engine.stage import ROOT, Outputs, PipelineConfig, Stage
from pipelines.storage.location import exists
from pipelines.tracking.client import Run
from pipelines.tracking.models import model_exists
from pipelines.tracking.store import Store


@dataclass
class Node:
    """A stage in one invocation: what is known of its result."""

    stage: Stage
    inputs: dict[str, Any] = field(default_factory=dict)
    """Everything its key is made of."""
    key: str | None = None
    """Under which a remembered result is looked for."""
    outputs: Outputs | None = None
    run: Run | None = None
    """The MLflow run that holds the result, or that a killed command has left unfinished."""
    reason: str = ""
    """Why it is reused or not."""

    identity: str | None = None
    """Names the result for those that need it: its run, or a digest of outputs that no run holds.
    None while it is not known."""

    @property
    def reused(self) -> bool:
        """Whether its result is remembered."""
        return self.stage.cached and self.outputs is not None


def json_digest(value: Any) -> str:
    """32 hex digits of the sha256 of JSON data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def resolve(
    stage: Stage, config: PipelineConfig, store: Store | None, done: Mapping[str, Node]
) -> Node:
    """Find out whether a stage's result is remembered, and if not, why not."""
    unknown = [name for name in stage.depends_on if done[name].identity is None]
    if unknown:
        return Node(stage, reason=f"follows {', '.join(unknown)}")
    if not stage.cached:
        identity = json_digest(stage.preview(config)) if stage.preview else None
        return Node(stage, identity=identity, reason="runs every time")
    inputs = _inputs(stage, config, {name: str(done[name].identity) for name in stage.depends_on})
    node = Node(stage, inputs, json_digest({"stage": stage.name, **inputs}))
    found = store.find(stage.name, node.key) if store else []
    if not found:
        node.reason = _why_new(node, store)
        return node
    node.run, node.identity = found[0], found[0].info.run_id
    outputs = json.loads(node.run.data.tags.get("dca.outputs", "null"))
    if outputs is None:
        node.reason = "goes on where it stopped"
    elif missing := _missing(outputs):
        node.run, node.identity, node.reason = None, None, f"{missing} is gone"
    else:
        node.outputs, node.reason = outputs, "remembered"
    return node


def invalidate(node: Node, store: Store) -> None:
    """Let a stage be computed afresh, leaving its earlier runs in the store."""
    for run in store.find(node.stage.name, node.key):
        store.tag(run.info.run_id, {"dca.memory": "forgotten"})
    node.run, node.outputs, node.reason, node.identity = None, None, "fresh", None


def _inputs(stage: Stage, config: PipelineConfig, needs: dict[str, str]) -> dict[str, Any]:
    """What a key is made of, in a form that can be compared."""
    values = flatten(config.model_dump(mode="json"))
    read = {
        k: v for k, v in values if any(f"{k}.".startswith(f"{part}.") for part in stage.config_keys)
    }
    return {"config": read, "needs": needs, "sources": _digest_sources(stage.sources)}


def _digest_sources(sources: Sequence[str]) -> str:
    code = {".py", ".cpp"}
    files: list[Path] = []
    for source in sources:
        place = ROOT / source
        if not place.exists():
            raise FileNotFoundError(f"{place}: a stage's key depends on it")
        files += sorted(place.rglob("*")) if place.is_dir() else [place]
    files = [path for path in files if path.suffix in code]
    return json_digest([(f.name, hashlib.sha256(f.read_bytes()).hexdigest()) for f in files])


def _missing(outputs: Outputs) -> str | None:
    """The first artifact a result refers to that no longer exists."""
    for path in outputs.get("files", []):
        if not exists(path):
            return str(path)
    model = outputs.get("model_uri")
    return None if model is None or model_exists(model) else str(model)


def _why_new(node: Node, store: Store | None) -> str:
    """What differs from the latest result of the same stage."""
    latest = store.find(node.stage.name)[:1] if store else []
    if not latest:
        return "new"
    before = json.loads(latest[0].data.tags.get("dca.inputs", "{}"))
    old, new = before.get("config", {}), node.inputs["config"]
    changes = [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    needs = before.get("needs", {})
    changes += [f"{k} changed" for k, v in node.inputs["needs"].items() if needs.get(k) != v]
    if before.get("sources") != node.inputs["sources"]:
        changes.append("its code changed")
    return "; ".join(changes) or "new"
