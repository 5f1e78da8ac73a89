"""Execution of the DAG's nodes, one after the other: computed, or reused from the cache.

If an instance of a stage fails, those that do not depend on it still run. A stage without instances
ends the execution, and so do bad input and Ctrl-C.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipelines.compat.mlflow import FINISHED
from pipelines.console.errors import ConfigError, PipelineError, print_traceback
from pipelines.console.text import first_line
from pipelines.engine.cache import Cache, PlannedStage, results_for, shortened
from pipelines.engine.instances import Node
from pipelines.engine.results import StageResults, from_json, to_json
from pipelines.engine.stage import Context, PipelineConfig
from pipelines.tracking.schema import OUTPUTS_TAG, STAGE_TAG

NAME_WIDTH = 9
"""Of the names of stages; those of instances may need more."""


class Execution:
    """One execution of the nodes of a DAG."""

    def __init__(
        self,
        context: Context[Any],
        cache: Cache,
        nodes: Mapping[Node, Sequence[Node]],
        reused: Iterable[PlannedStage] = (),
    ):
        """An execution of these nodes, each of which comes after the ones it depends on.

        Those `reused` have been found in the cache.
        """
        self._context, self._cache, self._nodes = context, cache, nodes
        self._reused = {one.node: one for one in reused}
        self._width = name_width(nodes)
        self._done: dict[Node, PlannedStage] = {}
        self._failed: dict[Node, Exception] = {}
        self._blocked: dict[Node, list[Node]] = {}
        """The nodes that are not run, and the failed ones they depend on, directly or not."""

    def run(self, configs: Mapping[Node, PipelineConfig]) -> StageResults:
        """Compute or reuse all nodes, each with its configuration; returns their results.

        Raises PipelineError at the end if instances failed.
        """
        for node, needs in self._nodes.items():
            causes = [cause for need in needs for cause in self._causes(need)]
            if causes:
                self._blocked[node] = list(dict.fromkeys(causes))
                names = shortened([str(cause) for cause in self._blocked[node]])
                self._log_end(node, "skipped", f"not run: {names} failed")
            else:
                context = replace(self._context, config=configs[node])
                self._run_node(node, context, [self._done[need] for need in needs])
        if self._failed:
            raise PipelineError(self._failures()) from next(iter(self._failed.values()))
        return self.results

    @property
    def results(self) -> StageResults:
        """The results that there are."""
        return results_for(None, self._done.values())

    def _causes(self, node: Node) -> list[Node]:
        return [node] if node in self._failed else self._blocked.get(node, [])

    def _run_node(self, node: Node, context: Context[Any], needs: list[PlannedStage]) -> None:
        planned = self._reused.get(node) or self._cache.resolve(node, context.config, needs)
        shared_with = planned.same_as.node if planned.same_as else None
        if shared_with in self._failed:
            self._failed[node] = self._failed[shared_with]
            self._log_end(node, "failed", f"failed as {shared_with}")
            return
        try:
            self._reuse(planned) if planned.reused else self._compute(planned, context, needs)
        except Exception as error:
            if _ends_command(node, error):
                raise
            self._failed[node] = error
            self._log_end(node, "failed", f"failed: {first_line(error)}")
            if not isinstance(error, PipelineError):
                print_traceback(error)
        else:
            self._done[node] = planned

    def _reuse(self, planned: PlannedStage) -> None:
        """Refer to a cached result from the pipeline's run."""
        name = str(planned.node)
        text = f"{name:{self._width}} reused"
        self._context.progress.log(text, "stage", **_result_event(planned, "reused"))
        store, run = self._context.store, planned.run
        if run is not None and run.info.status != FINISHED:
            store.end(planned.run_id)  # its command was killed before it could
        if run is not None and planned.node.position:
            store.tag(planned.run_id, planned.tags)  # the instance may have another name now
        self._refer(planned)

    def _compute(
        self, planned: PlannedStage, context: Context[Any], needs: list[PlannedStage]
    ) -> None:
        """Run a stage; a cached one has an MLflow run of its own, under the pipeline's."""
        stage, store, name = planned.stage, context.store, str(planned.node)
        begun = {"stage": name, "state": "begun", "reason": planned.reason}
        context.progress.log(f"{name:{self._width}} {planned.reason}", "stage", **begun)
        given = results_for(planned.node, needs)
        if stage.cached:
            planned.run_id = self._open_run(planned, context)
            self._refer(planned)
            try:
                result = stage.run(replace(context, run_id=planned.run_id), given)
                assert isinstance(result, stage.result), f"{name}: not a {stage.result}: {result}"
                stored = to_json(result)
                store.write_result(planned.run_id, stored)
                planned.result = from_json(stage.result, json.dumps(stored))
            except BaseException as error:
                ends = _ends_command(planned.node, error)
                store.fail(planned.run_id, error, command_ends=ends)
                raise
            store.end(planned.run_id)
        else:
            planned.result = stage.run(context, given)
        context.progress.emit_event("stage", **_result_event(planned, "done"))

    def _open_run(self, planned: PlannedStage, context: Context[Any]) -> str:
        """The run of a stage: one that is unfinished or grows is resumed, else one is created."""
        store = context.store
        if planned.run is not None:
            run_id = str(planned.run.info.run_id)
            store.resume(run_id)
            store.untag(run_id, OUTPUTS_TAG)  # it is unfinished again
            store.tag(run_id, planned.tags)
            return run_id
        self._cache.invalidate(planned, context.config)
        return store.create(
            planned.stage.name,
            str(planned.key),
            f"{context.config.experiment} {planned.node}{context.variant}",
            parent=context.pipeline_run,
            tags=planned.tags,
        )

    def _refer(self, planned: PlannedStage) -> None:
        tag = STAGE_TAG.format(planned.node.path)
        self._context.store.tag(self._context.pipeline_run, {tag: planned.run_id})

    def _log_end(self, node: Node, state: str, reason: str) -> None:
        data = {"stage": str(node), "state": state, "reason": reason}
        self._context.progress.log(f"{node!s:{self._width}} {reason}", "stage", **data)

    def _failures(self) -> str:
        """Which instances failed, why, and what was not run for it."""
        lines = [f"  {node}: {_reason(error)}" for node, error in self._failed.items()]
        blocked = [f"  not run: {', '.join(map(str, self._blocked))}"] if self._blocked else []
        head = f"{len(lines)} of {len(self._nodes)} failed; the same command tries them again"
        return "\n".join([head, *lines, *blocked])


def name_width(nodes: Iterable[Node]) -> int:
    """The width of the column with the nodes' names."""
    return max([NAME_WIDTH, *(len(str(node)) for node in nodes)])


def _ends_command(node: Node, error: BaseException) -> bool:
    """Whether an error of a node ends the command at once."""
    return not node.position or isinstance(error, ConfigError) or not isinstance(error, Exception)


def _reason(error: Exception) -> str:
    if isinstance(error, PipelineError):
        return str(error).replace("\n", "\n  ")
    return f"{type(error).__name__}: {first_line(error)}"


def _result_event(planned: PlannedStage, state: str) -> dict[str, Any]:
    return {"stage": str(planned.node), "state": state, "outputs": to_json(planned.result)}
