"""DAG execution with cached results: one MLflow run per configuration, and one per cached stage.

Used by the commands that run a pipeline: sweep.py and train.py.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from graphlib import TopologicalSorter
from typing import Any

from pipelines.compat.mlflow import FINISHED
from pipelines.engine.cache import PlannedStage, invalidate, resolve
from pipelines.engine.results import StageResults, json_digest, to_json
from pipelines.engine.stage import Context, Invocation, PipelineConfig, Stage
from pipelines.storage.location import storage_folder
from pipelines.tracking.descriptions import Descriptions
from pipelines.tracking.locks import exclusive_lock
from pipelines.tracking.schema import (
    EXPERIMENT_FILE,
    OUTPUTS_TAG,
    PIPELINE_KIND,
    SCHEMA_VERSION,
    STAGE_TAG,
)
from pipelines.tracking.store import Store


def order(stages: Sequence[Stage[Any, Any]], until: str | None = None) -> list[Stage[Any, Any]]:
    """Stages after their dependencies; with `until`, only that stage and what it depends on."""
    by_name = {stage.name: stage for stage in stages}
    wanted, todo = set(), [until] if until else list(by_name)
    while todo:
        name = todo.pop()
        wanted.add(name)
        todo.extend(by_name[name].depends_on)
    graph = {name: by_name[name].depends_on for name in by_name}
    return [by_name[name] for name in TopologicalSorter(graph).static_order() if name in wanted]


def plan(
    stages: Sequence[Stage[Any, Any]], config: PipelineConfig, *, until: str | None, fresh: bool
) -> list[PlannedStage]:
    """The stages that `run` would run or reuse, in order; writes nothing."""
    store = Store.open(config.experiment, storage_folder(config.storage), create=False)
    done: dict[str, PlannedStage] = {}
    for stage in order(stages, until):
        done[stage.name] = resolve(stage, config, store, done, fresh=fresh)
    return list(done.values())


def run(
    stages: Sequence[Stage[Any, Any]],
    config: PipelineConfig,
    invocation: Invocation,
    *,
    lock_name: str,
    descriptions: Descriptions,
    until: str | None = None,
    fresh: bool = False,
) -> StageResults:
    """Run the stages in order, reusing what is cached; returns their results.

    Args:
        stages: All of the DAG, in any order.
        config: What they read.
        invocation: The command, and where its output goes.
        lock_name: Name of the lock: one process at a time holds it.
        descriptions: Descriptions of the experiment and of this pipeline in the tracking store.
        until: The last stage to run, after what it depends on; None for all.
        fresh: Whether cached results are computed again.

    Raises:
        PipelineError: If another process holds the lock.

    """
    with exclusive_lock(lock_name):
        ordered = order(stages, until)
        for stage in ordered:
            if stage.preview:
                stage.preview(config)  # bad input is found before anything is written
        context = _open(config, invocation, descriptions)
        try:
            done = _execute(ordered, context, fresh=fresh)
        except BaseException as error:
            context.store.fail(context.pipeline_run, error)
            raise
        context.store.end(context.pipeline_run)
        return StageResults({name: planned.result for name, planned in done.items()})


def _open(
    config: PipelineConfig, invocation: Invocation, descriptions: Descriptions
) -> Context[PipelineConfig]:
    """The tracking store with the pipeline's run in it."""
    storage = storage_folder(config.storage)
    store = Store.open(config.experiment, storage)
    assert store is not None
    pipeline_run = _open_pipeline_run(store, config)
    store.describe(descriptions.experiment)
    store.describe(descriptions.pipeline, pipeline_run)
    return Context(config, storage, store, invocation, pipeline_run)


def _open_pipeline_run(store: Store, config: PipelineConfig) -> str:
    """One run per configuration: the parent of the runs of its stages."""
    data = config.model_dump(mode="json")
    key = json_digest({"schema": SCHEMA_VERSION, **data})
    if found := store.find(PIPELINE_KIND, key):
        run_id = str(found[0].info.run_id)
        store.resume(run_id, data)
    else:
        run_id = store.create(PIPELINE_KIND, key, f"{config.experiment} pipeline", params=data)
    store.log_text(run_id, config.to_yaml(), EXPERIMENT_FILE)
    return run_id


def _execute(
    stages: Sequence[Stage[Any, Any]], context: Context[Any], *, fresh: bool
) -> dict[str, PlannedStage]:
    """Compute the stages in order, or reuse their cached results."""
    done: dict[str, PlannedStage] = {}
    for stage in stages:
        planned = resolve(stage, context.config, context.store, done, fresh=fresh)
        if planned.reused:
            _log(context, planned, "reused")
            _reuse(planned, context)
        else:
            _log(context, planned, "begun")
            _compute(planned, context, done)
            _log(context, planned, "done")
        done[stage.name] = planned
    return done


def _log(context: Context[Any], planned: PlannedStage, state: str) -> None:
    """Report a stage's state: a line for people unless it is done, an event for machines."""
    name = planned.stage.name
    if state == "begun":
        context.progress.log(
            f"{name:9} {planned.reason}", "stage", stage=name, state=state, reason=planned.reason
        )
        return
    data = {"stage": name, "state": state, "outputs": to_json(planned.result)}
    if state == "reused":
        context.progress.log(f"{name:9} reused", "stage", **data)
    else:
        context.progress.emit_event("stage", **data)


def _reuse(planned: PlannedStage, context: Context[Any]) -> None:
    """Refer to a cached result from the pipeline's run."""
    run = planned.run
    assert run is not None
    if run.info.status != FINISHED:
        context.store.end(run.info.run_id)  # its command was killed before it could
    _refer(context, planned, run.info.run_id)


def _refer(context: Context[Any], planned: PlannedStage, run_id: str) -> None:
    context.store.tag(context.pipeline_run, {STAGE_TAG.format(planned.stage.name): run_id})


def _compute(
    planned: PlannedStage, context: Context[Any], done: Mapping[str, PlannedStage]
) -> None:
    """Run a stage; a cached one has an MLflow run of its own, under the pipeline's."""
    stage, store = planned.stage, context.store
    needs = StageResults({name: done[name].result for name in stage.depends_on})
    if not stage.cached:
        planned.result = stage.run(context, needs)
        return
    run_id = _open_run(planned, context)
    _refer(context, planned, run_id)
    try:
        planned.result = stage.run(replace(context, run_id=run_id), needs)
    except BaseException as error:
        store.fail(run_id, error)
        raise
    # From now on it is a result.
    store.tag(run_id, {OUTPUTS_TAG: json.dumps(to_json(planned.result))})
    store.end(run_id)


def _open_run(planned: PlannedStage, context: Context[Any]) -> str:
    """The run of a stage: an unfinished one, or one that has grown, is resumed, else a new one is
    created."""
    store, name = context.store, planned.stage.name
    if planned.run is not None:
        run_id = str(planned.run.info.run_id)
        store.resume(run_id)
        store.untag(run_id, OUTPUTS_TAG)  # it is unfinished again
        store.tag(run_id, planned.tags)
        return run_id
    invalidate(planned, context.config, store)
    return store.create(
        name,
        str(planned.key),
        f"{context.config.experiment} {name}",
        parent=context.pipeline_run,
        tags=planned.tags,
    )
