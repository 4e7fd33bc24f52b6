"""A small fixed vector for every token: made from a model's embedding, and summed over stretches of text."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from proloc.errors import ProlocError


class RunningSums:
    """Sums of the embeddings of all tokens before a place, kept at the sentence ends only.

    Args:
        table: float64 ``[vocab, dim]``.
        ids: ``[seq]``.
        places: where a sum is wanted, ascending, each in ``[1, seq]``.
    """

    def __init__(self, table: Tensor, ids: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        if ids.max() >= len(table):
            raise ProlocError(
                f"Token id {int(ids.max())} is outside the drift blocks' embedding table of {len(table)} tokens; "
                "build the blocks from the embedding of the model that reads these tokens."
            )
        self._table, self._ids = table, torch.from_numpy(np.ascontiguousarray(ids))
        self._places = np.concatenate([[0], places])
        bags = embedding_bag(self._ids[: self._places[-1]], table, torch.from_numpy(self._places[:-1]), mode="sum")
        sums = torch.cat([table.new_zeros(1, table.shape[1]), bags.cumsum(0)]).numpy()
        self._sums = dict(zip(self._places.tolist(), sums, strict=True))

    def before(self, place: int) -> NDArray[np.float64]:
        """The sum ``[dim]`` over tokens before ``place``."""
        if place not in self._sums:  # max_length cut a block inside a sentence
            known = int(self._places[np.searchsorted(self._places, place) - 1])
            self._sums[place] = self._sums[known] + self._table[self._ids[known:place]].sum(0).numpy()
        total: NDArray[np.float64] = self._sums[place]
        return total


def principal(rows: Tensor, dim: int) -> Tensor:
    """The rows, centred, in their leading principal directions: ``[vocab, min(dim, width)]``."""
    centred = rows - rows.mean(dim=0)
    # eigh sorts upwards; exact and without random numbers. The signs of the directions are free, cosines ignore them.
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)
    return torch.matmul(centred, directions[:, :dim])


def rarity(counts: Tensor | NDArray[np.int64] | Sequence[int], smoothing: float, vocab: int) -> Tensor:
    """``smoothing / (smoothing + share of the token)`` for every token, ``[vocab]``."""
    seen = torch.as_tensor(counts).double()
    if seen.shape != (vocab,) or not bool((seen >= 0).all()) or not 0 < float(seen.sum()) < math.inf:
        raise ProlocError(
            f"counts must be {vocab} numbers >= 0, one a token, not all 0; their shape is {list(seen.shape)}."
        )
    if not 0 < smoothing < math.inf:
        raise ProlocError(f"smoothing must be a token probability > 0, not {smoothing!r}.")
    return smoothing / (smoothing + seen / seen.sum())


def check_finite(embedding: Tensor) -> None:
    """Refuse a table that is not ``[vocab, dim]`` or holds NaN or infinity."""
    if embedding.dim() != 2 or embedding.numel() == 0:
        raise ProlocError(f"embedding must be [vocab, dim], but its shape is {list(embedding.shape)}.")
    if wrong := int((~embedding.isfinite()).any(dim=1).sum()):
        raise ProlocError(
            f"{wrong} rows of the embedding hold NaN or infinity (float16 ends at 65504); all must be finite."
        )


def checked_table(embedding: Tensor) -> Tensor:
    """A copy in float16 on the CPU, refused where float16 cannot hold it."""
    table = embedding.detach().to("cpu", torch.float16, copy=True).contiguous()
    check_finite(table)
    return table
