"""Names in the tracking store: tags, metrics and artifacts, by what has them.

Every run: KIND_TAG, KEY_TAG, CACHE_TAG, HOST_TAG, versions, DIRTY_TAG, REASON_TAG if it failed, and
MLflow's own tags of user, source, commit and parent run, if any (pipelines/compat/mlflow.py).
A stage's run, besides: INPUTS_TAG, OUTPUTS_TAG; a search's run also BEST_TRIAL_TAG, BEST_RUN_TAG.
A trial's run, besides: TRIAL_TAG, VALUES_TAG and INACTIVE_TAG from its creation, STATE_TAG at its
end, BEST_TAG or PARETO_TAG if it was selected.
A pipeline's run, besides: STAGE_TAG for each stage.
A version of the registered model: the tags in the last part, and lineage (stages/register.py).
"""

# Every run
KIND_TAG, KEY_TAG = "dca.kind", "dca.key"
"""What it is (a stage, `pipeline` or `trial`), and which one of its kind."""
CACHE_TAG, LIVE, DISCARDED = "dca.memory", "live", "forgotten"
"""Whether a command may reuse it by its key; the values are those of older stores."""
HOST_TAG = "host"
"""The machine of the process that created it."""
VERSION_PREFIX, DIRTY_TAG = "version.", "git.dirty"
"""Versions of packages, by name; whether the code had changes that were not committed. Also in a
package's lineage."""
REASON_TAG = "dca.reason"
"""Of one that failed: the error in one line."""
STEP_METRIC = "train_bits_per_byte"
"""A metric that every row of a history has: its steps are the rows already stored."""
RESULT_METRIC = "val_bits_per_byte"
"""Logged first, so that MLflow's comparison page lists it first."""

# A pipeline's run, a stage's run
STAGE_TAG = "dca.stage.{}"
"""Of a pipeline's run: the run that holds a stage's result, its own or an earlier pipeline's."""
INPUTS_TAG, OUTPUTS_TAG = "dca.inputs", "dca.outputs"
"""Of a stage's run: what its key is made of, and its result, both as JSON. With a result it counts
as finished."""
BEST_TRIAL_TAG, BEST_RUN_TAG = "dca.best_trial", "dca.best_run"
"""Of a search's run: the number and the run of its winner."""
EXPERIMENT_FILE, REPORT_FILE, STUDY_FILE = "experiment.yaml", "report/report.html", "study.db"
"""Artifacts: the first two of a pipeline's run, the last of a search's."""
SAMPLES_FILE = "samples.txt"
"""Artifact of the run of the stage sample."""

# A trial's run
TRIAL_TAG, VALUES_TAG = "dca.trial", "dca.values"
"""Set as it is created: its number, and its searched values as JSON."""
STATE_TAG = "dca.state"
"""Set as it ends: complete, pruned or failed."""
BEST_TAG, PARETO_TAG = "dca.best", "dca.pareto"
"""`true` on a search's winner, and on the trials of its Pareto front."""
OLD_PARETO_TAG = "dca.front"
"""The latter in older stores."""
INACTIVE_PARAM = "n/a"
"""Value of a searched parameter that does not apply to the trial."""
INACTIVE_TAG = "dca.inactive"
"""Set as it is created, if there are such parameters: the values that they have in its
configuration, encoded, as JSON."""

# A logged model, a version of the registered model
SHA256_TAG = "dca.sha256"
"""Of a logged model: the digest of its list of digests, so that a replaced list is detected."""
TEST_BITS_TAG, TEST_FINGERPRINT_TAG = "test.bits_per_byte", "test.fingerprint"
"""Its result on the test split, and the corpus of that."""
VAL_BITS_TAG, PARAMETERS_TAG = "val.bits_per_byte", "parameters"
"""Its result on the validation split, and its size."""
PROMOTE_TAG = "promote"
"""The settings of the gate when it was registered, as JSON."""
DECISION_TAG, PROMOTED_TAG, GATE_KEY_TAG = "gate.decision", "gate.promoted", "gate.key"
"""The gate's last decision in a line, whether it promoted, and what it was about."""

COMMIT_VARIABLE = "DCA_GPT_COMMIT"
"""The environment variable with the commit where there is no .git, as in a container or a Ray
job."""
