"""The gate's statistics: the gain of one model over another on the same text, with a bound.

Used by the gate. Pure numbers: it reads no store and no model.
"""

from typing import NamedTuple

import numpy as np

from pipelines.registry.score import Score, block_edges

RESAMPLES = 9999
BATCH = 500
"""Resamples drawn at a time: bounds the memory."""
SEED = 0
"""Of the resampling: the same scores give the same decision."""


class Gain(NamedTuple):
    """Bits per byte by which one model needs fewer than another."""

    mean: float
    lower_bound: float
    """The lower end of a one-sided percentile interval of the mean, at the given confidence."""


def paired_gain(challenger: Score, champion: Score, confidence: float) -> Gain:
    """The challenger's gain over the champion on one text, by a paired bootstrap over its blocks.

    Blocks are resampled and not bytes, because neighbouring bytes depend on each other; in pairs,
    because the two models find the same blocks hard.
    """
    from scipy.stats import bootstrap  # takes half a second to load, which only the gate needs

    gained = np.subtract(champion.block_bits, challenger.block_bits)
    sizes = np.diff(block_edges(challenger.text_bytes))

    def mean(gained: np.ndarray, sizes: np.ndarray, axis: int) -> np.ndarray:
        return gained.sum(axis) / sizes.sum(axis)

    found = bootstrap(
        (gained, sizes),
        mean,
        n_resamples=RESAMPLES,
        batch=BATCH,
        paired=True,
        vectorized=True,
        confidence_level=confidence,
        alternative="greater",
        method="percentile",
        rng=np.random.default_rng(SEED),
    )
    return Gain(float(mean(gained, sizes, 0)), float(found.confidence_interval.low))
