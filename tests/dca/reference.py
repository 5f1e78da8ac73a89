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
    if config.residual not in EQUATIONS:
        raise AssertionError(
            f"{config.residual} has no equations in tests/dca/reference.py: write a function from "
            "(config, weights, x) to what the final norm reads, and add it to EQUATIONS"
        )
    g = EQUATIONS[config.residual](config, weights, weights["embed.weight"][ids_bt])
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
        norms = {1: norms * 3, 2: [norms[0], *norms], 3: norms}[len(norms)]
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
    for sublayer in range(2 * config.depth):
        a_m, a_r, b = _connections(weights, sublayer, streams)
        read = torch.einsum("btn,btnd->btd", a_m[..., 0], streams)
        y = _sublayer(config, weights, sublayer, read)
        streams = torch.einsum("btnm,btnd->btmd", a_r, streams)
        streams = streams + torch.einsum("btn,btd->btnd", b, y)
    return streams.mean(2)


def _frac(config, weights, x) -> Tensor:
    """The parts of the stream, of the sublayer's input and of its output as rows of matrices."""
    streams = x.unflatten(-1, (config.options.parts, -1))
    for sublayer in range(2 * config.depth):
        a_m, a_r, b = _connections(weights, sublayer, streams)
        read = torch.einsum("btni,btne->btie", a_m, streams).flatten(-2)
        y = _sublayer(config, weights, sublayer, read).unflatten(-1, streams.shape[2:])
        streams = torch.einsum("btnm,btne->btme", a_r, streams) + b[..., None] * y
    return streams.flatten(-2)


def _connections(weights, sublayer, streams) -> tuple[Tensor, Tensor, Tensor]:
    """A_m, A_r and B of one sublayer, for each token."""
    name = f"blocks.{sublayer // 2}.around_{('attention', 'ff')[sublayer % 2]}."
    n = streams.shape[2]
    all_weights = weights[f"{name}static_nc"].expand(*streams.shape[:3], -1)
    if f"{name}dynamic_cd" in weights:
        seen = rms_norm(streams, torch.ones_like(streams[0, 0, 0]))
        turned = torch.tanh(seen @ weights[f"{name}dynamic_cd"].T)
        s_read, s_mix, s_write = weights[f"{name}scale_c"]
        read, mix, write = turned.tensor_split([-n - 1, -1], -1)
        all_weights = all_weights + torch.cat([s_read * read, s_mix * mix, s_write * write], -1)
    a_m, a_r, b = all_weights.tensor_split([-n - 1, -1], -1)
    return a_m, a_r, b[..., 0]


def _mhc(config, weights, x) -> Tensor:
    """One matrix product of all features of all streams, and doubly stochastic matrices."""
    n = config.options.streams
    streams = torch.stack([x] * n, 2)
    for sublayer in range(2 * config.depth):
        name = f"blocks.{sublayer // 2}.around_{('attention', 'ff')[sublayer % 2]}."
        if sublayer == 0:
            (post,), mix, read = _gates(weights, name, streams[:, :, :1], [n]), [], x
        else:
            pre, post, *mix = _gates(weights, name, streams, [n, n, n * n])
            read = (torch.sigmoid(pre)[..., None] * streams).sum(2)
        y = _sublayer(config, weights, sublayer, read)
        if mix:
            m = torch.softmax(mix[0].unflatten(-1, (n, n)), -1) + 1e-6
            m = m / m.sum(-2, keepdim=True)
            for _ in range(19):
                m = m / m.sum(-1, keepdim=True)
                m = m / m.sum(-2, keepdim=True)
            streams = m.transpose(-1, -2) @ streams
        streams = streams + 2 * torch.sigmoid(post)[..., None] * y[..., None, :]
    (pre,) = _gates(weights, "mix.gates.", streams, [n])
    return (torch.sigmoid(pre)[..., None] * streams).sum(2)


def _gates(weights, name, streams, widths) -> list[Tensor]:
    """The logits of each group that there is."""
    everything = streams.flatten(-2)
    seen = rms_norm(everything, torch.ones_like(everything[0, 0]))
    z = seen @ weights[f"{name}phi_cnd"].flatten(1).T
    groups = z.split(widths[: len(weights[f"{name}alpha"])], -1)
    biases = weights[f"{name}bias_c"].split([group.shape[-1] for group in groups])
    return [
        alpha * group + bias
        for alpha, group, bias in zip(weights[f"{name}alpha"], groups, biases, strict=True)
    ]


