"""A study's configuration: one TOML file, every key described here, unknown keys refused."""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from proloc.errors import ProlocError
from proloc.schedule import Polynomial, Reversed, Schedule, Uniform, schedule_from_dict, schedule_to_dict

REFERENCE = "distributed"
DEMO = "demo"

Mode = Literal["hard", "soft", "both"]
BlocksOf = Literal["semantic", "fixed", "random"]


class Section(BaseModel):
    """A part of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


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

    @model_validator(mode="after")
    def _one_source(self) -> "TextSection":
        given = [name for name in ("file", "dataset", "builtin") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of file, dataset and builtin, not {given or 'none'}")
        return self


class BlocksSection(Section):
    """The semantic partitioner; the controls "fixed" and "random" are matched to its block lengths."""

    kind: Literal["sentence", "drift", "fixed"] = "drift"
    """"sentence" closes a block at a sentence end, "drift" when the topic has moved, "fixed" by length."""
    mean_length: float | None = Field(default=None, gt=1)
    """Wanted mean length in tokens for "drift" (calibrated on the training text) and "fixed"."""
    min_length: int = Field(default=8, ge=1)
    """No block is closed before it has this many tokens ("sentence", "drift")."""
    max_length: int | None = Field(default=None, ge=1)
    """A block is closed at this many tokens at the latest ("sentence", "drift"); None = 4 * mean_length for "drift"."""

    @model_validator(mode="after")
    def _mean_length_fits(self) -> "BlocksSection":
        if self.kind != "sentence" and self.mean_length is None:
            raise ValueError(f'blocks of kind "{self.kind}" need mean_length')
        if self.kind == "sentence" and self.mean_length is not None:
            raise ValueError('blocks of kind "sentence" take min_length, not mean_length')
        return self


class TrainingSection(Section):
    """How every run is tuned; the same budget for all."""

    steps: int = Field(ge=1)
    """Optimiser steps."""
    context: int = Field(ge=2)
    """Tokens per window."""
    batch_size: int = Field(default=4, ge=1)
    """Windows per forward pass."""
    accumulation: int = Field(default=1, ge=1)
    """Forward passes per optimiser step."""
    learning_rate: float = Field(default=1e-4, gt=0.0)
    """Peak of AdamW's learning rate; linear warm-up over 10% of the steps, then cosine to 0."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    precision: Literal["fp32", "bf16"] = "fp32"
    """"bf16" computes in mixed precision; weights and optimiser stay fp32, evaluation is fp32."""
    lora_rank: int | None = Field(default=None, ge=1)
    """Tune low-rank adapters of this rank on all linear layers (needs peft); None = all weights."""
    gradient_checkpointing: bool = False
    checkpoint_every: int | None = Field(default=None, ge=1)
    """Steps between checkpoints, from which an interrupted run resumes, rounded up to whole log intervals (a
    twentieth of the run); None = every tenth of the run."""
    report_to: list[str] = []
    """Trackers of transformers' Trainer, for example ["tensorboard"]."""


class PenaltySection(Section):
    """The low-fidelity constraint of modes "soft" and "both"."""

    phi: float = Field(default=0.5, ge=0.0, le=1.0)
    """Wanted fidelity."""
    weight: float = Field(default=0.1, ge=0.0)
    """Nats per token for each unit of missing fidelity."""


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


class Condition(Section):
    """One way of making the model local."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60)
    schedule: dict[str, Any]
    """For example {kind = "polynomial", beta = 5}."""
    blocks: BlocksOf = "semantic"
    mode: Mode | None = None
    """None = the study's mode."""
    sinks: int | None = Field(default=None, ge=0)
    """None = the study's sinks."""

    @field_validator("schedule")
    @classmethod
    def _is_a_schedule(cls, value: dict[str, Any]) -> dict[str, Any]:
        return schedule_to_dict(schedule_from_dict(value))

    def build(self) -> Schedule:
        return schedule_from_dict(self.schedule)


def _standard(name: str, schedule: Schedule, blocks: BlocksOf = "semantic") -> Condition:
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
    training: TrainingSection
    penalty: PenaltySection = PenaltySection()
    explain: ExplainSection | None = None
    mode: Mode = "both"
    """"hard": the forward pass is dialled; "soft": the penalty alone shapes it; "both"."""
    sinks: int = Field(default=1, ge=0)
    """That many first tokens of a window can always be read."""
    seeds: list[Annotated[int, Field(ge=0, lt=2**32, strict=True)]] = Field(default=[0, 1, 2], min_length=1)
    keep_models: bool = False
    """Keep the tuned model of every run, with tokenizer and model card, in ``runs/<condition>-seed<seed>/model``."""
    conditions: list[Condition] = list(STANDARD_CONDITIONS.values())
    """Names of standard conditions, or tables of your own; "distributed" is always needed, as the reference."""

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
    def _targets_fit(self) -> "StudyConfig":
        if self.explain is not None and self.explain.target_tokens >= self.training.context // 2:
            raise ValueError(
                f"explain.target_tokens = {self.explain.target_tokens} must be less than half of the context, "
                f"{self.training.context}"
            )
        return self

    @model_validator(mode="after")
    def _comparable(self) -> "StudyConfig":
        names = [condition.name for condition in self.conditions]
        for what, items in (("conditions", names), ("seeds", self.seeds)):
            if len(set(items)) != len(items):
                raise ValueError(f"{what} {items} are not all different")
        if REFERENCE not in names:
            raise ValueError(f'conditions need "{REFERENCE}", the reference of every comparison')
        reference, standard = self.conditions[names.index(REFERENCE)], STANDARD_CONDITIONS[REFERENCE]
        if (reference.schedule, reference.blocks) != (standard.schedule, standard.blocks):
            raise ValueError(f'"{REFERENCE}" is the reference and cannot mean anything else; give yours another name')
        return self

    def mode_of(self, condition: Condition) -> Mode:
        return condition.mode or self.mode

    def sinks_of(self, condition: Condition) -> int:
        return self.sinks if condition.sinks is None else condition.sinks


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
        raise ProlocError(f"{path}: {_first_problem(error)}") from error
    if config.text.file is None:
        return config
    try:
        file = str((folder / Path(config.text.file).expanduser()).resolve())
    except (OSError, RuntimeError, ValueError) as error:
        raise ProlocError(f"the text's file {config.text.file!r} is no path: {error}.") from error
    return config.model_copy(update={"text": config.text.model_copy(update={"file": file})})


def _first_problem(error: ValidationError) -> str:
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
    sections: list[tuple[str, type[Section]]] = [
        ("", StudyConfig),
        ("text", TextSection),
        ("blocks", BlocksSection),
        ("training", TrainingSection),
        ("penalty", PenaltySection),
        ("explain", ExplainSection),
        ("conditions", Condition),
    ]
    lines: list[str] = []
    for name, section in sections:
        lines.append(f"\n[{name}]" if name else "top level")
        for key, field in section.model_fields.items():
            default = "" if field.is_required() or (name == "" and key in dict(sections)) else f" = {field.default!r}"
            lines.append(f"  {key}{default}" + (f"\n      {field.description}" if field.description else ""))
    return "\n".join(lines)
