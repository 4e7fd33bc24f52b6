"""Dialled attention through ``scaled_dot_product_attention``: no weights, so no fidelity and no entropy, but fast."""

import torch
from torch import Tensor

from proloc.attention.keys import Keys
from proloc.attention.layout import KeyRanges
from proloc.attention.result import Attention, Wanted
from proloc.errors import ProlocError
from proloc.locality import bias


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    relation: Tensor,
    retain: Tensor,
    *,
    scaling: float,
    dropout: float = 0.0,
) -> Tensor:
    """The output of ``reference.attend`` with the same arguments, ``[batch, query, head, head_dim]``.

    In half precision log(retain) is rounded to that precision, which moves weights by up to 0.4%.
    """
    output = torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=bias(relation, retain, query.dtype),
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2).contiguous()


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
    """``attend`` behind the interface of ``result.Backend``.

    Raises:
        ProlocError: statistics or a softcap are asked for.
    """
    if wanted != "nothing" or softcap is not None:
        raise ProlocError("attention 'sdpa' has no weights to measure and no softcap; use 'auto' or 'reference'.")
    output = attend(query, key, value, ranges.relation(), retain, scaling=scaling, dropout=dropout)
    return Attention(output, retain)
