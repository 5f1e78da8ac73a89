"""The names in the tracking store, each spelled once, and readers that give them types.

A test finds any of them elsewhere. The columns of a history, which are metrics of a run, are named
in pipelines/training/history.py, the weights and the configuration in a model's folder in
pipelines/training/initial_weights.py: the training library is used without a store.

Every run: SCHEMA_TAG, KIND_TAG, KEY_TAG, CACHE_TAG, HOST_TAG, PROCESS_TAG, versions, DIRTY_TAG,
REASON_TAG if it failed or was resumed, and MLflow's own tags of user, source, commit and parent
run, if any (pipelines/compat/mlflow.py).
A stage's run, besides: INPUTS_TAG, OUTPUTS_TAG, INSTANCE_TAG if the stage has several instances; a
search's run also BASIS_TAG, BEST_TRIAL_TAG, BEST_RUN_TAG; that of compare BASIS_TAG, LOOKS_TAG.
A run that trains, besides: CHECKPOINT_KEY_TAG.
A trial's run, besides: TRIAL_TAG, VALUES_TAG, CODE_TAG, INACTIVE_TAG and PARAMETERS_TAG from its
creation, STATE_TAG at its end, BEST_TAG or PARETO_TAG if it was selected.
A pipeline's run, besides: STAGE_TAG for each stage.
A run with artifacts, besides: ARTIFACT_TAG for each file of them.
A logged model: SCHEMA_TAG, SHA256_TAG, SIZE_TAG, ARTIFACT_TAG for each file stored about it later.
A version of the registered model: SCHEMA_TAG, the tags of VersionTags, and those of the runs it
comes from. An entry of the log of champions: its own part.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pipelines.compat.mlflow import COMMIT_TAG
from pipelines.console.errors import ConfigError, EditedError, Problem
from pipelines.console.text import one_line, quote_value
from pipelines.training import history

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

SCHEMA_VERSION, SCHEMA_TAG = 1, "dca.schema"
"""Of every run, logged model and version: the version of this schema by which it was written.
Without the tag it is 0, of stores from before the tag. Later versions only add names."""

# Kinds of runs
PIPELINE_KIND, TRIAL_KIND = "pipeline", "trial"
SEARCH_KIND, SELECT_KIND, FIT_KIND, TRAIN_KIND = "search", "select", "fit", "train"
EVALUATE_KIND, SAMPLE_KIND = "evaluate", "sample"
PROBE_KIND, COMPARE_KIND = "probe", "compare"
"""A cached stage's run has the stage's name as its kind."""

# Every run
KIND_TAG, KEY_TAG = "dca.kind", "dca.key"
"""What it is, and which one of its kind."""
CACHE_TAG, LIVE, DISCARDED = "dca.memory", "live", "forgotten"
"""Whether a command may reuse it by its key; the values are those of older stores."""
HOST_TAG = "host"
"""The machine of the process that created it."""
VERSION_PREFIX, DIRTY_TAG = "version.", "git.dirty"
"""Versions of packages, by name; whether the code had changes that were not committed. Also in a
package's lineage."""
REASON_TAG, RESUMED = "dca.reason", "resumed"
"""Of one that failed: the error in one line; of one that went on after a break: that."""
PROCESS_TAG = "dca.process"
"""The process that works on it: host, process id and start."""

# Metrics
STEP_METRIC = history.TRAIN_BITS
"""One that every row of a history has: its steps are the rows already stored."""
VAL_BITS_METRIC = history.VAL_BITS
"""Logged first, so that MLflow's comparison page lists it first."""
TOKENS_METRIC, SECONDS_METRIC = history.TOKENS, history.SECONDS
"""Of a training: so far. Of a search: tokens of all trials, seconds from its start."""
BEST_METRIC = "best_{}"
"""The best value of train.best_metric: of a trial, a fit, or all trials of a search."""
TEST_BITS_METRIC, BASELINE_METRIC = "test_bits_per_byte", "{}_bits_per_byte"
"""Of the stage evaluate's run: the model's on the test split, and those of common compressors."""
OVERLAP_METRIC = "test_overlap_share"
"""Likewise: share of the test bytes in strings of 64 bytes that the training text has too."""

# Parameters that are read back; all are keys of the configuration, but the first
CORPUS_PARAM = "corpus"
"""Of a search's run: the fingerprint of its corpus."""
SEED_PARAM, TRAIN_TOKENS_PARAM, BATCH_TOKENS_PARAM = "seed", "train.tokens", "train.batch_tokens"
INACTIVE_PARAM = "n/a"
"""Value of a searched parameter that does not apply to the trial."""

