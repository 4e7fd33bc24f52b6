"""What a run reads: windows of text with their blocks, and the sink token in front of them where it is wanted."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from proloc.errors import ProlocError
from proloc.training import IGNORED_LABEL

SINK_BLOCK = -1  # of the sink token: no partitioner gives this number


@dataclass(frozen=True)
class Windows(Dataset[dict[str, Tensor]]):
    """Windows with their blocks; every token of the text but its first is a target, with and without a sink token.

    Attributes:
        ids: int64 ``[window, token]``.
        block_ids: int64 ``[window, token]``.
        leading: tokens in front of the text.
    """

    ids: Tensor
    block_ids: Tensor
    leading: int

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        labels = self.ids[row].clone()
        labels[: self.leading + 1] = IGNORED_LABEL
        return {"input_ids": self.ids[row], "labels": labels, "block_ids": self.block_ids[row]}


def make_windows(ids: Tensor, block_ids: Tensor, sink_token: int | None) -> Windows:
    """Windows of a text; the sink token belongs to no block of the text and lies in one of its own.

    Args:
        ids: int64 ``[window, token]``, the text.
        block_ids: int64 ``[window, token]``, of the text.
        sink_token: id of the token to put in front; None = none.
    """
    if sink_token is None:
        return Windows(ids, block_ids, 0)
    first = torch.ones(len(ids), 1, dtype=torch.int64)
    return Windows(torch.cat([sink_token * first, ids], 1), torch.cat([SINK_BLOCK * first, block_ids], 1), 1)


def sink_token_of(tokenizer: Any) -> int:
    """The tokenizer's BOS, else its EOS.

    Raises:
        ProlocError: it has neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ProlocError("sink_token needs a tokenizer with a BOS or an EOS token, and this one has neither.")
