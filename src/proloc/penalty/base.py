"""What a penalty is: something summed over queries, from what the layers recorded before the dial."""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from torch import Tensor

from proloc.errors import ProlocError
from proloc.locality import Layout

Quantity = Literal["fidelity", "entropy", "weights"]


class Recorded(Protocol):
    """What layers with locality above 0 recorded in one forward pass, by layer; all of it before the dial."""

    @property
    def fidelity(self) -> Mapping[int, Tensor]:
        """Attention mass on home and sink keys, ``[batch, head, query]``."""
        ...

    @property
    def entropy_undialled(self) -> Mapping[int, Tensor]:
        """Entropy in bits, ``[batch, head, query]``."""
        ...

    @property
    def weights_undialled(self) -> Mapping[int, Tensor]:
        """Attention weights, ``[batch, head, query, key]``."""
        ...

    @property
    def relations(self) -> Mapping[int, Tensor]:
        """What every key is to every query where weights were recorded, uint8 ``[batch, 1, query, key]``."""
        ...

    @property
    def layout(self) -> Layout | None:
        """The blocks of the forward pass."""
        ...


class Penalty(Protocol):
    """Asks for locality during training."""

    @property
    def needs(self) -> Quantity:
        """What layers must record, with its gradient."""
        ...

    def check(self, num_layers: int, num_heads: int) -> None:
        """Raise a ProlocError unless the penalty fits a model of this shape."""
        ...

    def summed(self, recorded: Recorded, localities: Sequence[float], queries: Tensor) -> Tensor:
        """The penalty summed over queries; divide by the number of targets of the whole batch, like the cross-entropy.

        Args:
            recorded: what ``needs`` names, of layers with locality above 0.
            localities: lambda of every layer.
            queries: bool ``[batch, query]``, True for queries that predict a target.

        Returns:
            scalar in nats, mean over heads, sum over queries and layers.
        """
        ...


def check_weight(weight: float) -> None:
    """Raise a ProlocError unless the penalty's weight is a finite number, 0 or more."""
    if not 0.0 <= weight < float("inf"):
        raise ProlocError(f"the penalty's weight is {weight}; it must be 0 or more.")
