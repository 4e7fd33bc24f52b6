"""From a text to windows and blocks: done once per study, so that every run reads the same tokens and blocks."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from proloc.blocks import (
    DriftBlocks,
    FixedBlocks,
    Partitioner,
    SentenceBlocks,
    build_partitioner,
    calibrate,
    matched_fixed,
    matched_random,
    token_counts,
)
from proloc.errors import ProlocError
from proloc.hf.models import load_model, load_tokenizer
from proloc.study.config import BlocksOf, BlocksSection, StudyConfig
from proloc.study.results import PREPARED_FILE
from proloc.study.text import digest, read_text

_ROLES: tuple[BlocksOf, ...] = ("semantic", "fixed", "random")


@dataclass(frozen=True)
class Prepared:
    """Windows of token ids and the three partitioners of a study.

    Attributes:
        train: int64 ``[window, context]``.
        held_out: int64 ``[window, context]``; no token of it is in ``train``.
        partitioners: the semantic one and its two controls.
        text_sha256: fingerprint of the text they come from.
    """

    train: Tensor
    held_out: Tensor
    partitioners: dict[BlocksOf, Partitioner]
    text_sha256: str


def prepare(config: StudyConfig) -> Prepared:
    """Tokenise the text, hold out its last part, cut windows, and fit the partitioners on the training windows.

    Raises:
        ProlocError: a text that cannot be read or is too short.
    """
    text = read_text(config.text)
    tokenizer = load_tokenizer(config.model)
    ids = np.asarray(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64)
    context = config.training.context
    cut = int(ids.size * (1 - config.text.held_out))
    train, held_out = (part[: part.size // context * context].reshape(-1, context) for part in (ids[:cut], ids[cut:]))
    needed = config.training.batch_size * config.training.accumulation
    if len(train) < needed or len(held_out) < 1:
        share = config.text.held_out
        enough = int(max(needed * context / (1 - share), context / share)) + 1
        raise ProlocError(
            f"the text has {ids.size} tokens; {needed} windows of {context} tokens to tune on and one held out need "
            f"about {enough}: take a longer text, a smaller context or a smaller batch."
        )
    wanted = config.text.max_held_out_windows
    if wanted is not None and wanted < len(held_out):
        held_out = held_out[np.linspace(0, len(held_out) - 1, wanted).round().astype(int)]
    semantic = _semantic(config.blocks, config.model, tokenizer, train)
    return Prepared(
        train=torch.from_numpy(train),
        held_out=torch.from_numpy(held_out),
        partitioners={
            "semantic": semantic,
            "fixed": matched_fixed(semantic, train),
            "random": matched_random(semantic, train),
        },
        text_sha256=digest(text),
    )


def _semantic(section: BlocksSection, model: str, tokenizer: Any, train: np.ndarray[Any, Any]) -> Partitioner:
    if section.kind == "sentence":
        return SentenceBlocks(tokenizer, min_length=section.min_length, max_length=section.max_length)
    assert section.mean_length is not None  # the section checked it
    if section.kind == "fixed":
        return FixedBlocks(round(section.mean_length))
    embedding = load_model(model).get_input_embeddings().weight.detach()
    blocks = DriftBlocks.from_embedding(
        tokenizer,
        embedding,
        counts=token_counts(train, len(embedding)),
        min_length=section.min_length,
        max_length=section.max_length or round(4 * section.mean_length),
    )
    return calibrate(blocks, train, section.mean_length)


def save_prepared(prepared: Prepared, folder: Path) -> None:
    """Write one safetensors file, atomically; settings travel in its metadata."""
    tensors = {"train": prepared.train, "held_out": prepared.held_out}
    settings = {}
    for role, partitioner in prepared.partitioners.items():
        settings[role] = {"kind": partitioner.kind, "settings": partitioner.settings()}
        tensors |= {f"{role}.{name}": tensor for name, tensor in partitioner.tensors().items()}
    metadata = {"partitioners": json.dumps(settings), "text_sha256": prepared.text_sha256}
    partial = folder / f".{PREPARED_FILE}.partial"
    save_file({name: t.contiguous() for name, t in tensors.items()}, partial, metadata)
    partial.replace(folder / PREPARED_FILE)


def load_prepared(folder: Path) -> Prepared:
    """Read what ``save_prepared`` wrote."""
    with safe_open(folder / PREPARED_FILE, framework="pt") as file:
        metadata = file.metadata()
        settings = json.loads(metadata["partitioners"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    partitioners = {
        role: build_partitioner(settings[role]["kind"], settings[role]["settings"], dict(_under(tensors, role)))
        for role in _ROLES
    }
    return Prepared(
        train=tensors["train"],
        held_out=tensors["held_out"],
        partitioners=partitioners,
        text_sha256=metadata["text_sha256"],
    )


def _under(tensors: dict[str, Tensor], role: str) -> Iterable[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        if name.startswith(f"{role}."):
            yield name.removeprefix(f"{role}."), tensor
