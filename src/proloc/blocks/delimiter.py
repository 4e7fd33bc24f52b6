"""Delimiter blocks: a block closes after a paragraph, a separator line, the end of a chat turn, a given token."""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from proloc.blocks.automaton import Automaton, string_automaton, token_automaton
from proloc.blocks.base import Partitioner, Trace, check_lengths
from proloc.blocks.greedy import LENGTH_RANGE, LENGTH_SO_FAR, open_blocks, shortest_above
from proloc.blocks.sentence_ends import Tokenizer


class DelimiterBlocks(Partitioner):
    """A block closes after the token within which a delimiter ends, once it has ``min_length`` tokens.

    ``opens[t] = (a delimiter ends within t-1 and t - start >= min_length) or t - start == max_length``

    Made by ``paragraphs``, ``strings`` or ``tokens``. What follows the delimiter within the same token stays in the old
    block: a token has one block.

    Args:
        automaton: int16 ``[states, ids]``, as ``blocks.automaton`` makes it.
        min_length: a shorter piece is merged with the next one; in tokens.
        max_length: a block this long closes without a delimiter; None = no limit.

    Raises:
        ProlocError: a length that cannot be, or a table that is no automaton.

    Source: ours.
    """

    kind: ClassVar[str] = "delimiter"
    threshold_range: ClassVar[tuple[float, float] | None] = LENGTH_RANGE

    def __init__(self, automaton: Tensor, *, min_length: int = 1, max_length: int | None = None) -> None:
        check_lengths(min_length, max_length)
        self.min_length = min_length
        self.max_length = max_length
        self._automaton = Automaton(automaton)

    @classmethod
    def paragraphs(cls, tokenizer: Tokenizer, *, min_length: int = 8, max_length: int | None = None) -> Self:
        """A block closes after a blank line; spaces on that line do not matter."""
        automaton = string_automaton(tokenizer, ["\n\n"], ignored=" \t\r")
        return cls(automaton.table, min_length=min_length, max_length=max_length)

    @classmethod
    def strings(
        cls, tokenizer: Tokenizer, delimiters: Sequence[str], *, min_length: int = 1, max_length: int | None = None
    ) -> Self:
        """A block closes after any of these strings, such as ``"\\n---\\n"`` or ``"<|im_end|>"``."""
        automaton = string_automaton(tokenizer, delimiters)
        return cls(automaton.table, min_length=min_length, max_length=max_length)

    @classmethod
    def tokens(cls, delimiters: Sequence[int], *, min_length: int = 1, max_length: int | None = None) -> Self:
        """A block closes after any of these token ids."""
        return cls(token_automaton(delimiters).table, min_length=min_length, max_length=max_length)

    def with_threshold(self, threshold: float) -> Self:
        other = copy.copy(self)
        other.min_length = shortest_above(threshold, self.max_length)
        return other

    def boundaries(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        return self._walk(ids)[0]

    def trace(self, ids: NDArray[np.int64]) -> Trace:
        return Trace(scores=self._walk(ids)[1], threshold=self.min_length - 1, meaning=LENGTH_SO_FAR)

    def settings(self) -> dict[str, Any]:
        return {"min_length": self.min_length, "max_length": self.max_length}

    def tensors(self) -> dict[str, Tensor]:
        return {"automaton": self._automaton.table}

    def _walk(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        return open_blocks(
            self._automaton.ends(ids), self.max_length, lambda start, cut: cut - start, self.min_length - 1
        )
