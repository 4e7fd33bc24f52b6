"""Sparsity over away blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from proloc.errors import ProlocError
from proloc.locality import AWAY, block_ordinals
from proloc.penalty.base import Quantity, Recorded, check_weight

SMALLEST = 1e-24  # of a sum of squares, below which a block has no mass and no gradient


@dataclass(frozen=True, kw_only=True)
class GroupSparsity:
    """A group lasso over away blocks: ``weight * sum_l lambda_l * mean_heads sum_{b, c} sqrt(n_bc) ||W_bc||_F`` (ours).

    W_bc are the weights before the dial from the queries of block b to the away keys of block c, and n_bc is how many
    there are. As in the group lasso (Yuan and Lin, 2006), the gradient on a block does not fade with its mass, so
    whole blocks are given up one by one. With sqrt(n) a term is at least the block's attention mass, summed over its
    queries, and equal to it where the mass is spread evenly. Home keys and sinks cost nothing.

    It needs weights, T x T for every head, from the reference backend.

    Attributes:
        weight: nats per token for each unit of (evenly spread) away mass.
    """

    weight: float
    needs: ClassVar[Quantity] = "weights"

    def __post_init__(self) -> None:
        check_weight(self.weight)

    def check(self, num_layers: int, num_heads: int) -> None:
        """It fits every model."""

    def summed(self, recorded: Recorded, localities: Sequence[float], queries: Tensor) -> Tensor:
        """See ``Penalty.summed``; rows of queries without a target are left out of their blocks.

        Raises:
            ProlocError: the forward pass continued a cache, so that queries are not all of the keys.
        """
        total = torch.zeros((), device=queries.device)
        if not recorded.weights_undialled:
            return total
        if recorded.layout is None or recorded.layout.block_ids.shape != queries.shape:
            raise ProlocError("group sparsity needs the blocks of a whole text, without a cache.")
        ordinals = block_ordinals(recorded.layout.block_ids)
        member = torch.nn.functional.one_hot(ordinals).float()  # [batch, token, block]
        for layer, weights in recorded.weights_undialled.items():
            counted = (recorded.relations[layer] == AWAY) & queries[:, None, :, None]
            sizes, squares = (
                _by_block(each, member) for each in (counted.to(weights.dtype), weights.square() * counted)
            )
            norms = torch.where(squares > SMALLEST, squares.clamp_min(SMALLEST).sqrt(), 0.0)
            total = total + localities[layer] * (sizes.sqrt() * norms).mean(dim=1).sum()
        return self.weight * total


def _by_block(values: Tensor, member: Tensor) -> Tensor:
    """Sums over query and key blocks: ``[batch, head, query, key]`` to ``[batch, head, block, block]``."""
    member = member.to(values.dtype)[:, None]
    return member.transpose(-1, -2) @ (values @ member)
