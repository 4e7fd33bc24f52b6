"""Dialled attention, materialised: plain, readable, any dtype. Every faster path is tested against this one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from proloc.attention.keys import Keys
from proloc.attention.layout import KeyRanges
from proloc.attention.result import Attention, Wanted
from proloc.locality import AWAY, HIDDEN, SINK, entropy_bits, fidelity


@dataclass(frozen=True)
class Attended:
    """What one attention layer computed.

    Attributes:
        output: ``[batch, query, head, head_dim]``.
        weights: ``[batch, head, query, key]`` after the dial, before dropout.
        undialled_weights: the same from the same scores before the dial.
    """

    output: Tensor
    weights: Tensor
    undialled_weights: Tensor


def repeat_heads(states: Tensor, num_heads: int) -> Tensor:
    """Repeat grouped keys or values ``[batch, kv_head, key, head_dim]`` until there is one for every query head."""
    groups = num_heads // states.shape[1]
    return states if groups == 1 else states.repeat_interleave(groups, dim=1)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    relation: Tensor,
    retain: Tensor,
    *,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
) -> Attended:
    """``softmax(scaling * Q K^T + log(retain) * away) V`` with every matrix written out.

    The operations and their order are those of transformers' eager attention, so that retain = 1 equals it bit for bit.

    Args:
        query: ``[batch, head, query, head_dim]``.
        key: ``[batch, kv_head, key, head_dim]``.
        value: ``[batch, kv_head, key, head_dim]``.
        relation: uint8 ``[batch, 1, query, key]`` from ``locality.relate``.
        retain: scalar in [0, 1].
        scaling: factor on the scores.
        dropout: probability of dropping a weight; 0 = none.
        softcap: scores become ``softcap * tanh(scores / softcap)`` before anything is hidden (Gemma 2); None = as is.
    """
    key, value = (repeat_heads(states, query.shape[1]) for states in (key, value))
    scores = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(relation == HIDDEN, torch.finfo(scores.dtype).min)
    precision = torch.promote_types(scores.dtype, torch.float32)
    undialled = torch.softmax(scores, dim=-1, dtype=precision)
    away = torch.log(retain.double()).to(scores.device, precision)
    dialled_scores = scores.to(precision) + torch.where(relation == AWAY, away, away.new_zeros(()))
    weights = torch.softmax(dialled_scores, dim=-1)
    dropped = torch.nn.functional.dropout(weights.to(query.dtype), dropout)
    return Attended(torch.matmul(dropped, value).transpose(1, 2).contiguous(), weights, undialled)


def attend_ranges(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ranges: KeyRanges | Keys,
    retain: Tensor,
    *,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    wanted: Wanted = "nothing",
) -> Attention:
    """``attend`` behind the interface of ``result.Backend``; here entropy and sink mass have gradients too."""
    relation = ranges.relation()
    attended = attend(query, key, value, relation, retain, scaling=scaling, dropout=dropout, softcap=softcap)
    weights, before = attended.weights, attended.undialled_weights
    if wanted == "nothing":
        return Attention(attended.output, retain, weights=weights, weights_undialled=before)
    undialled = fidelity(before, relation)
    if wanted == "fidelity":
        return Attention(attended.output, retain, undialled, weights=weights, weights_undialled=before)
    sink_mass = (weights * (relation == SINK)).sum(dim=-1)
    return Attention(attended.output, retain, undialled, sink_mass, entropy_bits(weights), weights, before)
