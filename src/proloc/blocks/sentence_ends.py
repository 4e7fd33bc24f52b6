"""Which tokens end a sentence, read once from a tokenizer and kept as ids, so that no tokenizer is needed later."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from proloc.errors import ProlocError

_CLOSERS = r"[\"'”’»›)\]}*_]*"
_ENDS = re.compile(rf"[.!?…。！？]{_CLOSERS}$")
_PERIOD = re.compile(rf"\.{_CLOSERS}$")
_BLANK_LINE = re.compile(r"\n\s*\n")
_ABBREVIATIONS = (
    r"Mr|Mrs|Ms|Messrs|Mme|Dr|Prof|Rev|Hon|Gen|Col|Capt|Lt|Sgt|St|Sr|Jr|vs|cf|ibid|viz|Vol|vol|Vols|vols|Fig|fig"
    r"|Figs|figs|Eq|eq|Chap|chap|Ch|Sec|sec|Sect|sect|pp|op|approx|Inc|Ltd|Co"
)
# A letter alone is an initial or "p."; "I" and "a" are words. As a token it must open a word ("Ġ" and "▁" are how
# vocabularies write the space before it), for a single letter or "op" is also how many words end.
_ABBREVIATION = re.compile(rf"[Ġ▁ ](?:{_ABBREVIATIONS}|[b-zA-HJ-Z])")
_ABBREVIATED = re.compile(rf"(?:^|\s)(?:{_ABBREVIATIONS}|[b-zA-HJ-Z])\.$")

_END, _PERIOD_END, _NEWLINE, _SHORT = 1, 2, 3, 4


@runtime_checkable
class Tokenizer(Protocol):
    """The public methods of a Hugging Face tokenizer that are used here."""

    def __len__(self) -> int: ...

    def convert_ids_to_tokens(self, ids: Any) -> Any: ...

    def decode(self, token_ids: Any) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class SentenceEnds:
    """The token ids that end a sentence; what ends one is decided from that token and the one before it.

    A period right after a title, a common short form (`` Vol``, `` fig``, `` cf``) or an initial ends nothing; one line
    break may be a line wrap and ends nothing, two in a row do.

    Known limits, all because the next token must not be looked at (see ``proloc.blocks``): a decimal point
    ("3" "." "14") ends a sentence; a closing quote that is a token of its own opens the next block; an abbreviation
    that the tokenizer splits ("e" "." "g" ".") ends a sentence. A minimum block length absorbs most of these.
    """

    ends: tuple[int, ...]
    """Tokens that always end a sentence: ``!``, ``?``, a blank line."""

    periods: tuple[int, ...] = ()
    """Tokens ending in a period; they end a sentence unless an abbreviation is right before them."""

    newlines: tuple[int, ...] = ()
    """Tokens that are one line break; the second of two ends a paragraph, a single one may be only a line wrap."""

    abbreviations: tuple[int, ...] = ()
    """Tokens such as `` Mr``, `` Vol`` and `` J`` whose period does not end a sentence."""

    def __post_init__(self) -> None:
        every = [*self.ends, *self.periods, *self.newlines, *self.abbreviations]
        if wrong := [i for i in every if not isinstance(i, int) or i < 0]:
            raise ProlocError(f"Sentence ends are token ids, whole numbers >= 0, not {wrong[0]!r}.")
        if len(set(every)) < len(every):
            raise ProlocError("A token id stands twice among the sentence ends; each id may be of one sort only.")
        if not (self.ends or self.periods or self.newlines):
            raise ProlocError("No token ends a sentence; give at least one token id that does, or use FixedBlocks.")

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer) -> "SentenceEnds":
        """Sort the vocabulary once, by what its tokens decode to (byte-level tokens hide line breaks and quotes)."""
        sorts: dict[str, list[int]] = {"ends": [], "periods": [], "newlines": [], "abbreviations": []}
        for token in range(len(tokenizer)):
            if sort := _sort(tokenizer.convert_ids_to_tokens(token), tokenizer.decode([token])):
                sorts[sort].append(token)
        return cls(**{name: tuple(ids) for name, ids in sorts.items()})

    @classmethod
    def read(cls, source: "EndsSource") -> "SentenceEnds":
        """From whatever a user or a configuration has: a tokenizer, bare token ids, or ``settings()`` again."""
        if isinstance(source, SentenceEnds):
            return source
        if isinstance(source, Tokenizer):
            return cls.from_tokenizer(source)
        if isinstance(source, Mapping):
            if unknown := source.keys() - cls.__dataclass_fields__.keys():
                raise ProlocError(f"Sentence ends have {list(cls.__dataclass_fields__)}, not {sorted(unknown)}.")
            return cls(**{"ends": (), **{name: tuple(ids) for name, ids in source.items()}})
        return cls(ends=tuple(source))

    def settings(self) -> dict[str, list[int]]:
        """JSON-able form, read again by ``read``."""
        return {name: sorted(ids) for name, ids in asdict(self).items()}

    def after(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool ``[seq]``: True where a sentence ends with that token, judged by tokens up to it only."""
        if ids.min() < 0:
            raise ProlocError(f"Token ids must be >= 0, not {int(ids.min())}; mark padding with `valid`.")
        sort = self._sorts[np.minimum(ids, self._sorts.size - 1)]
        ends: NDArray[np.bool_] = (sort == _END) | (sort == _PERIOD_END)
        ends[1:] &= (sort[1:] != _PERIOD_END) | (sort[:-1] != _SHORT)
        ends[1:] |= (sort[1:] == _NEWLINE) & (sort[:-1] == _NEWLINE)
        return ends

    @cached_property
    def _sorts(self) -> NDArray[np.int8]:
        """The sort of every token id; one more entry, 0, stands for all larger ids."""
        sets = {_END: self.ends, _PERIOD_END: self.periods, _NEWLINE: self.newlines, _SHORT: self.abbreviations}
        table = np.zeros(max(i for ids in sets.values() for i in ids) + 2, dtype=np.int8)
        for sort, ids in sets.items():
            table[list(ids)] = sort
        return table


EndsSource: TypeAlias = SentenceEnds | Tokenizer | Mapping[str, Sequence[int]] | Sequence[int]


def _sort(token: str, text: str) -> str | None:
    """The field of ``SentenceEnds`` for a token as the vocabulary writes it and the text it decodes to."""
    if _BLANK_LINE.search(text):
        return "ends"
    stripped = text.strip()
    if not stripped:
        return "newlines" if "\n" in text else None
    if _ABBREVIATION.fullmatch(token):
        return "abbreviations"
    if not _ENDS.search(stripped) or _ABBREVIATED.search(stripped):
        return None
    return "periods" if _PERIOD.search(stripped) else "ends"
