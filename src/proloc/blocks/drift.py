"""Drift blocks: sentences are merged into one block until their meaning drifts away from it."""

import copy
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proloc.blocks.base import Partitioner, Trace, check_length, check_lengths
from proloc.blocks.greedy import leads_from, open_blocks
from proloc.blocks.sentence_ends import EndsSource, SentenceEnds
from proloc.blocks.token_table import RunningSums, check_finite, checked_table, principal, rarity
from proloc.errors import ProlocError


class DriftBlocks(Partitioner):
    """A block closes after the first sentence whose embedding lies too far from the block before it.

    ``distance = 1 - cos(sum of the embeddings of the last sentence, sum of those of the block before it)``; the block
    closes after that sentence when ``distance > threshold`` and it has ``min_length`` tokens.

    The sentence that drifted stays in the old block and the next one opens the new block: drift is known only once
    the sentence was read, and a boundary before it would tell its first tokens about its last. A block therefore has
    two sentences or more, unless ``max_length`` cuts it.

    With hindsight that sentence leads the new block: it is home to it, and the sentence after it is compared to it.

    The table is a copy in float16, never the model's own: fine-tuning the model must not move the blocks, and the
    saved table reloads bit for bit. Sums of float16 values are exact in float64 (steps of 2**-24 in 53 bits: up to
    2**29 tokens of values up to 1), so that no decision depends on what was read before the block.

    Args:
        sentence_ends: as for ``SentenceBlocks``.
        embedding: a fixed vector for every token id, ``[vocab, dim]``; ``from_embedding`` makes one of a model's.
        threshold: the cosine distance, 0 to 2, above which a sentence is about something else; see ``calibrate``.
        min_sentence: a shorter sentence ("Yes.", a heading) is judged together with the next one; in tokens.
        min_length: the shortest block; in tokens.
        max_length: a block this long closes even inside a sentence; None = no limit.
        hindsight: the sentence that drifted is home to the new block too.

    Raises:
        ProlocError: a length, id or threshold that cannot be, or an embedding that is not finite in float16.

    Source: ours; the cohesion it measures is that of TextTiling (Hearst 1997), in a causal, one-pass form.
    """

    kind: ClassVar[str] = "drift"
    threshold_range: ClassVar[tuple[float, float] | None] = (0.0, 2.0)

    def __init__(
        self,
        sentence_ends: EndsSource,
        embedding: Tensor,
        *,
        threshold: float = 0.5,
        min_sentence: int = 8,
        min_length: int = 16,
        max_length: int | None = 256,
        hindsight: bool = False,
    ) -> None:
        check_lengths(min_length, max_length)
        check_length("min_sentence", min_sentence)
        self.sentence_ends = SentenceEnds.read(sentence_ends)
        self.threshold = _checked_threshold(threshold)
        self.min_sentence = min_sentence
        self.min_length = min_length
        self.max_length = max_length
        self.hindsight = hindsight
        self.embedding = checked_table(embedding)
        self._table = self.embedding.double()

    @classmethod
    def from_embedding(
        cls,
        sentence_ends: EndsSource,
        embedding: Tensor,
        *,
        dim: int = 64,
        counts: Tensor | NDArray[np.int64] | Sequence[int] | None = None,
        smoothing: float = 1e-4,
        **settings: Any,
    ) -> Self:
        """Drift blocks over a small fixed copy of a model's input embedding.

        ``row_v = smoothing / (smoothing + p_v) * W^T (e_v - mean)``, W the ``dim`` leading principal directions.

        Args:
            sentence_ends: as for ``SentenceBlocks``.
            embedding: static token embeddings ``[vocab, width]`` of any float type.
            dim: principal components to keep; a narrower embedding keeps all it has.
            counts: how often each token occurs in a corpus ``[vocab]``, to make frequent tokens count less;
                None = all tokens count the same.
            smoothing: token probability at which a token counts half. The default told topic changes best on a part of
                the Choi benchmark (4,096 tokens, PPMI embedding): AUC 0.75, 0.69 at 1e-3, 0.66 without counts.
            settings: ``threshold``, ``min_sentence``, ``min_length``, ``max_length``, ``hindsight``.

        Raises:
            ProlocError: as the class; or ``dim``, ``counts`` or ``smoothing`` cannot be.

        Source: frequency weights a / (a + p) from Arora et al. (2017), "A simple but tough-to-beat baseline for
        sentence embeddings"; the rest ours.
        """
        if not isinstance(dim, int) or dim < 1:
            raise ProlocError(f"dim must be a whole number >= 1, not {dim!r}.")
        check_finite(embedding)
        table = principal(embedding.detach().cpu().double(), dim)
        if counts is not None:
            table = table * rarity(counts, smoothing, table.shape[0])[:, None]
        # Only directions matter; the largest value becomes 1 so that float16 neither overflows nor loses small rows.
        table = table / table.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
        return cls(sentence_ends, table, **settings)

    def with_threshold(self, threshold: float) -> Self:
        other = copy.copy(self)
        other.threshold = _checked_threshold(threshold)
        return other

    def boundaries(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        return self._walk(ids)[0]

    def boundaries_and_leads(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        opens, _, evidence = self._walk(ids)
        return opens, leads_from(opens, evidence)

    def trace(self, ids: NDArray[np.int64]) -> Trace:
        return Trace(
            scores=self._walk(ids)[1], threshold=self.threshold, meaning="cosine distance to the block before it"
        )

    def settings(self) -> dict[str, Any]:
        return {
            "sentence_ends": self.sentence_ends.settings(),
            "threshold": self.threshold,
            "min_sentence": self.min_sentence,
            "min_length": self.min_length,
            "max_length": self.max_length,
            "hindsight": self.hindsight,
        }

    def tensors(self) -> dict[str, Tensor]:
        return {"embedding": self.embedding}

    def _walk(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.float64], dict[int, int]]:
        """Where blocks open, the scores, and with hindsight the first token of the sentence that drifted, by block."""
        ends = self.sentence_ends.after(ids)
        sums = RunningSums(self._table, ids, np.flatnonzero(ends) + 1)
        pair = np.empty((2, self._table.shape[1]))  # the block before, and what is compared to it
        judged = 0  # the block's tokens before this one were compared already; they are what the next is compared to
        evidence: dict[int, int] = {}

        def distance(start: int, cut: int) -> float:
            nonlocal judged
            first, judged = evidence.get(start, start), max(judged, start)
            if cut - judged < self.min_sentence:
                return math.nan
            middle = sums.before(judged)
            np.subtract(middle, sums.before(first), out=pair[0])
            np.subtract(sums.before(cut), middle, out=pair[1])
            sentence, judged = judged, cut
            far = _distance(pair) if cut - start >= self.min_length else math.nan
            if self.hindsight and far > self.threshold:
                evidence[cut] = sentence
            return far

        return *open_blocks(ends, self.max_length, distance, self.threshold), evidence


def _distance(pair: NDArray[np.float64]) -> float:
    """Cosine distance of two rows; 0 when one says nothing (no tokens, or a zero vector), for then nothing drifted."""
    (one, product), (_, other) = np.dot(pair, pair.T).tolist()
    norms = math.sqrt(one * other)
    return 1.0 - product / norms if norms > 0 else 0.0


def _checked_threshold(threshold: float) -> float:
    if not 0 <= threshold <= 2:
        raise ProlocError(f"threshold is a cosine distance and must be in [0, 2], not {threshold!r}.")
    return float(threshold)
