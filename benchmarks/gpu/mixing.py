"""The memory traffic that the residual connections of a training step need in any case.

Used by `make bench` and `make check-gpu`: how far their time is from that of copying as much.
"""

from dca import ModelConfig
from dca.residuals.dca import stack_entries


def mixing_tensors(config: ModelConfig) -> int | None:
    """How many [b, t, d] the residual of one training step must read or write in any case; None
    for kinds other than standard and dca.

    Mixing n entries into o outputs reads n and writes o; going back it reads o gradients and
    the n entries again, and adds to n gradients (a read and a write). The sum of the older
    entries costs two reads and a write for each output that joins it, as a plain transformer's
    stream does for every output, going forward and going back.
    """
    if config.residual == "standard":
        return 6 * config.depth
    if config.residual != "dca":
        return None
    entries = [stack_entries(config, block) for block in range(1, config.depth + 2)]
    outputs = [3] * config.depth + [1]
    last_k = config.options.last_k
    joins = 0 if last_k is None else max(0, config.depth - last_k - 1)
    return 4 * sum(entries) + 2 * sum(outputs) + 3 * joins
