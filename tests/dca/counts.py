"""Parameters and matrix products of every residual kind, from the shapes of its equations."""

from collections.abc import Callable

from dca import ModelConfig

Counts = tuple[int, int]
"""Parameters of a model, and multiply-adds of matrix products of one token."""


def counts_by_hand(config: ModelConfig, seq_len: int) -> Counts:
    """Parameters, and matrix-product FLOPs of a token in a text of seq_len tokens."""
    if config.residual not in ADDED:
        raise AssertionError(
            f"{config.residual} has no counts in tests/dca/counts.py: write a function from config "
            "to the parameters and multiply-adds that the kind adds, and add it to ADDED"
        )
    d, depth = config.dim, config.depth
    windows = [config.window(t) or seq_len for t in range(1, depth + 1)]
    seen = sum(min(seq_len, 2 * window) for window in windows)
    heads = 2 * config.heads + 2 * (config.kv_heads or config.heads)  # of q and out, of k and v
    matrices = heads * d // config.heads * d + 2 * config.ff_mult * d * d  # with swiglu 3 * 2 / 3
    parameters = depth * (matrices + 2 * d) + d
    parameters += (1 if config.tied_embeddings else 2) * config.vocab * d
    added, products = ADDED[config.residual](config)
    flops = depth * 2 * matrices + 4 * seen * d + 2 * d * config.vocab
    return parameters + added, flops + 2 * products


def _nothing(config: ModelConfig) -> Counts:
    return 0, 0


def _grn(
    inputs: int, *, per_feature: bool = True, dynamic: bool = True
) -> Callable[[ModelConfig], Counts]:
    def added(config: ModelConfig) -> Counts:
        d, last_k = config.dim, config.options.last_k
        parameters, products = config.depth * (inputs - 1) * d, 0
        for block, outputs in enumerate([inputs] * config.depth + [1], 1):
            entries = block if last_k is None else min(block, last_k + 2)
            has_w = dynamic and entries > 1
            parameters += outputs * (entries * (d if per_feature else 1) + has_w * d)
            products += outputs * has_w * entries * d
        return parameters, products

    return added


def _value_residual(config: ModelConfig) -> Counts:
    return 2 * (config.depth - 1), 0


def _hyper_connections(config: ModelConfig) -> Counts:
    d, n, sublayers = config.dim, config.options.streams, 2 * config.depth
    if not config.options.dynamic:
        return sublayers * n * (n + 2), 0
    return sublayers * ((n + 2) * (n + d) + 3), sublayers * n * (n + 2) * d


def _frac(config: ModelConfig) -> Counts:
    d, m, sublayers = config.dim, config.options.parts, 2 * config.depth
    if not config.options.dynamic:
        return sublayers * m * (2 * m + 1), 0
    return sublayers * ((2 * m + 1) * (m + d // m) + 3), sublayers * (2 * m + 1) * d


def _mhc(config: ModelConfig) -> Counts:
    features, n = config.options.streams * config.dim, config.options.streams
    groups = [n, n, n * n] if config.options.mix == "sinkhorn" else [n, n]
    gates, others = sum(groups), 2 * config.depth - 1
    parameters = others * (gates * (features + 1) + len(groups))
    parameters += n * (features + 1) + 1 + n * (config.dim + 1) + 1  # the read-out, the first
    return parameters, (others * gates + n) * features + n * config.dim


def _denseformer(config: ModelConfig) -> Counts:
    return sum(range(2, config.depth + 2)), 0


def _muddformer(config: ModelConfig) -> Counts:
    d, depth = config.dim, config.depth
    parameters, products = 2 * depth * d, 0  # the norms of k and v
    for states in range(2, depth + 2):
        streams = 4 if states <= depth else 1
        weights = streams * states
        hidden = 64 * -(-4 * states // 64)
        products += hidden * d + weights * hidden
        parameters += weights
    if config.options.norm:
        parameters += (2 * depth + 1) * d  # in front of each average, behind it, of the embedding
    return parameters + products, products


def _attention_residuals(config: ModelConfig) -> Counts:
    sublayers = 2 * config.depth
    size = -(-sublayers // (config.options.blocks or sublayers))
    scores = sublayers  # of the embedding
    for outputs in range(1, sublayers + 1):
        scores += 1 if outputs % size else sublayers + 1 - outputs
    return sublayers * config.dim, scores * config.dim


def _laurel(config: ModelConfig) -> Counts:
    rank = config.options.rank or max(1, config.dim // 32)
    matrices = 2 * config.depth * 2 * rank * config.dim
    return matrices + 2 * config.depth * 2, matrices


def _stream_scalars(config: ModelConfig) -> Counts:
    return 2 * config.depth, 0


ADDED: dict[str, Callable[[ModelConfig], Counts]] = {
    "standard": _nothing,
    "grn_v1": _grn(1, per_feature=False, dynamic=False),
    "grn_v2": _grn(1, dynamic=False),
    "grn_v3": _grn(1),
    "dca_v": _grn(2),
    "dca": _grn(3),
    "value_residual": _value_residual,
    "hyper_connections": _hyper_connections,
    "frac": _frac,
    "mhc": _mhc,
    "denseformer": _denseformer,
    "muddformer": _muddformer,
    "attention_residuals": _attention_residuals,
    "laurel": _laurel,
    "stream_scalars": _stream_scalars,
}
"""What each kind adds to the plain transformer."""
