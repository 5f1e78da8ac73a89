"""The tracking store: MLflow's experiments, runs, artifacts and logged models.

A run is found by what it is (tags `dca.kind` and `dca.key`), never by its name or by the order of
events, so that a command that was killed finds its own work again. Whoever needs the store while it
is locked or away waits for it; histories are written behind the back of the training.
"""

STEP_METRIC = "train_bits_per_byte"
"""A metric that every row of a history has: its steps are the rows already stored."""
COMMIT = "DCA_GPT_COMMIT"
"""Names the commit where there is no .git to ask, as in a container or a Ray job."""
NOTE_TAG = "mlflow.note.content"
"""Where MLflow keeps the description of a run and of an experiment."""
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Of an experiment: its page is about training runs and models."""
RESULT_METRIC = "val_bits_per_byte"
"""What a comparison of runs begins with: MLflow's pages show first what was stored first."""
DIGEST_TAG = "dca.sha256"
"""Of a logged model: the digest of its list of digests, which its own files cannot vouch for."""

EXPERIMENT_FILE, REPORT_FILE, STUDY_FILE = "experiment.yaml", "report/report.html", "study.db"
"""Artifacts: the first two of a pipeline's run, the last of a search's."""
STAGE_TAG = "dca.stage.{}"
"""Of a pipeline's run: the run that holds a stage's result, its own or an earlier pipeline's."""

TRIAL_TAG, VALUES_TAG = "dca.trial", "dca.values"
"""Of a trial's run, set as it is created: its number, and its searched values as JSON."""
STATE_TAG = "dca.state"
"""Of a trial's run, set as it ends: complete, pruned or failed."""
REASON_TAG = "dca.reason"
"""Of a run that failed, a trial's or a stage's: the error in one line."""
BEST_TAG, PARETO_TAG = "dca.best", "dca.pareto"
"""`true` on the run of a search's winner, and on those of its Pareto front."""
OLD_PARETO_TAG = "dca.front"
"""The latter in older stores."""
BEST_TRIAL_TAG, BEST_RUN_TAG = "dca.best_trial", "dca.best_run"
"""Of a search's run: the number and the run of its winner."""
