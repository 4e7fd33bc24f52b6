"""Dialled attention from two passes of PyTorch's own flash kernel for CPUs, forward and backward (ours).

With (O, L) of attention over all visible keys and (O_h, L_h) over home keys, w = retain and lambda = 1 - w:

    F = exp(L_h - L),  Z = w + lambda F,  output = O + (lambda F / Z) (O_h - O),  L_d = L + log Z

The dialled weights are ``w exp(s - L_d)`` over all keys plus ``lambda exp(s - L_d)`` over home keys, so the gradients
are those of two flash passes with shifted log-sums. A gradient g on F changes only the row terms the kernel subtracts
from dP; it computes them as ``<dO, out>``, so it is handed an ``out`` moved along dO until they come out right. The
home pass costs O(T * block), and at w = 0 without fidelity it is the only one. Entropy is
``L_d - scaling <q, mean key> - log(w) * away``.

The kernel is private to PyTorch, so ``choose`` checks it against the reference before it is used.
"""

import math

import torch
from torch import Tensor

from proloc.attention.flash_plan import Call, Plan, make_plan
from proloc.attention.layout import KeyRanges
from proloc.attention.operator import Gradients, Operator, Outputs

Heads = tuple[Tensor, Tensor, Tensor]
TINY = 1e-12  # the length given to rows of dO that are 0


class FlashKernel:
    """Two flash passes behind ``operator.Kernel``."""

    def forward(self, qkv: Heads, ranges: KeyRanges, retain: Tensor, scaling: float, outputs: Outputs) -> None:
        output, lse, fidelity, sink_mass, entropy = outputs
        plan, kept = make_plan(ranges), float(retain)
        room = output.transpose(1, 2)
        mixed, total, share = _mix(qkv, plan, kept, scaling, fidelity.numel() > 0, room)
        if mixed is not room:
            room.copy_(mixed)
        lse.copy_(total)
        if fidelity.numel():
            fidelity.copy_(share)
        if entropy.numel():
            query, key, _ = (part.float() for part in qkv)
            mean_key = _mix((query, key, key), plan, kept, scaling, True, None)[0]
            dialled = share / (share + kept * (1 - share)).clamp_min(1e-30)
            away = (1 - dialled) * math.log(kept) if kept > 0.0 else 0.0
            nats = lse - scaling * (query * mean_key).sum(-1) - away
            entropy.copy_(nats.clamp_min(0.0) / math.log(2.0))
            sink_mass.copy_(_sink_mass(query, key, ranges, scaling, lse))

    def backward(
        self,
        grad_output: Tensor,
        grad_fidelity: Tensor | None,
        qkv: Heads,
        ranges: KeyRanges,
        retain: Tensor,
        scaling: float,
        output: Tensor,
        lse: Tensor,
        fidelity: Tensor,
    ) -> Gradients:
        # Given bfloat16, the kernel adds gradients up in bfloat16: four times the error, and slower on short texts.
        grad, wide, out = grad_output.float(), (qkv[0].float(), qkv[1].float(), qkv[2].float()), output.float()
        sums = _gradients(grad, grad_fidelity, wide, ranges, float(retain), scaling, out, lse, fidelity)
        query, key, value = (
            total.to(part.dtype).transpose(1, 2).contiguous().transpose(1, 2)
            for total, part in zip(sums, qkv, strict=True)
        )
        return query, key, value


def _gradients(
    grad_output: Tensor,
    grad_fidelity: Tensor | None,
    qkv: Heads,
    ranges: KeyRanges,
    retain: float,
    scaling: float,
    output: Tensor,
    lse: Tensor,
    fidelity: Tensor,
) -> list[Tensor]:
    """The gradients of q, k and v; everything is float32."""
    plan, grads = make_plan(ranges), list[Tensor]()
    grad, out = (part.transpose(1, 2) for part in (grad_output, output))
    if grad_fidelity is None:
        if retain > 0.0:
            _backward(plan.visible, grad, qkv, out, lse - math.log(retain), scaling, grads)
        if retain < 1.0:
            for calls in (plan.home, plan.more):
                _backward(calls, grad, qkv, out, lse - math.log1p(-retain), scaling, grads)
        return grads
    length = torch.linalg.vector_norm(grad, dim=-1, dtype=torch.float32)
    if bool((length < TINY).any()):
        grad = torch.where(length[..., None] < TINY, TINY, grad)
        length = torch.linalg.vector_norm(grad, dim=-1, dtype=torch.float32)
    normalised = fidelity + retain * (1 - fidelity)
    slope = grad_fidelity * normalised / length.square()
    without_values = (qkv[0], qkv[1], torch.zeros_like(qkv[2])) if retain in (0.0, 1.0) else qkv
    if retain > 0.0:
        moved = _move(out, grad, slope * fidelity / retain)
        _backward(plan.visible, grad, qkv, moved, lse - math.log(retain), scaling, grads)
    else:
        # u = exp(s - L) times -g F on every visible key, by a pass without values.
        moved = _move(None, grad, slope)
        undialled = lse - fidelity.clamp_min(1e-30).log()
        _backward(plan.visible, grad, without_values, moved, undialled, scaling, grads, values=False)
    if retain < 1.0:
        moved = _move(out, grad, -slope / (1 - retain), moved)
        for calls in (plan.home, plan.more):
            _backward(calls, grad, qkv, moved, lse - math.log1p(-retain), scaling, grads)
    else:
        moved = _move(None, grad, -slope, moved)
        for calls in (plan.home, plan.more):
            _backward(calls, grad, without_values, moved, lse, scaling, grads, values=False)
    return grads