# A pipeline's run, a stage's run
STAGE_TAG = "dca.stage.{}"
"""Of a pipeline's run: the run that holds a stage's result, its own or an earlier pipeline's. Of an
instance of a stage its values follow, as in `dca.stage.fit/dca-2/3`."""
INSTANCE_TAG = "dca.instance"
"""Of a stage's run: the instance that used it last, as in `fit[dca-2, 3]`, if there are several."""
BASIS_TAG = "dca.basis"
"""Of a search's run: what its key has in common with those of what it may grow to. Of a run of
compare: what those about the same baseline have in common, with whichever seeds and other arms."""
INPUTS_TAG, OUTPUTS_TAG = "dca.inputs", "dca.outputs"
"""Of a stage's run: what its key is made of, and its result, both as JSON. With a result it counts
as finished. A result too long for a tag is in RESULT_FILE."""
RESULT_FILE = "result.json"
RESULT_IS_IN_FILE = {"file": RESULT_FILE}
"""Artifact of a stage's run, and what the tag is then."""
BEST_TRIAL_TAG, BEST_RUN_TAG = "dca.best_trial", "dca.best_run"
"""Of a search's run: the number and the run of its winner."""
LOOKS_TAG = "dca.looks"
"""Of a run of compare, set as its verdict is known: the seeds that there were whenever one about
the same baseline was shown, as JSON."""
COMPARISON_FILE, MEASURED_FILE = "comparison.{}", "study.json"
"""Artifacts of a run of compare: its table as csv, md and json, and what was measured."""
FIGURES_FOLDER = "figures"
"""Likewise, with PNG files."""
STEP_TIME = "step_time_ratio"
"""A column of its table; with the name of an arm, a metric of it and of a run of probe."""
EXPERIMENT_FILE, SCREEN_FILE = "experiment.yaml", "report.txt"
"""Artifacts of a pipeline's run: its whole configuration, and the last screen of the command."""
PAGE_FILE, REPORT_FOLDER = "report.html", "report"
REPORT_FILE = f"{REPORT_FOLDER}/{PAGE_FILE}"
"""Artifact of a pipeline's run: the page, with its figures beside it."""
STUDY_FILE, SAMPLES_FILE = "study.db", "samples.txt"
"""Artifacts of a search's run and of the stage sample's."""
ARTIFACT_TAG = "dca.sha256.{}"
"""The sha256 of an artifact by its path, set as it is logged; runs of older stores have none. Also
of a logged model: of what was stored about it later, an artifact of the run that logged it."""

# A run that trains
TRAINING_KINDS = (TRIAL_KIND, FIT_KIND, TRAIN_KIND)
CHECKPOINT_KEY_TAG = "dca.checkpoint_key"
"""Set as it is created: a random key, with which its checkpoints are signed in storage; runs of
older stores have none. It must be read by nobody who can write the storage alone: it is in no file
there, no artifact and no log."""

# A trial's run
TRIAL_TAG, VALUES_TAG = "dca.trial", "dca.values"
"""Set as it is created: its number, and its searched values as JSON."""
CODE_TAG = "dca.code"
"""Set as it is created: a digest of the code that trains it."""
STATE_TAG = "dca.state"
"""Set as it ends: complete, pruned or failed."""
BEST_TAG, PARETO_TAG = "dca.best", "dca.pareto"
"""`true` on a search's winner, and on the trials of its Pareto front."""
OLD_PARETO_TAG = "dca.front"
"""The latter in older stores."""
INACTIVE_TAG = "dca.inactive"
"""Set as it is created, if there are such parameters: the values that they have in its
configuration, encoded, as JSON."""

# A logged model, its files
SHA256_TAG = "dca.sha256"
"""The digest of its list of digests, so that a replaced list is detected."""
SIZE_TAG = "dca.bytes"
"""Of a logged model: bytes of all its files, but for the list of digests. More are not copied."""
PACKAGE_FOLDER, LINEAGE_FILE = "artifacts/model", "lineage.json"
"""Folder with the weights, configuration, lineage and digests; where these come from."""
SCORE_FILE = "scores/{}-{}.json"
"""Stored later: its score on the test text of that fingerprint, in windows of that length, or of
its training's if that is less."""
MIXING_FILE = "mixing/{}-{}.json"
"""Its mixtures' weights on the validation text of that fingerprint, by code of that digest."""
DECISION_FILE = "gate/{}.json"
"""A decision of the gate, by model, version and time."""

