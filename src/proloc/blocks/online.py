"""Online change points: at every sentence end the cheapest cut of what was read so far, with hindsight. Causal."""

import math
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from proloc.blocks.base import Trace, check_length
from proloc.blocks.embedders import Embedding
from proloc.blocks.greedy import judged_at, leads_from
from proloc.blocks.sentence_cuts import Cost, SentenceCuts
from proloc.blocks.sentence_ends import EndsSource
from proloc.errors import ProlocError

_STEPS = 2.0**20


class OnlineBlocks(SentenceCuts):
    """A block opens when the text read so far is cut more cheaply with a last boundary inside of the present block.

    ``best[0] = 0; best[n] = min over m of best[m] + cost(m, n) + penalty``, with the costs of ``ChangePointBlocks``,
    is the cheapest cut of the first n sentences into blocks of ``min_sentences`` to ``max_sentences``. When sentence n
    has ended, its block alone may be shorter. A start of that block ``min_sentences`` or more after that of the present
    one is new; one at the present start, or before, leaves things as they are. Where the best new start m is cheaper, a
    block opens before the next token, and *the sentences from m on lead it*: they are home to it from there on. Starts
    never go back, and no home has more than ``max_sentences`` when one has ended.

    So starts are found nearly as well as by ``ChangePointBlocks``, and no query reads its own future: a start is known
    only to queries after the sentence that gave it away. A score is what the best new start saves after its penalty.

    Vectors are rounded to 2**-20, which an embedder's answers in two batches rarely differ by, so that sums of them are
    exact; where they do differ, a boundary can still move.

    Args:
        sentence_ends: as for ``SentenceBlocks``.
        embedding: as for ``ChangePointBlocks``.
        penalty: what a boundary must save; larger = longer blocks. See ``calibrate``.
        min_sentences: the shortest distance of two starts; in sentences.
        max_sentences: how far back a block may start; in sentences, each of which is compared to so many starts.
        min_sentence: a shorter sentence is judged together with the next one; in tokens.
        cost: "direction" or "kernel".
        centre: as for ``ChangePointBlocks``; see ``centred``.

    Raises:
        ProlocError: a penalty, number or cost that cannot be.

    Source: the recursion is optimal partitioning (Jackson et al. 2005); taking its last change point as each sentence
    ends, and letting what follows it lead the new block, is ours.
    """

    kind: ClassVar[str] = "online"

    def __init__(
        self,
        sentence_ends: EndsSource,
        embedding: Embedding,
        *,
        penalty: float = 1.4,
        min_sentences: int = 2,
        max_sentences: int = 128,
        min_sentence: int = 4,
        cost: Cost = "direction",
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
        check_length("max_sentences", max_sentences)
        if max_sentences < 2 * min_sentences:
            raise ProlocError(
                f"max_sentences must be at least twice min_sentences = {min_sentences}, not {max_sentences}."
            )
        self.max_sentences = max_sentences

    def bounds(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.array(judged_at(self.sentence_ends.after(ids), self.min_sentence))

    def boundaries(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        return self._walk(ids)[0]

    def boundaries_and_leads(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        opens, evidence, _ = self._walk(ids)
        return opens, leads_from(opens, evidence)

    def trace(self, ids: NDArray[np.int64]) -> Trace:
        return Trace(scores=self._walk(ids)[2], threshold=0.0, meaning="cost that a new start saves beyond its penalty")

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "max_sentences": self.max_sentences}

    def _walk(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.bool_], dict[int, int], NDArray[np.float64]]:
        """Where blocks open, the first token of the sentences that lead each, and the scores."""
        opens, scores = np.zeros(ids.shape, dtype=bool), np.full(ids.shape, math.nan)
        evidence: dict[int, int] = {}
        opens[0] = True
        if self.bounds(ids).size == 1:
            return opens, evidence, scores
        bounds, vectors = self.sentences(ids)
        vectors = np.round(vectors * _STEPS) / _STEPS
        sums = np.concatenate([np.zeros((1, vectors.shape[1])), vectors.cumsum(axis=0)])
        best = np.full(len(sums), math.inf)
        best[0] = 0.0
        start = 0
        for end in range(1, len(sums)):
            first = max(end - self.max_sentences, 0)
            starts = np.arange(first, end)
            lengths = end - starts
            cut = best[first:end] + lengths - self.kept(sums[end] - sums[first:end], lengths) + self.penalty
            whole = cut[: max(end - self.min_sentences + 1 - first, 0)]
            best[end] = whole.min(initial=math.inf)
            later = start + self.min_sentences
            if later >= end or bounds[end] >= ids.size:
                continue
            old, new = cut[: max(start + 1 - first, 0)].min(initial=math.inf), cut[max(later - first, 0) :]
            scores[bounds[end]] = old - new.min()
            if new.min() < old:
                start = max(later, first) + int(new.argmin())
                opens[bounds[end]] = True
                evidence[int(bounds[end])] = int(bounds[start])
        return opens, evidence, scores
