"""Fixed windows: the control that knows nothing of the text."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from proloc.blocks.base import Partitioner, check_length


class FixedBlocks(Partitioner):
    """A block opens at every ``length``-th token of a sequence.

    ``opens[t] = (t mod length == 0)``

    Args:
        length: tokens in a block, >= 1.

    Raises:
        ProlocError: ``length`` is not a whole number >= 1.

    Source: the fixed-window baseline of arXiv 2511.18375; definition ours.
    """

    kind: ClassVar[str] = "fixed"

    def __init__(self, length: int) -> None:
        check_length("length", length)
        self.length = length

    def boundaries(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        opens = np.zeros(ids.shape, dtype=bool)
        opens[:: self.length] = True
        return opens

    def settings(self) -> dict[str, Any]:
        return {"length": self.length}
