"""A whole study: its parts, and what must hold between them."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from proloc.study.config.blocks import ROLES, UNTHRESHOLDED, BlocksSection
from proloc.study.config.condition import REFERENCE, STANDARD_CONDITIONS, Condition, Mode
from proloc.study.config.explain import ExplainSection
from proloc.study.config.section import Section, first_problem
from proloc.study.config.text import TextSection
from proloc.study.config.training import BudgetSection, PenaltySection, Position, TrainingSection


class StudyConfig(Section):
    """A whole study."""

    name: str = Field(min_length=1, max_length=60, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Results go to ``out/<name>`` unless --out says otherwise."""
    model: str
    """"builtin", "smollm2-135m", a folder or a Hub id."""
    text: TextSection
    blocks: BlocksSection
    partitioners: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")], BlocksSection] = Field(default={})
    """More of them, for conditions that name them: tables ``[partitioners.NAME]`` with the keys of ``[blocks]``."""
    match: Literal["training", "held_out"] = "training"
    """The windows on which block lengths are calibrated and matched. "held_out" gives every partitioner the same mean
    length where it is measured; it reads nothing of that text but the block lengths."""
    training: TrainingSection
    penalty: PenaltySection = PenaltySection()
    budget: BudgetSection = BudgetSection()
    explain: ExplainSection | None = None
    mode: Mode = "both"
    """"hard": the forward pass is dialled; "soft": the penalty alone shapes it; "both"."""
    sinks: int = Field(default=1, ge=0)
    """That many first tokens of a window's text can always be read."""
    halo: int = Field(default=0, ge=0)
    """That many blocks before a token's own are home as well."""
    sink_token: bool = False
    """Put one more token in front of every window, which can always be read and whose embedding is tuned: the
    tokenizer's BOS, else its EOS. Text and targets stay the same."""
    dials: list[Position] = Field(default=[])
    """Measure every tuned model at these positions of the dial too."""
    seeds: list[Annotated[int, Field(ge=0, lt=2**32, strict=True)]] = Field(default=[0, 1, 2], min_length=1)
    keep_models: bool = False
    """Keep the tuned model of every run, with tokenizer and model card, in ``runs/<condition>-seed<seed>/model``."""
    conditions: list[Condition] = Field(default=list(STANDARD_CONDITIONS.values()))
    """Names of standard conditions, or tables of your own; "distributed" is always needed, as the reference."""

    @field_validator("partitioners", mode="after")
    @classmethod
    def _new_names(cls, value: dict[str, BlocksSection]) -> dict[str, BlocksSection]:
        if taken := [name for name in value if name in ROLES]:
            raise ValueError(f"{taken[0]!r} always means what [blocks] makes of it; give your partitioner another name")
        return value

    @field_validator("conditions", mode="before")
    @classmethod
    def _named_conditions(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        for name in value:
            if isinstance(name, str) and name not in STANDARD_CONDITIONS:
                raise ValueError(f"there is no condition {name!r}; choose from {', '.join(STANDARD_CONDITIONS)}")
        return [STANDARD_CONDITIONS[each] if isinstance(each, str) else each for each in value]

    @model_validator(mode="after")
    def _comparable(self, info: ValidationInfo) -> "StudyConfig":
        if info.context is not None:  # the study as one condition sees it
            return self
        names = [condition.name for condition in self.conditions]
        for what, items in (("conditions", names), ("seeds", self.seeds)):
            if len(set(items)) != len(items):
                raise ValueError(f"{what} {items} are not all different")
        if REFERENCE not in names:
            raise ValueError(f'conditions need "{REFERENCE}", the reference of every comparison')
        reference, standard = self.conditions[names.index(REFERENCE)], STANDARD_CONDITIONS[REFERENCE]
        if (reference.schedule, reference.blocks) != (standard.schedule, standard.blocks) or reference.override:
            raise ValueError(f'"{REFERENCE}" is the reference and cannot mean anything else; give yours another name')
        for condition in self.conditions:
            self._check(condition)
        return self

    def _check(self, condition: Condition) -> None:
        """What no key alone can tell; an override that is not right raises too."""
        seen = self.of(condition)
        if self.mode_of(condition) == "soft" and seen.training.dial != 1.0:
            raise ValueError(f'condition {condition.name!r} has mode "soft", whose dial stays at 0; leave dial out')
        pushed = seen.budget.push if seen.budget.cost else None
        if pushed == "phi" and self.mode_of(condition) == "hard":
            raise ValueError(f'condition {condition.name!r} pushes phi, which mode "hard" has no penalty for')
        if pushed == "phi" and seen.penalty.kind != "fidelity":
            raise ValueError(
                f'condition {condition.name!r} pushes phi, which a penalty of kind "{seen.penalty.kind}" has not'
            )
        if pushed not in (None, "phi") and self.mode_of(condition) == "soft":
            raise ValueError(f'condition {condition.name!r} has mode "soft" and can push "phi" only')
        if pushed and seen.training.dial != 1.0:
            raise ValueError(f"condition {condition.name!r} has a budget, which moves the dial itself; leave dial out")
        taught = seen.training.distil > 0 and seen.training.teacher == REFERENCE
        if taught and self.sink_token and not seen.sink_token:
            raise ValueError(
                f"condition {condition.name!r} has no sink_token, but its teacher has; leave that override out"
            )

    def of(self, condition: Condition) -> "StudyConfig":
        """The study as one condition sees it: with its overrides; the reference is tuned on the cross-entropy alone."""
        data = self.model_dump(exclude={"conditions"}, exclude_unset=True)
        for key, value in condition.override.items():
            data[key] = {**data.get(key, {}), **value} if isinstance(value, dict) else value
        if condition.name == REFERENCE:
            data["training"] |= {"dial": 1.0, "distil": 0.0}
            data["budget"] = {}
        try:
            return StudyConfig.model_validate({**data, "conditions": []}, context=condition)
        except ValidationError as error:
            raise ValueError(f"condition {condition.name!r}: {first_problem(error)}".rstrip(".")) from error

    def taught_by_reference(self) -> list[Condition]:
        """The conditions whose teacher is the tuned reference."""
        seen = [(each, self.of(each).training) for each in self.conditions]
        return [each for each, training in seen if training.distil > 0 and training.teacher == REFERENCE]

    def budgeted(self) -> list[Condition]:
        """The conditions whose locality goes as far as a budget allows."""
        return [each for each in self.conditions if self.of(each).budget.cost is not None]

    @model_validator(mode="after")
    def _partitioners_can_be_built(self) -> "StudyConfig":
        if self.blocks.kind == "random":
            raise ValueError('[blocks] cannot be of kind "random": it has no lengths of its own')
        for name, section in {"semantic": self.blocks, **self.partitioners}.items():
            if section.kind not in (*UNTHRESHOLDED, "random") and self.mean_length_of(section) is None:
                raise ValueError(f'blocks of kind "{section.kind}" ({name}) need mean_length')
        firm = [*ROLES, *(name for name, section in self.partitioners.items() if section.kind != "random")]
        for name, section in self.partitioners.items():
            if section.like is not None and section.like not in firm:
                raise ValueError(f"{name} cannot be like {section.like!r}; choose from {', '.join(firm)}")
        names = [*ROLES, *self.partitioners]
        for condition in self.conditions:
            if condition.blocks not in names:
                raise ValueError(
                    f'"{condition.name}" has blocks {condition.blocks!r}; choose from {", ".join(names)}, or describe '
                    "them in [partitioners.NAME]"
                )
        return self

    @model_validator(mode="after")
    def _targets_fit(self) -> "StudyConfig":
        if self.explain is not None and self.explain.target_tokens >= self.training.context // 2:
            raise ValueError(
                f"explain.target_tokens = {self.explain.target_tokens} must be less than half of the context, "
                f"{self.training.context}"
            )
        return self

    def mean_length_of(self, section: BlocksSection) -> float | None:
        """Wanted tokens per block: the section's own, else that of [blocks]; None = as the text makes them."""
        free = section.kind in UNTHRESHOLDED and "min_length" in section.model_fields_set
        return self.blocks.mean_length if section.mean_length is None and not free else section.mean_length

    def most_sinks(self) -> int:
        """The sinks of the condition that has the most, the sink token not counted."""
        return max([self.sinks, *(self.of(each).sinks for each in self.conditions)])

    def mode_of(self, condition: Condition) -> Mode:
        return condition.mode or self.mode

    def portable(self, *, exclude: set[str]) -> dict[str, Any]:
        """The configuration as JSON-able data without the folders that texts lie in, which differ between machines."""
        data = self.model_dump(mode="json", exclude=exclude)
        if self.text.file is not None:
            data["text"]["file"] = Path(self.text.file).name
        if self.explain is not None:
            data["explain"]["texts"] = {name: Path(file).name for name, file in self.explain.texts.items()}
        return data


SECTIONS: dict[str, type[Section]] = {
    "": StudyConfig,
    "text": TextSection,
    "blocks": BlocksSection,
    "partitioners.NAME": BlocksSection,
    "training": TrainingSection,
    "penalty": PenaltySection,
    "budget": BudgetSection,
    "explain": ExplainSection,
    "conditions": Condition,
}
