"""Progress of a search: a line for each trial that ends, and its part of the status.

Used by `run`, which runs the searches of a study's arms side by side: then lines name the arm.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.cluster.trial import TrialOutcome
from pipelines.console.text import counted, format_value
from pipelines.search.config import SearchTask
from pipelines.search.jobs_progress import JobsProgress, Key
from pipelines.tracking.schema import BEST_METRIC
from pipelines.tracking.trials import STATUS_OF_STATE, StoredTrial
from pipelines.training.history import STEP


class SearchProgress:
    """Shows what happens to the trials of a search, and counts them in the status."""

    def __init__(
        self, task: SearchTask, stored: Sequence[StoredTrial], jobs: JobsProgress, arm: str = ""
    ) -> None:
        """The progress of a search whose earlier sessions have `stored` trials.

        Args:
            task: The search.
            stored: Trials of its earlier sessions.
            jobs: The status, with the trials of other searches if there are any.
            arm: Whose search it is; empty without arms.

        """
        self._task, self._jobs, self._arm = task, jobs, arm
        self._progress = jobs.progress
        self._named: dict[str, Any] = {"arm": arm} if arm else {}
        """Of each event."""
        states = {state: sum(t.state == state for t in stored) for state in STATUS_OF_STATE}
        tokens = task.base.train.tokens
        begun = {self._key(t.number): min(1.0, t.tokens / tokens) for t in stored if not t.state}
        jobs.expect(task.search.trial_count, states, begun)
        for trial in stored:
            if trial.state == "complete" and trial.objective is not None:
                jobs.note_best(self._key(trial.number), self.name(trial.number), trial.objective)
        self._invalid = self._repeated = 0
        """Proposals that were not run."""

    def name(self, number: int) -> str:
        """The name of a trial, as in `trial 3 of dca-2`."""
        return f"trial {number} of {self._arm}" if self._arm else f"trial {number}"

    def _key(self, number: int) -> Key:
        return f"{self._arm} {number}" if self._arm else number

    def started(self, number: int, values: Mapping[str, Any]) -> None:
        """Show that a trial started, or was retried."""
        self._progress.emit_event(
            "trial", trial=number, state="started", values=values, **self._named
        )
        self._jobs.start(self._key(number), self.name(number))

    def left_out(self, values: Mapping[str, Any], problem: str) -> None:
        """Count a proposal that is not run, with the problem of an invalid one; show the first."""
        if not problem:
            self._repeated += 1
            return
        self._invalid += 1
        if self._invalid == 1:
            text = f"invalid points of the space are left out: {problem}  ({_tried(values)})"
            data = {"state": "invalid", "values": values, "reason": problem}
            self._log(text, "trial", **data)

    def summarize(self) -> None:
        """Show how many proposals were not run, if any, and whether the space has no more."""
        data = {"invalid": self._invalid, "repeated": self._repeated}
        counts = [
            f"{self._invalid} invalid" * bool(self._invalid),
            f"{self._repeated} equal to earlier trials" * bool(self._repeated),
        ]
        if any(counts):
            text = f"proposals that were not run: {', '.join(filter(None, counts))}"
            self._log(text, "search", state="left out", **data)

    def noted(self, number: int, text: str) -> None:
        """Show a note about a trial, such as that it resumes."""
        self._of_trial(number, f": {text}", state="note", text=text)

    def reported(self, number: int, tokens: int, objective: float, bytes_per_second: float) -> None:
        """Show a trial's training tokens, speed and objective, its best so far."""
        share = tokens / self._task.base.train.tokens
        self._jobs.report(self._key(number), self.name(number), share, objective, bytes_per_second)

    def crashed(self, number: int, reason: str, retry: int) -> None:
        """Show that a trial crashed and will be retried, for the `retry`th time."""
        self._jobs.stop(self._key(number))
        retries = self._task.base.failures.retries
        text = f" crashed: {reason}; resumes from its last checkpoint (retry {retry} of {retries})"
        self._of_trial(number, text, state="crashed", reason=reason, retry=retry)

    def time_passed(self) -> None:
        """Show the status again if nothing was shown for long."""
        self._jobs.time_passed()

    def ended(
        self, number: int, values: Mapping[str, Any], run_id: str, outcome: TrialOutcome
    ) -> None:
        """Show that a trial ended as complete, pruned or failed."""
        self._jobs.end(self._key(number), outcome.state)
        result, data = outcome.reason, dict[str, Any](reason=outcome.reason)
        if outcome.objective is not None:
            steps = outcome.last_row[STEP]
            metric = BEST_METRIC.format(self._task.base.train.best_metric)
            result = f"{counted(steps, 'step')}, best {outcome.objective:.4f} bits per byte"
            data = {"steps": steps, metric: outcome.objective}
        data = {"state": outcome.state, "values": values, "run": run_id, **data}
        self._of_trial(number, f" {outcome.state}: {result}  ({_tried(values)})", **data)
        self._jobs.show()

    def _of_trial(self, number: int, text: str, /, **data: Any) -> None:
        """Print a line about a trial."""
        line = f"  {self.name(number)}{text}"
        self._progress.log(line, "trial", trial=number, **data, **self._named)

    def _log(self, text: str, event: str, /, **data: Any) -> None:
        """Print a line about the search."""
        line = f"  {self._arm}: {text}" if self._arm else f"  {text}"
        self._progress.log(line, event, **data, **self._named)


def _tried(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={format_value(value, digits=3)}" for key, value in values.items())
