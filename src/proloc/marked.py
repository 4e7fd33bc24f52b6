"""A text with its blocks, and why they open where they do: plain data, read by the terminal view and the page."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class MarkedText:
    """What ``proloc blocks`` found in a text."""

    kind: str
    """The kind of partitioner."""

    causal: bool
    """False: a boundary may depend on the whole text, so that these blocks only explain it."""

    model: str
    """Whose tokenizer wrote the tokens."""

    settings: dict[str, Any]
    """The partitioner's numbers, without vocabularies."""

    meaning: str
    """What a score is, with its unit; empty for a rule without scores."""

    threshold: float | None
    """A block opens where the score is larger, if its length allows it; None for a rule without one."""

    tokens: Sequence[str]
    """Pieces of the text, in order; joined, they are the text."""

    block_ids: Sequence[int]
    """The block of every token, counted from 0."""

    leads: Sequence[int]
    """How many tokens right before each block are home to it too, one number a block."""

    scores: Sequence[float | None]
    """The score asked before each token, None where nothing was asked."""

    @property
    def starts(self) -> list[int]:
        """The first token of every block."""
        return [i for i, block in enumerate(self.block_ids) if i == 0 or block != self.block_ids[i - 1]]

    @property
    def lengths(self) -> list[int]:
        """Tokens in each block."""
        return [end - start for start, end in zip(self.starts, [*self.starts[1:], len(self.block_ids)], strict=True)]

    @property
    def homes(self) -> dict[int, int]:
        """The first token of every lead, and the block that is led from there; blocks without a lead are not in it."""
        return {
            start - lead: block
            for block, (start, lead) in enumerate(zip(self.starts, self.leads, strict=True))
            if lead > 0
        }

    def summary(self) -> str:
        """One sentence with the number of blocks, their lengths and the rule."""
        num, lengths = len(self.lengths), self.lengths
        mean = sum(lengths) / num
        found = f"{num} blocks of {mean:.1f} tokens on average ({min(lengths)} to {max(lengths)})"
        led = f", led by {sum(self.leads) / (num - 1):.1f} tokens before them" if any(self.leads) else ""
        rule = "" if self.threshold is None else f"; a block opens where the {self.meaning} > {self.threshold:.3g}"
        return f"{self.kind}: {found if num > 1 else f'1 block of {lengths[0]} tokens'}{led}{rule}."

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "starts": self.starts}
