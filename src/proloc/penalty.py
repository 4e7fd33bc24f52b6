"""Penalties that ask for locality during training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proloc.errors import ProlocError


@dataclass(frozen=True, kw_only=True)
class LowFidelity:
    """The low-fidelity constraint ``weight * sum_l lambda_l * mean max(0, phi - F_l)`` (after arXiv 2511.18375; ours).

    A layer is asked for fidelity ``phi`` and no more; a low phi keeps its capacity. F is the undialled fidelity: under
    a dial the layer's own weights already obey it, and at lambda = 1 they would give no gradient at all.

    Attributes:
        phi: wanted fidelity in [0, 1].
        weight: nats per token for each unit of missing fidelity.
    """

    phi: float
    weight: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.phi <= 1.0:
            raise ProlocError(f"phi is {self.phi}; it must lie in [0, 1].")
        if not 0.0 <= self.weight < float("inf"):
            raise ProlocError(f"the penalty's weight is {self.weight}; it must be 0 or more.")

    def summed(self, fidelity: Mapping[int, Tensor], localities: Sequence[float], queries: Tensor) -> Tensor:
        """The penalty summed over queries; divide by the number of targets of the whole batch, like the cross-entropy.

        Args:
            fidelity: undialled fidelity by layer, each ``[batch, head, query]``.
            localities: lambda of every layer.
            queries: bool ``[batch, query]``, True for queries that predict a target.

        Returns:
            scalar, mean over heads, sum over queries and layers.
        """
        total = torch.zeros((), device=queries.device)
        for layer, values in fidelity.items():
            shortfall = torch.clamp(self.phi - values.float(), min=0.0).mean(dim=1)
            total = total + localities[layer] * (shortfall * queries).sum()
        return self.weight * total
