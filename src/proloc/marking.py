"""Marking the blocks of a text with any partitioner, for people to look at."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proloc.blocks import (
    ChangePointBlocks,
    DelimiterBlocks,
    DriftBlocks,
    FixedBlocks,
    OnlineBlocks,
    Partitioner,
    RecruitmentBlocks,
    SentenceBlocks,
    SurpriseBlocks,
    TilingBlocks,
    calibrate,
    matched_random,
    token_counts,
)
from proloc.errors import ProlocError
from proloc.hf import provide
from proloc.hf.models import load_model, load_tokenizer
from proloc.marked import MarkedText
from proloc.text import builtin_text

_FIXED_LENGTH = 32


def mark_blocks(
    text: str, *, kind: str = "sentence", model: str = "builtin", mean_length: float | None = None
) -> MarkedText:
    """A text with the blocks that a partitioner finds in it, and the score behind each boundary.

    Args:
        text: not empty.
        kind: a key of ``KINDS``.
        model: as for ``model_store.resolve``; its tokenizer writes the tokens, and it gives embeddings and surprisal.
        mean_length: tokens per block wanted, calibrated on this very text; None = the partitioner's own defaults.

    Raises:
        ProlocError: an unknown kind, an empty text, a mean length that cannot be had, or a model that cannot be loaded.
    """
    if kind not in KINDS:
        raise ProlocError(f"there are no '{kind}' blocks to show; choose one of {', '.join(KINDS)}.")
    tokenizer = load_tokenizer(model)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = np.asarray(encoded["input_ids"], dtype=np.int64)
    if not ids.size:
        raise ProlocError("the text is empty; give some text, or a file that has some.")
    partitioner = KINDS[kind](model, tokenizer, ids)
    if mean_length is not None and not mean_length >= 1:
        raise ProlocError(f"a mean length must be a number of tokens >= 1, not {mean_length:g}.")
    if mean_length is not None:
        partitioner = _of_length(partitioner, kind, ids, mean_length)
    trace = partitioner.trace(ids)
    opens, leads = partitioner.boundaries_and_leads(ids)
    return MarkedText(
        kind=kind,
        causal=partitioner.causal,
        model=model,
        settings={name: value for name, value in partitioner.settings().items() if not isinstance(value, dict | list)},
        meaning=trace.meaning,
        threshold=trace.threshold if math.isfinite(trace.threshold) else None,
        tokens=pieces(text, [end for _, end in encoded["offset_mapping"]]),
        block_ids=(np.cumsum(opens) - 1).tolist(),
        leads=leads[opens].tolist(),
        scores=[float(score) if np.isfinite(score) else None for score in trace.scores],
    )


def _of_length(partitioner: Partitioner, kind: str, ids: NDArray[np.int64], mean_length: float) -> Partitioner:
    if isinstance(partitioner, FixedBlocks):
        return FixedBlocks(round(mean_length))
    if partitioner.threshold_range is None:
        able = [name for name in KINDS if name != "random"]
        raise ProlocError(
            f"{kind} blocks are as long as the sentences of the text; a mean length can be had of {', '.join(able)}."
        )
    return calibrate(partitioner, [ids], mean_length)


def pieces(text: str, ends: list[int]) -> list[str]:
    """The text cut after each token; a character that several tokens share goes with the first of them."""
    reached = np.maximum.accumulate(np.asarray(ends)).tolist()
    reached[-1] = len(text)
    return [text[start:end] for start, end in zip([0, *reached[:-1]], reached, strict=True)]


def _english(tokenizer: Any) -> NDArray[np.int64]:
    """Tokens of real English that every Python has."""
    return np.asarray(tokenizer(builtin_text(), add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64)


def _background(tokenizer: Any) -> NDArray[np.int64]:
    return token_counts([_english(tokenizer)], len(tokenizer))


def _drift(model: str, tokenizer: Any) -> DriftBlocks:
    table = load_model(model).get_input_embeddings().weight.detach()
    counts = np.zeros(len(table), dtype=np.int64)
    counts[: len(tokenizer)] = _background(tokenizer)
    return DriftBlocks.from_embedding(tokenizer, table, counts=counts)


KINDS: dict[str, Callable[[str, Any, NDArray[np.int64]], Partitioner]] = {
    "fixed": lambda model, tokenizer, ids: FixedBlocks(_FIXED_LENGTH),
    "random": lambda model, tokenizer, ids: matched_random(SentenceBlocks(tokenizer), [ids]),
    "sentence": lambda model, tokenizer, ids: SentenceBlocks(tokenizer),
    "paragraph": lambda model, tokenizer, ids: DelimiterBlocks.paragraphs(tokenizer),
    "drift": lambda model, tokenizer, ids: _drift(model, tokenizer),
    "recruitment": lambda model, tokenizer, ids: RecruitmentBlocks(tokenizer, _background(tokenizer)),
    "surprise": lambda model, tokenizer, ids: SurpriseBlocks(provide(f"surprisal:{model}")),
    "online": lambda model, tokenizer, ids: OnlineBlocks(tokenizer, _drift(model, tokenizer).embedding).centred(
        [_english(tokenizer)]
    ),
    "changepoint": lambda model, tokenizer, ids: ChangePointBlocks(tokenizer, _drift(model, tokenizer).embedding),
    "tiling": lambda model, tokenizer, ids: TilingBlocks(tokenizer, _drift(model, tokenizer).embedding),
}
"""What ``mark_blocks`` can show, by name: each made from the model's name, its tokenizer and the text's token ids."""
