"""Recruitment blocks: a new block is opened when one more model of the text pays for itself, in bits."""

import copy
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proloc.blocks.base import Partitioner, Trace, check_length, check_lengths
from proloc.blocks.greedy import judged_at, leads_from, open_blocks
from proloc.blocks.sentence_ends import EndsSource, SentenceEnds
from proloc.errors import ProlocError


class RecruitmentBlocks(Partitioner):
    """A block closes after the first sentence that a new word model writes down in fewer bits than the block's does.

    The model of a block is a unigram distribution with a Dirichlet prior around the language's token frequencies q:
    ``P(sentence | n tokens with counts c) = prod_v rising(c_v + a q_v, r_v) / rising(n + a, m)`` for a sentence of m
    tokens with counts r, ``rising(x, k) = x (x + 1) ... (x + k - 1)``. A new block is recruited when
    ``log2 P(sentence | nothing) - log2 P(sentence | block) > cost``: the bits that a model of its own would save exceed
    the bits that one more model costs.

    The sentence that recruits stays in the old block, since it was read by then; its words start the new block's model,
    so that the sentence after it is already judged by the new topic. With hindsight it leads the new block.

    Args:
        sentence_ends: as for ``SentenceBlocks``.
        background: how often each token occurs in the language, ``[vocab]``, counts or shares; every token of it is
            then counted once more, so that none is impossible.
        cost: bits that a new block must save; see ``calibrate``.
        prior: a, the tokens that the prior is worth.
        min_sentence: a shorter sentence is judged together with the next one; in tokens.
        min_length: the shortest block; in tokens.
        max_length: a block this long closes anyway, and the model goes on; None = no limit.
        hindsight: the sentence that recruits is home to the new block too.

    Raises:
        ProlocError: a length, cost, prior or background that cannot be.

    Source: ours, after the recruitment of arXiv 2510.17358, which allocates a block when a penalised likelihood says
    so; its formula was not available. The distribution is the Dirichlet compound multinomial.
    """

    kind: ClassVar[str] = "recruitment"
    threshold_range: ClassVar[tuple[float, float] | None] = (-1024.0, 1024.0)

    def __init__(
        self,
        sentence_ends: EndsSource,
        background: Tensor | NDArray[Any] | Sequence[float],
        *,
        cost: float = 0.0,
        prior: float = 1000.0,
        min_sentence: int = 8,
        min_length: int = 16,
        max_length: int | None = 256,
        hindsight: bool = False,
    ) -> None:
        check_lengths(min_length, max_length)
        check_length("min_sentence", min_sentence)
        if not 0 < prior < math.inf:
            raise ProlocError(f"prior is a number of tokens and must be > 0 and finite, not {prior!r}.")
        self.sentence_ends = SentenceEnds.read(sentence_ends)
        self.background = _checked_background(background)
        self.cost = _checked_cost(cost)
        self.prior = float(prior)
        self.min_sentence = min_sentence
        self.min_length = min_length
        self.max_length = max_length
        self.hindsight = hindsight
        seen = self.background.numpy() + 1.0
        self._pseudo = self.prior * seen / seen.sum()

    def with_threshold(self, threshold: float) -> Self:
        other = copy.copy(self)
        other.cost = _checked_cost(threshold)
        return other

    def boundaries(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        return self._walk(ids)[0]

    def boundaries_and_leads(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        opens, _, evidence = self._walk(ids)
        return opens, leads_from(opens, evidence if self.hindsight else {})

    def trace(self, ids: NDArray[np.int64]) -> Trace:
        return Trace(scores=self._walk(ids)[1], threshold=self.cost, meaning="bits that a new block saves")

    def settings(self) -> dict[str, Any]:
        return {
            "sentence_ends": self.sentence_ends.settings(),
            "cost": self.cost,
            "prior": self.prior,
            "min_sentence": self.min_sentence,
            "min_length": self.min_length,
            "max_length": self.max_length,
            "hindsight": self.hindsight,
        }

    def tensors(self) -> dict[str, Tensor]:
        return {"background": self.background}

    def _walk(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.float64], dict[int, int]]:
        """Where blocks open, the scores, and the first token of the sentence that recruited, by block."""
        if ids.max() >= self._pseudo.size:
            raise ProlocError(
                f"Token id {int(ids.max())} is outside the recruitment blocks' background of {self._pseudo.size} "
                "tokens; build the blocks from counts of the vocabulary that writes these tokens."
            )
        ends = self.sentence_ends.after(ids)
        cuts = judged_at(ends, self.min_sentence)
        pieces = _Pieces(ids, cuts, self._pseudo)
        counts = np.zeros(self._pseudo.size)
        first, piece = 0, 0  # the model has seen the tokens from first to the start of the piece
        evidence: dict[int, int] = {}

        def saved(start: int, cut: int) -> float:
            nonlocal first, piece
            if piece + 1 == len(cuts) or cut != cuts[piece + 1]:
                return math.nan
            judged, piece = cuts[piece], piece + 1
            tokens, base = ids[judged:cut], pieces.base[judged:cut]
            seen = counts[tokens]
            norm = _log_rising(judged - first + self.prior, cut - judged) - _log_rising(self.prior, cut - judged)
            within = float(np.add.reduce(np.log(seen + base)))
            bits = (pieces.alone[piece - 1] - within + norm) / math.log(2)
            enough = cut - start >= self.min_length
            if enough and bits > self.cost:
                counts[ids[first:judged]] = 0.0
                first = evidence[cut] = judged
                seen.fill(0.0)
            # Of a token that occurs twice in the piece, the last assignment stands, and it has the larger number.
            counts[tokens] = seen + pieces.so_far[judged:cut]
            return bits if enough else math.nan

        return *open_blocks(ends, self.max_length, saved, self.cost), evidence


class _Pieces:
    """What is known of every piece before any block is.

    Attributes:
        so_far: how often the token occurred in its piece, this time included, ``[seq]``.
        base: the times before this one and the token's prior, ``[seq]``.
        alone: ``ln P(piece | nothing)`` without its norm, one for each piece.
    """

    def __init__(self, ids: NDArray[np.int64], cuts: list[int], pseudo: NDArray[np.float64]) -> None:
        piece = np.zeros(ids.size, dtype=np.int64)
        piece[[cut for cut in cuts[1:] if cut < ids.size]] = 1
        keys = piece.cumsum() * pseudo.size + ids
        order = np.argsort(keys, kind="stable")
        new = np.diff(keys[order], prepend=-1) > 0
        place = np.arange(ids.size)
        self.so_far = np.empty(ids.size)
        self.so_far[order] = place - np.maximum.accumulate(np.where(new, place, 0)) + 1.0
        self.base = self.so_far - 1.0 + pseudo[ids]
        logs = np.log(self.base[: cuts[-1]])
        self.alone = np.add.reduceat(logs, cuts[:-1]).tolist() if len(cuts) > 1 else []


def _log_rising(value: float, times: int) -> float:
    """``ln(value (value + 1) ... (value + times - 1))``."""
    return math.lgamma(value + times) - math.lgamma(value)


def _checked_background(background: Tensor | NDArray[Any] | Sequence[float]) -> Tensor:
    seen = torch.as_tensor(background).detach().to("cpu", torch.float64, copy=True)
    if seen.dim() != 1 or not seen.numel() or not bool((seen >= 0).all()) or not math.isfinite(float(seen.sum())):
        raise ProlocError(f"background must be a number >= 0 for each token; its shape is {list(seen.shape)}.")
    return seen


def _checked_cost(cost: float) -> float:
    if not math.isfinite(cost):
        raise ProlocError(f"cost is a number of bits and must be finite, not {cost!r}.")
    return float(cost)
