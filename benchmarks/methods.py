"""The partitioners compared, each with the settings among which the tuning documents choose."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from typing import Any

import numpy as np
from corpora import Document
from numpy.typing import NDArray

from proloc.blocks import (
    ChangePointBlocks,
    DriftBlocks,
    FixedBlocks,
    OnlineBlocks,
    Partitioner,
    RandomBlocks,
    RecruitmentBlocks,
    SentenceBlocks,
    SentenceEnds,
    SurpriseBlocks,
    TilingBlocks,
    token_counts,
)

Segmenter = Callable[[Document], NDArray[np.int64]]


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        name: what it is called there.
        sort: "control", "causal" or "reads the whole text".
        candidates: segmenters with a description of their settings, given the tuning documents.
        few: True when it is too slow for all documents, so that a few are measured.
    """

    name: str
    sort: str
    candidates: Callable[[Sequence[Document]], Iterator[tuple[str, Segmenter]]]
    few: bool = False


class Remembered:
    """A frozen model asked once for every sentence or document; a tuning run asks for the same ones many times."""

    def __init__(self, model: Any) -> None:
        self.name = model.name
        self._model, self._known = model, {}

    def __call__(self, ids: NDArray[np.int64], bounds: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        if bounds is None:
            key = ids.tobytes()
            if key not in self._known:
                self._known[key] = self._model(ids)
            return self._known[key]
        parts = [ids[left:right] for left, right in pairwise(bounds)]
        new = list({part.tobytes(): part for part in parts if part.tobytes() not in self._known}.values())
        if new:
            vectors = self._model(np.concatenate(new), np.cumsum([0, *map(len, new)]))
            self._known |= {part.tobytes(): vector for part, vector in zip(new, vectors, strict=True)}
        return np.stack([self._known[part.tobytes()] for part in parts])


def controls(*, sentences: bool) -> list[Method]:
    """Segmentations that know nothing of the text, two of them but its number of segments; and one that knows all.

    The last makes every true boundary one sentence late, which is the best that a rule can do that decides at sentence
    ends and may use no token of the sentence that changed the topic; only where the units are sentences.
    """

    def even(document: Document) -> NDArray[np.int64]:
        units, number = document.reference.size, document.reference[-1] + 1
        return np.arange(units) * number // units

    def scattered(document: Document) -> NDArray[np.int64]:
        units, number = document.reference.size, document.reference[-1] + 1
        cuts = np.random.default_rng(int(document.ids.sum())).choice(np.arange(1, units), number - 1, replace=False)
        return np.isin(np.arange(units), cuts).cumsum()

    def late(document: Document) -> NDArray[np.int64]:
        return np.concatenate([[0], document.reference[:-1]])

    def always(segmenter: Segmenter) -> Callable[[Sequence[Document]], Iterator[tuple[str, Segmenter]]]:
        return lambda documents: iter([("", segmenter)])

    made = [
        Method("no boundary", "control", always(lambda document: np.zeros(document.reference.size, dtype=np.int64))),
        Method("all boundaries", "control", always(lambda document: np.arange(document.reference.size))),
        Method("random, true number", "control", always(scattered)),
        Method("even, true number", "control", always(even)),
    ]
    return [*made, Method("perfect, one sentence late", "control", always(late))] if sentences else made


def causal(ends: SentenceEnds, table: Any, counts_of: Callable[[Sequence[Document]], Any]) -> list[Method]:
    """Partitioners that may run inside a model.

    Args:
        ends: what ends a sentence in these texts.
        table: input embeddings of the built-in model ``[vocab, width]``.
        counts_of: token counts of the tuning documents.
    """

    def fixed(documents: Sequence[Document]) -> Iterator[tuple[str, Segmenter]]:
        mean = np.concatenate([document.lengths for document in documents]).mean()
        for share in (0.8, 1.0, 1.25):
            length = max(round(mean * share), 1)
            yield f"length {length}", blocks(FixedBlocks(length))

    def scattered(documents: Sequence[Document]) -> Iterator[tuple[str, Segmenter]]:
        lengths, times = np.unique(np.concatenate([document.lengths for document in documents]), return_counts=True)
        yield "lengths of the reference", blocks(RandomBlocks(dict(zip(lengths.tolist(), times.tolist(), strict=True))))

    def sentence(documents: Sequence[Document]) -> Iterator[tuple[str, Segmenter]]:
        for shortest in limits(documents, (0.7, 0.8, 0.9, 1.0)):
            yield f"min_length {shortest}", blocks(SentenceBlocks(ends, min_length=shortest))

    def drift(documents: Sequence[Document]) -> Iterator[tuple[str, Segmenter]]:
        made = DriftBlocks.from_embedding(ends, table, counts=counts_of(documents))
        for shortest, longest in product(limits(documents, (0.3, 0.6, 0.8)), [*limits(documents, (1.3, 1.7)), None]):
            for threshold in np.linspace(0.3, 1.1, 9):
                blocks_ = DriftBlocks(
                    ends, made.embedding, threshold=threshold, min_length=shortest, max_length=longest
                )
                yield f"threshold {threshold:.2f}, lengths {shortest} to {longest}", blocks(blocks_)

    def recruitment(documents: Sequence[Document], *, hindsight: bool = False) -> Iterator[tuple[str, Segmenter]]:
        made = RecruitmentBlocks(ends, counts_of(documents))
        how = {"hindsight": hindsight}
        for prior in (300.0, 3000.0, 30000.0):
            for shortest, longest in product(limits(documents, (0.3, 0.6, 0.8)), [*limits(documents, (1.7,)), None]):
                for cost in (-40.0, -20.0, -10.0, 0.0, 10.0, 20.0, 40.0):
                    blocks_ = RecruitmentBlocks(
                        ends, made.background, cost=cost, prior=prior, min_length=shortest, max_length=longest, **how
                    )
                    yield f"cost {cost:g}, prior {prior:g}, lengths {shortest} to {longest}", blocks(blocks_)

    return [
        Method("fixed", "causal", fixed),
        Method("random", "causal", scattered),
        Method("sentence", "causal", sentence),
        Method("drift (input embeddings)", "causal", drift),
        Method("recruitment", "causal", recruitment),
        Method("recruitment with hindsight", "causal", partial(recruitment, hindsight=True)),
    ]


def surprise(surprisal: Any) -> Method:
    """Surprise blocks of the built-in model."""

    def candidates(documents: Sequence[Document]) -> Iterator[tuple[str, Segmenter]]:
        for shortest, longest in product(limits(documents, (0.3, 0.6, 0.8)), [*limits(documents, (1.3, 1.7)), None]):
            for gamma, window in product((0.5, 1.0, 1.5, 2.0, 2.5, 3.0), (32, 128)):
                made = SurpriseBlocks(surprisal, gamma=gamma, window=window, min_length=shortest, max_length=longest)
                yield f"gamma {gamma}, window {window}, lengths {shortest} to {longest}", blocks(made)

    return Method("surprise (built-in model)", "causal", candidates, few=True)


def online(ends: SentenceEnds, name: str, embedding: Any) -> Method:
    """Online change points over one kind of sentence vectors: causal, with hindsight."""

    def candidates(documents: Sequence[Document]) -> Iterator[tuple[str, Segmenter]]:
        centre = OnlineBlocks(ends, embedding).centred([document.ids for document in documents]).centre
        for fewest, penalty in product((1, 2, 3), np.geomspace(0.4, 6.0, 28)):
            made = OnlineBlocks(ends, embedding, penalty=penalty, min_sentences=fewest, centre=centre)
            yield f"penalty {penalty:.3f}, min_sentences {fewest}", blocks(made)

    return Method(f"online change points ({name})", "causal", candidates)


def explaining(ends: SentenceEnds, name: str, embedding: Any) -> list[Method]:
    """Partitioners that read the whole text, over one kind of sentence vectors."""

    def tiling(documents: Sequence[Document]) -> Iterator[tuple[str, Segmenter]]:
        for window, threshold in product((2, 3, 4, 6), np.linspace(-1.0, 2.0, 13)):
            made = TilingBlocks(ends, embedding, threshold=threshold, window=window)
            yield f"threshold {threshold:.2f}, window {window}", blocks(made)

    def changepoint(documents: Sequence[Document]) -> Iterator[tuple[str, Segmenter]]:
        for fewest, penalty in product((2, 3), np.geomspace(0.02, 4.0, 40)):
            made = ChangePointBlocks(ends, embedding, penalty=penalty, min_sentences=fewest)
            yield f"penalty {penalty:.3f}, min_sentences {fewest}", blocks(made)

    def direction(documents: Sequence[Document]) -> Iterator[tuple[str, Segmenter]]:
        centre = ChangePointBlocks(ends, embedding).centred([document.ids for document in documents]).centre
        for fewest, penalty in product((2, 3), np.geomspace(0.5, 2.7, 24)):
            limits = {"penalty": penalty, "min_sentences": fewest, "centre": centre}
            made = ChangePointBlocks(ends, embedding, cost="direction", **limits)
            yield f"penalty {penalty:.3f}, min_sentences {fewest}", blocks(made)

    def numbered(documents: Sequence[Document]) -> Iterator[tuple[str, Segmenter]]:
        for fewest in (2, 3):

            def segment(document: Document, fewest: int = fewest) -> NDArray[np.int64]:
                number = int(document.reference[-1]) + 1
                made = ChangePointBlocks(ends, embedding, num_blocks=number, min_sentences=fewest)
                return document.found(made.boundaries(document.ids))

            yield f"min_sentences {fewest}", segment

    sort = "reads the whole text"
    return [
        Method(f"tiling ({name})", sort, tiling),
        Method(f"change points ({name})", sort, changepoint),
        Method(f"change points by direction ({name})", sort, direction),
        Method(f"change points ({name}), true number", sort, numbered),
    ]


def blocks(partitioner: Partitioner) -> Segmenter:
    """A partitioner as a segmenter: a block is what is home to its last token, so that it starts with its lead."""

    def segment(document: Document) -> NDArray[np.int64]:
        opens, leads = partitioner.boundaries_and_leads(document.ids)
        starts, homes = np.flatnonzero(opens), np.zeros_like(opens)
        homes[starts - leads[starts]] = True
        return document.found(homes)

    return segment


def limits(documents: Sequence[Document], shares: Sequence[float]) -> list[int]:
    """Block lengths in tokens, as shares of the mean true segment of the tuning documents."""
    mean = float(np.concatenate([document.lengths for document in documents]).mean())
    return [max(round(mean * share), 8) for share in shares]


def count_tokens(vocab: int) -> Callable[[Sequence[Document]], NDArray[np.int64]]:
    """Token counts of documents."""
    return lambda documents: token_counts([document.ids for document in documents], vocab)
