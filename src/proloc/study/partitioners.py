"""A study's partitioners, built from its configuration and fitted to a text."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proloc.blocks import (
    DelimiterBlocks,
    DriftBlocks,
    FixedBlocks,
    OnlineBlocks,
    Partitioner,
    RecruitmentBlocks,
    SentenceBlocks,
    Surprisal,
    SurpriseBlocks,
    calibrate,
    matched_fixed,
    matched_random,
    token_counts,
)
from proloc.hf import provide
from proloc.hf.models import load_model
from proloc.study.config import BlocksSection, StudyConfig

Windows = NDArray[np.int64]


@dataclass(frozen=True)
class Material:
    """What partitioners are made from.

    Attributes:
        model: the study's model, by name.
        tokenizer: the model's.
        tokens: of the text that is tuned on; word counts come from it.
        lengths: the windows on which block lengths are calibrated and matched.
    """

    model: str
    tokenizer: Any
    tokens: NDArray[np.int64]
    lengths: Windows


def fit(config: StudyConfig, material: Material) -> dict[str, Partitioner]:
    """Every partitioner of a study by name; "random" ones are the draw of seed 0.

    Raises:
        ProlocError: a mean length that cannot be had on this text; the message names the reachable range.
    """
    build = {"semantic": config.blocks, **config.partitioners}
    firm = {
        name: _build(section, config.mean_length_of(section), material)
        for name, section in build.items()
        if section.kind != "random"
    }
    firm |= {
        "fixed": matched_fixed(firm["semantic"], material.lengths),
        "random": matched_random(firm["semantic"], material.lengths),
    }
    like = {name: firm[section.like or "semantic"] for name, section in build.items() if section.kind == "random"}
    return firm | {name: matched_random(other, material.lengths) for name, other in like.items()}


def _build(section: BlocksSection, mean_length: float | None, material: Material) -> Partitioner:
    if section.kind == "fixed":
        assert mean_length is not None  # the configuration checked it
        return FixedBlocks(round(mean_length))
    longest = section.max_length or (None if mean_length is None else round(4 * mean_length))
    limits = {"min_length": section.min_length, "max_length": longest}
    blocks = _KINDS[section.kind](section, material, limits)
    return blocks if mean_length is None else calibrate(blocks, material.lengths, mean_length)


def _drift(section: BlocksSection, material: Material, limits: dict[str, Any]) -> DriftBlocks:
    embedding = load_model(material.model).get_input_embeddings().weight.detach()
    counts = token_counts([material.tokens], len(embedding))
    return DriftBlocks.from_embedding(
        material.tokenizer, embedding, counts=counts, hindsight=section.hindsight, **limits
    )


def _recruitment(section: BlocksSection, material: Material, limits: dict[str, Any]) -> Partitioner:
    counts = token_counts([material.tokens], len(material.tokenizer))
    return RecruitmentBlocks(material.tokenizer, counts, hindsight=section.hindsight, **limits)


def _surprise(section: BlocksSection, material: Material, limits: dict[str, Any]) -> Partitioner:
    return SurpriseBlocks(Remembered(provide(f"surprisal:{material.model}")), **limits)


def _online(section: BlocksSection, material: Material, limits: dict[str, Any]) -> Partitioner:
    table = _drift(section, material, {}).embedding
    return OnlineBlocks(material.tokenizer, table, min_sentences=1).centred([material.tokens])


_KINDS: dict[str, Callable[[BlocksSection, Material, dict[str, Any]], Partitioner]] = {
    "sentence": lambda section, material, limits: SentenceBlocks(material.tokenizer, **limits),
    "paragraph": lambda section, material, limits: DelimiterBlocks.paragraphs(material.tokenizer, **limits),
    "delimiter": lambda section, material, limits: DelimiterBlocks.strings(
        material.tokenizer, section.delimiters or [], **limits
    ),
    "drift": _drift,
    "recruitment": _recruitment,
    "surprise": _surprise,
    "online": _online,
}


class Remembered:
    """A surprisal that keeps its answers, since calibration asks for the same windows at every threshold."""

    def __init__(self, surprisal: Surprisal) -> None:
        self.name = surprisal.name
        self._surprisal = surprisal
        self._known: dict[bytes, NDArray[np.float64]] = {}

    def __call__(self, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Bits ``[seq]``, as ``Surprisal`` gives them."""
        key = ids.tobytes()
        if key not in self._known:
            self._known[key] = self._surprisal(ids)
        return self._known[key]
