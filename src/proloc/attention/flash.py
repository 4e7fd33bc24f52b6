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
        mixed, total, share = _mix(qkv, plan, kept, scaling, fidelity.numel() > 0)
        output.copy_(mixed.transpose(1, 2))
        lse.copy_(total)
        if fidelity.numel():
            fidelity.copy_(share)
        if entropy.numel():
            query, key, _ = (part.float() for part in qkv)
            mean_key = _mix((query, key, key), plan, kept, scaling, True)[0]
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
        grads: Gradients,
    ) -> None:
        exact = grads[0].dtype == torch.float32
        sums = [part.zero_() if exact else torch.zeros_like(part, dtype=torch.float32) for part in grads]
        _add_gradients(
            grad_output, grad_fidelity, qkv, ranges, float(retain), scaling, output, lse, fidelity, tuple(sums)
        )
        if not exact:
            for grad, total in zip(grads, sums, strict=True):
                grad.copy_(total)


def _add_gradients(
    grad_output: Tensor,
    grad_fidelity: Tensor | None,
    qkv: Heads,
    ranges: KeyRanges,
    retain: float,
    scaling: float,
    output: Tensor,
    lse: Tensor,
    fidelity: Tensor,
    grads: tuple[Tensor, ...],
) -> None:
    """``FlashKernel.backward`` with gradients that start at 0 and sum in float32."""
    plan = make_plan(ranges)
    grad, out = (part.transpose(1, 2) for part in (grad_output, output))
    if grad_fidelity is None:
        if retain > 0.0:
            _backward(plan.visible, grad, qkv, out, lse - math.log(retain), scaling, grads)
        if retain < 1.0:
            for calls in (plan.blocks, plan.sinks):
                _backward(calls, grad, qkv, out, lse - math.log1p(-retain), scaling, grads)
        return
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
        moved = _move(torch.zeros_like(out), grad, slope)
        undialled = lse - fidelity.clamp_min(1e-30).log()
        _backward(plan.visible, grad, without_values, moved, undialled, scaling, grads[:2])
    if retain < 1.0:
        moved = _move(out, grad, -slope / (1 - retain))
        for calls in (plan.blocks, plan.sinks):
            _backward(calls, grad, qkv, moved, lse - math.log1p(-retain), scaling, grads)
    else:
        moved = _move(torch.zeros_like(out), grad, -slope)
        for calls in (plan.blocks, plan.sinks):
            _backward(calls, grad, without_values, moved, lse, scaling, grads[:2])


def _mix(qkv: Heads, plan: Plan, retain: float, scaling: float, fidelity: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Dialled output ``[batch, head, query, head_dim]``, its log-sum and the undialled fidelity (1 where unknown)."""
    full = _forward(plan.visible, qkv, scaling) if retain > 0.0 or fidelity else None
    if full is not None and retain == 1.0 and not fidelity:
        return *full, torch.ones_like(full[1])
    home, home_sum = _forward(plan.blocks, qkv, scaling)
    if plan.sinks:
        sinks, sink_sum = _forward(plan.sinks, qkv, scaling)
        both = torch.logaddexp(home_sum, sink_sum)
        home = home * (home_sum - both).exp()[..., None] + sinks * (sink_sum - both).exp()[..., None]
        home_sum = both
    if full is None:
        return home, home_sum, torch.ones_like(home_sum)
    output, total = full
    share = (home_sum - total).exp().clamp_max(1.0)
    if retain == 0.0:
        return home, home_sum, share
    normalised = share + retain * (1 - share)
    weight = (1 - retain) * share / normalised
    return torch.lerp(output.float(), home.float(), weight[..., None]), total + normalised.log(), share


def _forward(calls: list[Call], qkv: Heads, scaling: float) -> tuple[Tensor, Tensor]:
    """Output and log-sum of some calls; where no call reaches, 0 and minus infinity."""
    query, key, value = qkv
    if len(calls) == 1 and calls[0].queries == slice(0, query.shape[2]) and calls[0].rows == slice(0, len(query)):
        return _call(calls[0], query, key, value, scaling)
    output = torch.zeros_like(query)
    total = query.new_full(query.shape[:3], -math.inf, dtype=torch.float32)
    for call in calls:
        part = output[call.rows, :, call.queries], total[call.rows, :, call.queries]
        for whole, answer in zip(part, _call(call, query, key, value, scaling), strict=True):
            whole.copy_(answer)
    return output, total


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
    calls: list[Call], grad: Tensor, qkv: Heads, out: Tensor, lse: Tensor, scaling: float, grads: tuple[Tensor, ...]
) -> None:
    """Add the gradients of some calls to ``grads``, of q, k and v or of q and k alone."""
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
        places = (call.queries, call.keys, call.keys)
        for whole, part, place in zip(grads, parts, places, strict=False):
            whole[call.rows, :, place] += part


def _move(out: Tensor, grad: Tensor, steps: Tensor) -> Tensor:
    """``out + steps * grad``: their product in a row grows by ``steps |grad|^2``."""
    return torch.addcmul(out.float(), grad.float(), steps[..., None]).to(out.dtype)


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
