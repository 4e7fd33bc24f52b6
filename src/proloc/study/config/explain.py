"""What a study can say about the explanations that it measures."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from proloc.study.config.section import Section

HELD_OUT, QUESTION = "held-out", "question"
"""The kinds of passages that every study can have."""


class ExplainSection(Section):
    """What is measured of explanations after tuning, in every run; without this section, nothing is."""

    passages: int = Field(default=16, ge=0)
    """Held-out windows whose last tokens are explained."""
    texts: dict[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=60)],
        Annotated[str, Field(min_length=1)],
    ] = Field(default={})
    """Other texts with passages to explain, none of them tuned on: NAME = UTF-8 file, relative to the TOML file."""
    text_passages: int = Field(default=16, ge=1)
    """Windows of each of ``texts`` whose last tokens are explained."""
    questions: int = Field(default=16, ge=0)
    """Built-in questions whose answer stands in one known block."""
    target_tokens: int = Field(default=16, ge=1)
    """Tokens explained at the end of a held-out window."""
    ablations: int = Field(default=64, ge=8)
    """Random ablations that faithfulness is measured on."""
    fitted: int = Field(default=32, ge=8)
    """Other ablations that the linear surrogate and the weights of heads are fitted to."""
    how: Literal["cut", "removed"] = "cut"
    """"cut" takes the edges to a block's tokens out of attention, "removed" its tokens out of the text, which moves
    later ones to other positions: models that learned absolute positions answer to that more than to the block."""
    erasure: bool = True
    """Also measure top-1 drop, comprehensiveness and sufficiency."""

    @field_validator("texts")
    @classmethod
    def _new_names(cls, value: dict[str, str]) -> dict[str, str]:
        if taken := [name for name in value if name in (HELD_OUT, QUESTION)]:
            raise ValueError(f"{taken[0]!r} names passages that every study can have; give your text another name")
        return value

    @model_validator(mode="after")
    def _something(self) -> "ExplainSection":
        if self.passages + self.questions == 0 and not self.texts:
            raise ValueError("give passages, texts or questions")
        return self
