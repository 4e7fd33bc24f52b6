"""What turns the sentences of a finished text into vectors."""

from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from proloc.errors import ProlocError


@runtime_checkable
class SentenceEmbedder(Protocol):
    """One vector for each sentence; ``proloc.hf`` has those that run a model.

    Attributes:
        name: under which it can be fetched again.
    """

    name: str

    def __call__(self, ids: NDArray[np.int64], bounds: NDArray[np.int64]) -> NDArray[np.float64]:
        """Vectors ``[sentence, dim]`` of the tokens ``ids[bounds[i]:bounds[i + 1]]``; ``bounds`` is 0, ..., seq."""
        ...


Embedding: TypeAlias = Tensor | SentenceEmbedder | str
"""A vector for every token ``[vocab, dim]``, added up over a sentence; a ``SentenceEmbedder``; or the name of one."""


def sentence_vectors(embedding: Embedding, ids: NDArray[np.int64], bounds: NDArray[np.int64]) -> NDArray[np.float64]:
    """The sentences' vectors at length 1 (a zero vector stays zero), float64 ``[sentence, dim]``.

    Raises:
        ProlocError: an embedder known by name only, or one that gives no finite vector for each sentence.
    """
    vectors = _vectors(embedding, ids, bounds)
    if vectors.ndim != 2 or len(vectors) != bounds.size - 1 or not np.isfinite(vectors).all():
        raise ProlocError(f"the embedder must give {bounds.size - 1} finite vectors, not {list(vectors.shape)}.")
    return of_length_one(vectors)


def of_length_one(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Vectors ``[sentence, dim]`` at length 1; a zero vector stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float64] = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return unit


def saved_embedding(embedding: Embedding) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What of it goes into ``settings()`` and into ``tensors()``."""
    if isinstance(embedding, Tensor):
        return {}, {"embedding": embedding}
    return {"embedding": embedding if isinstance(embedding, str) else embedding.name}, {}


def _vectors(embedding: Embedding, ids: NDArray[np.int64], bounds: NDArray[np.int64]) -> NDArray[np.float64]:
    if isinstance(embedding, str):
        raise ProlocError(
            f"these blocks need the model '{embedding}'; connect it: blocks = blocks.connect(proloc.hf.provide)."
        )
    if not isinstance(embedding, Tensor):
        return np.asarray(embedding(ids, bounds), dtype=np.float64)
    if embedding.dim() != 2 or ids.max() >= len(embedding) or ids.min() < 0:
        raise ProlocError(
            f"Token ids {int(ids.min())} to {int(ids.max())} need an embedding [vocab, dim] of as many rows; "
            f"it is {list(embedding.shape)}."
        )
    table = embedding.detach().cpu().double()
    sums: NDArray[np.float64] = embedding_bag(
        torch.from_numpy(np.ascontiguousarray(ids)), table, torch.from_numpy(bounds[:-1]), mode="sum"
    ).numpy()
    return sums
