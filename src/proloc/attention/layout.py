"""Which keys every query may read and which of them are home, as ranges of positions instead of a T x T matrix."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from proloc.errors import ProlocError
from proloc.locality import AWAY, HIDDEN, HOME, SINK, block_starts, home_starts


@dataclass(frozen=True)
class KeyRanges:
    """The keys of every query of one batch; all layers with the same window share it.

    Query q stands at key position ``p = query_offset + q`` and sees the keys ``visible_start .. p``; of these, the keys
    from ``home_start`` on are home, earlier ones are away unless they are sinks. Every query sees at least itself: a
    padding query sees only itself, so that its output is finite and its gradients touch no other token.

    Attributes:
        visible_start: int32 ``[batch, query]``, the first visible key.
        home_start: int32 ``[batch, query]``, the first home key; ``visible_start <= home_start <= p``.
        sinks: bool ``[batch, key]``, keys that are read at full weight from everywhere that sees them.
        query_offset: position of the first query among the keys.
        memo: what a backend has derived from these ranges and uses again in the next layer, by name.
    """

    visible_start: Tensor
    home_start: Tensor
    sinks: Tensor
    query_offset: int = 0
    memo: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_blocks(
        cls, block_ids: Tensor, sinks: Tensor, visible_start: Tensor, query_offset: int = 0, *, halo: int = 0
    ) -> "KeyRanges":
        """Ranges from the block of every key.

        Args:
            block_ids: int64 ``[batch, key]``; equal ids in a row = the same block. Leads count (``locality``).
            sinks: bool ``[batch, key]``.
            visible_start: integer ``[batch, query]``; a start after the query itself marks a padding query.
            query_offset: position of the first query among the keys; keys after the last query are never read.
            halo: that many blocks before a query's own are home as well.

        Raises:
            ProlocError: shapes that do not fit, or a block that is interrupted by another one inside a visible range.
        """
        batch, num_queries = visible_start.shape
        if block_ids.shape != sinks.shape or block_ids.dim() != 2 or block_ids.shape[0] != batch:
            shapes = ", ".join(str(tuple(part.shape)) for part in (block_ids, sinks, visible_start))
            raise ProlocError(f"block_ids and sinks must be [batch, key], visible_start [batch, query]; got {shapes}.")
        if query_offset < 0 or query_offset + num_queries > block_ids.shape[1]:
            raise ProlocError(
                f"{num_queries} queries from position {query_offset} do not fit {block_ids.shape[1]} keys."
            )
        positions = torch.arange(query_offset, query_offset + num_queries, device=visible_start.device)
        visible_start = torch.minimum(visible_start.clamp_min(0), positions)
        own_start = block_starts(block_ids)
        interrupted = _last_seen(block_ids).gather(1, own_start[:, positions]) >= visible_start
        if bool(interrupted.any()):
            row, query = (int(index) for index in interrupted.nonzero()[0])
            position = query_offset + query
            raise ProlocError(
                f"block {int(block_ids[row, position])} of row {row} is not contiguous at token {position}: another "
                "block lies between its parts; attention over ranges needs contiguous blocks."
            )
        home_start = home_starts(block_ids, halo)[:, positions]
        return cls(visible_start.int(), torch.maximum(home_start, visible_start).int(), sinks.bool(), query_offset)

    def at(self, positions: Tensor) -> "KeyRanges":
        """The same queries over some of the keys.

        Args:
            positions: int64 ``[kept]``, ascending; home keys, visible sinks and the queries themselves among them.
        """
        visible, home = (
            torch.searchsorted(positions, start.long()).int() for start in (self.visible_start, self.home_start)
        )
        offset = int(torch.searchsorted(positions, self.query_offset))
        return KeyRanges(visible, home, self.sinks[:, positions], offset)

    def relation(self) -> Tensor:
        """The same as a matrix, uint8 ``[batch, 1, query, key]`` of HIDDEN, AWAY, HOME and SINK (see ``locality``)."""
        keys = torch.arange(self.sinks.shape[1], device=self.sinks.device)
        visible = (keys >= self.visible_start[..., None]) & (keys <= self._positions()[:, None])
        code = torch.where(keys >= self.home_start[..., None], HOME, AWAY)
        code = torch.where(self.sinks[:, None, :], SINK, code)
        return torch.where(visible, code, HIDDEN).to(torch.uint8)[:, None]

    def unmasked(self, retain: float) -> bool:
        """Whether plain attention without a mask (causal, or of one query over all keys) is the same at this retain.

        So it is where every query sees back to the first key and nothing is away (retain = 1, or home keys and sinks
        are all there is). It is worked out once for a batch and shared by its layers.
        """
        return (retain == 1.0 and self._sees_all) or (retain == 0.0 and self._sees_all and self._nothing_away)

    @cached_property
    def _sees_all(self) -> bool:
        queries, keys = self.visible_start.shape[1], self.sinks.shape[1]
        fits = self.query_offset + queries == keys and (queries == 1 or self.query_offset == 0)
        return fits and not bool(self.visible_start.any())

    @cached_property
    def _nothing_away(self) -> bool:
        sinks_before = torch.nn.functional.pad(self.sinks.int().cumsum(1), (1, 0)).gather(1, self.home_start.long())
        return bool((sinks_before == self.home_start).all())

    def uniform(self) -> Tensor:
        """Share of the visible keys that are home or sink: the fidelity of uniform attention, ``[batch, query]``."""
        before = torch.nn.functional.pad(self.sinks.int().cumsum(1), (1, 0))
        starts = (part.long() for part in (self.home_start, self.visible_start))
        sinks_to_home, sinks_to_visible = (before.gather(1, start) for start in starts)
        positions = self._positions()
        near = positions - self.home_start + 1 + sinks_to_home - sinks_to_visible
        return near / (positions - self.visible_start + 1)

    def _positions(self) -> Tensor:
        first, count = self.query_offset, self.visible_start.shape[1]
        return torch.arange(first, first + count, device=self.visible_start.device)


def _last_seen(block_ids: Tensor) -> Tensor:
    """For every key, the latest earlier key with its id, ``[batch, key]``; -1 = none."""
    ordered, order = block_ids.sort(dim=1, stable=True)
    earlier = torch.full_like(order, -1)
    earlier[:, 1:] = torch.where(ordered[:, 1:] == ordered[:, :-1], order[:, :-1], -1)
    return torch.empty_like(order).scatter_(1, order, earlier)