def _denseformer(config, weights, x) -> Tensor:
    states, y = [x], x
    for t in range(1, config.depth + 1):
        h = _sublayer(config, weights, 2 * t - 2, y) + y
        states.append(h + _sublayer(config, weights, 2 * t - 1, h))
        a = weights[f"blocks.{t}.average.a_on1" if t < config.depth else "mix.a_on1"]
        y = sum(a[0, j, 0] * state for j, state in enumerate(states))
    return y


def _muddformer(config, weights, x) -> Tensor:
    streams, states = [x] * 4, [x]
    for t in range(1, config.depth + 1):
        name = f"blocks.{t - 1}."
        norms = [weights[f"{name}norms.{i}.weight"] for i in range(3)]
        normed = [rms_norm(s, gain) for s, gain in zip(streams[:3], norms, strict=True)]
        h = streams[3] + _attention(config, weights, name, config.window(t), *normed)
        states.append(h + _feed_forward(config, weights, name, h))
        name = f"blocks.{t}.average." if t < config.depth else "mix."
        streams = _mudd_streams(config, weights, name, states)
    return streams[-1]


def _mudd_streams(config, weights, name, states) -> list[Tensor]:
    a, last = weights[f"{name}a_cn"], states[-1]
    seen = rms_norm(last, torch.ones_like(last[0, 0])) @ weights[f"{name}up_fd"].T
    hidden = 0.5 * seen * (1 + torch.erf(seen / math.sqrt(2)))
    dynamic = torch.einsum("btf,cnf->btcn", hidden, weights[f"{name}down_cnf"])
    sources = states
    if config.options.norm:
        pre = [f"blocks.{j}.average." if j else "blocks.0." for j in range(config.depth)] + ["mix."]
        gains = [weights[f"{key}pre.weight"] for key in pre]
        sources = [rms_norm(s, g) for s, g in zip(states, gains[: len(states)], strict=True)]
    streams = [
        sum((dynamic[:, :, c, j, None] + a[c, j]) * s for j, s in enumerate(sources))
        for c in range(len(a))
    ]
    if config.options.norm:
        streams[-1] = rms_norm(streams[-1], weights[f"{name}post.weight"])
        streams = [last + s for s in streams]
    return streams


def _attention_residuals(config, weights, x) -> Tensor:
    sublayers, heads = 2 * config.depth, config.options.heads
    size = math.ceil(sublayers / (config.options.blocks or sublayers))
    outputs = []
    for reader in range(sublayers + 1):
        groups = [outputs[i : i + size] for i in range(0, reader, size)]
        sources = torch.stack([x, *(sum(group) for group in groups)])
        w = weights["blocks.0.w_rd"][reader - 1] if reader else torch.zeros_like(x[0, 0])
        seen = rms_norm(sources, torch.ones_like(x[0, 0])) * w
        scores = seen.unflatten(-1, (heads, -1)).sum(-1, keepdim=True)
        read = (scores.softmax(0) * sources.unflatten(-1, (heads, -1))).sum(0).flatten(-2)
        if reader < sublayers:
            outputs.append(_sublayer(config, weights, reader, read))
    return read


def _laurel(config, weights, x) -> Tensor:
    for sublayer in range(2 * config.depth):
        name = f"blocks.{sublayer // 2}.around_{('attention', 'ff')[sublayer % 2]}."
        a, b = 2 * torch.softmax(weights[f"{name}w"], 0)
        mapped = x @ weights[f"{name}a_rd"].T @ weights[f"{name}b_rd"]
        x = a * _sublayer(config, weights, sublayer, x) + b * (x + mapped)
    return x


def _stream_scalars(config, weights, x) -> Tensor:
    first = x
    for t in range(config.depth):
        x = weights[f"blocks.{t}.r"] * x + weights[f"blocks.{t}.e"] * first
        x = x + _sublayer(config, weights, 2 * t, x)
        x = x + _sublayer(config, weights, 2 * t + 1, x)
    return x


def _sublayer(config, weights, number, x) -> Tensor:
    """Sublayer `number` of the model, from 0, with the norm in front of it."""
    name = f"blocks.{number // 2}."
    if number % 2:
        return _feed_forward(config, weights, name, x)
    inputs = [rms_norm(x, weights[f"{name}norms.0.weight"])] * 3
    return _attention(config, weights, name, config.window(number // 2 + 1), *inputs)


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
    if len(combined) == 2:  # one for q and k, one for v
        combined = [combined[0], *combined]
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


EQUATIONS = {
    **dict.fromkeys(("standard", "grn_v1", "grn_v2", "grn_v3", "dca_v", "dca"), _stacked),
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
"""Of each residual kind: from the embeddings to what the final norm reads, [b, t, d]."""