# A version of the registered model
TEST_BITS_TAG, TEST_FINGERPRINT_TAG = "test.bits_per_byte", "test.fingerprint"
"""Its result on the test split, and the corpus of that."""
VAL_BITS_TAG, PARAMETERS_TAG = "val.bits_per_byte", "parameters"
"""Its result on the validation split, and its size; the latter also of a trial's run."""
EXPERIMENT_TAG, CORPUS_TAG = "experiment", "corpus"
"""The experiment that it comes from, and the name of its corpus."""
PIPELINE_RUN_TAG, SEARCH_RUN_TAG, TRIAL_RUN_TAG = "pipeline_run", "search_run", "trial_run"
FIT_RUN_TAG, TRIAL_NUMBER_TAG = "fit_run", "trial"
"""The runs that it comes from, and the number of its trial."""
STUDY_RUN_TAG, STUDY_TAG, ARM_TAG = "study_run", "study", "arm"
"""Of a version that comes from a study: the run of its stage compare, its verdict in a sentence,
and the arm, if it has several."""
HARDWARE_TAG, PACKAGES_TAG = "hardware", "packages"
"""The processor and the GPUs it was trained on, and the versions of packages, for people."""
VERSION_COMMIT_TAG, VERSION_DIRTY_TAG = "commit", "dirty"
"""The commit it was trained with, and whether that had changes."""
PROMOTE_TAG = "promote"
"""The settings of the gate when it was registered, as JSON."""
GATE_TAG = "gate.{}"
"""Of the gate's last decision: each of its numbers, and what follows."""
GAIN, MIN_GAIN, CHAMPION_BITS = "gain", "least_gain", "champion_bits_per_byte"
GAIN_ERROR, BLOCK_CORRELATION = "gain_standard_error", "block_correlation"
GAIN_CONFIDENCE, COMPARED_SEQ_LEN = "confidence", "seq_len"
"""Numbers of a comparison with the champion; the last is the length of the windows of the text."""
CHALLENGER_NUMBER, CHALLENGERS = "challenger", "challengers"
"""The how-many-th different challenger it was on that test text, and of how many so far."""
DECISION_TAG, PROMOTED_TAG = GATE_TAG.format("decision"), GATE_TAG.format("promoted")
GATE_KEY_TAG, GATE_CHAMPION_TAG = GATE_TAG.format("key"), GATE_TAG.format("champion")
"""The decision in a line, whether it promoted, what it was about, and the champion until then."""
FORCED_TAG = GATE_TAG.format("forced")
"""Why a version was promoted past the gate."""

# A registered model
IDENTITY_TAG = "identity"
"""A random text, other than that of a deleted model of the same name; earlier ones have none."""

# An entry of the log of champions, a version of a second registered model
ENTRY_VERSION_TAG, PREVIOUS_TAG, FOLLOWS_TAG = "version", "previous", "follows"
"""The champion from then on and until then, and the entry that it follows."""
OF_MODEL_TAG = "of"
"""The identity of the registered model."""
ACTION_TAG, ENTRY_REASON_TAG = "action", "reason"
ENTRY_USER_TAG, ENTRY_SECONDS_TAG = "user", "seconds"
"""How, why, by whom and when, in seconds since 1970."""
CLAIM_TAG, DONE_TAG, MOVING_TAG = "claim", "done", "moving.{}"
"""Mark the process that wrote it, that the alias has been moved, and processes that move it, each
with its host and its number."""

# The log of champions itself, the second registered model
TRIED_TAG = "tried.{}.{}"
"""Of a test text, by a digest of its bytes, and of a logged model that was compared on it with the
champion: the how-many-th different one it was."""

COMMIT_VARIABLE = "DCA_GPT_COMMIT"
"""The environment variable with the commit where there is no .git, as in a container or a Ray
job."""

Tags = Mapping[str, str]
N = TypeVar("N", int, float)
T = TypeVar("T")


def schema_version(tags: Tags) -> int:
    """The version of the schema by which a run, a logged model or a version was written.

    0 without the tag, or with one that is no number. A later one than ours is read all the same:
    later versions only add.
    """
    text = tags.get(SCHEMA_TAG, "")
    return int(text) if text.isdecimal() else 0


def stage_runs(tags: Tags) -> dict[str, str]:
    """The runs that hold the results of a pipeline's stages, by stage."""
    prefix = STAGE_TAG.format("")
    return {key.removeprefix(prefix): run for key, run in tags.items() if key.startswith(prefix)}


def arm_metric(column: str, arm: str) -> str:
    """The metric of an arm of a study: a column of the table, by which MLflow groups its charts."""
    return f"{column}/{arm}"


def stage_inputs(tags: Tags) -> dict[str, Any]:
    """What the key of a stage's run is made of; empty if that was too long to be stored."""
    return _json_object(tags, INPUTS_TAG) or {}


def stage_outputs(tags: Tags) -> dict[str, Any] | None:
    """The result of a stage's run; None while it has none, or if an older store cut it short."""
    return _json_object(tags, OUTPUTS_TAG)


