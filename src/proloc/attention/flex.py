"""Dialled attention from two passes of PyTorch's FlexAttention: all visible keys, and home keys and sinks (ours).

With (O, L) and (O_h, L_h) of the two, ``F = exp(L_h - L)``, and ``locality.dialled_output`` is the answer; autograd
goes through both and their log-sums, so there is no backward pass of our own. Tiles without a key of a pass are never
read. Numerics are tested on the CPU: gradients without compiling it, and the compiled forward pass by
``benchmarks/attention.py``. It has not been run or timed on a GPU by this project, so "auto" does not choose it.
"""

import math
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import flex_attention

from proloc.attention.layout import KeyRanges
from proloc.attention.result import Attention, Wanted
from proloc.errors import ProlocError

TILE = 128
Kind = Literal["visible", "near", "sinks"]
Answer = tuple[Tensor, Tensor]  # output [batch, head, query, head_dim] and log-sum [batch, head, query], float32


def attend_ranges(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ranges: KeyRanges,
    retain: Tensor,
    *,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    wanted: Wanted = "nothing",
) -> Attention:
    """See ``result.Backend``; sink mass and entropy carry no gradient.

    Raises:
        ProlocError: dropout, softcap, a retain with gradient or an empty batch.
    """
    if dropout or softcap is not None or retain.requires_grad or query.numel() == 0:
        raise ProlocError(
            "attention 'flex' takes no dropout, no softcap, no gradient for retain and no empty batch; "
            "use 'auto' or 'reference'."
        )

    kept = float(retain)
    alone = kept in (0.0, 1.0) and wanted == "nothing"  # one pass says all, and nobody asks for its log-sum

    def over(kind: Kind, values: Tensor) -> Answer:
        if kind not in ranges.memo:
            ranges.memo[kind] = _mask(ranges, kind)
        grouped = query.shape[1] != key.shape[1]
        options = {"block_mask": ranges.memo[kind], "scale": scaling, "enable_gqa": grouped}
        if alone:
            return _kernel()(query, key, values, **options), query.new_empty(0)
        if hasattr(flex_attention, "AuxRequest"):
            output, extra = _kernel()(query, key, values, **options, return_aux=flex_attention.AuxRequest(lse=True))
            return output.float(), extra.lse.float()
        output, total = _kernel()(query, key, values, **options, return_lse=True)  # torch before 2.9
        return output.float(), total.float()

    near = over("near", value) if kept < 1.0 or wanted != "nothing" else None
    far = over("visible", value) if kept > 0.0 or wanted != "nothing" else None
    mixed, total, share = _mix(far, near, kept)
    output = mixed.to(query.dtype).transpose(1, 2).contiguous()
    if share is None or wanted == "nothing":
        return Attention(output, retain)
    if wanted == "fidelity":
        return Attention(output, retain, share)
    with torch.no_grad():
        mean_key = _mix(over("visible", key), over("near", key), kept)[0]
        away = 1 - share / (share + kept * (1 - share)).clamp_min(1e-30)
        nats = total - scaling * (query.float() * mean_key).sum(-1) - (away * math.log(kept) if kept > 0.0 else 0.0)
        sink_mass = (over("sinks", value)[1] - total).exp()
    return Attention(output, retain, share, sink_mass, nats.clamp_min(0.0) / math.log(2.0))


def _mix(far: Answer | None, near: Answer | None, retain: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """Dialled output, its log-sum and the undialled fidelity (None where one pass says all)."""
    if far is None or near is None:
        only = far or near
        assert only is not None
        return *only, None
    share = (near[1] - far[1]).exp()
    if retain == 0.0:
        return *near, share
    normalised = share + retain * (1 - share)
    weight = (1 - retain) * share / normalised
    return torch.lerp(far[0], near[0], weight[..., None]), far[1] + normalised.log(), share


def _mask(ranges: KeyRanges, kind: Kind) -> Any:
    """Which keys a pass reads, and the tiles of ``TILE`` x ``TILE`` that hold any of them, without a T x T matrix."""
    visible, home, sinks, offset = ranges.visible_start, ranges.home_start, ranges.sinks, ranges.query_offset

    def reads(batch: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (key >= visible[batch, query]) & (key <= query + offset)
        if kind == "visible":
            return seen
        return seen & sinks[batch, key] if kind == "sinks" else seen & (sinks[batch, key] | (key >= home[batch, query]))

    queries, keys = visible.shape[1], sinks.shape[1]
    first = torch.arange(0, keys, TILE, device=sinks.device)  # key of every tile of keys
    last = (torch.arange(0, queries, TILE, device=sinks.device) + TILE - 1).clamp_max(queries - 1) + offset
    start = _lowest(home if kind == "near" else visible)
    held = torch.nn.functional.pad(sinks, (0, -keys % TILE)).view(len(sinks), -1, TILE).any(-1)[:, None, :]
    some = (first + TILE > start[..., None]) & (first <= last[:, None])
    if kind == "near":
        some |= held & (first <= last[:, None])
    elif kind == "sinks":
        some &= held
    order = some.int().argsort(dim=-1, descending=True, stable=True).int()
    return flex_attention.BlockMask.from_kv_blocks(
        some.sum(-1, dtype=torch.int32)[:, None], order[:, None], BLOCK_SIZE=TILE, mask_mod=reads,
        seq_lengths=(queries, keys),
    )  # fmt: skip


def _lowest(start: Tensor) -> Tensor:
    """The smallest start of every tile of queries, ``[batch, tile]``."""
    padded = torch.nn.functional.pad(start, (0, -start.shape[1] % TILE), value=torch.iinfo(start.dtype).max)
    return padded.view(len(start), -1, TILE).amin(-1)


@cache
def _kernel() -> Any:
    return torch.compile(flex_attention.flex_attention)
