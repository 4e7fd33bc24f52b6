"""The left-to-right walk that most partitioners share."""

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from proloc.errors import ProlocError

LENGTH_SO_FAR = "tokens in the block so far"
LENGTH_RANGE = (0.0, 65536.0)
"""Thresholds of the rules whose score is ``LENGTH_SO_FAR``."""


def shortest_above(length: float, max_length: int | None) -> int:
    """The ``min_length`` of a block that may close when it has more than ``length`` tokens.

    Above ``max_length`` only that closes blocks, which is what a ``min_length`` as large says.

    Raises:
        ProlocError: a length below 0 or not finite.
    """
    if not 0 <= length < math.inf:
        raise ProlocError(f"the length that a block must exceed is a number of tokens >= 0, not {length!r}.")
    shortest = math.floor(length) + 1
    return shortest if max_length is None else min(shortest, max_length)


def open_blocks(
    ends: NDArray[np.bool_], max_length: int | None, score: Callable[[int, int], float], threshold: float
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Open a block after each possible end whose score is above the threshold, and where one reaches ``max_length``.

    Args:
        ends: ``[seq]``, True where a block may end with that token.
        max_length: the longest block; None = no limit.
        score: asked at every such end, in order, with the block's first token and the token after the end; NaN = the
            block stays open.
        threshold: a block opens where ``score > threshold``.

    Returns:
        bool ``[seq]``, True where a block opens; the first is always True. And the scores ``[seq]``, each at the token
        before which a block might have opened, NaN where nothing was asked.
    """
    opens = np.zeros(ends.shape, dtype=bool)
    scores = np.full(ends.shape, np.nan)
    opens[0] = True
    start = 0
    # An end with the last token opens nothing: the next block has no token yet.
    for cut in (np.flatnonzero(ends[:-1]) + 1).tolist():
        if max_length is not None and cut - start > max_length:
            start = _force(opens, start, cut, max_length)
        scores[cut] = value = score(start, cut)
        if value > threshold:
            opens[cut] = True
            start = cut
    if max_length is not None:
        _force(opens, start, ends.size, max_length)
    return opens, scores


def judged_at(ends: NDArray[np.bool_], shortest: int) -> list[int]:
    """``[0, ...]``: the tokens after which sentences are judged, a shorter one together with what follows it."""
    cuts = [0]
    for cut in (np.flatnonzero(ends) + 1).tolist():
        if cut - cuts[-1] >= shortest:
            cuts.append(cut)
    return cuts


def leads_from(opens: NDArray[np.bool_], evidence: Mapping[int, int]) -> NDArray[np.int64]:
    """The lead of every block: the tokens whose evidence opened it, but none before the home of the block before.

    Args:
        opens: bool ``[seq]``.
        evidence: the first token of what opened a block, by the token before which it opened; no lead where it is not.

    Returns:
        int64 ``[seq]``.
    """
    leads, home = np.zeros(opens.shape, dtype=np.int64), 0
    for cut in np.flatnonzero(opens).tolist():
        home = max(evidence.get(cut, cut), home)
        leads[cut] = cut - home
    return leads


def _force(opens: NDArray[np.bool_], start: int, stop: int, max_length: int) -> int:
    """Cut full-length blocks off ``[start, stop)`` until what is left fits; returns where that rest starts."""
    opens[start + max_length : stop : max_length] = True
    return start + (stop - start - 1) // max_length * max_length
