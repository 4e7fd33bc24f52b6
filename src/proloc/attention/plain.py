"""Dialled attention where it is plain attention: every key up to the query is there and read at full weight.

So it is at retain = 1, and for one query over what a local cache left of a hard layer. No mask, no statistics.
"""

import torch
from torch import Tensor

from proloc.attention.keys import Keys
from proloc.attention.layout import KeyRanges
from proloc.attention.result import Attention, Wanted
from proloc.errors import ProlocError


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
    """See ``result.Backend``; causal where there are several queries. ``ranges.unmasked`` must be true.

    Raises:
        ProlocError: statistics or a softcap are asked for.
    """
    if wanted != "nothing" or softcap is not None:
        raise ProlocError("attention 'plain' has no weights to measure and no softcap; use 'auto' or 'reference'.")
    output = torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        dropout_p=dropout,
        is_causal=query.shape[2] > 1,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return Attention(output.transpose(1, 2).contiguous(), retain)
