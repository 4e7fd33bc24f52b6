"""Change-point blocks: the best cut of a finished text into stretches of sentences that mean the same. Not causal."""

import math
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from proloc.blocks.base import Trace
from proloc.blocks.direction import direction_cost
from proloc.blocks.embedders import Embedding
from proloc.blocks.sentence_cuts import Cost, SentenceCuts
from proloc.blocks.sentence_ends import EndsSource, SentenceEnds
from proloc.errors import ProlocError


class ChangePointBlocks(SentenceCuts):
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
        super().__init__(
            sentence_ends,
            embedding,
            penalty=penalty,
            min_sentences=min_sentences,
            min_sentence=min_sentence,
            cost=cost,
            centre=centre,
        )
        if num_blocks is not None and (not isinstance(num_blocks, int) or num_blocks < 1):
            raise ProlocError(f"num_blocks must be None or a whole number >= 1, not {num_blocks!r}.")
        self.num_blocks = num_blocks

    def bounds(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        return sentence_bounds(self.sentence_ends, ids, self.min_sentence)

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
        return {**super().settings(), "num_blocks": self.num_blocks}

    def _cut(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[int], NDArray[np.float64]]:
        """Sentence bounds in tokens ``[sentences + 1]``, the first sentences of later blocks, and the vectors."""
        bounds, vectors = self.sentences(ids)
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

        stops = np.array([middle, right, right])
        lengths = stops - np.array([left, middle, left])
        one, other, whole = self.kept(sums[stops] - sums[stops - lengths], lengths).tolist()
        return float(one + other - whole)


def sentence_bounds(sentence_ends: SentenceEnds, ids: NDArray[np.int64], shortest: int) -> NDArray[np.int64]:
    """``[0, ..., seq]``: where sentences start, and the end; a shorter one (a blank line) joins the one before.

    The first sentence has none before it; where it is shorter, the next joins it.
    """
    inner = np.flatnonzero(sentence_ends.after(ids)[:-1]) + 1
    inner = inner[np.diff([*inner, ids.size]) >= shortest]
    inner = inner[inner >= shortest]
    return np.concatenate([[0], inner, [ids.size]])


def _ruptures() -> Any:
    try:
        import ruptures
    except ImportError as error:
        raise ProlocError('change-point blocks need the package ruptures: pip install "proloc[segment]".') from error
    return ruptures
