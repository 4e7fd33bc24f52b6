"""Texts whose true segments are known: Choi's benchmark, and the topics of Python's documentation in random order."""

import pydoc_data.topics
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RANGES = ("3-11", "3-5", "6-8", "9-11")
TOPIC_TOKENS = 1000
TOPICS_JOINED = 8


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        ids: token ids ``[seq]``.
        units: where the units that are segmented start, and the end, ``[units + 1]``: sentences, or single tokens.
        reference: the true segment of each unit ``[units]``.
    """

    ids: NDArray[np.int64]
    units: NDArray[np.int64]
    reference: NDArray[np.int64]

    def found(self, opens: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The block of every unit: that of its middle token, which for two blocks in a unit is the larger part's."""
        middle = (self.units[:-1] + self.units[1:] - 1) // 2
        return (np.cumsum(opens) - 1)[middle]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Lengths of the true segments, in tokens."""
        starts = np.flatnonzero(np.diff(self.reference, prepend=-1))
        return np.diff([*self.units[starts], self.ids.size])


def read_choi(folder: Path, tokenizer: Any) -> dict[str, list[Document]]:
    """The 700 documents by range, in the order of their numbers; a line is a sentence, and stays one line."""
    known: dict[str, list[int]] = {}

    def tokens(line: str) -> list[int]:
        if line not in known:
            known[line] = tokenizer(f" {line}\n", add_special_tokens=False)["input_ids"]
        return known[line]

    corpora = {}
    for name in RANGES:
        files = sorted((folder / name).glob("*.ref"), key=lambda file: [int(n) for n in re.findall(r"\d+", file.stem)])
        corpora[name] = [_choi_document(file.read_text(encoding="utf-8", errors="replace"), tokens) for file in files]
    return corpora


def _choi_document(text: str, tokens: Any) -> Document:
    segments = [[line.strip() for line in part.splitlines() if line.strip()] for part in text.split("==========")]
    segments = [segment for segment in segments if segment]
    lines = [tokens(line) for segment in segments for line in segment]
    reference = np.repeat(np.arange(len(segments)), [len(segment) for segment in segments])
    units = np.cumsum([0, *map(len, lines)])
    return Document(np.array([token for line in lines for token in line]), units, reference)


def read_topics(tokenizer: Any, seeds: int = 10) -> tuple[list[Document], list[Document]]:
    """Documents to tune on and to test on, from two halves of the topics: no topic is in both.

    Each joins the first 1,000 tokens of eight topics in random order; its units are tokens.
    """
    topics = sorted(pydoc_data.topics.topics)
    random.Random(0).shuffle(topics)
    halves = topics[::2], topics[1::2]
    ids = {
        name: tokenizer(pydoc_data.topics.topics[name].strip() + "\n\n", add_special_tokens=False, verbose=False)[
            "input_ids"
        ][:TOPIC_TOKENS]
        for name in topics
    }

    def documents(names: list[str], first_seed: int) -> list[Document]:
        made = []
        for seed in range(first_seed, first_seed + seeds):
            chosen = [ids[name] for name in random.Random(seed).sample(names, TOPICS_JOINED)]
            size = sum(map(len, chosen))
            reference = np.repeat(np.arange(len(chosen)), [len(part) for part in chosen])
            made.append(Document(np.concatenate(chosen).astype(np.int64), np.arange(size + 1), reference))
        return made

    return documents(halves[0], 0), documents(halves[1], 1000)
