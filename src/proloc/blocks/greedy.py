"""The left-to-right walk that sentence and drift blocks share."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


def open_blocks(
    ends: NDArray[np.bool_], max_length: int | None, closes: Callable[[int, int], bool]
) -> NDArray[np.bool_]:
    """Open a block after each sentence end that ``closes`` accepts, and wherever a block reaches ``max_length``.

    Args:
        ends: ``[seq]``, True where a sentence ends with that token.
        max_length: the longest block; None = no limit.
        closes: asked at every sentence end, in order, with the block's first token and the token after the end.

    Returns:
        bool ``[seq]``, True where a block opens; the first is always True.
    """
    opens = np.zeros(ends.shape, dtype=bool)
    opens[0] = True
    start = 0
    # A sentence that ends with the last token opens nothing: the next block has no token yet.
    for cut in (np.flatnonzero(ends[:-1]) + 1).tolist():
        start = _force(opens, start, cut, max_length)
        if closes(start, cut):
            opens[cut] = True
            start = cut
    _force(opens, start, ends.size, max_length)
    return opens


def _force(opens: NDArray[np.bool_], start: int, stop: int, max_length: int | None) -> int:
    """Cut full-length blocks off ``[start, stop)`` until what is left fits; returns where that rest starts."""
    if max_length is None:
        return start
    opens[start + max_length : stop : max_length] = True
    return start + (stop - start - 1) // max_length * max_length
