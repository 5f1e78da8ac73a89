"""The model written from the paper's equations: slow, explicit, one weight per token and feature.

Nothing here is shared with `dca` but the names of the parameters.
"""

import math

import torch
from torch import Tensor

from dca import ModelConfig

Weights = dict[str, Tensor]


def logits(config: ModelConfig, weights: Weights, ids_bt: Tensor) -> Tensor:
    """Logits [b, t, v] of any residual kind."""
    x = weights["embed.weight"][ids_bt]
    kinds = {"value_residual": _value_residual, "hyper_connections": _hyper_connections}
    g = kinds.get(config.residual, _stacked)(config, weights, x)
    normed = rms_norm(g, weights["norm.weight"])
    if config.tied_embeddings:
        y = normed @ weights["embed.weight"].T / (2 * math.sqrt(config.dim))
    else:
        y = normed @ weights["head.weight"].T
    if config.logit_softcap is None:
        return y
    return config.logit_softcap * torch.tanh(y / config.logit_softcap)


def _stacked(config, weights, x) -> Tensor:
    """`standard`, the GRNs and DCA: what the final norm reads."""
    outputs = [x]
    for t in range(1, config.depth + 1):
        name = f"blocks.{t - 1}."
        q, k, v = _inputs(config, weights, f"{name}mix", outputs, 3)
        norms = [gain for key, gain in weights.items() if key.startswith(f"{name}norms.")]
        norms *= 3 // len(norms)
        inputs = (rms_norm(x, g) for x, g in zip((q, k, v), norms, strict=True))
        h = _attention(config, weights, name, config.window(t), *inputs)
        outputs.append(h + _feed_forward(config, weights, name, h + q))
    return _inputs(config, weights, "mix", outputs, 1)[0]


def _value_residual(config, weights, x) -> Tensor:
    """The transformer, with values a V_1 + b V_l from the second block on."""
    first = None
    for t in range(1, config.depth + 1):
        name = f"blocks.{t - 1}."
        normed = rms_norm(x, weights[f"{name}norms.0.weight"])
        values = normed @ _projections(config, weights, name)[2].T
        if first is None:
            first = values
        else:
            a, b = weights[f"{name}shares"]
            values = a * first + b * values
        window = config.window(t)
        x = x + _attention(config, weights, name, window, normed, normed, None, values)
        x = x + _feed_forward(config, weights, name, x)
    return x


def _hyper_connections(config, weights, x) -> Tensor:
    """The streams as rows of a matrix for every token, connected by n + 1 by n + 1 weights."""
    streams = torch.stack([x] * config.options.streams, 2)
    for t in range(1, config.depth + 1):
        name = f"blocks.{t - 1}."
        read, streams, write = _connect(weights, f"{name}around_attention.", streams)
        inputs = [rms_norm(read, weights[f"{name}norms.0.weight"])] * 3
        y = _attention(config, weights, name, config.window(t), *inputs)
        streams = streams + torch.einsum("btn,btd->btnd", write, y)
        read, streams, write = _connect(weights, f"{name}around_ff.", streams)
        y = _feed_forward(config, weights, name, read)
        streams = streams + torch.einsum("btn,btd->btnd", write, y)
    return streams.mean(2)


def _connect(weights, name, streams) -> tuple[Tensor, Tensor, Tensor]:
    """A_m^T H, A_r^T H and B of one sublayer."""
    static, dynamic = weights[f"{name}static_nc"], weights[f"{name}dynamic_cd"]
    s_read, s_mix, s_write = weights[f"{name}scale_c"]
    seen = rms_norm(streams, torch.ones_like(streams[0, 0, 0]))
    a_m = static[:, 0] + s_read * torch.tanh(seen @ dynamic[0])
    a_r = static[:, 1:-1] + s_mix * torch.tanh(seen @ dynamic[1:-1].T)
    b = static[:, -1] + s_write * torch.tanh(seen @ dynamic[-1])
    read = torch.einsum("btn,btnd->btd", a_m, streams)
    return read, torch.einsum("btnm,btnd->btmd", a_r, streams), b


