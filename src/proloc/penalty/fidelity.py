"""The low-fidelity constraint."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from proloc.penalty.base import Quantity, Recorded, check_weight
from proloc.penalty.target import Target, check_shape, check_values, of_layer


@dataclass(frozen=True, kw_only=True)
class LowFidelity:
    """The low-fidelity constraint ``weight * sum_l lambda_l * mean max(0, phi - F_l)`` (after arXiv 2511.18375; ours).

    A layer is asked for fidelity ``phi`` and no more; a low phi keeps its capacity. F is the undialled fidelity: under
    a dial the layer's own weights already obey it, and at lambda = 1 they would give no gradient at all.

    Attributes:
        phi: wanted fidelity in [0, 1]: a number, one for each layer, or one for each head of each layer.
        weight: nats per token for each unit of missing fidelity.
    """

    phi: Target
    weight: float
    needs: ClassVar[Quantity] = "fidelity"

    def __post_init__(self) -> None:
        check_values("phi", self.phi, 1.0)
        check_weight(self.weight)

    def check(self, num_layers: int, num_heads: int) -> None:
        """See ``Penalty.check``."""
        check_shape("phi", self.phi, num_layers, num_heads)

    def summed(self, recorded: Recorded, localities: Sequence[float], queries: Tensor) -> Tensor:
        """See ``Penalty.summed``."""
        total = torch.zeros((), device=queries.device)
        for layer, fidelity in recorded.fidelity.items():
            values = fidelity.to(torch.promote_types(fidelity.dtype, torch.float32))
            shortfall = torch.clamp(of_layer(self.phi, layer, values) - values, min=0.0).mean(dim=1)
            total = total + localities[layer] * (shortfall * queries).sum()
        return self.weight * total
