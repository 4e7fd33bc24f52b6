"""Surprise blocks: a block closes where a frozen language model did not see the text coming."""

import copy
import math
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from proloc.blocks.base import Partitioner, Trace, check_length, check_lengths
from proloc.blocks.greedy import open_blocks
from proloc.errors import ProlocError

_STEPS_PER_BIT = 256
_FEWEST = 8


class Surprisal(Protocol):
    """What a token tells a frozen model: ``-log2 p(token t | tokens before t)`` for one sequence.

    It must not change: not by training the model that reads the blocks, nor with what is in the same batch.
    """

    name: str

    def __call__(self, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Bits ``[seq]`` of the token ids ``[seq]``; the first token's are not read."""
        ...


class SurpriseBlocks(Partitioner):
    """A block closes after a token that surprises much more than those before it did.

    ``z[t] = (bits[t] - mean) / sd`` over the ``window`` tokens before t, of which there must be 8;
    ``opens[t] = (z[t-1] > gamma and t - start >= min_length) or t - start == max_length``

    Source: event boundaries of EM-LLM (Fountas et al., arXiv 2407.09450), without its refinement by modularity, which
    reads the whole text. There the surprising token opens the event; a boundary before it would tell its own query
    what it is, so that here it closes the block and the next token opens the new one.

    Bits are rounded to 1/256, so that running sums are exact and the rounding errors of a model that runs on another
    number of tokens are nearly always too small to move a boundary. They can: a value within one rounding of a step.

    Args:
        surprisal: of a frozen model, such as ``proloc.hf.provide("surprisal:MODEL")``; or its name, connected later.
        gamma: standard deviations above the recent mean; see ``calibrate``.
        window: tokens that count as recent.
        min_length: the shortest block; in tokens.
        max_length: a block this long closes anyway; None = no limit.

    Raises:
        ProlocError: a length or gamma that cannot be.
    """

    kind: ClassVar[str] = "surprise"
    model_attribute: ClassVar[str | None] = "surprisal"
    threshold_range: ClassVar[tuple[float, float] | None] = (-8.0, 64.0)

    def __init__(
        self,
        surprisal: Surprisal | str,
        *,
        gamma: float = 1.0,
        window: int = 64,
        min_length: int = 8,
        max_length: int | None = 256,
    ) -> None:
        check_lengths(min_length, max_length)
        check_length("window", window)
        if window < _FEWEST:
            raise ProlocError(f"window must be {_FEWEST} tokens or more, not {window}.")
        self.surprisal = surprisal
        self.gamma = _checked_gamma(gamma)
        self.window = window
        self.min_length = min_length
        self.max_length = max_length

    def with_threshold(self, threshold: float) -> Self:
        other = copy.copy(self)
        other.gamma = _checked_gamma(threshold)
        return other

    def boundaries(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        ends = self._scores(ids) > self.gamma
        return open_blocks(ends, self.max_length, lambda start, cut: cut - start, self.min_length - 1)[0]

    def trace(self, ids: NDArray[np.int64]) -> Trace:
        scores = np.concatenate([[np.nan], self._scores(ids)[:-1]])
        return Trace(scores=scores, threshold=self.gamma, meaning="surprisal of the token before, in sd above the mean")

    def settings(self) -> dict[str, Any]:
        return {
            "surprisal": self.surprisal if isinstance(self.surprisal, str) else self.surprisal.name,
            "gamma": self.gamma,
            "window": self.window,
            "min_length": self.min_length,
            "max_length": self.max_length,
        }

    def _scores(self, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """``z[seq]``, NaN where too few tokens came before."""
        if isinstance(self.surprisal, str):
            raise ProlocError(
                f"these blocks need the model '{self.surprisal}'; "
                "connect it: blocks = blocks.connect(proloc.hf.provide)."
            )
        bits = np.asarray(self.surprisal(ids), dtype=np.float64)
        if bits.shape != ids.shape or not np.isfinite(bits[1:]).all():
            raise ProlocError(f"the surprisal of {ids.size} tokens must be as many finite numbers of bits.")
        bits = np.round(bits * _STEPS_PER_BIT) / _STEPS_PER_BIT
        bits[0] = 0.0
        place = np.arange(ids.size)
        start = np.maximum(place - self.window, 1)
        known = np.maximum(place - start, 1)
        mean = _window_sums(bits, start) / known
        variance = np.maximum(_window_sums(bits**2, start) / known - mean**2, 0.0)
        # Where the recent tokens were all alike, one step of the rounding is the smallest deviation there is.
        scores: NDArray[np.float64] = (bits - mean) / np.maximum(np.sqrt(variance), 1 / _STEPS_PER_BIT)
        scores[place - start < _FEWEST] = np.nan
        return scores


def _window_sums(values: NDArray[np.float64], start: NDArray[np.int64]) -> NDArray[np.float64]:
    """The sum of the values from ``start[t]`` to ``t - 1``."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    within: NDArray[np.float64] = sums[:-1] - sums[np.minimum(start, np.arange(values.size))]
    return within


def _checked_gamma(gamma: float) -> float:
    if not math.isfinite(gamma):
        raise ProlocError(f"gamma is a number of standard deviations and must be finite, not {gamma!r}.")
    return float(gamma)
