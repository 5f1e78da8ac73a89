"""The order of the stages and their memory.

A stage is a function from the configuration and its needs' outputs to small JSON outputs. A
remembered stage has a key: the hash of its name, of the configuration it reads, of its needs'
results and of the sources it lists. A finished run with that key, whose artifacts still exist,
stands for it. The other stages are cheap or have side effects: they run every time and are
idempotent.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from pipelines.runtime import notes
from pipelines.runtime.cluster import leave
from pipelines.runtime.config import Config, to_yaml
from pipelines.runtime.notes import EXPERIMENT
from pipelines.runtime.plain_yaml import flatten
from pipelines.runtime.progress import Progress
from pipelines.runtime.storage import Folder, Storage, exists
from pipelines.runtime.tracking import Run, Store, alone, model_exists

Outputs = dict[str, Any]
"""Small JSON; worth nothing without the paths or URIs in `files` and the model at `model_uri`."""

ROOT = Path(__file__).parents[2]
STAGE_TAG = "dca.stage.{}"
"""Of a pipeline's run: the run that holds a stage's result, its own or an earlier pipeline's."""


@dataclass(frozen=True)
class Context:
    """What a stage may use besides its needs."""

    config: Config
    storage: Folder
    store: Store
    progress: Progress
    pipeline_run: str
    """The MLflow run that all others hang under."""
    run_id: str = ""
    """The run of a remembered stage."""


@dataclass(frozen=True)
class Stage:
    """One node of the DAG."""

    name: str
    run: Callable[[Context, Mapping[str, Outputs]], Outputs]
    needs: tuple[str, ...] = ()
    """Stages whose outputs it receives."""
    reads: tuple[str, ...] = ()
    """Configuration keys or sections that its result depends on."""
    sources: tuple[str, ...] = ()
    """Files and folders of this project that its result depends on."""
    remembered: bool = True
    peek: Callable[[Config], Outputs] | None = None
    """Outputs of a stage that always runs, found out without side effects."""


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
        return self.stage.remembered and self.outputs is not None


def order(stages: Sequence[Stage], until: str | None = None) -> list[Stage]:
    """Stages after their needs; with `until`, only that stage and what it needs."""
    by_name = {stage.name: stage for stage in stages}
    wanted, todo = set(), [until] if until else list(by_name)
    while todo:
        name = todo.pop()
        wanted.add(name)
        todo.extend(by_name[name].needs)
    graph = {name: by_name[name].needs for name in by_name}
    return [by_name[name] for name in TopologicalSorter(graph).static_order() if name in wanted]


def plan(stages: Sequence[Stage], config: Config, *, until: str | None, fresh: bool) -> list[Node]:
    """What `run` would do, in order; writes nothing."""
    store = Store.open(config.experiment, storage_path(config), create=False)
    done: dict[str, Node] = {}
    for stage in order(stages, until):
        node = _resolve(stage, config, store, done)
        if fresh and stage.remembered:
            node.outputs, node.run, node.reason, node.identity = None, None, "fresh", None
        done[stage.name] = node
    return list(done.values())


def run(
    stages: Sequence[Stage], config: Config, *, work: str, until: str | None, fresh: bool
) -> dict[str, Outputs]:
    """Run the stages in order, reusing what is remembered; returns their outputs.

    `work` names what one process at a time may do. Raises PipelineError if another one is at it.
    """
    with alone(work):
        return _run(stages, config, until, fresh)


def _run(
    stages: Sequence[Stage], config: Config, until: str | None, fresh: bool
) -> dict[str, Outputs]:
    ordered = order(stages, until)
    for stage in ordered:
        if stage.peek:
            stage.peek(config)  # bad input is found before anything is written
    storage = storage_path(config)
    store = Store.open(config.experiment, storage)
    assert store is not None
    pipeline_run = _open_pipeline_run(store, config)
    store.describe(notes.of_experiment(config))
    store.describe(notes.of_pipeline(config), pipeline_run)
    context = Context(config, storage, store, Progress(), pipeline_run)
    done: dict[str, Node] = {}
    try:
        for stage in ordered:
            node = _resolve(stage, config, store, done)
            if fresh and stage.remembered:
                _forget(node, store)
            done[stage.name] = node
            if node.reused:
                if node.run is not None and node.run.info.status != "FINISHED":
                    store.end(node.run.info.run_id)  # killed before it could
                told = {"stage": stage.name, "state": "reused", "outputs": node.outputs}
                context.progress.line(f"{stage.name:9} reused", "stage", **told)
                store.tag(pipeline_run, {STAGE_TAG.format(stage.name): str(node.identity)})
            else:
                told = {"stage": stage.name, "state": "begun", "reason": node.reason}
                context.progress.line(f"{stage.name:9} {node.reason}", "stage", **told)
                _compute(node, context, done)
                told = {"stage": stage.name, "state": "done", "outputs": node.outputs}
                context.progress.tell("stage", **told)
    except BaseException as error:
        store.fail(pipeline_run, error)
        raise
    finally:
        leave()
    store.end(pipeline_run)
    return {name: node.outputs or {} for name, node in done.items()}


