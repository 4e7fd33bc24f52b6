"""The keys of a batch as the attention backends see them: as ranges, and as a matrix only if somebody needs one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proloc.attention.layout import KeyRanges
from proloc.errors import ProlocError
from proloc.locality import AWAY, HIDDEN, HOME


class NoMaskError(ProlocError, AttributeError):
    """Something wanted to compute with what it took for an attention mask; hasattr() still works."""


class Keys:
    """What every query may read and how it is related to it; all layers with the same window share one.

    It travels through a model in place of its attention mask. Code that slices it like a 4D mask gets the matrix.

    Args:
        ranges: None where visible keys or blocks are not contiguous.
        relation: makes the uint8 matrix ``[batch, 1, query, key]`` of ``locality.relate``; called once, if at all.
        windowed: some queries do not see back to the start of their text.
        cut: what the layers get instead that lose edges (``hf.cutting``); None = no layer does.
        held: positions int64 ``[held]`` of the keys that are left in layers whose cache dropped some; None = all.
        dropped: bool ``[batch, key]``, keys that ``thinned`` hides where they are away (block dropout); None = none.
    """

    def __init__(
        self,
        ranges: KeyRanges | None,
        relation: Callable[[], Tensor],
        *,
        windowed: bool = False,
        held: Tensor | None = None,
        cut: "CutKeys | None" = None,
        dropped: Tensor | None = None,
    ) -> None:
        self.ranges = ranges
        self.windowed = windowed
        self.held = held
        self.cut = cut
        self.dropped = dropped
        self._make = relation
        self._relation: Tensor | None = None
        self._local: Keys | None = None
        self._thinned: Keys | None = None

    @classmethod
    def of_relation(cls, relation: Tensor) -> "Keys":
        """Keys of which only the matrix is known."""
        return cls(None, lambda: relation)

    def relation(self) -> Tensor:
        """Uint8 ``[batch, 1, query, key]`` of HIDDEN, AWAY, HOME and SINK."""
        if self._relation is None:
            self._relation = self._make()
        return self._relation

    def at_layer(self, layer: int) -> "Keys":
        """What this layer gets."""
        return self if self.cut is None or not self.cut.concerns(layer) else self.cut.keys

    def local(self) -> "Keys":
        """The same queries over the keys ``held`` alone."""
        if self.held is None:
            return self
        if self._local is None:
            held = self.held
            ranges = None if self.ranges is None else self.ranges.at(held)
            self._local = Keys(ranges, lambda: self.relation()[..., held], windowed=self.windowed)
        return self._local

    def thinned(self) -> "Keys":
        """The same without the away keys that block dropout hides; what is left is no range."""
        if self.dropped is None:
            return self
        if self._thinned is None:
            relation = self.relation()
            hidden = (relation == AWAY) & self.dropped[:, None, None, :]
            self._thinned = Keys.of_relation(torch.where(hidden, HIDDEN, relation).to(torch.uint8))
        return self._thinned

    def unmasked(self, retain: float) -> bool:
        """See ``KeyRanges.unmasked``; False where nothing is known but the matrix."""
        return self.ranges is not None and self.ranges.unmasked(retain)

    def uniform(self) -> Tensor:
        """Share of the visible keys that are home or sink, ``[batch, query]``: the fidelity of uniform attention."""
        if self.ranges is not None:
            return self.ranges.uniform()
        if self.relation().shape[1] != 1:
            raise ProlocError("every head has its own keys here, so uniform attention is not one number for all heads.")
        relation = self.relation()[:, 0]
        return (relation >= HOME).sum(dim=-1) / (relation != HIDDEN).sum(dim=-1).clamp_min(1)

    def to(self, device: torch.device | str, *_: Any, **__: Any) -> "Keys":
        """The same on another device; its numbers keep their types, whatever else is asked for."""
        ranges = self.ranges
        if ranges is not None:
            start, home, sinks = (part.to(device) for part in (ranges.visible_start, ranges.home_start, ranges.sinks))
            ranges = KeyRanges(start, home, sinks, ranges.query_offset)
        held, dropped = (None if part is None else part.to(device) for part in (self.held, self.dropped))
        cut = None if self.cut is None else CutKeys(self.cut.keys.to(device), self.cut.layers)
        return Keys(
            ranges,
            lambda: self.relation().to(device),
            windowed=self.windowed,
            held=held,
            dropped=dropped,
            cut=cut,
        )

    def __getitem__(self, index: Any) -> Tensor:
        if self.cut is not None:
            if self.cut.layers is None:
                return self.cut.keys[index]
            raise ProlocError("this model cuts its attention mask to length, so edges can be cut in all layers only.")
        relation = self.relation()
        part = relation[index]
        if self.held is not None and part.shape[-1:] != relation.shape[-1:]:
            raise ProlocError(
                "this model cuts its attention mask to length, and a local cache that dropped keys cannot serve that; "
                "pass past_key_values=DynamicCache(config=model.config) to keep every key."
            )
        return part

    def __getattr__(self, name: str) -> Any:
        raise NoMaskError(
            f"this architecture computes with its attention mask (it asked for {name!r}), whose meaning proloc would "
            "change; it cannot be localised."
        )


@dataclass(frozen=True)
class CutKeys:
    """The keys of layers that lose edges, see ``hf.cutting``.

    Attributes:
        keys: what they get; with a head axis of 1, or of all heads.
        layers: which they are; None = all.
    """

    keys: Keys
    layers: frozenset[int] | None

    def concerns(self, layer: int) -> bool:
        return self.layers is None or layer in self.layers
