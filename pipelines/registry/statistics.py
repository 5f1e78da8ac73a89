"""The gate's statistics: the gain of one model over another on the same text, with a bound.

Used by the gate. Pure numbers: it reads no store and no model.
"""

import math

import numpy as np

from pipelines.comparison.blocks import BlockMean, block_mean
from pipelines.registry.score import Score, block_edges


def paired_gain(challenger: Score, champion: Score) -> BlockMean:
    """Bits per byte by which the challenger needs fewer than the champion on one text.

    Over blocks and not bytes, whose neighbours depend on each other; in pairs, because the two
    models find the same blocks hard.
    """
    gained = np.subtract(champion.block_bits, challenger.block_bits)
    sizes = np.diff(block_edges(challenger.text_bytes))
    return block_mean(gained.tolist(), sizes.tolist())


def spent_confidence(confidence: float, number: int) -> float:
    """The confidence asked of the number-th challenger on a test text, if the level is spent.

    The k-th gets 6 / (pi k)^2 of the level 1 - confidence. The shares of any number of challengers
    add up to less than 1, so that with the confidence given no challenger at all is promoted that
    is no better than its champion (alpha-spending: Foster and Stine 2008, J. R. Stat. Soc. B 70(2);
    for this error rate Tian and Ramdas 2021, arXiv 1910.04900).
    """
    return 1 - (1 - confidence) * 6 / (math.pi * number) ** 2


def spending_text(
    gain: BlockMean, confidence: float, number: int, challengers: int, min_improvement: float
) -> str:
    """What a challenger had to gain when the level is spent, the next one must, and the first on a
    fresh test text: standard errors, beyond the least improvement that is required of all."""
    this, later, first = (
        f"{gain.standard_errors(spent_confidence(confidence, k)):.1f}"
        for k in (number, challengers + 1, 1)
    )
    more = f" more than {min_improvement:g}" if min_improvement else ""
    return (
        f"it must gain {this} standard errors{more}, the next one {later}; a fresh test text opens "
        f"the gate again, at {first}"
    )
