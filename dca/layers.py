"""Rotary positions, attention with separate query, key and value inputs, feed-forward.

Axes: b batch, t time, d model, h heads, g heads of keys and values, e features of a head, f hidden
features; m chunks of w positions, a window, into which the text is cut; r vectors that are
multiplied with every row.
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dca import kernels
from dca.compat import CpuAttention
from dca.config import ModelConfig
from dca.fused.autograd import gradient_memory
from dca.mix import NORM_EPS


def project(x: Tensor, weight: Tensor, *, gelu: bool = False) -> Tensor:
    """x [..., in] times weight [out, in] transposed, with a kernel for the few rows of decoding."""
    plain = torch.is_grad_enabled() or torch.compiler.is_compiling()
    if not plain and x.numel() <= kernels.FEW_ROWS * x.shape[-1] and kernels.fits(x, weight):
        return kernels.linear(x, weight, gelu=gelu)
    y = F.linear(x, weight)
    return F.gelu(y) if gelu else y


def row_products(x_btd: Tensor, w_rd: Tensor, *, heads: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Products of every row with r vectors, for weights that depend on what is mixed.

    Residual kinds compute scores, gates and low-rank products with it. The rows are returned for
    their next reader, whose gradient is added to this one's in one pass, as in dca/mix.py.

    Args:
        x_btd: the rows, [b, t, d].
        w_rd: the vectors, [r, d]; with `heads` h the products of each of h groups of d / h adjacent
            features are kept apart.
        heads: the number of groups.

    Returns:
        The products [r, h, b, t], without h for one head, of the type of w; the mean square of each
        row, [b, t], of the same type; the rows.
    """
    if torch.compiler.is_compiling() or x_btd.device.type == "meta":
        parts = x_btd.to(w_rd.dtype).unflatten(-1, (heads, -1))
        products_rhbt = torch.einsum("bthe,rhe->rhbt", parts, w_rd.unflatten(-1, (heads, -1)))
        square_bt = x_btd.to(w_rd.dtype).square().mean(-1)
    else:
        products_rhbt, square_bt, x_btd = _RowProducts.apply(x_btd, w_rd, heads)
    return products_rhbt.squeeze(1) if heads == 1 else products_rhbt, square_bt, x_btd


class _RowProducts(torch.autograd.Function):
    """`row_products` with one gradient for x: that of the later readers is an input of its sum."""

    @staticmethod
    def forward(ctx: Any, x_btd: Tensor, w_rd: Tensor, heads: int) -> tuple[Tensor, ...]:
        x_nd, shape = x_btd.reshape(-1, x_btd.shape[-1]), x_btd.shape[:-1]
        ctx.kernel = kernels.fits_products(x_nd, w_rd, heads)
        products = kernels.row_products if ctx.kernel else _products
        products_rhn, square_n = products(x_nd, w_rd, heads)
        ctx.save_for_backward(x_btd, w_rd)
        ctx.set_materialize_grads(False)
        return products_rhn.unflatten(-1, shape), square_n.view(shape), x_btd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        x_btd, w_rd = ctx.saved_tensors
        (to_x_btd,) = gradient_memory(gradients, (x_btd,), x_btd.shape)
        products_rhbt, square_bt, later_btd = gradients
        if later_btd is not to_x_btd:
            to_x_btd.zero_() if later_btd is None else to_x_btd.copy_(later_btd)
        x_nd = x_btd.reshape(-1, x_btd.shape[-1])
        g_rhn = None if products_rhbt is None else products_rhbt.flatten(2)
        g_n = None if square_bt is None else square_bt.flatten()
        add = kernels.add_row_products_gradient if ctx.kernel else _add_products_gradient
        return to_x_btd, add(x_nd, w_rd, g_rhn, g_n, to_x_btd.view(x_nd.shape)), None


