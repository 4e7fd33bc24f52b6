"""Fixed windows: the control that knows nothing of the text."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from proloc.blocks.base import Partitioner, check_length
from proloc.errors import ProlocError


class FixedBlocks(Partitioner):
    """A block opens at every ``length``-th token of a sequence.

    ``opens[t] = (t mod length == 0)``

    Args:
        length: tokens in a block, >= 1.
        lead: tokens before each block but the first that are home to it too, at most ``length``: a control for blocks
            with hindsight.

    Raises:
        ProlocError: ``length`` is not a whole number >= 1, or ``lead`` none in [0, length].

    Source: the fixed-window baseline of arXiv 2511.18375; definition ours.
    """

    kind: ClassVar[str] = "fixed"

    def __init__(self, length: int, *, lead: int = 0) -> None:
        check_length("length", length)
        if not isinstance(lead, int) or not 0 <= lead <= length:
            raise ProlocError(f"lead must be a whole number of tokens from 0 to length = {length}, not {lead!r}.")
        self.length = length
        self.lead = lead

    def boundaries(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        opens = np.zeros(ids.shape, dtype=bool)
        opens[:: self.length] = True
        return opens

    def boundaries_and_leads(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        opens, leads = self.boundaries(ids), np.zeros(ids.shape, dtype=np.int64)
        leads[self.length :: self.length] = self.lead
        return opens, leads

    def settings(self) -> dict[str, Any]:
        return {"length": self.length, "lead": self.lead}
