"""The Triton kernels of mix_triton.py. They compute the equations of dca/residuals/dca.py:

    r_i = 1 / rms(f_i), or 1 without a norm     s_oi = relu(r_i * w_o . f_i)
    g_o = sum_i (b_oi + s_oi) * f_i             rho_o = 1 / rms(g_o)

A program processes one token after the other, with the features spread over its threads. Scores and
norms are sums across the threads, but the gradients of parameters are sums within a thread: they
stay in registers until the program ends, and are written once. torch adds up the programs, so that
there are no atomics and the bits are the same every time. The rows of one token are all read before
the first is used, because loads cannot pass the barriers and the writes that follow.

`sums_forward`, `sums_norms` and `sums_spread` are for dca.mix.weighted_sums: the factor of f_i is
b_oi plus a weight per token and group of features, either of which may be missing.

Axes: t token, d model, n stack entries, o outputs; D is d padded to a power of two, SLOTS is n,
padded for large stacks but not where gradients go to entries. A name with suffix _o is a tuple over
outputs, of rows [D] or scalars; f, to_f and up are tuples of rows. Pointers are tuples where there
is one tensor per entry or output.
"""
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["tokens", "n", "present"])
def forward(
    entries, b, w, gain, skip, normed, rho, score, scale, tokens, n, present, eps,
    d: tl.constexpr, OUTPUTS: tl.constexpr, SLOTS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """g_0 to `skip`; y_o = gain_o * rho_o * g_o to `normed`; scalars to rho, score and scale."""
    column = tl.arange(0, D)
    inside = column < d
    gain_o = _load(gain, column, d, inside, OUTPUTS)
    w_o = _load(w, column, d, inside, OUTPUTS)
    for t in range(tl.program_id(0).to(tl.int64), tokens, tl.num_programs(0)):
        at = t * d + column
        f = _read(entries, present, at, inside)
        g_o = _zeros(OUTPUTS, D)
        for i in tl.static_range(SLOTS):
            there = _bit(present, i)
            f_o = (f[i],) * OUTPUTS
            score_o = ()
            if w is not None:
                score_o = _across(_times(w_o, f_o))
                if scale is not None:
                    scale_i = tl.rsqrt(tl.sum(f[i] * f[i], 0) / d + eps)
                    tl.store(scale + t * n + i, scale_i, mask=there)
                    score_o = _times(score_o, (scale_i,) * OUTPUTS)
                _store(score, (t * n + i) * OUTPUTS, 1, there, score_o)
            b_o = _load(b, i * d + column, n * d, inside & there, OUTPUTS)
            g_o = _add_times(g_o, _weights(b_o, score_o), f_o)
        tl.store(skip + at, g_o[0], mask=inside)
        squares = _across(_times(g_o, g_o))
        for o in tl.static_range(OUTPUTS):
            rho_o = tl.rsqrt(squares[o] / d + eps)
            tl.store(rho + t * OUTPUTS + o, rho_o)
            tl.store(normed[o] + at, gain_o[o] * (rho_o * g_o[o]), mask=inside)


@triton.jit(do_not_specialize=["tokens", "n", "start", "present", "given", "given_later"])
def backward(
    entries, b, w, gain, rho, score, scale, outer, later, to_entries, dg, sums,
    tokens, n, start, present, given, given_later, d: tl.constexpr, OUTPUTS: tl.constexpr,
    SLOTS: tl.constexpr, MIXES: tl.constexpr, SPREADS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """MIXES: from the gradients `outer` of y_o and g_0 to those of g_o. SPREADS: to the entries.

    What does only one of them writes or reads dg [t, o, d], the gradients of g_o, in float32.
    Entries are those from `start` on; `later` is added to their gradients. `sums` gets, for every
    program, rows for b [o, SLOTS], w [o] if it spreads, and for gain [o] if it mixes.
    """
    column = tl.arange(0, D)
    inside = column < d
    w_o = _load(w, column, d, inside, OUTPUTS)
    gain_o = _load(gain, column, d, inside, OUTPUTS)
    to_b, to_w, to_gain = _zeros(SLOTS * OUTPUTS, D), _zeros(OUTPUTS, D), _zeros(OUTPUTS, D)
    for t in range(tl.program_id(0).to(tl.int64), tokens, tl.num_programs(0)):
        at = t * d + column
        f = _read(entries, present, at, inside)
        if SPREADS:
            to_f = _read(later, given_later, at, inside)
        if MIXES:
            up = _read(outer, given, at, inside)
            rho_o = _load(rho, t * OUTPUTS, 1, True, OUTPUTS)
            g_o = _zeros(OUTPUTS, D)
            for i in tl.static_range(SLOTS):
                there = _bit(present, i)
                b_o = _load(b, (start + i) * d + column, n * d, inside & there, OUTPUTS)
                score_o = _load(score, (t * n + start + i) * OUTPUTS, 1, there, OUTPUTS)
                g_o = _add_times(g_o, _weights(b_o, score_o), (f[i],) * OUTPUTS)
            unit_o = _times(g_o, rho_o)
            up_o = up[:OUTPUTS]
            to_gain = _add_times(to_gain, up_o, unit_o)
            up_o = _times(up_o, gain_o)
            along = _across(_times(up_o, unit_o))
            dg_o = ()
            for o in tl.static_range(OUTPUTS):
                to_g = rho_o[o] * (up_o[o] - unit_o[o] * (along[o] / d))
                if o == 0:
                    to_g += up[OUTPUTS]
                dg_o += (to_g,)
            if not SPREADS:
                _store(dg, t * OUTPUTS * d + column, d, inside, dg_o)
        else:
            dg_o = _load(dg, t * OUTPUTS * d + column, d, inside, OUTPUTS)
        if SPREADS:
            b_sums = ()
            for i in tl.static_range(SLOTS):
                b_o = _load(b, (start + i) * d + column, n * d, inside, OUTPUTS)
                score_o = _load(score, (t * n + start + i) * OUTPUTS, 1, True, OUTPUTS)
                f_o = (f[i],) * OUTPUTS
                b_sums += _add_times(to_b[i * OUTPUTS : (i + 1) * OUTPUTS], dg_o, f_o)
                total = to_f[i]
                if w is not None:
                    scale_i = 1.0
                    if scale is not None:
                        scale_i = tl.load(scale + t * n + start + i)
                    dots = _across(_times(dg_o, f_o))
                    ds_o = ()
                    for o in tl.static_range(OUTPUTS):
                        # at a score of 0 too: w may start at 0
                        ds = tl.where(score_o[o] >= 0, dots[o] * scale_i, 0.0)
                        total += ds * w_o[o]
                        if scale is not None:
                            total -= ds * score_o[o] * scale_i / d * f[i]
                        ds_o += (ds,)
                    to_w = _add_times(to_w, ds_o, f_o)
                weight_o = _weights(b_o, score_o)
                for o in tl.static_range(OUTPUTS):
                    total += weight_o[o] * dg_o[o]
                tl.store(to_entries[i] + at, total, mask=inside)
            to_b = b_sums
    rows = OUTPUTS * (SPREADS * (SLOTS + 1) + MIXES)
    mine = tl.program_id(0) * rows * d + column
    if SPREADS:
        for o in tl.static_range(OUTPUTS):
            _store(sums, mine + o * SLOTS * d, d, inside, to_b[o::OUTPUTS])
        _store(sums, mine + OUTPUTS * SLOTS * d, d, inside, to_w)
    if MIXES:
        _store(sums, mine + (rows - OUTPUTS) * d, d, inside, to_gain)


@triton.jit(do_not_specialize=["tokens", "n", "present"])
def sums_forward(
    entries, weights, b, gains, raw, normed, rho, tokens, n, present, eps,
    d: tl.constexpr, OUTPUTS: tl.constexpr, GROUPS: tl.constexpr, SLOTS: tl.constexpr,
    RAW: tl.constexpr, NORMED: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """g_o to `raw` and y_o to `normed` for the outputs whose bits are set in RAW and NORMED."""
    column = tl.arange(0, D)
    inside = column < d
    for t in range(tl.program_id(0).to(tl.int64), tokens, tl.num_programs(0)):
        at = t * d + column
        f = _read(entries, present, at, inside)
        g_o = _sums(f, weights, b, t, n, present, column, d, OUTPUTS, GROUPS, SLOTS, D)
        for o in tl.static_range(OUTPUTS):
            if (RAW >> o) & 1:
                tl.store(raw[o] + at, g_o[o], mask=inside)
            if (NORMED >> o) & 1:
                rho_o = tl.rsqrt(tl.sum(g_o[o] * g_o[o], 0) / d + eps)
                tl.store(rho + t * OUTPUTS + o, rho_o)
                gain = tl.load(gains[o] + column, mask=inside, other=0.0)
                tl.store(normed[o] + at, gain * (rho_o * g_o[o]), mask=inside)


@triton.jit(do_not_specialize=["tokens", "n", "present", "given"])
def sums_norms(
    entries, weights, b, gains, rho, raw, up, dg, to_gain, tokens, n, present, given,
    d: tl.constexpr, OUTPUTS: tl.constexpr, GROUPS: tl.constexpr, SLOTS: tl.constexpr,
    NORMED: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """From the gradients `up` of y_o and `raw` of g_o to `dg`, all of g_o, of outputs in NORMED.

    `raw` is zero where the bit of `given` is off. `to_gain` gets a row [o] for every program.
    """
    column = tl.arange(0, D)
    inside = column < d
    gain_sums = _zeros(OUTPUTS, D)
    for t in range(tl.program_id(0).to(tl.int64), tokens, tl.num_programs(0)):
        at = t * d + column
        f = _read(entries, present, at, inside)
        raw_o = _read(raw, given, at, inside)
        g_o = _sums(f, weights, b, t, n, present, column, d, OUTPUTS, GROUPS, SLOTS, D)
        added = ()
        for o in tl.static_range(OUTPUTS):
            if (NORMED >> o) & 1:
                rho_o = tl.load(rho + t * OUTPUTS + o)
                unit = g_o[o] * rho_o
                up_o = tl.load(up[o] + at, mask=inside, other=0.0).to(tl.float32)
                added += (gain_sums[o] + up_o * unit,)
                up_o *= tl.load(gains[o] + column, mask=inside, other=0.0)
                along = tl.sum(up_o * unit, 0) / d
                tl.store(dg[o] + at, raw_o[o] + rho_o * (up_o - unit * along), mask=inside)
            else:
                added += (gain_sums[o],)
        gain_sums = added
    _store(to_gain, tl.program_id(0) * OUTPUTS * d + column, d, inside, gain_sums)


@triton.jit(do_not_specialize=["tokens", "n", "start", "given", "given_later"])
def sums_spread(
    entries, weights, b, dg, later, to_entries, to_weights, to_b, tokens, n, start, given,
    given_later, d: tl.constexpr, OUTPUTS: tl.constexpr, GROUPS: tl.constexpr,
    SLOTS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """From the gradients `dg` of g_o to those of entries from `start` on; `later` is added.

    Also to the gradients of their weights and of b, unless these are None; `to_b` gets rows
    [o, SLOTS] for every program.
    """
    column = tl.arange(0, D)
    inside = column < d
    b_rows: tl.constexpr = 0 if to_b is None else SLOTS * OUTPUTS
    b_sums = _zeros(b_rows, D)
    for t in range(tl.program_id(0).to(tl.int64), tokens, tl.num_programs(0)):
        at = t * d + column
        f = _read(entries, (1 << SLOTS) - 1, at, inside)
        dg_o = _read(dg, given, at, inside)
        to_f = _read(later, given_later, at, inside)
        added = ()
        for i in tl.static_range(SLOTS):
            factor_o = _factors(weights, b, t, n, start + i, True, column, d, OUTPUTS, GROUPS)
            total = to_f[i]
            for o in tl.static_range(OUTPUTS):
                total += factor_o[o] * dg_o[o]
                if to_weights is not None:
                    cell = to_weights + ((t * OUTPUTS + o) * n + start + i) * GROUPS
                    if GROUPS == 1:
                        tl.store(cell, tl.sum(dg_o[o] * f[i], 0))
                    else:
                        by_group = tl.reshape(dg_o[o] * f[i], (GROUPS, D // GROUPS))
                        tl.store(cell + tl.arange(0, GROUPS), tl.sum(by_group, 1))
            tl.store(to_entries[i] + at, total, mask=inside)
            if to_b is not None:
                mine = b_sums[i * OUTPUTS : (i + 1) * OUTPUTS]
                added += _add_times(mine, dg_o, (f[i],) * OUTPUTS)
        b_sums = added
    if to_b is not None:
        mine = tl.program_id(0) * b_rows * d + column
        for o in tl.static_range(OUTPUTS):
            _store(to_b, mine + o * SLOTS * d, d, inside, b_sums[o::OUTPUTS])


@triton.jit
def _sums(
    f, weights, b, t, n, present, column, d: tl.constexpr, OUTPUTS: tl.constexpr,
    GROUPS: tl.constexpr, SLOTS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    g_o = _zeros(OUTPUTS, D)
    for i in tl.static_range(SLOTS):
        there = _bit(present, i)
        factor_o = _factors(weights, b, t, n, i, there, column, d, OUTPUTS, GROUPS)
        g_o = _add_times(g_o, factor_o, (f[i],) * OUTPUTS)
    return g_o


@triton.jit
def _factors(
    weights, b, t, n, i, there, column, d: tl.constexpr, OUTPUTS: tl.constexpr,
    GROUPS: tl.constexpr,
):  # fmt: skip
    """Of entry i for every output: a number, or a row [D]."""
    factors = ()
    inside = (column < d) & there
    for o in tl.static_range(OUTPUTS):
        if weights is None:
            factor = tl.load(b + (o * n + i) * d + column, mask=inside, other=0.0)
        else:
            cell = weights + ((t * OUTPUTS + o) * n + i) * GROUPS
            if GROUPS == 1:
                factor = tl.load(cell, mask=there, other=0.0)
            else:
                factor = tl.load(cell + column // (d // GROUPS), mask=inside, other=0.0)
            if b is not None:
                factor = factor + tl.load(b + (o * n + i) * d + column, mask=inside, other=0.0)
        factors += (factor,)
    return factors


@triton.jit
def _add_three(a0, a1, a2, b0, b1, b2):
    return a0 + b0, a1 + b1, a2 + b2


@triton.jit
def _add_two(a0, a1, b0, b1):
    return a0 + b0, a1 + b1


@triton.jit
def _across(x_o):
    """Sums over features of one row [D], two or three; several cross the threads together."""
    if len(x_o) == 3:
        sums = tl.reduce((x_o[0], x_o[1], x_o[2]), 0, _add_three)
    elif len(x_o) == 2:
        sums = tl.reduce((x_o[0], x_o[1]), 0, _add_two)
    else:
        tl.static_assert(len(x_o) == 1)
        sums = (tl.sum(x_o[0], 0),)
    return sums


@triton.jit
def _zeros(COUNT: tl.constexpr, D: tl.constexpr):
    rows = ()
    for _ in tl.static_range(COUNT):
        rows += (tl.zeros((D,), tl.float32),)
    return rows


@triton.jit
def _bit(given, i):
    return ((given >> i) & 1) != 0


@triton.jit
def _read(pointers, given, at, inside):
    """A row [D] of each tensor, in float32; zeros where the bit of `given` is off."""
    rows = ()
    for i in tl.static_range(len(pointers)):
        row = tl.load(pointers[i] + at, mask=inside & _bit(given, i), other=0.0)
        rows += (row.to(tl.float32),)
    return rows


@triton.jit
def _load(pointer, at, stride, mask, COUNT: tl.constexpr):
    """COUNT rows or scalars of one float32 tensor; none if there is no tensor."""
    items = ()
    if pointer is not None:
        for o in tl.static_range(COUNT):
            items += (tl.load(pointer + at + o * stride, mask=mask, other=0.0),)
    return items


@triton.jit
def _store(pointer, at, stride, mask, items):
    for o in tl.static_range(len(items)):
        tl.store(pointer + at + o * stride, items[o], mask=mask)


@triton.jit
def _times(x_o, y_o):
    products = ()
    for o in tl.static_range(len(x_o)):
        products += (x_o[o] * y_o[o],)
    return products


@triton.jit
def _add_times(total_o, x_o, y_o):
    totals = ()
    for o in tl.static_range(len(x_o)):
        totals += (total_o[o] + x_o[o] * y_o[o],)
    return totals


@triton.jit
def _weights(b_o, score_o):
    """b_o + relu(score_o); just b_o if there are no scores."""
    weights = ()
    for o in tl.static_range(len(b_o)):
        weight = b_o[o]
        if len(score_o) > 0:
            weight += tl.where(score_o[o] < 0, 0.0, score_o[o])  # unlike a maximum, keeps a NaN
        weights += (weight,)
    return weights
