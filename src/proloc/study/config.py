"""A study's configuration: one TOML file, every key described here, unknown keys refused."""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from proloc.errors import ProlocError
from proloc.schedule import Polynomial, Reversed, Schedule, Uniform, schedule_from_dict, schedule_to_dict
from proloc.study.config_blocks import ROLES, UNTHRESHOLDED, BlocksSection
from proloc.study.config_explain import ExplainSection
from proloc.study.config_training import BudgetSection, PenaltySection, Position, TrainingSection
from proloc.study.section import Section

REFERENCE = "distributed"
DEMO = "demo"

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


class TextSection(Section):
    """What is tuned on and what is held out: exactly one of ``file``, ``dataset`` and ``builtin``."""

    file: str | None = None
    """A UTF-8 text file; a relative path is relative to the TOML file."""
    dataset: str | None = None
    """A name for ``datasets.load_dataset``."""
    dataset_config: str | None = None
    """The dataset's configuration, for example "wikitext-2-raw-v1"."""
    split: str = "train"
    """The dataset's split."""
    column: str = "text"
    """The dataset's column of text."""
    builtin: Literal["pydoc"] | None = None
    """Text that comes with Python itself: the topics of its documentation."""
    held_out: float = Field(default=0.1, gt=0.0, lt=1.0)
    """The last share of the tokens, never tuned on."""
    max_held_out_windows: int | None = Field(default=None, ge=1)
    """Evaluate on at most this many windows, spread evenly over the held-out part; None = all."""
    max_train_windows: int | None = Field(default=None, ge=1)
    """Tune on at most this many windows, spread evenly over the rest; None = all."""

    @model_validator(mode="after")
    def _one_source(self) -> "TextSection":
        given = [name for name in ("file", "dataset", "builtin") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of file, dataset and builtin, not {given or 'none'}")
        return self


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

    def mode_of(self, condition: Condition) -> Mode:
        return condition.mode or self.mode


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


def load_config(path: str | Path) -> StudyConfig:
    """Read a study's TOML file, or the demo's when ``path`` is "demo".

    Raises:
        ProlocError: no such file, not TOML, or a key or value that is not right; the message names it.
    """
    if str(path) == DEMO:
        content, folder = resources.files("proloc.study").joinpath("demo.toml").read_text(encoding="utf-8"), Path()
    else:
        try:
            content, folder = Path(path).read_text(encoding="utf-8"), Path(path).parent
        except (OSError, UnicodeDecodeError) as error:
            raise ProlocError(f'cannot read the study "{path}": {error}; give a TOML file, or "{DEMO}".') from error
    try:
        data = tomllib.loads(content)
        config = StudyConfig.model_validate(data)
    except tomllib.TOMLDecodeError as error:
        raise ProlocError(f"{path} is not valid TOML: {error}.") from error
    except ValidationError as error:
        raise ProlocError(f"{path}: {first_problem(error)}") from error
    if config.text.file is None:
        return config
    try:
        file = str((folder / Path(config.text.file).expanduser()).resolve())
    except (OSError, RuntimeError, ValueError) as error:
        raise ProlocError(f"the text's file {config.text.file!r} is no path: {error}.") from error
    return config.model_copy(update={"text": config.text.model_copy(update={"file": file})})


def with_budget(config: StudyConfig, cost: float) -> StudyConfig:
    """The same study with a budget for every condition but the reference and those with a budget of their own.

    Raises:
        ProlocError: a condition cannot have one.
    """
    data = config.model_dump(exclude_unset=True)
    try:
        return StudyConfig.model_validate({**data, "budget": {**data.get("budget", {}), "cost": cost}})
    except ValidationError as error:
        raise ProlocError(first_problem(error)) from error


def first_problem(error: ValidationError) -> str:
    """The first problem as one sentence that names the key."""
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ").rstrip(".")
    if problem["type"] == "extra_forbidden":
        return f'unknown key "{place}"; see `proloc study --keys` for what a study can say.'
    value = "" if problem["type"] in ("missing", "value_error") else f" (given: {problem['input']!r})"
    return f'"{place}": {message}{value}.' if place else f"{message}."


def describe_keys() -> str:
    """Every key of a study's file with its default and meaning, as text."""
    lines: list[str] = []
    for name, section in SECTIONS.items():
        lines.append(f"\n[{name}]" if name else "top level")
        for key, field in section.model_fields.items():
            default = "" if field.is_required() or (name == "" and key in SECTIONS) else f" = {field.default!r}"
            lines.append(f"  {key}{default}" + (f"\n      {field.description}" if field.description else ""))
    return "\n".join(lines)
