"""What the rules share that cut a text where sentences' vectors say that it is cheapest."""

import copy
import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proloc.blocks.base import Partitioner, check_length
from proloc.blocks.embedders import Embedding, of_length_one, saved_embedding, sentence_vectors
from proloc.blocks.sentence_ends import EndsSource, SentenceEnds
from proloc.errors import ProlocError

Cost = Literal["kernel", "direction"]


class SentenceCuts(Partitioner):
    """Blocks of sentences, each with a cost, and a penalty for each boundary.

    Over the vectors x of a block's n sentences, of length 1, ``cost(block)`` is ``sum_i |x_i - mean|^2`` (the cosine
    kernel) or ``n - |sum_i x_i|`` (direction).

    Args:
        sentence_ends: as for ``SentenceBlocks``.
        embedding: a vector for every token ``[vocab, dim]``, a ``SentenceEmbedder``, or the name of one.
        penalty: what a boundary must save; larger = longer blocks.
        min_sentences: the shortest block; in sentences.
        min_sentence: the shortest sentence; in tokens.
        cost: "kernel" or "direction".
        centre: ``[dim]``, taken off every vector, whose length is then made 1 again; see ``centred``.

    Raises:
        ProlocError: a penalty, number or cost that cannot be.
    """

    model_attribute: ClassVar[str | None] = "embedding"
    threshold_range: ClassVar[tuple[float, float] | None] = (0.0, 64.0)

    def __init__(
        self,
        sentence_ends: EndsSource,
        embedding: Embedding,
        *,
        penalty: float,
        min_sentences: int,
        min_sentence: int,
        cost: Cost,
        centre: Tensor | None,
    ) -> None:
        if cost not in get_args(Cost):
            raise ProlocError(f"cost must be one of {', '.join(get_args(Cost))}, not {cost!r}.")
        check_length("min_sentences", min_sentences)
        check_length("min_sentence", min_sentence)
        self.sentence_ends = SentenceEnds.read(sentence_ends)
        self.embedding = embedding
        self.penalty = _checked_penalty(penalty)
        self.min_sentences = min_sentences
        self.min_sentence = min_sentence
        self.cost: Cost = cost
        self.centre = centre

    @abstractmethod
    def bounds(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the sentences of one sequence start that are judged, and the end of the last, ``[sentence + 1]``."""

    def centred(self, corpus: Iterable[NDArray[np.int64]]) -> Self:
        """The same with the mean of a corpus's sentence vectors as the centre: what all its sentences share tells
        nothing about where one topic ends.

        Args:
            corpus: texts of token ids, each ``[seq]``.
        """
        other = copy.copy(self)
        other.centre = None
        vectors = np.concatenate([other.sentences(ids)[1] for ids in corpus])
        other.centre = torch.from_numpy(vectors.mean(axis=0))
        return other

    def with_threshold(self, threshold: float) -> Self:
        other = copy.copy(self)
        other.penalty = _checked_penalty(threshold)
        return other

    def settings(self) -> dict[str, Any]:
        return {
            "sentence_ends": self.sentence_ends.settings(),
            "penalty": self.penalty,
            "min_sentences": self.min_sentences,
            "min_sentence": self.min_sentence,
            "cost": self.cost,
            **saved_embedding(self.embedding)[0],
        }

    def tensors(self) -> dict[str, Tensor]:
        centre = {} if self.centre is None else {"centre": self.centre}
        return saved_embedding(self.embedding)[1] | centre

    def sentences(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """``bounds`` and the vectors ``[sentence, dim]``, of length 1 or 0."""
        bounds = self.bounds(ids)
        vectors = sentence_vectors(self.embedding, ids[: bounds[-1]], bounds)
        if self.centre is None:
            return bounds, vectors
        if self.centre.shape != vectors.shape[1:]:
            raise ProlocError(
                f"the centre is {list(self.centre.shape)}; the vectors are of {vectors.shape[1]} numbers."
            )
        return bounds, of_length_one(vectors - self.centre.cpu().double().numpy())

    def kept(self, sums: NDArray[np.float64], lengths: NDArray[np.int64] | int) -> NDArray[np.float64]:
        """What stretches of sentences keep of their number n: ``n - cost``.

        Args:
            sums: of the vectors of each, ``[..., dim]``.
            lengths: n, ``[...]``.
        """
        squares: NDArray[np.float64] = np.square(sums).sum(axis=-1)
        return squares / lengths if self.cost == "kernel" else np.sqrt(squares)


def _checked_penalty(penalty: float) -> float:
    if not 0 <= penalty < math.inf:
        raise ProlocError(f"penalty must be a number >= 0, not {penalty!r}.")
    return float(penalty)
