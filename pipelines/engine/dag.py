"""DAG execution with cached results: one MLflow run per configuration, and one per cached stage.

Used by the commands that run a pipeline: sweep.py and train.py.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipelines.compat.mlflow import NOTE_TAG
from pipelines.config.yaml_text import flatten
from pipelines.console.secrets import redact
from pipelines.engine.cache import Cache, PlannedStage, shortened
from pipelines.engine.execution import NAME_WIDTH, Execution
from pipelines.engine.instances import FanOut, Node, expand
from pipelines.engine.results import StageResults, json_digest
from pipelines.engine.stage import Context, Invocation, PipelineConfig, Stage
from pipelines.storage.location import storage_folder
from pipelines.tracking.descriptions import Descriptions
from pipelines.tracking.encoding import encode_param
from pipelines.tracking.locks import exclusive_lock
from pipelines.tracking.schema import (
    EXPERIMENT_FILE,
    KEY_TAG,
    PIPELINE_KIND,
    SCHEMA_VERSION,
)
from pipelines.tracking.store import Run, Store

MAX_VARIANT = 120
"""Characters of it in the names of runs."""


def plan(
    stages: Sequence[Stage[Any, Any]],
    config: PipelineConfig,
    *,
    until: str | None,
    fresh: bool,
    fan_out: FanOut[Any] | None = None,
) -> list[PlannedStage]:
    """The instances of stages that `run` would run or reuse, in order; writes nothing."""
    store = Store.open(config.experiment, storage_folder(config.storage), create=False)
    nodes, done = expand(stages, fan_out, until), dict[Node, PlannedStage]()
    cache = Cache(store, nodes, fresh=fresh)
    for node, needs in nodes.items():
        own = node.config(config, fan_out)
        done[node] = cache.resolve(node, own, [done[need] for need in needs])
    return list(done.values())


def plan_lines(planned: Sequence[PlannedStage]) -> list[str]:
    """A plan for people: a line for the instances of a stage that run or are reused for one reason.

    If that is not all of them, it names them, the first ones of many.
    """
    groups: dict[tuple[str, bool, str], list[str]] = {}
    for one in planned:
        groups.setdefault((one.stage.name, one.reused, one.reason), []).append(str(one.node))
    counts = Counter(one.stage.name for one in planned)
    rows = []
    for (stage, reused, reason), names in groups.items():
        whole = len(names) == counts[stage] > 1
        rows.append((f"{stage} ({len(names)})" if whole else shortened(names), reused, reason))
    width = max(NAME_WIDTH, *(len(name) for name, _, _ in rows))
    return [f"{name:{width}} {'reuse' if reused else 'run':6} {why}" for name, reused, why in rows]


def run(
    stages: Sequence[Stage[Any, Any]],
    config: PipelineConfig,
    invocation: Invocation,
    *,
    lock_name: str,
    descriptions: Descriptions,
    until: str | None = None,
    fresh: bool = False,
    fan_out: FanOut[Any] | None = None,
    reused: Sequence[PlannedStage] = (),
    conclude: Callable[[Context[Any], StageResults, BaseException | None], None] = lambda *_: None,
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
        fan_out: Dimensions over which stages have instances, as the arms and seeds of a study.
        reused: Stages that `plan` has just found cached, which are not looked for again.
        conclude: Shows the results at the end: all of them, or those there are if a stage fails or
            is interrupted: that error, raised after it, is then its last argument, else None.

    Raises:
        PipelineError: If another process holds the lock, or at the end if instances failed.

    """
    with exclusive_lock(lock_name):
        nodes = expand(stages, fan_out, until)
        configs = {node: node.config(config, fan_out) for node in nodes}
        for node in nodes:
            if node.stage.preview:
                node.stage.preview(configs[node])  # bad input is found before anything is written
        with invocation.progress.waiting("opening the tracking store"):
            opened, tags = _open(config, invocation, descriptions)
        context = replace(opened, fresh=fresh)
        cache = Cache(context.store, nodes, fresh=fresh)
        execution = Execution(context, cache, nodes, reused, tags)
        try:
            results = execution.run(configs)
        except BaseException as error:
            context.store.fail(context.pipeline_run, error)
            conclude(context, execution.results, error)
            raise
        context.store.end(context.pipeline_run)
        conclude(context, results, None)
        return results


def _open(
    config: PipelineConfig, invocation: Invocation, descriptions: Descriptions
) -> tuple[Context[PipelineConfig], Mapping[str, str]]:
    """The tracking store with the pipeline's run in it, and the tags which that had.

    A configuration has one run: the parent of the runs of its stages.
    """
    storage = storage_folder(config.storage)
    store = Store.open(config.experiment, storage)
    assert store is not None
    store.end_killed()
    data = config.model_dump(mode="json")
    earlier = store.find(PIPELINE_KIND)
    variant = _variant(earlier, data)
    key = json_digest({"schema": SCHEMA_VERSION, **data})
    found = next((run for run in earlier if run.data.tags.get(KEY_TAG) == key), None)
    tags = found.data.tags if found else {NOTE_TAG: descriptions.pipeline}
    if found:
        pipeline_run = str(found.info.run_id)
        store.resume(pipeline_run, data)
    else:
        name = f"{config.experiment} pipeline{variant}"
        pipeline_run = store.create(PIPELINE_KIND, key, name, params=data, tags=tags)
    store.log_text(pipeline_run, config.to_yaml(), EXPERIMENT_FILE)
    store.describe(descriptions.experiment)
    if NOTE_TAG not in tags:
        store.describe(descriptions.pipeline, pipeline_run)
    return Context(config, storage, store, invocation, pipeline_run, variant=variant), tags


def _variant(earlier: Sequence[Run], data: Mapping[str, Any]) -> str:
    """What tells a pipeline's runs from those of the experiment's first one; empty for that."""
    first = earlier[-1].data.params if earlier else {}
    params = {key: redact(encode_param(value)) for key, value in flatten(data)}  # as it is stored
    changes = [
        f"{key}={value}"
        for key, value in params.items()
        if key not in ("experiment", "storage") and first.get(key) not in (None, value)
    ]
    return f", {shortened(changes)}"[:MAX_VARIANT] if changes else ""
