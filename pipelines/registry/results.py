"""Results of the stages from the trained model to the generated text.

Stored in the tracking store by the engine; read by the stages after them, the commands and the
reports.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import ConfigDict

from pipelines.comparison.values import Ratio, Verdict
from pipelines.engine.results import Values, json_digest
from pipelines.tracking.schema import SEED_PARAM, TRAIN_TOKENS_PARAM

if TYPE_CHECKING:
    from pipelines.training.config import TrainingRun


@dataclass(frozen=True)
class Fitted:
    """A trained and packaged model: the result of fit and of train."""

    run_id: str
    model_uri: str
    val_bits_per_byte: float
    """Of the packaged checkpoint."""
    parameters: int
    tokens: int
    """Training tokens, to the end of the run."""
    seconds: float
    """Of training, likewise."""
    workers: str
    """A number, or a range."""


@dataclass(frozen=True)
class Diverged:
    """A training of a study that diverged, which is an outcome like a value: a result of fit."""

    run_id: str
    reason: str


@dataclass(frozen=True)
class Tested:
    """A packaged model on the test split: the result of evaluate."""

    test_bits_per_byte: float
    fingerprint: str
    """Of the corpus."""
    baselines: dict[str, float]
    """Bits per byte of common compressors."""
    overlap: float | None = None
    """Share of the test bytes in strings of 64 bytes that the training text has too; None in
    results of earlier versions."""


@dataclass(frozen=True)
class Untested:
    """That there is no model to test, because its training diverged: a result of evaluate."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # or an edited Tested would be one


@dataclass(frozen=True)
class Probed:
    """The time that training takes in each arm of a study: the result of probe."""

    token_seconds: float
    """Of the baseline's training, a token."""
    times: dict[str, Ratio]
    """The same by arm, relative to the baseline's, which is 1; at equal batches that of a step."""
    keys: dict[str, str]
    """By arm, what its ratio was measured of: a digest of its training and the baseline's."""
    tokens: dict[str, int] = field(default_factory=dict)
    """With budget = time: of each training, by its `training_key`; empty with budget = tokens."""

    def tokens_of(self, run: "TrainingRun") -> int | None:
        """The tokens of a training; None for those that it has."""
        return self.tokens.get(training_key(run))


def training_key(run: "TrainingRun") -> str:
    """A digest of a training but for its seed and its tokens: the arm of a study."""
    left_out = (SEED_PARAM, TRAIN_TOKENS_PARAM)
    return json_digest({key: value for key, value in run.identity.items() if key not in left_out})


@dataclass(frozen=True)
class Compared:
    """The verdict of a study: the result of compare."""

    run_id: str
    """Its run, whose artifacts are the table and the figures."""
    winner: Values
    """Arm and seed, in a study without arms the seed: of the arm with the best mean on the
    validation split the replicate that is best there."""
    sentence: str
    verdicts: dict[str, Verdict]
    """Of all arms but the baseline."""


@dataclass(frozen=True)
class Registered:
    """A version of a registered model: the result of register."""

    model: str
    """Name of the registered model."""
    version: int


@dataclass(frozen=True)
class Promoted:
    """The gate's decision: the result of promote."""

    model: str
    """Name of the registered model."""
    champion: int | None
    """Its champion after the decision."""
    decision: str


@dataclass(frozen=True)
class Sampled:
    """Generated text, an artifact of the run: the result of sample."""

    run_id: str
    model_uri: str | None = None
    """The champion; None without one."""
