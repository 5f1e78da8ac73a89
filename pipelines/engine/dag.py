"""The order of the stages and their memory.

A stage is a function from the configuration and its needs' outputs to small JSON outputs. A
remembered stage has a key: the hash of its name, of the configuration it reads, of its needs'
results and of the sources it lists. A finished run with that key, whose artifacts still exist,
stands for it. The other stages are cheap or have side effects: they run every time and are
idempotent.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from graphlib import TopologicalSorter
from typing import Any

from pipelines.engine.cache import Node, invalidate, json_digest, resolve
from pipelines.engine.stage import Context, Invocation, Outputs, PipelineConfig, Stage
from pipelines.storage.location import storage_folder
from pipelines.tracking.descriptions import Descriptions
from pipelines.tracking.locks import exclusive_lock
from pipelines.tracking.schema import EXPERIMENT_FILE, STAGE_TAG
from pipelines.tracking.store import Store


def order(stages: Sequence[Stage], until: str | None = None) -> list[Stage]:
    """Stages after their needs; with `until`, only that stage and what it needs."""
    by_name = {stage.name: stage for stage in stages}
    wanted, todo = set(), [until] if until else list(by_name)
    while todo:
        name = todo.pop()
        wanted.add(name)
        todo.extend(by_name[name].depends_on)
    graph = {name: by_name[name].depends_on for name in by_name}
    return [by_name[name] for name in TopologicalSorter(graph).static_order() if name in wanted]


def plan(
    stages: Sequence[Stage], config: PipelineConfig, *, until: str | None, fresh: bool
) -> list[Node]:
    """What `run` would do, in order; writes nothing."""
    store = Store.open(config.experiment, storage_folder(config.storage), create=False)
    done: dict[str, Node] = {}
    for stage in order(stages, until):
        node = resolve(stage, config, store, done)
        if fresh and stage.cached:
            node.outputs, node.run, node.reason, node.identity = None, None, "fresh", None
        done[stage.name] = node
    return list(done.values())


def run(
    stages: Sequence[Stage],
    config: PipelineConfig,
    invocation: Invocation,
    *,
    work: str,
    about: Descriptions,
    until: str | None = None,
    fresh: bool = False,
) -> dict[str, Outputs]:
    """Run the stages in order, reusing what is cached; returns their outputs.

    `work` names what one process at a time may do; `about` describes the experiment and this
    pipeline in the tracking store. Raises PipelineError if another process does the same work.
    """
    with exclusive_lock(work):
        return _run(stages, config, invocation, about, until, fresh)


def _run(
    stages: Sequence[Stage],
    config: PipelineConfig,
    invocation: Invocation,
    about: Descriptions,
    until: str | None,
    fresh: bool,
) -> dict[str, Outputs]:
    ordered = order(stages, until)
    for stage in ordered:
        if stage.preview:
            stage.preview(config)  # bad input is found before anything is written
    storage = storage_folder(config.storage)
    store = Store.open(config.experiment, storage)
    assert store is not None
    pipeline_run = _open_pipeline_run(store, config)
    store.describe(about.experiment)
    store.describe(about.pipeline, pipeline_run)
    context = Context(config, storage, store, invocation, pipeline_run)
    done: dict[str, Node] = {}
    try:
        for stage in ordered:
            node = resolve(stage, config, store, done)
            if fresh and stage.cached:
                invalidate(node, store)
            done[stage.name] = node
            if node.reused:
                if node.run is not None and node.run.info.status != "FINISHED":
                    store.end(node.run.info.run_id)  # killed before it could
                told = {"stage": stage.name, "state": "reused", "outputs": node.outputs}
                context.progress.log(f"{stage.name:9} reused", "stage", **told)
                store.tag(pipeline_run, {STAGE_TAG.format(stage.name): str(node.identity)})
            else:
                told = {"stage": stage.name, "state": "begun", "reason": node.reason}
                context.progress.log(f"{stage.name:9} {node.reason}", "stage", **told)
                _compute(node, context, done)
                told = {"stage": stage.name, "state": "done", "outputs": node.outputs}
                context.progress.emit_event("stage", **told)
    except BaseException as error:
        store.fail(pipeline_run, error)
        raise
    store.end(pipeline_run)
    return {name: node.outputs or {} for name, node in done.items()}


def _open_pipeline_run(store: Store, config: PipelineConfig) -> str:
    """One run per configuration: the parent of what its stages compute."""
    data = config.model_dump(mode="json")
    key = json_digest(data)
    for found in store.find("pipeline", key):
        run_id = str(found.info.run_id)
        store.resume(run_id, data)
        break
    else:
        run_id = store.create("pipeline", key, f"{config.experiment} pipeline", params=data)
    store.log_text(run_id, config.to_yaml(), EXPERIMENT_FILE)
    return run_id


def _compute(node: Node, context: Context[Any], done: Mapping[str, Node]) -> None:
    """Run a stage; what is remembered gets an MLflow run of its own, under the pipeline's."""
    stage, store = node.stage, context.store
    needs = {name: done[name].outputs or {} for name in stage.depends_on}
    if not stage.cached:
        node.outputs = stage.run(context, needs)
        node.identity = json_digest(node.outputs)
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


def _open_run(node: Node, context: Context[Any]) -> str:
    """A run left unfinished goes on, else a new one starts."""
    store = context.store
    if node.run is not None:
        store.resume(node.run.info.run_id)
        return str(node.run.info.run_id)
    invalidate(node, store)
    inputs = json.dumps(node.inputs)
    tags = {"dca.inputs": inputs if len(inputs) <= 8000 else "{}"}
    name = f"{context.config.experiment} {node.stage.name}"
    return store.create(
        node.stage.name, str(node.key), name, parent=context.pipeline_run, tags=tags
    )
