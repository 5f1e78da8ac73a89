"""The gate's statistics: the gain of one model over another on the same text, with a bound.

Used by the gate. Pure numbers: it reads no store and no model.
"""

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
