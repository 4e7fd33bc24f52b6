# ruff: noqa: N803, SIM102
"""The fused algorithm of ``fused.py`` for GPUs, in Triton: one kernel forward, two backward, for q and for k and v.

Numerics are tested under Triton's interpreter; these kernels have not been run or tuned on a GPU by this project.

Scores are in powers of two. In the backward pass both kinds of keys share one form, with constants per query:

    e = 2^(s - log_sum),  P = on * e,  dS = e * (on * dP - shift)

Home keys have on = 1. Away keys have on = 1 where retain > 0; at retain = 0 only the fidelity's gradient reaches them.
"""

import triton
import triton.language as tl


@triton.jit
def load_rows(pointer, rows, size, stride, D: tl.constexpr, WIDTH: tl.constexpr):
    columns = tl.arange(0, WIDTH)
    mask = (rows < size)[:, None] & (columns < D)[None, :]
    return tl.load(pointer + rows[:, None].to(tl.int64) * stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(pointer, rows, size, stride, values, D: tl.constexpr, WIDTH: tl.constexpr):
    columns = tl.arange(0, WIDTH)
    mask = (rows < size)[:, None] & (columns < D)[None, :]
    tl.store(pointer + rows[:, None].to(tl.int64) * stride + columns[None, :], values, mask=mask)


@triton.jit
def load_ranges(visible, block, rows, size, offset):
    """First visible and first home key and own position of some queries; queries that do not exist see nothing."""
    real = rows < size
    start = tl.load(visible + rows, mask=real, other=2147483647)
    home = tl.load(block + rows, mask=real, other=2147483647)
    return start, home, tl.where(real, rows + offset, -1)


@triton.jit
def forward(
    q, k, v, out, visible, block, sinks, retain_pointer, lse, fidelity, sink_mass, entropy,
    q_b, q_h, q_r, k_b, k_h, k_r, v_b, v_h, v_r, out_b, out_h, out_r,
    heads, groups, queries, keys, offset, scale,
    D: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    FIDELITY: tl.constexpr, STATISTICS: tl.constexpr,
):  # fmt: skip
    b, h = tl.program_id(1) // heads, tl.program_id(1) % heads
    rows = tl.program_id(0) * M + tl.arange(0, M)
    start, home_start, position = load_ranges(visible + b * queries, block + b * queries, rows, queries, offset)
    query = load_rows(q + b * q_b + h * q_h, rows, queries, q_r, D, WIDTH)
    key_base, value_base = k + b * k_b + (h // groups) * k_h, v + b * v_b + (h // groups) * v_h
    retain = tl.load(retain_pointer).to(tl.float32)
    some = tl.where(retain > 0.0, 1, 0)
    log_retain = tl.where(retain > 0.0, tl.log2(tl.maximum(retain, 1e-38)), -1e30)

    top = tl.full([M], -1e30, tl.float32)
    near = tl.zeros([M], tl.float32)
    away = tl.zeros([M], tl.float32)
    far_top = tl.full([M], -1e30, tl.float32)
    far = tl.zeros([M], tl.float32)
    sink_sum = tl.zeros([M], tl.float32)
    moment = tl.zeros([M], tl.float32)
    total = tl.zeros([M, WIDTH], tl.float32)
    first_home = tl.min(home_start, 0)
    for n in range(tl.min(start, 0) // N * N, tl.max(position, 0) + 1, N):
        columns = n + tl.arange(0, N)
        is_sink = tl.load(sinks + b * keys + columns, mask=columns < keys, other=0) != 0
        work = some + tl.where(n + N > first_home, 1, 0) + tl.max(is_sink.to(tl.int32), 0)
        if FIDELITY:
            work += 1
        if work > 0:
            seen = (columns[None, :] >= start[:, None]) & (columns[None, :] <= position[:, None])
            home = (columns[None, :] >= home_start[:, None]) | is_sink[None, :]
            key = load_rows(key_base, columns, keys, k_r, D, WIDTH)
            score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
            if FIDELITY:
                if some == 0:
                    distant = tl.where(seen, tl.where(home, -1e30, score), -1e30)
                    new = tl.maximum(far_top, tl.max(distant, 1))
                    far = far * tl.exp2(far_top - new)
                    far += tl.sum(tl.where(distant > -1e30, tl.exp2(distant - new[:, None]), 0.0), 1)
                    far_top = new
            score = tl.where(seen, tl.where(home, score, score + log_retain), -1e30)
            new = tl.maximum(top, tl.max(score, 1))
            step = score - new[:, None]
            weights = tl.where(seen, tl.exp2(step) * tl.where(home, 1.0, some.to(tl.float32)), 0.0)
            factor = tl.exp2(top - new)
            if STATISTICS:
                moment = (moment + (near + away) * (top - new)) * factor
                moment += tl.sum(tl.where(weights > 0.0, weights * step, 0.0), 1)
                sink_sum = sink_sum * factor + tl.sum(tl.where(is_sink[None, :], weights, 0.0), 1)
            near = near * factor + tl.sum(tl.where(home, weights, 0.0), 1)
            away = away * factor + tl.sum(tl.where(home, 0.0, weights), 1)
            value = load_rows(value_base, columns, keys, v_r, D, WIDTH)
            total = total * factor[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
            top = new
    both = tl.maximum(near + away, 1e-38)
    base = (b * heads + h) * queries + rows
    real = rows < queries
    store_rows(out + b * out_b + h * out_h, rows, queries, out_r, total / both[:, None], D, WIDTH)
    tl.store(lse + base, top + tl.log2(both), mask=real)
    if FIDELITY:
        undialled = tl.where(retain > 0.0, away / tl.maximum(retain, 1e-38), far * tl.exp2(far_top - top))
        tl.store(fidelity + base, near / tl.maximum(near + undialled, 1e-38), mask=real)
    if STATISTICS:
        tl.store(sink_mass + base, sink_sum / both, mask=real)
        tl.store(entropy + base, tl.maximum(tl.log2(both) - moment / both, 0.0), mask=real)


@triton.jit
def slopes(score, grad_weights, seen, home, base, real, near_sum, near_shift, away_sum, away_shift, on):
    """Weights and gradient of scores; the last five are the constants of the module's docstring."""
    log_sum = tl.where(
        home, tl.load(near_sum + base, mask=real, other=0.0)[:, None],
        tl.load(away_sum + base, mask=real, other=0.0)[:, None],
    )  # fmt: skip
    shift = tl.where(
        home, tl.load(near_shift + base, mask=real, other=0.0)[:, None],
        tl.load(away_shift + base, mask=real, other=0.0)[:, None],
    )  # fmt: skip
    live = tl.where(home, 1.0, on)
    e = tl.where(seen, tl.exp2(tl.where(seen, score - log_sum, 0.0)), 0.0)
    return live * e, e * (live * grad_weights - shift)


@triton.jit
def backward_query(
    q, k, v, grad, grad_q, visible, block, sinks, retain_pointer, near_sum, near_shift, away_sum, away_shift,
    q_b, q_h, q_r, k_b, k_h, k_r, v_b, v_h, v_r, g_b, g_h, g_r, dq_b, dq_h, dq_r,
    heads, groups, queries, keys, offset, scale, scaling,
    D: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr, FIDELITY: tl.constexpr,
):  # fmt: skip
    b, h = tl.program_id(1) // heads, tl.program_id(1) % heads
    rows = tl.program_id(0) * M + tl.arange(0, M)
    start, home_start, position = load_ranges(visible + b * queries, block + b * queries, rows, queries, offset)
    query = load_rows(q + b * q_b + h * q_h, rows, queries, q_r, D, WIDTH)
    grad_out = load_rows(grad + b * g_b + h * g_h, rows, queries, g_r, D, WIDTH)
    retain = tl.load(retain_pointer).to(tl.float32)
    some = tl.where(retain > 0.0, 1, 0)
    on = some.to(tl.float32)
    total = tl.zeros([M, WIDTH], tl.float32)
    first_home = tl.min(home_start, 0)
    for n in range(tl.min(start, 0) // N * N, tl.max(position, 0) + 1, N):
        columns = n + tl.arange(0, N)
        is_sink = tl.load(sinks + b * keys + columns, mask=columns < keys, other=0) != 0
        work = some + tl.where(n + N > first_home, 1, 0) + tl.max(is_sink.to(tl.int32), 0)
        if FIDELITY:
            work += 1
        if work > 0:
            seen = (columns[None, :] >= start[:, None]) & (columns[None, :] <= position[:, None])
            home = (columns[None, :] >= home_start[:, None]) | is_sink[None, :]
            key = load_rows(k + b * k_b + (h // groups) * k_h, columns, keys, k_r, D, WIDTH)
            value = load_rows(v + b * v_b + (h // groups) * v_h, columns, keys, v_r, D, WIDTH)
            score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
            grad_weights = tl.dot(grad_out, tl.trans(value), input_precision="ieee")
            base = (b * heads + h) * queries + rows
            _, slope = slopes(
                score, grad_weights, seen, home, base, rows < queries, near_sum, near_shift, away_sum, away_shift, on
            )
            total += tl.dot(slope.to(key.dtype), key, input_precision="ieee")
    store_rows(grad_q + b * dq_b + h * dq_h, rows, queries, dq_r, total * scaling, D, WIDTH)


@triton.jit
def backward_key(
    q, k, v, grad, grad_k, grad_v, visible, block, sinks, retain_pointer, near_sum, near_shift, away_sum, away_shift,
    q_b, q_h, q_r, k_b, k_h, k_r, v_b, v_h, v_r, g_b, g_h, g_r, dk_b, dk_h, dk_r,
    heads, groups, queries, keys, offset, scale, scaling,
    D: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr, FIDELITY: tl.constexpr,
):  # fmt: skip
    kv_heads = heads // groups
    b, kv = tl.program_id(1) // kv_heads, tl.program_id(1) % kv_heads
    n = tl.program_id(0) * N
    columns = n + tl.arange(0, N)
    key = load_rows(k + b * k_b + kv * k_h, columns, keys, k_r, D, WIDTH)
    value = load_rows(v + b * v_b + kv * v_h, columns, keys, v_r, D, WIDTH)
    is_sink = tl.load(sinks + b * keys + columns, mask=columns < keys, other=0) != 0
    has_sink = tl.max(is_sink.to(tl.int32), 0)
    retain = tl.load(retain_pointer).to(tl.float32)
    some = tl.where(retain > 0.0, 1, 0)
    on = some.to(tl.float32)
    key_total = tl.zeros([N, WIDTH], tl.float32)
    value_total = tl.zeros([N, WIDTH], tl.float32)
    for m in range(tl.maximum(n - offset, 0) // M * M, queries, M):
        rows = m + tl.arange(0, M)
        start, home_start, position = load_ranges(visible + b * queries, block + b * queries, rows, queries, offset)
        work = some + tl.where(tl.min(home_start, 0) < n + N, 1, 0) + has_sink
        if FIDELITY:
            work += 1
        if tl.where(tl.min(start, 0) < n + N, work, 0) > 0:
            seen = (columns[None, :] >= start[:, None]) & (columns[None, :] <= position[:, None])
            home = (columns[None, :] >= home_start[:, None]) | is_sink[None, :]
            for h in range(kv * groups, kv * groups + groups):
                query = load_rows(q + b * q_b + h * q_h, rows, queries, q_r, D, WIDTH)
                grad_out = load_rows(grad + b * g_b + h * g_h, rows, queries, g_r, D, WIDTH)
                score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
                grad_weights = tl.dot(grad_out, tl.trans(value), input_precision="ieee")
                base = (b * heads + h) * queries + rows
                weights, slope = slopes(
                    score, grad_weights, seen, home, base, rows < queries, near_sum, near_shift, away_sum, away_shift,
                    on,
                )  # fmt: skip
                value_total += tl.dot(tl.trans(weights.to(grad_out.dtype)), grad_out, input_precision="ieee")
                key_total += tl.dot(tl.trans(slope.to(query.dtype)), query, input_precision="ieee")
    store_rows(grad_k + b * dk_b + kv * dk_h, columns, keys, dk_r, key_total * scaling, D, WIDTH)
    store_rows(grad_v + b * dk_b + kv * dk_h, columns, keys, dk_r, value_total, D, WIDTH)
