"""The distance between attention before and after the dial."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from proloc.errors import ProlocError
from proloc.penalty.base import Quantity, Recorded, check_weight


@dataclass(frozen=True, kw_only=True)
class DialledKL:
    """``weight * sum_l mean KL(q_l || p_l)``: how far the dial at 1 would move the attention p of a layer to q (ours).

    With F the fidelity before the dial, r = 1 - lambda_l and Z = F + r (1 - F), q is p on home keys and sinks and r p
    on away keys, both over Z, so that in nats

        KL(q || p) = r (1 - F) / Z * log r - log Z,   and at r = 0   -log F

    No weights are needed. At lambda = 1 it asks for all fidelity there is. Below, it is 0 at F = 1 **and at F = 0**,
    where the dial changes nothing either: a head with ``Z < -r log(r) / (1 - r)`` is pushed away from home. At r = 0.5
    that is below F = 0.39, at r = 0.1 below 0.17.

    Attributes:
        weight: nats per token for each nat of divergence.
        floor: F is taken as ``floor + (1 - floor) F``, so that no gradient is larger than about ``1 / floor``.
    """

    weight: float
    floor: float = 1e-4
    needs: ClassVar[Quantity] = "fidelity"

    def __post_init__(self) -> None:
        check_weight(self.weight)
        if not 0.0 < self.floor < 1.0:
            raise ProlocError(f"the floor is {self.floor}; it must lie between 0 and 1.")

    def check(self, num_layers: int, num_heads: int) -> None:
        """It fits every model."""

    def summed(self, recorded: Recorded, localities: Sequence[float], queries: Tensor) -> Tensor:
        """See ``Penalty.summed``; lambda is in the divergence itself, which is 0 at lambda = 0."""
        total = torch.zeros((), device=queries.device)
        for layer, fidelity in recorded.fidelity.items():
            values = fidelity.to(torch.promote_types(fidelity.dtype, torch.float32))
            divergence = _divergence(self.floor + (1 - self.floor) * values, 1.0 - localities[layer])
            total = total + (divergence.mean(dim=1) * queries).sum()
        return self.weight * total


def _divergence(fidelity: Tensor, retain: float) -> Tensor:
    """KL of dialled from undialled attention, elementwise."""
    normalised = fidelity + retain * (1 - fidelity)
    if retain == 0.0:
        return -normalised.log()
    return retain * (1 - fidelity) / normalised * math.log(retain) - normalised.log()
