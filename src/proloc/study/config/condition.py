"""What a study can say about its conditions, and the standard ones."""

from typing import Any, Literal

from pydantic import Field, field_validator

from proloc.schedule import Polynomial, Reversed, Schedule, Uniform, schedule_from_dict, schedule_to_dict
from proloc.study.config.section import Section

REFERENCE = "distributed"

Mode = Literal["hard", "soft", "both"]

# What a condition may do otherwise than its study: how locality is brought about, never the data or the budget.
OVERRIDABLE = (
    "halo",
    "sinks",
    "sink_token",
    "dials",
    "penalty",
    "budget",
    "training.dial",
    "training.block_dropout",
    "training.distil",
    "training.temperature",
    "training.teacher",
)


class Condition(Section):
    """One way of making the model local."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60)
    schedule: dict[str, Any]
    """For example {kind = "polynomial", beta = 5}."""
    blocks: str = "semantic"
    """"semantic"; its controls "fixed" (same mean length) and "random" (same lengths, one draw for all seeds); or the
    NAME of a ``[partitioners.NAME]``."""
    mode: Mode | None = None
    """None = the study's mode."""
    override: dict[str, Any] = Field(default={})
    """What this condition does otherwise than the study, for example {penalty.phi = 0.3, halo = 1}; it can change
    halo, sinks, sink_token, dials, penalty, budget, and of training dial, distil, temperature and teacher."""

    @field_validator("schedule")
    @classmethod
    def _is_a_schedule(cls, value: dict[str, Any]) -> dict[str, Any]:
        return schedule_to_dict(schedule_from_dict(value))

    @field_validator("override")
    @classmethod
    def _is_overridable(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key, part in value.items():
            names = [f"{key}.{name}" for name in part] if isinstance(part, dict) else [key]
            wrong = [name for name in names if name not in OVERRIDABLE and key not in OVERRIDABLE]
            if wrong:
                raise ValueError(f"a condition cannot override {wrong[0]!r}; choose from {', '.join(OVERRIDABLE)}")
        return value

    def build(self) -> Schedule:
        return schedule_from_dict(self.schedule)


def _standard(name: str, schedule: Schedule, blocks: str = "semantic") -> Condition:
    return Condition(name=name, schedule=schedule_to_dict(schedule), blocks=blocks)


_QUINTIC = Polynomial(beta=5)
STANDARD_CONDITIONS = {
    condition.name: condition
    for condition in (
        _standard(REFERENCE, Uniform(value=0.0)),
        _standard("localist", Uniform(value=1.0)),
        _standard("linear", Polynomial(beta=1)),
        _standard("cubic", Polynomial(beta=3)),
        _standard("quintic", _QUINTIC),
        _standard("reversed", Reversed(_QUINTIC)),
        _standard("fixed", _QUINTIC, "fixed"),
        _standard("random", _QUINTIC, "random"),
    )
}
