"""Dialled attention through ``scaled_dot_product_attention``: no weights, so no fidelity and no entropy, but fast."""

import torch
from torch import Tensor

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
