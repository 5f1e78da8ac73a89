"""Execution of the DAG's nodes, stage by stage: computed, or reused from the cache.

The instances of a stage are computed one after the other, or in one call if the stage has one for
that. If one fails, those that do not depend on it still run. A stage without instances ends the
execution, and so do bad input, storage that is full or away and Ctrl-C.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import groupby
from typing import Any

from pipelines.compat.mlflow import FINISHED
from pipelines.console.errors import ConfigError, PipelineError, StorageError, print_traceback
from pipelines.console.text import first_line
from pipelines.engine.cache import Cache, PlannedStage, results_for, shortened
from pipelines.engine.instances import Node
from pipelines.engine.results import StageResults, from_json, to_json
from pipelines.engine.stage import LOOKING, Context, Instance, PipelineConfig
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
        stored: Mapping[str, str] | None = None,
    ):
        """An execution of these nodes, each of which comes after the ones it depends on.

        Those `reused` have been found in the cache; `stored` are the tags of the pipeline's run.
        """
        self._context, self._cache, self._nodes = context, cache, nodes
        self._reused, self._stored = {one.node: one for one in reused}, {**(stored or {})}
        self._width = name_width(nodes)
        self._done: dict[Node, PlannedStage] = {}
        self._failed: dict[Node, Exception] = {}
        self._blocked: dict[Node, list[Node]] = {}
        """The nodes that are not run, and the failed ones they depend on, directly or not."""

    def run(self, configs: Mapping[Node, PipelineConfig]) -> StageResults:
        """Compute or reuse all nodes, each with its configuration; returns their results.

        Raises PipelineError at the end if instances failed.
        """
        for _, nodes in groupby(self._nodes, key=lambda node: node.stage.name):
            left = [
                (node, replace(self._context, config=configs[node], values=node.values_beyond(())))
                for node in nodes
                if not self._skip(node)
            ]
            if any(node.position and node.stage.run_together for node, _ in left):
                self._run_together(left)
            else:
                for node, context in left:
                    self._run_one(node, context)
        if self._failed:
            raise PipelineError(self._failures()) from next(iter(self._failed.values()))
        return self.results

    @property
    def results(self) -> StageResults:
        """The results that there are."""
        return results_for(None, self._done.values())

    def _skip(self, node: Node) -> bool:
        """Whether a node is not run, because one that it depends on has failed."""
        causes = dict.fromkeys(cause for need in self._nodes[node] for cause in self._causes(need))
        have = {need.stage.name for need in self._needs(node)}
        if not causes or (node.stage.partial and have.issuperset(node.stage.depends_on)):
            return False
        self._blocked[node] = list(causes)
        names = shortened([str(cause) for cause in causes])
        self._log_end(node, "skipped", f"not run: {names} failed")
        return True

    def _needs(self, node: Node) -> list[PlannedStage]:
        """Those that a node depends on and that have a result."""
        return [self._done[need] for need in self._nodes[node] if need in self._done]

    def _causes(self, node: Node) -> list[Node]:
        return [node] if node in self._failed else self._blocked.get(node, [])

    def _run_one(self, node: Node, context: Context[Any]) -> None:
        with self._shown_as_looking(node):
            planned = self._resolve(node, context)
        if planned.reused:
            self._reuse(planned)
            return
        try:
            self._finish(planned, node.stage.run(*self._begin(planned, context)))
        except BaseException as error:
            self._fail(planned, error)

    def _run_together(self, nodes: Sequence[tuple[Node, Context[Any]]]) -> None:
        """Compute the instances of a stage in one call, but those that are reused."""
        with self._shown_as_looking(nodes[0][0]):
            resolved = [(self._resolve(node, context), context) for node, context in nodes]
        for planned, _ in resolved:
            if planned.reused and planned.same_as is None:
                self._reuse(planned)
        if new := [one for one in resolved if not one[0].reused]:
            self._compute(new)
        for planned, _ in resolved:
            if planned.same_as is not None:
                self._reuse(planned)

    def _compute(self, new: Sequence[tuple[PlannedStage, Context[Any]]]) -> None:
        left = {place: planned for place, (planned, _) in enumerate(new)}

        def ended(place: int, outcome: Any) -> None:
            try:
                if isinstance(outcome, Exception):
                    raise outcome
                self._finish(left[place], outcome)
            except Exception as error:
                self._fail(left[place], error)
            del left[place]

        run_together = new[0][0].stage.run_together
        assert run_together is not None
        try:
            run_together([self._begin(*one) for one in new], ended)
            assert not left, f"not ended: {', '.join(str(one.node) for one in left.values())}"
        except BaseException as error:
            for planned in left.values():
                self._end_run(planned, error, command_ends=True)
            raise

    def _resolve(self, node: Node, context: Context[Any]) -> PlannedStage:
        found = self._reused.get(node)
        return found or self._cache.resolve(node, context.config, self._needs(node))

    def _shown_as_looking(self, node: Node) -> AbstractContextManager[None]:
        """Shows, for the time of a block, that cached results are looked for: their files are read,
        which takes minutes for those of a study on a server."""
        if not node.stage.cached:
            return nullcontext()
        return self._context.progress.waiting(LOOKING, stage=node.stage.name)

    def _reuse(self, planned: PlannedStage) -> None:
        """Refer to a cached result, or that of another instance, from the pipeline's run."""
        if (same := planned.same_as) is not None:
            if same.node in self._failed:
                self._failed[planned.node] = self._failed[same.node]
                self._log_end(planned.node, "failed", f"failed as {same.node}")
                return
            planned.result, planned.run_id = same.result, same.run_id
        text = f"{planned.node!s:{self._width}} reused"
        self._context.progress.log(text, "stage", **_result_event(planned, "reused"))
        store, run = self._context.store, planned.run
        if run is not None and run.info.status != FINISHED:
            store.end(planned.run_id)  # its command was killed before it could
        if run is not None and planned.node.position:
            # The instance may have another name now.
            store.tag(planned.run_id, planned.tags, stored=run.data.tags)
        self._refer(planned)
        self._done[planned.node] = planned

    def _begin(self, planned: PlannedStage, context: Context[Any]) -> Instance[Any]:
        """Show that an instance begins; returns what it is run with.

        A cached stage has an MLflow run of its own, under the pipeline's.
        """
        name = str(planned.node)
        begun = {"stage": name, "state": "begun", "reason": planned.reason}
        context.progress.log(f"{name:{self._width}} {planned.reason}", "stage", **begun)
        if planned.stage.cached:
            planned.run_id = self._open_run(planned, context)
            self._refer(planned)
            context = replace(context, run_id=planned.run_id)
        return context, results_for(planned.node, self._needs(planned.node))

    def _finish(self, planned: PlannedStage, result: Any) -> None:
        """Store the result of an instance."""
        stage, store = planned.stage, self._context.store
        assert isinstance(result, stage.result), f"{planned.node}: no {stage.result}: {result}"
        if stage.cached:
            stored = to_json(result)
            store.write_result(planned.run_id, stored)
            result = from_json(stage.result, json.dumps(stored))
            store.end(planned.run_id)
        planned.result = result
        self._done[planned.node] = planned
        self._context.progress.emit_event("stage", **_result_event(planned, "done"))

    def _fail(self, planned: PlannedStage, error: BaseException) -> None:
        """End the run of an instance that failed. Raises the error if it ends the command."""
        node, ends = planned.node, _ends_command(planned.node, error)
        self._end_run(planned, error, command_ends=ends)
        if ends or not isinstance(error, Exception):
            raise error
        self._failed[node] = error
        self._log_end(node, "failed", f"failed: {first_line(error)}")
        if not isinstance(error, PipelineError):
            print_traceback(error)

    def _end_run(self, planned: PlannedStage, error: BaseException, *, command_ends: bool) -> None:
        if planned.run_id:
            self._context.store.fail(planned.run_id, error, command_ends=command_ends)

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
        run = self._context.pipeline_run
        self._context.store.tag(run, {tag: planned.run_id}, stored=self._stored)
        self._stored[tag] = planned.run_id

    def _log_end(self, node: Node, state: str, reason: str) -> None:
        data = {"stage": str(node), "state": state, "reason": reason}
        self._context.progress.log(f"{node!s:{self._width}} {reason}", "stage", **data)

    def _failures(self) -> str:
        """Which instances failed, why, and what was not run for it."""
        lines = [f"  {node}: {_reason(error)}" for node, error in self._failed.items()]
        blocked = [f"  not run: {', '.join(map(str, self._blocked))}"] if self._blocked else []
        head = f"{len(lines)} of {len(self._nodes)} failed"
        return "\n".join([head, *lines, *blocked])


def name_width(nodes: Iterable[Node]) -> int:
    """The width of the column with the nodes' names."""
    return max([NAME_WIDTH, *(len(str(node)) for node in nodes)])


def _ends_command(node: Node, error: BaseException) -> bool:
    """Whether an error of a node ends the command at once."""
    for_all = isinstance(error, ConfigError | StorageError) or not isinstance(error, Exception)
    return for_all or not node.position


def _reason(error: Exception) -> str:
    if isinstance(error, PipelineError):
        return str(error).replace("\n", "\n  ")
    return f"{type(error).__name__}: {first_line(error)}"


def _result_event(planned: PlannedStage, state: str) -> dict[str, Any]:
    return {"stage": str(planned.node), "state": state, "outputs": to_json(planned.result)}
