"""Entropy before the dial, with its gradient, from any backend and without weights (ours)."""

import math

import torch
from torch import Tensor

from proloc.attention.result import Attention, Backend
from proloc.errors import ProlocError
from proloc.locality import entropy_bits


def undialled_entropy(
    backend: Backend, attention: Attention, query: Tensor, key: Tensor, ranges: object, scaling: float
) -> Tensor:
    """Entropy in bits before the dial, ``[batch, head, query]`` float32 or better, differentiable.

    Where the weights were written out it is read from them. Elsewhere it costs another attention pass, over the keys
    as values: a change of the scores s moves the entropy H (in nats) by

        dH = -sum_j p_j (log p_j + H) ds_j = -sum_j p_j (s_j - sum_i p_i s_i) ds_j = -d (sum_j p_j c_j),   c = s fixed

    and ``sum_j p_j c_j = scaling <q, sum_j p_j k_j>`` with that q and those values k held fixed is an attention output.

    Args:
        backend: which computed ``attention``; scores without a softcap.
        attention: its answer.
        query: ``[batch, head, query, head_dim]``.
        key: ``[batch, kv_head, key, head_dim]``.
        ranges: what the backend takes as its keys.
        scaling: factor on the scores.

    Raises:
        ProlocError: a backend that has no statistics.
    """
    if attention.weights_undialled is not None:
        return entropy_bits(attention.weights_undialled)
    undialled = torch.ones_like(attention.retain)
    answer = backend(query, key, key.detach(), ranges, undialled, scaling=scaling, wanted="all")  # type: ignore[arg-type]
    if answer.entropy_bits is None:
        raise ProlocError("this attention measures no entropy; use 'auto' or 'reference'.")
    mean_key = answer.output.transpose(1, 2)
    mean_score = scaling * (query.detach().float() * mean_key.float()).sum(dim=-1) / math.log(2.0)
    return answer.entropy_bits.detach() - (mean_score - mean_score.detach())
