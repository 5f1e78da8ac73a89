"""Results of the stages from the trained model to the generated text.

Stored in the tracking store by the engine; read by the stages after them, the commands and the
reports.
"""

from dataclasses import dataclass, field

from pipelines.comparison.table import Ratio
from pipelines.comparison.verdicts import Verdict


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


@dataclass(frozen=True)
class Probed:
    """The time that training takes in each arm of a study: the result of probe."""

    step_seconds: float
    """Of one optimizer step of the baseline."""
    times: dict[str, Ratio]
    """Training time of a token by arm, relative to the baseline's; at equal batches that of a
    step. Of the baseline it is 1."""
    keys: dict[str, str]
    """By arm, what its ratio was measured of: a digest of its training and the baseline's."""
    tokens: dict[str, int] = field(default_factory=dict)
    """With budget = time: training tokens by `training_key`; empty with budget = tokens."""


@dataclass(frozen=True)
class Compared:
    """The verdict of a study: the result of compare."""

    run_id: str
    """Its run, whose artifacts are the table and the figures."""
    baseline: str
    """Name of the arm; empty in a study of seeds alone, as the next."""
    winner: str
    """The arm with the best mean on the validation split."""
    seed: int
    """Of its replicate that is best there."""
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
