"""A ceiling on entropy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from proloc.penalty.base import Quantity, Recorded, check_weight
from proloc.penalty.target import Target, check_shape, check_values, of_layer


@dataclass(frozen=True, kw_only=True)
class Entropy:
    """Bits above a target: ``weight * sum_l lambda_l * mean max(0, H_l - target_bits)`` (ours).

    H is the entropy before the dial. Few bits mean few keys, not near ones: this penalty knows nothing of blocks, and
    is the control for those that do.

    Attributes:
        target_bits: wanted entropy, 0 or more: a number, one for each layer, or one for each head of each layer.
        weight: nats per token for each bit above it.
    """

    target_bits: Target
    weight: float
    needs: ClassVar[Quantity] = "entropy"

    def __post_init__(self) -> None:
        check_values("target_bits", self.target_bits, float("inf"))
        check_weight(self.weight)

    def check(self, num_layers: int, num_heads: int) -> None:
        """See ``Penalty.check``."""
        check_shape("target_bits", self.target_bits, num_layers, num_heads)

    def summed(self, recorded: Recorded, localities: Sequence[float], queries: Tensor) -> Tensor:
        """See ``Penalty.summed``."""
        total = torch.zeros((), device=queries.device)
        for layer, bits in recorded.entropy_undialled.items():
            excess = torch.clamp(bits - of_layer(self.target_bits, layer, bits), min=0.0).mean(dim=1)
            total = total + localities[layer] * (excess * queries).sum()
        return self.weight * total
