"""Results of the stages from the trained model to the generated text.

Stored in the tracking store by the engine; read by the stages after them, the commands and the
reports.
"""

from dataclasses import dataclass


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
