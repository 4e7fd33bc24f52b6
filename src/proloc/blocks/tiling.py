"""Tiling blocks: boundaries in the valleys of the similarity between what comes before and after. Not causal."""

import copy
import math
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from proloc.blocks.base import Partitioner, Trace, check_length
from proloc.blocks.changepoint import sentence_bounds
from proloc.blocks.embedders import Embedding, saved_embedding, sentence_vectors
from proloc.blocks.sentence_ends import EndsSource, SentenceEnds
from proloc.errors import ProlocError


class TilingBlocks(Partitioner):
    """A block opens at a sentence before which similarity falls deep, measured against the depths in the same text.

    ``similarity[i] = cos(sum of the last window sentences before i, sum of the first window sentences from i)``;
    ``depth[i] = (nearest peak to the left - similarity[i]) + (nearest peak to the right - similarity[i])``;
    a block opens at the local minima with ``(depth - mean) / sd > threshold``.

    Args:
        sentence_ends: as for ``SentenceBlocks``.
        embedding: as for ``ChangePointBlocks``.
        threshold: standard deviations above the mean depth; -0.5 is Hearst's. See ``calibrate``.
        window: sentences on either side.
        min_sentence: a shorter sentence belongs to the one before it; in tokens.

    Raises:
        ProlocError: a threshold or window that cannot be.

    Source: TextTiling (Hearst 1997), on sentence embeddings and over sentences instead of token sequences.
    """

    kind: ClassVar[str] = "tiling"
    causal: ClassVar[bool] = False
    model_attribute: ClassVar[str | None] = "embedding"
    threshold_range: ClassVar[tuple[float, float] | None] = (-16.0, 16.0)

    def __init__(
        self,
        sentence_ends: EndsSource,
        embedding: Embedding,
        *,
        threshold: float = -0.5,
        window: int = 3,
        min_sentence: int = 4,
    ) -> None:
        check_length("window", window)
        check_length("min_sentence", min_sentence)
        self.sentence_ends = SentenceEnds.read(sentence_ends)
        self.embedding = embedding
        self.threshold = _checked_threshold(threshold)
        self.window = window
        self.min_sentence = min_sentence

    def with_threshold(self, threshold: float) -> Self:
        other = copy.copy(self)
        other.threshold = _checked_threshold(threshold)
        return other

    def boundaries(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        opens: NDArray[np.bool_] = self._scores(ids) > self.threshold
        opens[0] = True
        return opens

    def trace(self, ids: NDArray[np.int64]) -> Trace:
        return Trace(scores=self._scores(ids), threshold=self.threshold, meaning="depth of the valley, in sd")

    def settings(self) -> dict[str, Any]:
        return {
            "sentence_ends": self.sentence_ends.settings(),
            "threshold": self.threshold,
            "window": self.window,
            "min_sentence": self.min_sentence,
            **saved_embedding(self.embedding)[0],
        }

    def tensors(self) -> dict[str, Tensor]:
        return saved_embedding(self.embedding)[1]

    def _scores(self, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """``[seq]``, NaN where no sentence starts and where similarity is at no local minimum."""
        bounds = sentence_bounds(self.sentence_ends, ids, self.min_sentence)
        scores = np.full(ids.shape, np.nan)
        similarity = self._similarities(sentence_vectors(self.embedding, ids, bounds))
        if similarity.size:
            depth = _climb(similarity) + _climb(similarity[::-1])[::-1] - 2 * similarity
            valley = depth > 0
            valley[1:] &= similarity[1:] < similarity[:-1]
            valley[:-1] &= similarity[:-1] <= similarity[1:]
            spread = float(depth.std())
            relative = (depth - depth.mean()) / spread if spread > 0 else np.zeros_like(depth)
            scores[bounds[1:-1]] = np.where(valley, relative, np.nan)
        return scores

    def _similarities(self, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        """``[sentences - 1]``: entry i is for the gap before sentence i + 1."""
        sums = np.concatenate([np.zeros((1, vectors.shape[1])), vectors.cumsum(axis=0)])
        gap = np.arange(1, len(vectors))
        left = sums[gap] - sums[np.maximum(gap - self.window, 0)]
        right = sums[np.minimum(gap + self.window, len(vectors))] - sums[gap]
        norms = np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1))
        products = (left * right).sum(axis=1)
        cosines: NDArray[np.float64] = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
        # Equal similarities must be equal: the last digits are noise, and a valley of noise would count.
        return np.asarray(cosines.round(9))


def _climb(similarity: NDArray[np.float64]) -> NDArray[np.float64]:
    """The height reached by walking left from each gap for as long as similarity does not fall."""
    peak = similarity.copy()
    for gap in range(1, peak.size):
        if similarity[gap - 1] >= similarity[gap]:
            peak[gap] = peak[gap - 1]
    return peak


def _checked_threshold(threshold: float) -> float:
    if not math.isfinite(threshold):
        raise ProlocError(f"threshold is a number of standard deviations and must be finite, not {threshold!r}.")
    return float(threshold)
