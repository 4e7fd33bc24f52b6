"""Given blocks: boundaries that the user knows, such as the documents of a retrieval prompt or the turns of a chat."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proloc.blocks.base import Partitioner
from proloc.errors import ProlocError


class GivenBlocks(Partitioner):
    """A block opens before each of these tokens of a sequence, whatever the tokens are.

    ``opens[t] = (t in starts)``

    Tokens after the last start, so also those that are generated, stay in the last block. To answer in a block of its
    own, give the length of the prompt as the last start.

    Args:
        starts: token positions, >= 0; position 0 opens a block anyway.

    Raises:
        ProlocError: a start that is no token position.

    Source: ours.
    """

    kind: ClassVar[str] = "given"

    def __init__(self, starts: Sequence[int]) -> None:
        if wrong := [start for start in starts if not isinstance(start, int) or start < 0]:
            raise ProlocError(f"starts are token positions, whole numbers >= 0, not {wrong[0]!r}.")
        self.starts = sorted({0, *starts})

    def boundaries(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        opens = np.zeros(ids.shape, dtype=bool)
        opens[[start for start in self.starts if start < ids.size]] = True
        return opens

    def settings(self) -> dict[str, Any]:
        return {"starts": self.starts}


def open_ended(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """Token ids of a text that goes on, and for each the character it ends before.

    Special tokens are added as the tokenizer always does, but for an end of sequence that it appends: what comes after
    that is another text.

    Args:
        tokenizer: a fast Hugging Face tokenizer, for its offsets.
        text: what the model will read.
    """
    encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    ids, spans = list(encoded["input_ids"]), list(encoded["offset_mapping"])
    if ids and ids[-1] == getattr(tokenizer, "eos_token_id", None) and spans[-1][0] == spans[-1][1]:
        ids, spans = ids[:-1], spans[:-1]
    return ids, [end for _, end in spans]


def blocks_from_offsets(tokenizer: Any, text: str, starts: Sequence[int]) -> tuple[Tensor, GivenBlocks]:
    """Blocks that open at characters of a text.

    A token goes with its last character: one that crosses a boundary (`` The`` with its space) opens the new block.

    Args:
        tokenizer: a fast Hugging Face tokenizer, for its offsets; special tokens as in ``open_ended``.
        text: what the model will read.
        starts: the first character of every block but the first, in any order.

    Returns:
        int64 token ids ``[1, seq]``, and their blocks.

    Raises:
        ProlocError: a tokenizer without offsets, an empty text, or a start outside of it.
    """
    if wrong := [start for start in starts if not isinstance(start, int) or not 0 <= start < max(len(text), 1)]:
        raise ProlocError(f"block starts must be characters 0 to {len(text) - 1} of the text, not {wrong[0]!r}.")
    if not getattr(tokenizer, "is_fast", False):
        raise ProlocError(f"{type(tokenizer).__name__} gives no character offsets; load the fast tokenizer.")
    ids, ends = open_ended(tokenizer, text)
    if not ids:
        raise ProlocError("the text is empty: it has no tokens to cut into blocks.")
    # Special tokens have the empty span (0, 0): a running maximum leaves them where they stand.
    reached = np.maximum.accumulate(np.asarray(ends))
    first = np.searchsorted(reached, np.asarray(sorted(starts), dtype=np.int64), side="right")
    return torch.tensor([ids]), GivenBlocks(first.tolist())


def blocks_from_regex(tokenizer: Any, text: str, pattern: str) -> tuple[Tensor, GivenBlocks]:
    """Blocks that open where a regular expression matches: at the start of each match.

    ``r"(?m)^Document \\d+"`` opens a block at each such heading. Arguments, results and errors as
    ``blocks_from_offsets``; also refused: a pattern that is no regular expression.
    """
    try:
        found = [match.start() for match in re.finditer(pattern, text)]
    except re.error as error:
        raise ProlocError(f"{pattern!r} is no regular expression: {error}.") from error
    return blocks_from_offsets(tokenizer, text, [start for start in found if start < len(text)])


def blocks_from_messages(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> tuple[Tensor, GivenBlocks]:
    """One block for every turn of a chat, and one for the answer to come.

    Args:
        tokenizer: a fast tokenizer with a chat template.
        messages: ``{"role": ..., "content": ...}``, at least one.

    Returns:
        int64 token ids ``[1, seq]`` of the prompt, ready for the answer, and its blocks; what is generated belongs to
        the last block, which the template's opening of the answer begins.

    Raises:
        ProlocError: no messages, no template, or one that writes earlier turns differently once a later one is there.
    """
    if not messages:
        raise ProlocError("messages are empty; give at least one turn.")
    if not getattr(tokenizer, "chat_template", None):
        raise ProlocError(f"{type(tokenizer).__name__} has no chat template; use blocks_from_regex on your own prompt.")
    turns = [list(messages[:end]) for end in range(1, len(messages) + 1)]
    texts = [str(tokenizer.apply_chat_template(turn, tokenize=False)) for turn in turns]
    whole = str(tokenizer.apply_chat_template(turns[-1], tokenize=False, add_generation_prompt=True))
    for number, text in enumerate(texts, start=1):
        if not whole.startswith(text):
            raise ProlocError(
                f"the chat template rewrites turn {number} once later turns are there; its end is unknown."
            )
    starts = [len(text) for text in texts if len(text) < len(whole)]
    # The template writes its own special tokens; adding them again would move every position.
    return blocks_from_offsets(_Plain(tokenizer), whole, starts)


class _Plain:
    """A tokenizer that adds no special tokens of its own."""

    def __init__(self, tokenizer: Any) -> None:
        self.is_fast = getattr(tokenizer, "is_fast", False)
        self.eos_token_id = None  # what stands at the end, the template wrote
        self._tokenizer = tokenizer

    def __call__(self, text: str, **options: Any) -> Any:
        return self._tokenizer(text, add_special_tokens=False, **options)
