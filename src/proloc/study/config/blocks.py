"""What a study can say about its partitioners."""

from typing import Literal

from pydantic import Field, model_validator

from proloc.study.config.section import Section

ROLES = ("semantic", "fixed", "random")
"""Partitioners that every study has: that of ``[blocks]`` and the two controls matched to it."""

UNTHRESHOLDED = ("sentence", "paragraph", "delimiter")
"""Rules whose blocks are as long as the text makes them, unless a mean length is asked for."""

Kind = Literal["sentence", "paragraph", "delimiter", "drift", "recruitment", "surprise", "fixed", "random"]


class BlocksSection(Section):
    """A partitioner: the semantic one in ``[blocks]``, or one of your own in ``[partitioners.NAME]``."""

    kind: Kind = "drift"
    """Blocks close at the end of a "sentence" or "paragraph", at a "delimiter", when the topic has moved ("drift"),
    when a word model of its own pays ("recruitment"), after a token that the untuned model did not expect ("surprise"),
    by length ("fixed"), or by chance ("random": the lengths of ``like``, drawn anew for every seed)."""
    mean_length: float | None = Field(default=None, gt=1)
    """Wanted mean length in tokens, found by calibration. None = as the text makes them ("sentence", "paragraph",
    "delimiter"); in ``[partitioners.NAME]`` that of ``[blocks]``."""
    min_length: int = Field(default=8, ge=1)
    """No block is closed before it has this many tokens. "sentence", "paragraph" and "delimiter" with a mean_length
    find it by themselves."""
    max_length: int | None = Field(default=None, ge=1)
    """A block is closed at this many tokens at the latest; None = 4 * mean_length, or no limit where there is none."""
    delimiters: list[str] | None = Field(default=None, min_length=1)
    """The strings that close blocks of kind "delimiter"."""
    like: str | None = None
    """The partitioner whose lengths "random" blocks have; None = the semantic one."""

    @model_validator(mode="after")
    def _fits_its_kind(self) -> "BlocksSection":
        if (self.delimiters is not None) != (self.kind == "delimiter"):
            raise ValueError('blocks of kind "delimiter" need delimiters, and no other kind takes them')
        if self.like is not None and self.kind != "random":
            raise ValueError('only blocks of kind "random" are like others')
        if self.kind in UNTHRESHOLDED and {"mean_length", "min_length"} <= self.model_fields_set:
            raise ValueError(f'blocks of kind "{self.kind}" take min_length or mean_length, not both')
        return self
