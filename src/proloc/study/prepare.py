"""From a text to windows and blocks: done once per study, so that every run reads the same tokens and blocks."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from proloc.blocks import Partitioner, RandomBlocks, build_partitioner
from proloc.errors import ProlocError
from proloc.hf.models import load_tokenizer
from proloc.study.config import ROLES, StudyConfig
from proloc.study.partitioners import Material, fit
from proloc.study.results import PREPARED_FILE
from proloc.study.text import digest, read_explained, read_text

SPARE = 4  # windows of other texts for every passage wanted


@dataclass(frozen=True)
class Blocks:
    """Block ids of a study's windows, int64 ``[window, context]``, and the partitioner that they are from."""

    partitioner: Partitioner
    train: Tensor
    held_out: Tensor


@dataclass(frozen=True)
class Prepared:
    """Windows of token ids and the partitioners of a study.

    Attributes:
        train: int64 ``[window, context]``.
        held_out: int64 ``[window, context]``; no token of it is in ``train``.
        partitioners: by name: "semantic", its controls "fixed" and "random", and those of the study's own.
        text_sha256: fingerprint of the text they come from.
        decided: blocks by name, where a model had to be run for them.
        passages: windows of other texts, int64 ``[window, context]``, by the name of their kind; they are explained.
    """

    train: Tensor
    held_out: Tensor
    partitioners: dict[str, Partitioner]
    text_sha256: str
    decided: dict[str, Blocks] = field(default_factory=dict)
    passages: dict[str, Tensor] = field(default_factory=dict)

    def blocks(self, name: str, seed: int) -> Blocks:
        """The blocks that a run with this seed reads; random partitioners of the study's own draw anew for each."""
        if name in self.decided:
            return self.decided[name]
        partitioner = self.partitioners[name]
        if isinstance(partitioner, RandomBlocks) and self.differs_by_seed(name):
            partitioner = RandomBlocks(partitioner.lengths, seed=seed, leads=partitioner.leads)
        return self._blocks(partitioner)

    def differs_by_seed(self, name: str) -> bool:
        """Whether every seed reads other blocks of this name."""
        return isinstance(self.partitioners[name], RandomBlocks) and name not in ROLES

    def decide(self) -> "Prepared":
        """The same with the blocks of every partitioner that runs a model, so that no run needs that model."""
        slow = {name: found for name, found in self.partitioners.items() if found.model_attribute is not None}
        return Prepared(**{**self.__dict__, "decided": {name: self._blocks(found) for name, found in slow.items()}})

    def _blocks(self, partitioner: Partitioner) -> Blocks:
        return Blocks(partitioner, partitioner(self.train), partitioner(self.held_out))


def prepare(config: StudyConfig) -> Prepared:
    """Tokenise the text, hold out its last part, cut windows, and fit the partitioners.

    Raises:
        ProlocError: a text that cannot be read or is too short, or block lengths that it cannot give.
    """
    text = read_text(config.text)
    tokenizer = load_tokenizer(config.model)
    ids = _tokens(text, tokenizer)
    context = config.training.context
    cut = int(ids.size * (1 - config.text.held_out))
    train, held_out = (_windows(part, context) for part in (ids[:cut], ids[cut:]))
    needed = config.training.batch_size * config.training.accumulation
    if len(train) < needed or len(held_out) < 1:
        share = config.text.held_out
        enough = int(max(needed * context / (1 - share), context / share)) + 1
        raise ProlocError(
            f"the text has {ids.size} tokens; {needed} windows of {context} tokens to tune on and one held out need "
            f"about {enough}: take a longer text, a smaller context or a smaller batch."
        )
    tokens = train.reshape(-1)
    train, held_out = _spread(train, config.text.max_train_windows), _spread(held_out, config.text.max_held_out_windows)
    lengths = held_out if config.match == "held_out" else train
    return Prepared(
        train=torch.from_numpy(train),
        held_out=torch.from_numpy(held_out),
        partitioners=fit(config, Material(config.model, tokenizer, tokens, lengths)),
        text_sha256=digest(text),
        passages=_passages(config, tokenizer),
    ).decide()


def _passages(config: StudyConfig, tokenizer: Any) -> dict[str, Tensor]:
    """Windows of the texts that are explained but not tuned on, spread evenly; some have too few blocks to be used."""
    if config.explain is None:
        return {}
    context, found = config.training.context, {}
    for name, text in read_explained(config.explain).items():
        windows = _windows(_tokens(text, tokenizer), context)
        if not len(windows):
            raise ProlocError(f"explain.texts.{name} is shorter than one window of {context} tokens.")
        found[name] = torch.from_numpy(_spread(windows, SPARE * config.explain.text_passages))
    return found


def _tokens(text: str, tokenizer: Any) -> NDArray[np.int64]:
    return np.asarray(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64)


def _windows(ids: NDArray[np.int64], context: int) -> NDArray[np.int64]:
    """``[window, context]``; what is left at the end is dropped."""
    return ids[: ids.size // context * context].reshape(-1, context)


def _spread(windows: NDArray[np.int64], most: int | None) -> NDArray[np.int64]:
    """At most so many of the windows, spread evenly over them."""
    if most is None or most >= len(windows):
        return windows
    chosen: NDArray[np.int64] = windows[np.linspace(0, len(windows) - 1, most).round().astype(int)]
    return chosen


def save_prepared(prepared: Prepared, folder: Path) -> None:
    """Write one safetensors file, atomically; settings travel in its metadata."""
    tensors = {"train": prepared.train, "held_out": prepared.held_out}
    tensors |= {f"{_PASSAGES}{name}": windows for name, windows in prepared.passages.items()}
    settings = {}
    for name, partitioner in prepared.partitioners.items():
        settings[name] = {"kind": partitioner.kind, "settings": partitioner.settings()}
        tensors |= {f"{name}.{part}": tensor for part, tensor in partitioner.tensors().items()}
    for name, blocks in prepared.decided.items():
        tensors |= {_decided(name, "train"): blocks.train, _decided(name, "held_out"): blocks.held_out}
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
        name: build_partitioner(each["kind"], each["settings"], dict(_under(tensors, name)))
        for name, each in settings.items()
    }
    return Prepared(
        train=tensors["train"],
        held_out=tensors["held_out"],
        partitioners=partitioners,
        text_sha256=metadata["text_sha256"],
        decided={
            name: Blocks(found, tensors[_decided(name, "train")], tensors[_decided(name, "held_out")])
            for name, found in partitioners.items()
            if _decided(name, "train") in tensors
        },
        passages={
            key.removeprefix(_PASSAGES): windows for key, windows in tensors.items() if key.startswith(_PASSAGES)
        },
    )


_PASSAGES = "passages:"


def _decided(name: str, part: str) -> str:
    """The tensor of a partitioner's blocks; names of partitioners hold no colon, so that it is nothing else's."""
    return f"blocks:{name}.{part}"


def _under(tensors: dict[str, Tensor], name: str) -> Iterable[tuple[str, Tensor]]:
    for key, tensor in tensors.items():
        if key.startswith(f"{name}."):
            yield key.removeprefix(f"{name}."), tensor
