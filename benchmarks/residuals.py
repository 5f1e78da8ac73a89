"""Bits of small models that differ in their seed alone: differences that are no formula.

python -m benchmarks.residuals [--seeds 20] [--folder build/residuals]

Used by gate.py and studies.py, which simulate comparisons without a difference. Each model learns
from the first half of the standard library's sources, and is measured on the second half in blocks
of the gate's size. What is kept, in residuals.npz beside this file, is each model's bits per byte
of each block less the mean over the models. Takes about a minute a model on one core; the folder
keeps those that are done.
"""

import argparse
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_name("residuals.npz")
UNIT = 1 / 500
"""Bits per byte of one step of the stored whole numbers: a tenth of what blocks differ by."""
EXPERIMENT: dict[str, Any] = {
    "experiment": "residuals",
    "model": {"dim": 64, "depth": 2, "heads": 2},
    "train": {
        **{"tokens": 409_600, "seq_len": 128, "batch_tokens": 2048, "learning_rate": 4e-3},
        **{"evals": 1, "eval_tokens": 2048},
    },
}


@cache
def residuals() -> np.ndarray:
    """Bits per byte of each model in each block, less the mean over the models: [model, block]."""
    with np.load(FILE) as stored:
        return stored["residuals"].astype(np.float64) * UNIT


def main() -> None:
    """Train and measure the models, and store what they differ in."""
    parser = argparse.ArgumentParser(description="Bits of models that differ in their seed alone.")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path("build/residuals"))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    found = np.stack([_bits_of(seed, arguments.folder) for seed in range(arguments.seeds)])
    print(f"{found.mean():.4f} bits per byte, standard deviation {found.mean(1).std(ddof=1):.4f}")
    steps = np.rint((found - found.mean(0)) / UNIT)
    limit = np.iinfo(np.int8).max
    np.savez_compressed(FILE, residuals=steps.clip(-limit, limit).astype(np.int8))
    print(f"{FILE}: {len(found)} models, {found.shape[1]} blocks, {FILE.stat().st_size:,} bytes")


def _bits_of(seed: int, folder: Path) -> np.ndarray:
    """Bits per byte of one model in each block: from the folder, or trained and measured now."""
    file = folder / f"{seed}.npy"
    if not file.exists():
        found = _measure(seed)
        np.save(file, found)
        print(f"seed {seed}: {found.mean():.4f} bits per byte", file=sys.stderr, flush=True)
    return np.load(file)


def _measure(seed: int) -> np.ndarray:
    import torch

    from dca import build_model
    from pipelines.data.corpora import python_stdlib
    from pipelines.data.splits import TrainValSplits
    from pipelines.experiment import read_experiment
    from pipelines.registry.packaged_model import text_bits
    from pipelines.registry.score import BLOCK_BYTES
    from pipelines.training import checkpoint, loop

    run = read_experiment(EXPERIMENT | {"seed": seed}, source="benchmark").training_run()
    text = np.frombuffer(b"".join(python_stdlib()), np.uint8)
    learned, other = np.array_split(text, 2)
    with tempfile.TemporaryDirectory() as name:
        files = [Path(name) / "learned", Path(name) / "other"]
        for half, file in zip((learned, other), files, strict=True):
            half.tofile(file)
        for _ in loop.train(run, TrainValSplits(*files), Path(name) / "run"):
            pass
        weights = checkpoint.read_weights(checkpoint.list_checkpoints(Path(name) / "run")[-1])
    torch.set_num_threads(1)
    model = build_model(run.model)
    model.load_state_dict(weights)
    blocks = (len(other) - 1) // BLOCK_BYTES
    bits = text_bits(model.eval(), other[: blocks * BLOCK_BYTES + 1], run.train.seq_len)
    return bits.reshape(blocks, BLOCK_BYTES).mean(1)


if __name__ == "__main__":
    main()