def _products(x_nd: Tensor, w_rd: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """`kernels.row_products` in PyTorch's own operations."""
    with torch.autocast(x_nd.device.type, enabled=False):
        parts = zip(x_nd.chunk(heads, 1), w_rd.to(x_nd.dtype).chunk(heads, 1), strict=True)
        products_rhn = torch.stack([w_re @ x_ne.T for x_ne, w_re in parts], 1)
    length_n = torch.linalg.vector_norm(x_nd, dim=1, dtype=w_rd.dtype)
    return products_rhn.to(w_rd.dtype), length_n.square() / x_nd.shape[1]


def _add_products_gradient(
    x_nd: Tensor, w_rd: Tensor, g_rhn: Tensor | None, g_n: Tensor | None, to_x_nd: Tensor
) -> Tensor | None:
    """`kernels.add_row_products_gradient` in PyTorch's own operations."""
    to_w_rd = None
    if g_rhn is not None:
        with torch.autocast(x_nd.device.type, enabled=False):
            to_w_rd = _add_gradient_of_products(x_nd, w_rd, g_rhn.to(x_nd.dtype), to_x_nd)
    if g_n is not None:
        factor_n1 = (2 / x_nd.shape[1]) * g_n[:, None]
        to_x_nd.addcmul_(factor_n1.to(x_nd.dtype), x_nd)
    return to_w_rd


def _add_gradient_of_products(x_nd: Tensor, w_rd: Tensor, g_rhn: Tensor, to_x_nd: Tensor) -> Tensor:
    heads, to_w = g_rhn.shape[1], []
    rows = (m.chunk(heads, 1) for m in (x_nd, w_rd.to(x_nd.dtype), to_x_nd))
    for g_rn, x_ne, w_re, to_x_ne in zip(g_rhn.unbind(1), *rows, strict=True):
        to_x_ne.addmm_(g_rn.T, w_re)
        to_w.append(g_rn @ x_ne)
    return torch.cat(to_w, 1).to(w_rd.dtype)


def rotary_table(like: Tensor, length: int, head_dim: int) -> Tensor:
    """Factors [2, t, e] of RoFormer (arXiv 2104.09864), base 10,000, as `rotate` takes them.

    In float32 at least: bfloat16 cannot represent the positions of a long text.
    """
    dtype = torch.promote_types(torch.float32, like.dtype)
    pairs = torch.arange(0, head_dim, 2, device=like.device, dtype=dtype)
    position = torch.arange(length, device=like.device, dtype=dtype)
    angle = torch.outer(position, 10_000.0 ** (-pairs / head_dim))
    cos_te, sin_te = angle.cos().repeat(1, 2), angle.sin()
    return torch.stack([cos_te, torch.cat([-sin_te, sin_te], dim=-1)])


def rotate(x_bhte: Tensor, table: Tensor) -> Tensor:
    """Turn the pair (e, e + half) of each position by its angle; the roll swaps the pair."""
    cos_te, sin_te = table.to(x_bhte.dtype)
    swapped_bhte = x_bhte.roll(x_bhte.shape[-1] // 2, -1)
    return torch.addcmul(x_bhte * cos_te, swapped_bhte, sin_te)


def causal_attention(q_bhte: Tensor, k_bgte: Tensor, v_bgte: Tensor) -> Tensor:
    """Attention to the position itself and all before; [b, h, t, e]. Heads may share keys."""
    readers, half = q_bhte.shape[1] // k_bgte.shape[1], torch.bfloat16
    trains = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    all_half = q_bhte.dtype == k_bgte.dtype == v_bgte.dtype == half
    if trains and all_half and q_bhte.device.type == "cpu":
        if readers > 1:
            k_bgte, v_bgte = (x.repeat_interleave(readers, 1) for x in (k_bgte, v_bgte))
        return CpuAttention.apply(q_bhte, k_bgte, v_bgte)
    return F.scaled_dot_product_attention(
        q_bhte, k_bgte, v_bgte, is_causal=True, enable_gqa=readers > 1
    )


def windowed_attention(q_bhte: Tensor, k_bhte: Tensor, v_bhte: Tensor, window: int) -> Tensor:
    """Causal attention to the last `window` positions, its own included; [b, h, t, e].

    Costs t * window instead of t * t: a text of more than two windows is cut into chunks of one
    window, and each attends to itself and to the chunk before.
    """
    batch, length = len(q_bhte), q_bhte.shape[2]
    if window >= length:
        return causal_attention(q_bhte, k_bhte, v_bhte)
    position = torch.arange(2 * window, device=q_bhte.device)
    if 2 * window >= length:
        back_tt = position[:length, None] - position[:length]
        mask_tt = (back_tt >= 0) & (back_tt < window)
        return F.scaled_dot_product_attention(q_bhte, k_bhte, v_bhte, attn_mask=mask_tt)
    missing = -length % window
    q, k, v = (F.pad(x, (0, 0, 0, missing)) for x in (q_bhte, k_bhte, v_bhte))
    before_k, before_v = (F.pad(x, (0, 0, window, 0))[:, :, :-window] for x in (k, v))
    q, k, v, before_k, before_v = (
        rearrange(x, "b h (m w) e -> m (b h) w e", w=window) for x in (q, k, v, before_k, before_v)
    )
    back_wk = position[window:, None] - position
    first_mk = (torch.arange(len(q), device=q.device)[:, None] == 0) & (position < window)
    mask_m1wk = ((back_wk >= 0) & (back_wk < window) & ~first_mk[:, None])[:, None]
    mixed = F.scaled_dot_product_attention(
        q, torch.cat([before_k, k], dim=-2), torch.cat([before_v, v], dim=-2), attn_mask=mask_m1wk
    )
    return rearrange(mixed, "m (b h) w e -> b h (m w) e", b=batch)[:, :, :length]


class KeyValues:
    """The cache of one attention layer: its last `capacity` keys and values."""

    def __init__(self, like: Tensor, shape_bhte: tuple[int, int, int, int]) -> None:
        self.keys, self.values = like.new_zeros(shape_bhte), like.new_zeros(shape_bhte)
        self.capacity = shape_bhte[2]

    def put(self, k_bhte: Tensor, v_bhte: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """Store keys and values from `position` on; returns all stored ones, in any order."""
        end = position + k_bhte.shape[2]
        if end - position == 1:
            slot = position % self.capacity
            self.keys[:, :, slot : slot + 1] = k_bhte
            self.values[:, :, slot : slot + 1] = v_bhte
        else:
            first = max(position, end - self.capacity)
            slots = torch.arange(first, end, device=k_bhte.device) % self.capacity
            self.keys[:, :, slots] = k_bhte[:, :, first - end :].to(self.keys.dtype)
            self.values[:, :, slots] = v_bhte[:, :, first - end :].to(self.values.dtype)
        keys, values = (held[:, :, :end].to(k_bhte.dtype) for held in (self.keys, self.values))
        return keys, values


class Attention(nn.Module):
    """Causal multi-head attention; queries, keys and values may read different inputs."""

    def __init__(self, config: ModelConfig, window: int | None) -> None:
        super().__init__()
        self.window, self.dropout = window, config.dropout
        self.head_dim, self.qk_norm = config.head_dim, config.qk_norm
        self.readers = config.heads // config.groups
        self.qkv_rows = (config.dim, *2 * (config.groups * config.head_dim,))
        self.qkv = nn.Linear(config.dim, sum(self.qkv_rows), bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, inputs: list[Tensor], *context: Any) -> Tensor:
        """Inputs are [x] for all three, [q and k, v] or [q, k, v], [b, t, d]; returns [b, t, d].

        `context` holds the arguments of `attend` besides queries, keys and values.
        """
        return self.attend(*self.split(inputs), *context)

    def split(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [b, h, t, e], keys and values [b, g, t, e], before the norm and the rotation."""
        if len(inputs) == 1:
            parts = project(inputs[0], self.qkv.weight).split(self.qkv_rows, dim=-1)
        elif len(inputs) == 2:
            for_q, for_k, for_v = self.qkv_rows
            weight_qk, weight_v = self.qkv.weight.split((for_q + for_k, for_v))
            query_and_key = project(inputs[0], weight_qk).split((for_q, for_k), dim=-1)
            parts = (*query_and_key, project(inputs[1], weight_v))
        else:
            weights = self.qkv.weight.split(self.qkv_rows)
            parts = tuple(project(x, w) for x, w in zip(inputs, weights, strict=True))
        # not einops, which would take a twentieth of the time of decoding a byte
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for x in parts)
        return q, k, v

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        table: Tensor,
        cache: KeyValues | None = None,
        position: int = 0,
    ) -> Tensor:
        """The output of attention, [b, t, d]; `table` holds the rotary factors.

        With a cache the inputs continue the `position` symbols in it: they are either
        the whole beginning of a text (position 0) or one symbol.
        """
        if self.qk_norm:
            q, k = (F.rms_norm(x, x.shape[-1:], eps=NORM_EPS).to(x.dtype) for x in (q, k))
        q, k = rotate(q, table), rotate(k, table)
        if cache is not None:
            held = cache.put(k, v, position)
        grouped = self.readers > 1
        if position:
            mixed = F.scaled_dot_product_attention(q, *held, enable_gqa=grouped)
        elif self.window is not None:
            if grouped:  # a mask together with groups has no fast kernel on a GPU
                k, v = (x.repeat_interleave(self.readers, 1) for x in (k, v))
            mixed = windowed_attention(q, k, v, self.window)
        else:
            mixed = causal_attention(q, k, v)
        h_btd = project(mixed.transpose(1, 2).flatten(2), self.out.weight)
        return F.dropout(h_btd, self.dropout) if self.dropout and self.training else h_btd


class FeedForward(nn.Module):
    """Two matrices with an activation between them; with swiglu the first one is two, stacked."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation, self.dropout = config.activation, config.dropout
        self.up_rows = (2 if config.activation == "swiglu" else 1) * (config.ff_dim,)
        self.up = nn.Linear(config.dim, sum(self.up_rows), bias=False)
        self.down = nn.Linear(config.ff_dim, config.dim, bias=False)

    def forward(self, x_btd: Tensor) -> Tensor:
        """[b, t, d] to [b, t, d]."""
        y_btd = project(self.hidden(x_btd), self.down.weight)
        return F.dropout(y_btd, self.dropout) if self.dropout and self.training else y_btd

    def hidden(self, x_btd: Tensor) -> Tensor:
        """What the second matrix reads, [b, t, f]."""
        if self.activation == "gelu":
            return project(x_btd, self.up.weight, gelu=True)
        up = project(x_btd, self.up.weight)
        if self.activation == "relu2":
            return F.relu(up).square()
        gate_btf, up_btf = up.split(self.up_rows, dim=-1)
        return F.silu(gate_btf) * up_btf
