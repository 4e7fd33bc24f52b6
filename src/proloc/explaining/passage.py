"""What is explained: a text in blocks, and the tokens in it whose prediction is asked about."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from proloc.errors import ProlocError


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A text, a target in it, and the blocks that the target's prediction may have come from.

    The target's tokens are predicted by the tokens before each of them. The block of the first of these, the *asking*
    block, and what follows it are never ablated, since the question itself stands there; the blocks before it are the
    *sources*. Sinks belong to no source: hiding them would break a model that rests its attention on them, whatever
    block they stand in.

    Attributes:
        ids: int64 ``[text]``.
        block_ids: int64 ``[text]``, the blocks that the model's attention goes by.
        units: int64 ``[text]``, the blocks that the prediction is attributed to, counted from 0 in the order of the
            text; the same as ``block_ids`` unless several partitions are compared on the same sources.
        start, end: the target, tokens ``start .. end - 1``.
        num_sinks: that many first tokens belong to no source.
    """

    ids: Tensor
    block_ids: Tensor
    units: Tensor
    start: int
    end: int
    num_sinks: int

    def __post_init__(self) -> None:
        length = len(self.ids)
        if self.ids.dim() != 1 or self.ids.shape != self.block_ids.shape or self.ids.shape != self.units.shape:
            shapes = ", ".join(str(tuple(part.shape)) for part in (self.ids, self.block_ids, self.units))
            raise ProlocError(f"ids, block_ids and units must all be [text]; got {shapes}.")
        if not 1 <= self.start < self.end <= length:
            raise ProlocError(
                f"the target is tokens {self.start} to {self.end - 1} of {length}; it must start at token 1 or later."
            )
        steps = self.units.diff()
        if int(self.units[0]) != 0 or bool(((steps != 0) & (steps != 1)).any()):
            raise ProlocError("units must be numbered 0, 1, 2 ... in the order of the text, each in one piece.")

    @property
    def read(self) -> int:
        """How many tokens are read: all before the target's last one."""
        return self.end - 1

    @property
    def num_targets(self) -> int:
        return self.end - self.start

    @property
    def asking(self) -> int:
        """The unit of the token that predicts the target's first one."""
        return int(self.units[self.start - 1])

    @cached_property
    def sources(self) -> list[int]:
        """The units before the asking one that hold a token beside the sinks; attributions are in this order."""
        return sorted({int(unit) for unit in self.units[self.num_sinks : self.start]} - {self.asking})

    @cached_property
    def membership(self) -> Tensor:
        """Float ``[read, source]``: 1 where a token belongs to the source."""
        return (self._content[:, None] == torch.tensor(self.sources, dtype=torch.long)).double()

    @cached_property
    def _content(self) -> Tensor:
        """The unit of every token read, -1 for sinks."""
        positions = torch.arange(self.read)
        return torch.where(positions < self.num_sinks, -1, self.units[: self.read])

    def marked(self, left_out: Tensor) -> Tensor:
        """The tokens of these sources, bool ``[row, read]`` from bool ``[row, source]``."""
        return (left_out.double() @ self.membership.T) > 0

    def edges(self, left_out: Tensor) -> Tensor:
        """The edges from sources to whoever reads them from outside, bool ``[row, 1, read, read]`` (query, key).

        Args:
            left_out: bool ``[row, source]``.
        """
        units = self.units[: self.read]
        outside = units[:, None] != units[None, :]
        return (self.marked(left_out)[:, None, :] & outside)[:, None]


def count_units(block_ids: Tensor) -> Tensor:
    """Blocks ``[text]`` numbered 0, 1, 2 ... in the order of the text."""
    opens = torch.ones_like(block_ids)
    opens[1:] = (block_ids.diff() != 0).to(opens.dtype)
    return opens.cumsum(0) - 1
