"""Strings found in a stream of tokens, however a tokenizer cut them: a small automaton over the vocabulary."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proloc.blocks.sentence_ends import Tokenizer
from proloc.errors import ProlocError

# int16 holds a state and one bit more.
_MOST_STATES = 2**14


class Automaton:
    """Says which tokens end a delimiter.

    Args:
        table: whole numbers ``[states, ids]``: ``2 * next state + (a delimiter ends within the token)`` for each state
            and token id; state 0 = nothing of a delimiter was read. The last column stands for every larger id.

    Raises:
        ProlocError: a table of another shape or type, or one that leads to a state it does not have.
    """

    def __init__(self, table: Tensor) -> None:
        if table.dim() != 2 or table.numel() == 0 or table.is_floating_point():
            raise ProlocError(f"an automaton is whole numbers [states, ids], not {table.dtype} {list(table.shape)}.")
        self.table = table.detach().to("cpu", torch.int16, copy=True).contiguous()
        numbers = self.table.numpy()
        self._next, self._ended = numbers >> 1, (numbers & 1).astype(bool)
        if not 0 <= int(self._next.min()) <= int(self._next.max()) < len(numbers):
            raise ProlocError(
                f"an automaton of {len(numbers)} states must lead to states 0 to {len(numbers) - 1} only."
            )
        self._settles = (self._next == self._next[0]).all(axis=0)

    def ends(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool ``[seq]``: True where a delimiter ends within that token, judged by tokens up to it only."""
        if ids.min() < 0:
            raise ProlocError(f"Token ids must be >= 0, not {int(ids.min())}; mark padding with `valid`.")
        column = np.minimum(ids, self.table.shape[1] - 1)
        # Nearly every token leads to one state whatever came before; only the others need the walk left to right.
        after = self._next[0, column]
        for place in np.flatnonzero(~self._settles[column]).tolist():
            after[place] = self._next[after[place - 1] if place else 0, column[place]]
        before = np.concatenate([[0], after[:-1]])
        ended: NDArray[np.bool_] = self._ended[before, column]
        return ended


def string_automaton(tokenizer: Tokenizer, literals: Sequence[str], *, ignored: str = "") -> Automaton:
    """The automaton that sees a literal end inside a token, with it, or spread over several.

    After a literal the search starts afresh, so that matches do not overlap.

    Args:
        tokenizer: every token of its vocabulary is read once.
        literals: strings, none of them empty. A character that the tokenizer splits into bytes is never found.
        ignored: characters that may stand inside a literal, after its first character, without breaking it.

    Raises:
        ProlocError: no literals, an empty one, or more characters in them than the automaton can tell apart.

    Source: Aho and Corasick (1975).
    """
    if isinstance(literals, str) or not literals or not all(isinstance(text, str) and text for text in literals):
        raise ProlocError(f"delimiters must be a list of strings, none of them empty, not {literals!r}.")
    prefixes = sorted({text[:end] for text in literals for end in range(len(text))}, key=len)
    if len(prefixes) > _MOST_STATES:
        raise ProlocError(f"the delimiters have {len(prefixes)} different beginnings; {_MOST_STATES} are the most.")
    number = {prefix: state for state, prefix in enumerate(prefixes)}

    def read(prefix: str, text: str) -> tuple[str, bool]:
        ended = False
        for character in text:
            if prefix and character in ignored:
                continue
            prefix += character
            if any(prefix.endswith(literal) for literal in literals):
                prefix, ended = "", True
            while prefix not in number:
                prefix = prefix[1:]
        return prefix, ended

    table = torch.zeros(len(prefixes), len(tokenizer) + 1, dtype=torch.int16)
    for token in range(len(tokenizer)):
        text = _text(tokenizer, token)
        for state, prefix in enumerate(prefixes):
            rest, ended = read(prefix, text)
            table[state, token] = 2 * number[rest] + ended
    return Automaton(table)


def token_automaton(tokens: Sequence[int]) -> Automaton:
    """The automaton of bare token ids, each of which is a delimiter."""
    ids = list(tokens)
    if not ids or any(not isinstance(token, int) or token < 0 for token in ids):
        raise ProlocError(f"delimiter tokens must be ids, whole numbers >= 0, at least one, not {tokens!r}.")
    table = torch.zeros(1, max(ids) + 2, dtype=torch.int16)
    table[0, ids] = 1
    return Automaton(table)


def _text(tokenizer: Tokenizer, token: int) -> str:
    """A token's text with the space before it, which some vocabularies lose when a token is decoded alone."""
    text = str(tokenizer.decode([token]))
    written = str(tokenizer.convert_ids_to_tokens(token))
    return f" {text}" if written.startswith("▁") and not text.startswith(" ") else text
