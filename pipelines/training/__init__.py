"""Training as a library: the loop, its optimizer, checkpoints and evaluation, on any device.

Used by the trials of a search, by the stages fit and train, and by scripts that need no pipeline:
importing it loads nothing of Ray, MLflow or Optuna. This trains a model; started again after an
interruption, it resumes from the last checkpoint:

    from pathlib import Path
    from pipelines.data.splits import measure_corpus, train_val_splits, write_splits
    from pipelines.training import TrainingRun, train

    sizes = {"model.dim": 32, "train.batch_tokens": 512, "train.tokens": 32768}
    run = TrainingRun().replace(sizes | {"train.eval_tokens": 4096})
    storage = Path("runs").absolute()
    corpus = measure_corpus(run.data, seq_len=run.train.seq_len)
    write_splits(run.data, corpus, storage)
    splits = train_val_splits(storage, corpus.fingerprint)
    for rows in train(run, splits, storage / "example", log=print):
        print(rows[-1]["step"], rows[-1]["val_bits_per_byte"])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipelines.console.errors import DivergedError

if TYPE_CHECKING:
    from pipelines.training.checkpoint import list_checkpoints, read_weights
    from pipelines.training.config import TrainingRun
    from pipelines.training.evaluation import bits_per_byte
    from pipelines.training.loop import train

__all__ = [
    "DivergedError",
    "TrainingRun",
    "bits_per_byte",
    "list_checkpoints",
    "read_weights",
    "train",
]
_MODULES = {
    "TrainingRun": "config",
    "bits_per_byte": "evaluation",
    "list_checkpoints": "checkpoint",
    "read_weights": "checkpoint",
    "train": "loop",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: most users of the package need only one module."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
