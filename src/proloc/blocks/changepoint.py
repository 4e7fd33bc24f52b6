"""Change-point blocks: the best cut of a finished text into stretches of sentences that mean the same. Not causal."""

import copy
import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proloc.blocks.base import Partitioner, Trace, check_length
from proloc.blocks.direction import direction_cost
from proloc.blocks.embedders import Embedding, of_length_one, saved_embedding, sentence_vectors
from proloc.blocks.sentence_ends import EndsSource, SentenceEnds
from proloc.errors import ProlocError

Cost = Literal["kernel", "direction"]


class ChangePointBlocks(Partitioner):
    """Blocks that minimise ``sum of the blocks' costs + penalty * number of boundaries``, over all cuts of the text.

    Over the vectors x of a block's n sentences, of length 1, ``cost(block)`` is ``sum_i |x_i - mean|^2`` (the cosine
    kernel) or ``n - |sum_i x_i|`` (direction; more exact on Choi's benchmark, slower on long texts). The minimum is
    exact where ``min_sentences`` is 1 or ``num_blocks`` is given; otherwise the search of ruptures prunes a
    little too much and may miss it by a little. Every sentence takes part in every boundary: these blocks explain
    finished texts and nothing else.

    Args:
        sentence_ends: as for ``SentenceBlocks``.
        embedding: a vector for every token ``[vocab, dim]``, a ``SentenceEmbedder``, or the name of one.
        penalty: what a boundary must save; larger = longer blocks. See ``calibrate``.
        num_blocks: this many blocks instead, or as many as fit into a text too short for them; None = by the penalty.
        min_sentences: the shortest block; in sentences.
        min_sentence: a shorter sentence (a blank line, "Yes.") belongs to the one before it; in tokens.
        cost: "kernel" or "direction".
        centre: ``[dim]``, taken off every vector, whose length is then made 1 again; see ``centred``.

    Raises:
        ProlocError: a penalty, number or cost that cannot be; when cutting: ruptures is not installed.

    Source: kernel change points by PELT and dynamic programming of ``ruptures`` (Truong, Oudre and Vayatis 2020); on
    sentence embeddings as Embed-KCPD does. Scores ours.
    """

    kind: ClassVar[str] = "changepoint"
    causal: ClassVar[bool] = False
    model_attribute: ClassVar[str | None] = "embedding"
    threshold_range: ClassVar[tuple[float, float] | None] = (0.0, 64.0)

    def __init__(
        self,
        sentence_ends: EndsSource,
        embedding: Embedding,
        *,
        penalty: float = 1.2,
        num_blocks: int | None = None,
        min_sentences: int = 2,
        min_sentence: int = 4,
        cost: Cost = "kernel",
        centre: Tensor | None = None,
    ) -> None:
        if cost not in get_args(Cost):
            raise ProlocError(f"cost must be one of {', '.join(get_args(Cost))}, not {cost!r}.")
        check_length("min_sentences", min_sentences)
        check_length("min_sentence", min_sentence)
        if num_blocks is not None and (not isinstance(num_blocks, int) or num_blocks < 1):
            raise ProlocError(f"num_blocks must be None or a whole number >= 1, not {num_blocks!r}.")
        self.sentence_ends = SentenceEnds.read(sentence_ends)
        self.embedding = embedding
        self.penalty = _checked_penalty(penalty)
        self.num_blocks = num_blocks
        self.min_sentences = min_sentences
        self.min_sentence = min_sentence
        self.cost = cost
        self.centre = centre

    def centred(self, corpus: Iterable[NDArray[np.int64]]) -> Self:
        """The same with the mean of a corpus's sentence vectors as the centre: what all its sentences share tells
        nothing about where one topic ends.

        Args:
            corpus: texts of token ids, each ``[seq]``.
        """
        other = copy.copy(self)
        other.centre = None
        vectors = np.concatenate([other._sentences(ids)[1] for ids in corpus])
        other.centre = torch.from_numpy(vectors.mean(axis=0))
        return other

    def with_threshold(self, threshold: float) -> Self:
        other = copy.copy(self)
        other.penalty = _checked_penalty(threshold)
        return other

    def boundaries(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        bounds, cuts, _ = self._cut(ids)
        opens = np.zeros(ids.shape, dtype=bool)
        opens[bounds[[0, *cuts]]] = True
        return opens

    def trace(self, ids: NDArray[np.int64]) -> Trace:
        bounds, cuts, vectors = self._cut(ids)
        scores = np.full(ids.shape, np.nan)
        sums = np.concatenate([np.zeros((1, vectors.shape[1])), vectors.cumsum(axis=0)])
        edges = [0, *cuts, len(vectors)]
        for left, middle, right in zip(edges, edges[1:], edges[2:], strict=False):
            scores[bounds[middle]] = self._gain(sums, left, middle, right)
        for left, right in pairwise(edges):
            for inside in range(left + self.min_sentences, right - self.min_sentences + 1):
                scores[bounds[inside]] = self._gain(sums, left, inside, right)
        threshold = self.penalty if self.num_blocks is None else math.inf
        return Trace(scores=scores, threshold=threshold, meaning="cost that a boundary here saves")

    def settings(self) -> dict[str, Any]:
        return {
            "sentence_ends": self.sentence_ends.settings(),
            "penalty": self.penalty,
            "num_blocks": self.num_blocks,
            "min_sentences": self.min_sentences,
            "min_sentence": self.min_sentence,
            "cost": self.cost,
            **saved_embedding(self.embedding)[0],
        }

    def tensors(self) -> dict[str, Tensor]:
        centre = {} if self.centre is None else {"centre": self.centre}
        return saved_embedding(self.embedding)[1] | centre

    def _sentences(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Sentence bounds in tokens ``[sentences + 1]``, and vectors ``[sentence, dim]``."""
        bounds = sentence_bounds(self.sentence_ends, ids, self.min_sentence)
        vectors = sentence_vectors(self.embedding, ids, bounds)
        if self.centre is None:
            return bounds, vectors
        if self.centre.shape != vectors.shape[1:]:
            raise ProlocError(
                f"the centre is {list(self.centre.shape)}; the vectors are of {vectors.shape[1]} numbers."
            )
        return bounds, of_length_one(vectors - self.centre.cpu().double().numpy())

    def _cut(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[int], NDArray[np.float64]]:
        """Sentence bounds in tokens ``[sentences + 1]``, the first sentences of later blocks, and the vectors."""
        bounds, vectors = self._sentences(ids)
        most = len(vectors) // self.min_sentences
        if most < 2 or self.num_blocks == 1:
            return bounds, [], vectors
        search = self._search(vectors)
        if self.num_blocks is None:
            # Penalties of 0 do not terminate in ruptures; this one is too small to keep any boundary out.
            ends = search.predict(pen=max(self.penalty, 1e-9))
        else:
            ends = search.predict(n_bkps=min(self.num_blocks, most) - 1)
        return bounds, [int(end) for end in ends[:-1]], vectors

    def _search(self, vectors: NDArray[np.float64]) -> Any:
        ruptures, limits = _ruptures(), {"min_size": self.min_sentences, "jump": 1}
        if self.cost == "kernel":
            return ruptures.KernelCPD(kernel="linear", **limits).fit(vectors)
        search = ruptures.Pelt if self.num_blocks is None else ruptures.Dynp
        return search(custom_cost=direction_cost(ruptures.base.BaseCost, vectors), **limits).fit(vectors)

    def _gain(self, sums: NDArray[np.float64], left: int, middle: int, right: int) -> float:
        """How much the cost of the sentences from left to right falls when they are cut at the middle."""

        def kept(start: int, stop: int) -> float:
            part = sums[stop] - sums[start]
            squared = float(part @ part)
            return squared / (stop - start) if self.cost == "kernel" else math.sqrt(squared)

        return kept(left, middle) + kept(middle, right) - kept(left, right)


def sentence_bounds(sentence_ends: SentenceEnds, ids: NDArray[np.int64], shortest: int) -> NDArray[np.int64]:
    """``[0, ..., seq]``: where sentences start, and the end; a shorter one (a blank line) joins the one before.

    The first sentence has none before it; where it is shorter, the next joins it.
    """
    inner = np.flatnonzero(sentence_ends.after(ids)[:-1]) + 1
    inner = inner[np.diff([*inner, ids.size]) >= shortest]
    inner = inner[inner >= shortest]
    return np.concatenate([[0], inner, [ids.size]])


def _checked_penalty(penalty: float) -> float:
    if not 0 <= penalty < math.inf:
        raise ProlocError(f"penalty must be a number >= 0, not {penalty!r}.")
    return float(penalty)


def _ruptures() -> Any:
    try:
        import ruptures
    except ImportError as error:
        raise ProlocError('change-point blocks need the package ruptures: pip install "proloc[segment]".') from error
    return ruptures
