"""What a study can say about its partitioners."""

from typing import Literal

from pydantic import Field, model_validator

from proloc.study.config.section import Section

ROLES = ("semantic", "fixed", "random")
"""Partitioners that every study has: that of ``[blocks]`` and the two controls matched to it."""

UNTHRESHOLDED = ("sentence", "paragraph", "delimiter")
"""Rules whose blocks are as long as the text makes them, unless a mean length is asked for."""

Kind = Literal["sentence", "paragraph", "delimiter", "drift", "recruitment", "surprise", "online", "fixed", "random"]
HINDSIGHT = ("drift", "recruitment")
"""Rules that can let the sentence whose evidence opened a block lead it; "online" always does."""


class BlocksSection(Section):
    """A partitioner: the semantic one in ``[blocks]``, or one of your own in ``[partitioners.NAME]``."""

    kind: Kind = "drift"
    """Blocks close at the end of a "sentence" or "paragraph", at a "delimiter", when the topic has moved ("drift"),
    when a word model of its own pays ("recruitment"), after a token that the untuned model did not expect ("surprise"),
    by length ("fixed"), or by chance ("random": the lengths and leads of ``like``, drawn anew for every seed); "online"
    cuts the text read so far where the model's input embeddings say that it is cheapest, with hindsight."""
    mean_length: float | None = Field(default=None, gt=1)
    """Wanted mean length in tokens, found by calibration. None = as the text makes them ("sentence", "paragraph",
    "delimiter"); in ``[partitioners.NAME]`` that of ``[blocks]``."""
    min_length: int = Field(default=8, ge=1)
    """No block is closed before it has this many tokens. "sentence", "paragraph" and "delimiter" with a mean_length
    find it by themselves."""
    max_length: int | None = Field(default=None, ge=1)
    """A block is closed at this many tokens at the latest; None = 4 * mean_length, or no limit where there is none.
    "online" has limits of its own, in sentences."""
    delimiters: list[str] | None = Field(default=None, min_length=1)
    """The strings that close blocks of kind "delimiter"."""
    like: str | None = None
    """The partitioner whose lengths and leads "random" blocks have; None = the semantic one."""
    hindsight: bool = False
    """The sentence that opened a block of kind "drift" or "recruitment" is home to it too."""

    @model_validator(mode="after")
    def _fits_its_kind(self) -> "BlocksSection":
        if (self.delimiters is not None) != (self.kind == "delimiter"):
            raise ValueError('blocks of kind "delimiter" need delimiters, and no other kind takes them')
        if self.like is not None and self.kind != "random":
            raise ValueError('only blocks of kind "random" are like others')
        if self.hindsight and self.kind not in HINDSIGHT:
            raise ValueError(f'hindsight is for blocks of kind {" and ".join(map(repr, HINDSIGHT))}; "online" has it')
        if self.kind == "online" and {"min_length", "max_length"} & self.model_fields_set:
            raise ValueError('blocks of kind "online" count sentences and take no min_length or max_length')
        if self.kind in UNTHRESHOLDED and {"mean_length", "min_length"} <= self.model_fields_set:
            raise ValueError(f'blocks of kind "{self.kind}" take min_length or mean_length, not both')
        return self
