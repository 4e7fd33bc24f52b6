"""What every attention backend takes and returns."""

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from proloc.attention.layout import KeyRanges
from proloc.locality import dialled_fidelity

Wanted = Literal["nothing", "fidelity", "all"]


@dataclass(frozen=True)
class Attention:
    """What one attention layer computed.

    Attributes:
        output: ``[batch, query, head, head_dim]``, differentiable.
        fidelity_undialled: mass on home and sink keys before the dial, ``[batch, head, query]`` float32 or better,
            differentiable; None where it was not wanted.
        sink_mass: mass on sinks as used (after the dial), same shape, without gradient; None unless all is wanted.
        entropy_bits: entropy of the weights as used, likewise.
        retain: the share that away keys kept, 0-dim.
        weights: as used, ``[batch, head, query, key]``, where the backend writes them out; None elsewhere.
        weights_undialled: the same before the dial.
    """

    output: Tensor
    retain: Tensor
    fidelity_undialled: Tensor | None = None
    sink_mass: Tensor | None = None
    entropy_bits: Tensor | None = None
    weights: Tensor | None = None
    weights_undialled: Tensor | None = None

    @property
    def fidelity(self) -> Tensor | None:
        """Mass on home and sink keys as used, ``[batch, head, query]``, differentiable."""
        if self.fidelity_undialled is None:
            return None
        retain = self.retain.to(self.fidelity_undialled)
        # With nothing away left the ratio is F / F, and F may have rounded to 0.
        return dialled_fidelity(self.fidelity_undialled.clamp_min(1e-30), retain)

    @property
    def home_mass(self) -> Tensor | None:
        """Mass on home keys without sinks as used, ``[batch, head, query]``."""
        fidelity = self.fidelity
        if fidelity is None or self.sink_mass is None:
            return None
        return (fidelity - self.sink_mass).clamp_min(0.0)


class Backend(Protocol):
    """One way to compute dialled attention."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        ranges: KeyRanges,
        retain: Tensor,
        *,
        scaling: float,
        dropout: float = 0.0,
        softcap: float | None = None,
        wanted: Wanted = "nothing",
    ) -> Attention:
        """``softmax(scaling * Q K^T + log(retain) * away) V``.

        Args:
            query: ``[batch, head, query, head_dim]``.
            key: ``[batch, kv_head, key, head_dim]``; every kv_head serves ``head / kv_head`` heads.
            value: ``[batch, kv_head, key, head_dim]``.
            ranges: visible, home and sink keys.
            retain: 0-dim, in [0, 1], without gradient; its value may change between calls.
            scaling: factor on the scores.
            dropout: probability of dropping a weight.
            softcap: scores become ``softcap * tanh(scores / softcap)``.
            wanted: which statistics to return.

        Raises:
            ProlocError: something asked for that this backend cannot do.
        """
        ...
