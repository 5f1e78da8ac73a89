"""The trainings of a study side by side: all in one Ray Tune run, each recorded and packaged.

Used by the stage fit. A training is packaged when it has ended, while others go on. One that
crashes is retried from its last checkpoint; one that diverges is a result.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import SecretStr

from pipelines.cluster.jobs import JobGroup, OneTrial, run_jobs
from pipelines.cluster.trial import TrialOutcome
from pipelines.cluster.trial_events import TrialEvents
from pipelines.console.errors import PipelineError
from pipelines.console.text import counted
from pipelines.data.fingerprint import PreparedCorpus
from pipelines.data.splits import train_val_splits
from pipelines.engine.code import require_same_code
from pipelines.engine.results import label
from pipelines.engine.stage import Context, Ended
from pipelines.experiment import Experiment
from pipelines.registry.results import Diverged, Fitted
from pipelines.search.jobs_progress import JobsProgress
from pipelines.stages.recorded_training import fits_folder, package
from pipelines.tracking.schema import FIT_KIND, TOKENS_METRIC
from pipelines.tracking.tensorboard import event_files
from pipelines.tracking.writer import Writer
from pipelines.training.config import TrainingRun
from pipelines.training.history import STEP, Row

Outcome = Fitted | Diverged | Exception


@dataclass(frozen=True)
class Replicate:
    """A training of a study."""

    context: Context[Experiment]
    """Of its instance of the stage."""
    config: TrainingRun
    corpus: PreparedCorpus
    describe: Callable[[], None]
    """Records what it is, on its run."""

    @property
    def name(self) -> str:
        """For people, as in `fit[dca-2, 3]`."""
        return label(FIT_KIND, self.context.values)

    @property
    def used_share(self) -> float:
        """The part of its budget that earlier sessions have used."""
        metrics = self.context.store.client.get_run(self.context.run_id).data.metrics
        return min(1.0, metrics.get(TOKENS_METRIC, 0.0) / self.config.train.tokens)


def train_together(replicates: Sequence[Replicate], ended: Ended[Fitted | Diverged]) -> None:
    """Train into the runs of the replicates, resuming unfinished ones; `ended` is given their
    results.

    Raises:
        ConfigError: If not one of them fits the cluster.
        StorageError: If a checkpoint, or a model, cannot be written.
        PipelineError: If a history could not be stored in the tracking store.

    """
    context, corpus = replicates[0].context, replicates[0].corpus
    config = context.config
    events = event_files(config.storage, config.experiment, enabled=config.tensorboard)
    writer = Writer(context.store, events)
    jobs = JobsProgress(context.progress, stage=FIT_KIND, unit="trainings")
    jobs.expect(len(replicates), {}, {one.name: one.used_share for one in replicates})
    recorders = [
        _Recorder(replicate, writer, partial(ended, place))
        for place, replicate in enumerate(replicates)
    ]
    groups = {
        recorder.replicate.name: _group(recorder, _Progress(recorder.replicate, jobs))
        for recorder in recorders
    }
    splits = train_val_splits(context.storage, corpus.fingerprint)
    try:
        with context.progress.working("training: starting"), ExitStack() as stack:
            stack.enter_context(closing(writer))
            for recorder in recorders:
                writer.enqueue(recorder.replicate.describe)
            run_jobs(
                groups, splits, context.progress, key="fit.resources", name=context.pipeline_run
            )
            look = lambda: f"{FIT_KIND}: packaging what was trained"  # noqa: E731
            with context.progress.watching(look, stage=FIT_KIND):
                stack.close()
    finally:
        for recorder in recorders:  # those that were packaged after the last event
            recorder.step_ended()


def _group(recorder: "_Recorder", progress: "_Progress") -> JobGroup:
    context, config = recorder.replicate.context, recorder.replicate.config
    key = SecretStr(context.store.checkpoint_key(context.run_id) or "")
    source = OneTrial({"folder": context.run_id, "key": key}, config.failures.retries)
    modules = ("pipelines.cluster.trial", *context.config.model_modules())
    return JobGroup(
        base=config,
        folder=fits_folder(context.storage),
        source=source,
        require_same_code=partial(require_same_code, modules, context.sources),
        events=TrialEvents(config, source.queued_retry, recorder, progress),
    )


class _Recorder:
    """Writes the history of a replicate into its run, and packages it at its end."""

    def __init__(
        self, replicate: Replicate, writer: Writer, ended: Callable[[Outcome], None]
    ) -> None:
        self.replicate, self._writer, self._ended = replicate, writer, ended
        self._history: dict[int, Row] = {}
        self._outcome: Outcome | None = None
        """Set by the writer's thread, passed on by Tune's loop."""

    def write(self, number: int, rows: Sequence[Row]) -> None:
        self._writer.write(self.replicate.context.run_id, rows)
        self._history |= {int(row[STEP]): row for row in rows}

    def end_trial(self, number: int, outcome: TrialOutcome) -> str:
        """Queue the packaging behind the rows; a run whose rows are not stored stays unfinished."""
        run_id = self.replicate.context.run_id
        self._writer.enqueue(partial(self._conclude, outcome), run_id)
        return run_id

    def _conclude(self, outcome: TrialOutcome) -> None:
        replicate = self.replicate
        if outcome.diverged:
            self._outcome = Diverged(replicate.context.run_id, outcome.reason)
        elif outcome.state == "failed":
            self._outcome = PipelineError(outcome.reason)
        else:
            history = [self._history[step] for step in sorted(self._history)]
            try:
                self._outcome = package(
                    replicate.context, replicate.config, replicate.corpus, history
                )
            except Exception as error:
                self._outcome = error

    def step_ended(self) -> None:
        """Pass on the outcome, once there is one."""
        if self._outcome is not None:
            outcome, self._outcome = self._outcome, None
            self._ended(outcome)


class _Progress:
    """Shows what happens to a replicate."""

    def __init__(self, replicate: Replicate, jobs: JobsProgress) -> None:
        self._config, self._jobs, self._name = replicate.config, jobs, replicate.name

    def name(self, number: int) -> str:
        return self._name

    def started(self, number: int, values: Mapping[str, Any]) -> None:
        self._jobs.progress.emit_event("fit", fit=self._name, state="started")
        self._jobs.start(self._name, self._name)

    def noted(self, number: int, text: str) -> None:
        self._log(f": {text}", state="note", text=text)

    def reported(self, number: int, tokens: int, objective: float, bytes_per_second: float) -> None:
        share = tokens / self._config.train.tokens
        self._jobs.report(self._name, self._name, share, objective, bytes_per_second)

    def crashed(self, number: int, reason: str, retry: int) -> None:
        self._jobs.stop(self._name)
        retries = self._config.failures.retries
        text = f" crashed: {reason}; resumes from its last checkpoint (retry {retry} of {retries})"
        self._log(text, state="crashed", reason=reason, retry=retry)

    def time_passed(self) -> None:
        self._jobs.time_passed()

    def ended(
        self, number: int, values: Mapping[str, Any], run_id: str, outcome: TrialOutcome
    ) -> None:
        state = "diverged" if outcome.diverged else outcome.state
        self._jobs.end(self._name, state)
        if outcome.objective is None:
            self._log(f" {state}: {outcome.reason}", state=state, reason=outcome.reason)
        else:
            steps, best = outcome.last_row[STEP], outcome.objective
            text = f" {state}: {counted(steps, 'step')}, best {best:.4f} bits per byte"
            self._log(text, state=state, run=run_id, steps=steps, best=best)
        self._jobs.show()

    def _log(self, text: str, /, **data: Any) -> None:
        self._jobs.progress.log(f"  {self._name}{text}", "fit", fit=self._name, **data)