@dataclass(frozen=True)
class Provenance:
    """The code that a run or a packaged model was made by."""

    commit: str | None
    """None where git was not found."""
    dirty: bool | None
    """Whether the code had changes that were not committed; None if that is unknown."""
    packages: dict[str, str]
    """Versions of packages, by name."""

    @staticmethod
    def of(tags: Tags) -> "Provenance":
        """From a run's tags, or from the provenance in a package's lineage, which are the same."""
        packages = {k: v for k, v in tags.items() if k.startswith(VERSION_PREFIX)}
        return Provenance(
            tags.get(COMMIT_TAG),
            tags[DIRTY_TAG] == "true" if DIRTY_TAG in tags else None,
            {key.removeprefix(VERSION_PREFIX): value for key, value in packages.items()},
        )

    @property
    def packages_text(self) -> str:
        """The packages in one line."""
        return ", ".join(f"{name} {version}" for name, version in self.packages.items())


@dataclass(frozen=True)
class VersionTags:
    """The tags of a version of the registered model; None where it has none, as in an older store.

    Used by the gate, promote.py and the report.
    """

    test_bits: float | None = None
    test_fingerprint: str | None = None
    val_bits: float | None = None
    parameters: int | None = None
    corpus: str = ""
    experiment: str = ""
    commit: str = "unknown"
    dirty: bool = False
    study: str | None = None
    """The verdict of the study that it comes from."""
    promote: dict[str, Any] | None = None
    """The settings of the gate when it was registered."""
    decision: str | None = None
    """The gate's last decision in a line."""
    promoted: bool = False
    """Whether that promoted it."""
    gate_key: str | None = None
    """What that was about."""
    champion: str | None = None
    """The champion that it was compared with then."""
    gain: float | None = None
    """Bits per byte by which it was better than that."""
    min_gain: float | None = None
    """The lower bound of the gain."""
    confidence: float | None = None
    """The confidence of that bound; None of decisions of earlier versions."""

    @staticmethod
    def of(version: "ModelVersion") -> "VersionTags":
        """Of a version. Raises ConfigError if one that should be a number is none."""
        tags = version.tags
        source = f"{version.name} version {version.version}"

        def number(name: str, kind: type[N]) -> N | None:
            try:
                return kind(tags[name]) if name in tags else None
            except ValueError:
                message = f"expected a number, got {one_line(tags[name])}"
                raise ConfigError(Problem(message, f"tag {name}", source)) from None

        return VersionTags(
            test_bits=number(TEST_BITS_TAG, float),
            test_fingerprint=tags.get(TEST_FINGERPRINT_TAG),
            val_bits=number(VAL_BITS_TAG, float),
            parameters=number(PARAMETERS_TAG, int),
            corpus=tags.get(CORPUS_TAG, ""),
            experiment=tags.get(EXPERIMENT_TAG, ""),
            commit=tags.get(VERSION_COMMIT_TAG, "unknown"),
            dirty=tags.get(VERSION_DIRTY_TAG) == "true",
            study=tags.get(STUDY_TAG),
            promote=_json_object(tags, PROMOTE_TAG),
            decision=tags.get(DECISION_TAG),
            promoted=tags.get(PROMOTED_TAG) == "true",
            gate_key=tags.get(GATE_KEY_TAG),
            champion=tags.get(GATE_CHAMPION_TAG),
            gain=number(GATE_TAG.format(GAIN), float),
            min_gain=number(GATE_TAG.format(MIN_GAIN), float),
            confidence=number(GATE_TAG.format(GAIN_CONFIDENCE), float),
        )


def read_tag(entry: "ModelVersion", tag: str, read: Callable[[str], T]) -> T:
    """The value of a tag of an entry of the log of champions.

    Raises EditedError if it is not what was written.
    """
    try:
        return read(entry.tags[tag])
    except (KeyError, OSError, OverflowError, ValueError):
        got = quote_value(entry.tags[tag]) if tag in entry.tags else "none"
    of = "seconds since 1970" if tag == ENTRY_SECONDS_TAG else "as in the entry's description"
    message = f"{entry.name} version {entry.version}: tag {tag}: got {got}, expected what was "
    raise EditedError(f"{message}written, {of}; set it again in MLflow")


def to_seconds(text: str) -> float:
    """A time that the calendar has. Raises an error for another one."""
    time.localtime(seconds := float(text))
    return seconds


def _json_object(tags: Tags, name: str) -> dict[str, Any] | None:
    """The JSON object in a tag; None if there is none, or it is cut short."""
    try:
        found = json.loads(tags.get(name, "null"))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