def storage_path(config: Config) -> Folder:
    """The storage folder, for any process on any node that sees it."""
    return Storage.of(config.storage).folder


def digest(value: Any) -> str:
    """32 hex digits of the sha256 of JSON data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _open_pipeline_run(store: Store, config: Config) -> str:
    """One run per configuration: the parent of what its stages compute."""
    data = config.model_dump(mode="json")
    key = digest(data)
    for found in store.find("pipeline", key):
        run_id = str(found.info.run_id)
        store.resume(run_id, data)
        break
    else:
        run_id = store.create("pipeline", key, f"{config.experiment} pipeline", params=data)
    store.log_text(run_id, to_yaml(config), EXPERIMENT)
    return run_id


def _resolve(stage: Stage, config: Config, store: Store | None, done: Mapping[str, Node]) -> Node:
    """Find out whether a stage's result is remembered, and if not, why not."""
    unknown = [name for name in stage.needs if done[name].identity is None]
    if unknown:
        return Node(stage, reason=f"follows {', '.join(unknown)}")
    if not stage.remembered:
        identity = digest(stage.peek(config)) if stage.peek else None
        return Node(stage, identity=identity, reason="runs every time")
    inputs = _inputs(stage, config, {name: str(done[name].identity) for name in stage.needs})
    node = Node(stage, inputs, digest({"stage": stage.name, **inputs}))
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


def _compute(node: Node, context: Context, done: Mapping[str, Node]) -> None:
    """Run a stage; what is remembered gets an MLflow run of its own, under the pipeline's."""
    stage, store = node.stage, context.store
    needs = {name: done[name].outputs or {} for name in stage.needs}
    if not stage.remembered:
        node.outputs = stage.run(context, needs)
        node.identity = digest(node.outputs)
        return
    node.identity = run_id = _open_run(node, context)
    store.tag(context.pipeline_run, {STAGE_TAG.format(stage.name): run_id})
    try:
        node.outputs = stage.run(replace(context, run_id=run_id), needs)
    except BaseException as error:
        store.fail(run_id, error)
        raise
    store.tag(run_id, {"dca.outputs": json.dumps(node.outputs)})  # from now on the run counts
    store.end(run_id)


def _forget(node: Node, store: Store) -> None:
    """Let a stage be computed afresh, leaving its earlier runs in the store."""
    for run in store.find(node.stage.name, node.key):
        store.tag(run.info.run_id, {"dca.memory": "forgotten"})
    node.run, node.outputs, node.reason, node.identity = None, None, "fresh", None


def _open_run(node: Node, context: Context) -> str:
    """A run left unfinished goes on, else a new one starts."""
    store = context.store
    if node.run is not None:
        store.resume(node.run.info.run_id)
        return str(node.run.info.run_id)
    _forget(node, store)
    inputs = json.dumps(node.inputs)
    tags = {"dca.inputs": inputs if len(inputs) <= 8000 else "{}"}
    name = f"{context.config.experiment} {node.stage.name}"
    return store.create(
        node.stage.name, str(node.key), name, parent=context.pipeline_run, tags=tags
    )


def _inputs(stage: Stage, config: Config, needs: dict[str, str]) -> dict[str, Any]:
    """What a key is made of, in a form that can be compared."""
    values = flatten(config.model_dump(mode="json"))
    read = {k: v for k, v in values if any(f"{k}.".startswith(f"{part}.") for part in stage.reads)}
    return {"config": read, "needs": needs, "sources": _digest_sources(stage.sources)}


def _digest_sources(sources: Sequence[str]) -> str:
    code = {".py", ".cpp"}
    files = [
        path
        for source in sources
        for path in (sorted((ROOT / source).rglob("*")) or [ROOT / source])
        if path.suffix in code
    ]
    return digest([(f.name, hashlib.sha256(f.read_bytes()).hexdigest()) for f in files])


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