def _feed_forward(config, weights, name, x) -> Tensor:
    u = rms_norm(x, weights[f"{name}norm_ff.weight"]) @ weights[f"{name}ff.up.weight"].T
    if config.activation == "swiglu":  # the first half of the rows is the gate
        half = u.shape[-1] // 2
        hidden = u[..., :half] / (1 + torch.exp(-u[..., :half])) * u[..., half:]
    elif config.activation == "relu2":
        hidden = torch.where(u > 0, u**2, torch.zeros_like(u))
    else:
        hidden = 0.5 * u * (1 + torch.erf(u / math.sqrt(2)))
    return hidden @ weights[f"{name}ff.down.weight"].T


def _inputs(config, weights, name, outputs, count) -> list[Tensor]:
    """The combinations g over the stack of everything before, repeated to `count` inputs."""
    if config.residual == "standard":
        return [sum(outputs)] * count
    entries = _stack(outputs, config.options.last_k)
    b = weights[f"{name}.b_ond"]
    w = weights.get(f"{name}.w_od")
    combined = mixtures(entries, b, w, norm=config.options.norm)
    return combined * (count // len(combined))


def mixtures(entries, b, w, *, norm) -> list[Tensor]:
    """Each output's sum over the entries, the weight of every token and feature written out."""
    combined = []
    for o in range(len(b)):
        g = torch.zeros_like(entries[0])
        for i, f in enumerate(entries):
            weight = b[o, i].expand_as(f)
            if w is not None:
                seen = f / torch.sqrt((f**2).mean(-1, keepdim=True) + 1e-6)
                score = ((seen if norm else f) * w[o]).sum(-1, keepdim=True)
                weight = weight + score.clamp(min=0)  # whose gradient at 0 is 1
            g = g + weight * f
        combined.append(g)
    return combined


def _stack(outputs: list[Tensor], last_k: int | None) -> list[Tensor]:
    """f_0, the sum of the block outputs older than the last k, and the last k."""
    first, blocks = outputs[0], outputs[1:]
    if last_k is None or len(blocks) <= last_k:
        return outputs
    return [first, sum(blocks[:-last_k]), *blocks[-last_k:]]


def _attention(config, weights, name, window, q, k, v, values=None) -> Tensor:
    """From the normed inputs; `values` are given if v alone does not make them."""
    wq, wk, wv = _projections(config, weights, name)
    size, length = config.dim // config.heads, q.shape[1]
    values = v @ wv.T if values is None else values
    heads = []
    for h in range(config.heads):
        group = h if config.kv_heads is None else h * config.kv_heads // config.heads
        own, shared = (slice(i * size, (i + 1) * size) for i in (h, group))
        queries, keys = (q @ wq.T)[..., own], (k @ wk.T)[..., shared]
        if config.qk_norm:
            queries, keys = (rms_norm(x, torch.ones_like(x[0, 0])) for x in (queries, keys))
        scores = _rotate(queries) @ _rotate(keys).transpose(1, 2) / math.sqrt(size)
        back = torch.arange(length)[:, None] - torch.arange(length)
        hidden = (back < 0) | (back >= (window or length))
        heads.append(scores.masked_fill(hidden, -math.inf).softmax(-1) @ values[..., shared])
    return torch.cat(heads, -1) @ weights[f"{name}attention.out.weight"].T


def _projections(config, weights, name) -> tuple[Tensor, Tensor, Tensor]:
    """The matrices of queries, keys and values, the rows of one stacked matrix."""
    stacked, d = weights[f"{name}attention.qkv.weight"], config.dim
    keys = d if config.kv_heads is None else d * config.kv_heads // config.heads
    return stacked[:d], stacked[d : d + keys], stacked[d + keys :]


def _rotate(x: Tensor) -> Tensor:
    """Rotary positions as multiplication of complex numbers."""
    half = x.shape[-1] // 2
    frequency = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * frequency
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(
        torch.ones_like(angle), angle
    )
    return torch.cat([turned.real, turned.imag], -1)


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6) * gain