def _mix(
    qkv: Heads, plan: Plan, retain: float, scaling: float, fidelity: bool, room: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Dialled output ``[batch, head, query, head_dim]``, its log-sum and the undialled fidelity (1 where unknown).

    The output is computed in ``room`` if that is possible.
    """
    full = _forward(plan.visible, qkv, scaling) if retain > 0.0 or fidelity else None
    if full is not None and retain == 1.0 and not fidelity:
        return *full, torch.ones_like(full[1])
    home, home_sum = _forward(plan.home, qkv, scaling, room)
    _add(plan.more, qkv, scaling, home, home_sum)
    if full is None:
        return home, home_sum, torch.ones_like(home_sum)
    output, total = full
    share = (home_sum - total).exp().clamp_max(1.0)
    if retain == 0.0:
        return home, home_sum, share
    normalised = share + retain * (1 - share)
    weight = (1 - retain) * share / normalised
    return output.lerp_(home, weight[..., None]), total + normalised.log(), share


def _forward(calls: list[Call], qkv: Heads, scaling: float, room: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Float32 output and log-sum of calls that together answer every query once."""
    query, key, value = qkv
    if len(calls) == 1:
        output, total = _call(calls[0], query, key, value, scaling)
        return output.float(), total
    output = room if room is not None and room.dtype == torch.float32 else _room(query)
    total = query.new_empty(query.shape[:3], dtype=torch.float32)
    for call in calls:
        part = output[call.rows, :, call.queries], total[call.rows, :, call.queries]
        for whole, answer in zip(part, _call(call, query, key, value, scaling), strict=True):
            whole.copy_(answer)
    return output, total


def _room(like: Tensor) -> Tensor:
    """Float32 ``[batch, head, row, head_dim]``, in memory ``[batch, row, head, head_dim]`` as the kernel answers."""
    batch, heads, rows, head_dim = like.shape
    return like.new_empty(batch, rows, heads, head_dim, dtype=torch.float32).transpose(1, 2)


def _add(calls: list[Call], qkv: Heads, scaling: float, output: Tensor, total: Tensor) -> None:
    """Merge attention over more home keys into output and log-sum, in place."""
    for call in calls:
        answer, extra = _call(call, *qkv, scaling)
        home, known = output[call.rows, :, call.queries], total[call.rows, :, call.queries]
        both = torch.logaddexp(known, extra)
        home.mul_((known - both).exp_()[..., None]).addcmul_(answer, (extra - both).exp_()[..., None])
        known.copy_(both)


def _call(call: Call, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    answer: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query[call.rows, :, call.queries],
        key[call.rows, :, call.keys],
        value[call.rows, :, call.keys],
        0.0,
        call.causal,
        scale=scaling,
    )
    return answer


def _backward(
    calls: list[Call],
    grad: Tensor,
    qkv: Heads,
    out: Tensor,
    lse: Tensor,
    scaling: float,
    grads: list[Tensor],
    *,
    values: bool = True,
) -> None:
    """Add the gradients of some calls to ``grads``, of q, k and v or of q and k alone; an empty list starts at 0."""
    # Squares that together answer every query once meet every key once: the first ones need no zeros to add to.
    squares = all(isinstance(call.keys, slice) and call.keys == call.queries for call in calls)
    assigned = not grads and squares and qkv[0].shape[2] == qkv[1].shape[2]
    for call in calls:
        near = [part[call.rows, :, call.queries] for part in (grad, qkv[0], out)]
        parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            near[0],
            near[1],
            *(part[call.rows, :, call.keys] for part in qkv[1:]),
            near[2],
            lse[call.rows, :, call.queries],
            0.0,
            call.causal,
            scale=scaling,
        )
        if not values:
            parts[2].zero_()
        if not grads and all(part.shape == whole.shape for part, whole in zip(parts, qkv, strict=True)):
            grads += parts
            continue
        if not grads:
            grads += [_room(part) if assigned else _room(part).zero_() for part in qkv]
        places = (call.queries, call.keys, call.keys)
        for whole, part, place in zip(grads, parts, places, strict=True):
            there = whole[call.rows, :, place]
            if isinstance(place, Tensor):
                whole[call.rows, :, place] = there + part
            elif assigned:
                there.copy_(part)
            else:
                there.add_(part)


def _move(out: Tensor | None, grad: Tensor, steps: Tensor, room: Tensor | None = None) -> Tensor:
    """``out + steps * grad``: their product in a row grows by ``steps |grad|^2``; None = 0, room is reused."""
    steps = steps[..., None]
    return torch.mul(grad, steps, out=room) if out is None else torch.addcmul(out, grad, steps, out=room)


def _sink_mass(query: Tensor, key: Tensor, ranges: KeyRanges, scaling: float, lse: Tensor) -> Tensor:
    """``sum exp(s - L_d)`` over the visible sinks of every query, ``[batch, head, query]``."""
    mass = torch.zeros_like(lse)
    positions = torch.arange(query.shape[2], device=query.device) + ranges.query_offset
    for row, marked in enumerate(ranges.sinks):
        sinks = marked.nonzero()[:, 0]
        keys = key[row, :, sinks].repeat_interleave(query.shape[1] // key.shape[1], dim=0)
        weights = (scaling * query[row] @ keys.transpose(1, 2) - lse[row, ..., None]).exp()
        seen = (sinks >= ranges.visible_start[row, :, None]) & (sinks <= positions[:, None])
        mass[row] = (weights * seen).sum(-1)
    return mass


attend_ranges = Operator("flash", FlashKernel(), "cpu")
