"""What a study can say about the explanations that it measures."""

from typing import Literal

from pydantic import Field, model_validator

from proloc.study.config.section import Section


class ExplainSection(Section):
    """What is measured of explanations after tuning, in every run; without this section, nothing is."""

    passages: int = Field(default=16, ge=0)
    """Held-out windows whose last tokens are explained."""
    questions: int = Field(default=16, ge=0)
    """Built-in questions whose answer stands in one known block."""
    target_tokens: int = Field(default=16, ge=1)
    """Tokens explained at the end of a held-out window."""
    ablations: int = Field(default=64, ge=8)
    """Random ablations that faithfulness is measured on."""
    fitted: int = Field(default=32, ge=8)
    """Other ablations that the linear surrogate and the weights of heads are fitted to."""
    how: Literal["removed", "cut"] = "removed"
    """"removed" takes a block's tokens out of the text, "cut" takes the edges to them out of attention."""
    erasure: bool = True
    """Also measure top-1 drop, comprehensiveness and sufficiency."""

    @model_validator(mode="after")
    def _something(self) -> "ExplainSection":
        if self.passages + self.questions == 0:
            raise ValueError("give passages, questions or both")
        return self
