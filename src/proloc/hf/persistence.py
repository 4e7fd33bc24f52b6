"""Saving: the setting lives in ``config.json`` under "proloc", a partitioner's arrays in a safetensors file beside it.

``config.json`` also asks for the attention "proloc". A plain ``AutoModelForCausalLM.from_pretrained`` therefore stops
(transformers knows no such attention, or ours finds no setting on the layers) instead of giving the model without its
locality in silence; naming another attention gives that model on purpose. How the attention is computed ("reference",
"sdpa") changes no result and depends on the machine, so it is no part of the setting.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from transformers import PreTrainedConfig

from proloc.blocks import Partitioner, build_partitioner
from proloc.errors import ProlocError
from proloc.files import write_atomically
from proloc.hf.routing import NAME
from proloc.hf.state import LocalityState
from proloc.schedule import Schedule, schedule_from_dict, schedule_to_dict

FORMAT = 3
TENSORS_FILE = "proloc.safetensors"
CARD_FILE = "README.md"
OUR_FILES = (TENSORS_FILE, CARD_FILE)


class Part(BaseModel):
    """A frozen piece of the setting; unknown keys are refused, so that a typo never passes for a setting."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Figure(Part):
    """One measured number."""

    what: str
    """What was measured, with its unit."""
    value: float
    dial: float = Field(ge=0.0, le=1.0)
    """Where the dial stood."""
    text: str
    """On which text."""
    how: str
    """Anything else one must know to measure it again."""
    weights: str
    """Fingerprint of the weights, see ``card.fingerprint``: figures of other weights are marked as such."""


class BlocksSetting(Part):
    """A partitioner."""

    kind: str
    settings: dict[str, Any]
    arrays: dict[str, list[int]] | None
    """Shape by name of what ``proloc.safetensors`` must hold; None = not recorded (format 1)."""


class Setting(Part):
    """What ``config.json`` holds under "proloc"."""

    format: Literal[3] = 3
    made_with: dict[str, str]
    """Versions that saved it."""
    base_model: str | None
    """Hub id of the model that was localised, where it came from the Hub."""
    schedule: dict[str, Any]
    blocks: BlocksSetting
    sinks: int = Field(ge=0)
    halo: int = Field(default=0, ge=0)
    """Formats 1 and 2 had none, which is 0."""
    dial: float = Field(ge=0.0, le=1.0)
    figures: list[Figure]


def enter_setting(config: PreTrainedConfig, state: LocalityState, figures: list[dict[str, Any]] | None = None) -> None:
    """Write the setting as it is now into a model's configuration.

    Args:
        config: changed in place; a base model it already names is kept.
        state: of the localised model.
        figures: JSON-able ``Figure``s; None = nothing was measured yet.
    """
    before = getattr(config, "proloc", None)
    known = before.get("base_model") if isinstance(before, dict) else None
    config.proloc = Setting(
        made_with={name: import_module(name).__version__ for name in ("proloc", "transformers", "torch")},
        base_model=known or _hub_id(config.name_or_path or ""),
        schedule=schedule_to_dict(state.schedule),
        blocks=BlocksSetting(
            kind=state.blocks.kind,
            settings=state.blocks.settings(),
            arrays={name: list(tensor.shape) for name, tensor in state.blocks.tensors().items()},
        ),
        sinks=int(state.sinks),
        halo=int(state.halo),
        dial=state.dial,
        figures=[Figure(**figure) for figure in figures or []],
    ).model_dump()


@contextmanager
def asking_for_our_attention(config: PreTrainedConfig) -> Iterator[None]:
    """What is saved inside asks for the attention "proloc"; the living configuration does not, as others copy it."""
    config.attn_implementation = NAME
    try:
        yield
    finally:
        del config.attn_implementation


def read_setting(data: Any, name: str) -> Setting:
    """The setting that ``config.json`` holds, also one of an older format.

    Args:
        data: the value of "proloc".
        name: of the model, for messages.

    Raises:
        ProlocError: there is none, it is of a newer format, or something in it is not right; the message says what.
    """
    if data is None:
        raise ProlocError(f"{name} has no locality setting in its config.json; load it plainly and call localize().")
    number = data.get("format") if isinstance(data, dict) else data
    if type(number) is int and number > FORMAT:
        raise ProlocError(
            f"{name} was saved by a newer proloc, in format {number}; this one reads 1 to {FORMAT}, so upgrade it."
        )
    if type(number) is not int or number < 1:
        raise _wrong(name, f"its format is {number!r}, not 1 to {FORMAT}")
    try:
        return Setting.model_validate_json(
            json.dumps(_from_format_1(data) if number == 1 else {**data, "format": FORMAT})
        )
    except ValidationError as error:
        raise _wrong(name, _first_problem(error)) from error


def build_schedule(setting: Setting, name: str) -> Schedule:
    """The schedule of a setting.

    Raises:
        ProlocError: it names none that there is, or impossible settings.
    """
    try:
        return schedule_from_dict(setting.schedule)
    except ProlocError as error:
        raise _wrong(name, str(error)) from error


def build_blocks(
    setting: Setting, name: str, file: str | Path | None, provide: Callable[[str], Any] | None = None
) -> Partitioner:
    """The partitioner of a setting.

    Args:
        setting: what ``read_setting`` gave.
        name: of the model, for messages.
        file: its ``proloc.safetensors``; None = there is none.
        provide: fetches the models that the partitioner names.

    Raises:
        ProlocError: it names none that there is, or its settings or arrays are not right.
    """
    blocks = setting.blocks
    arrays = _read_arrays(file)
    if blocks.arrays is not None:
        found = {key: list(tensor.shape) for key, tensor in arrays.items()}
        if blocks.arrays and file is None:
            raise ProlocError(
                f"{name} has no {TENSORS_FILE}, which holds the {', '.join(blocks.arrays)} of its '{blocks.kind}' "
                "blocks; copy it from where the model was saved."
            )
        if found != blocks.arrays:
            raise ProlocError(
                f"{name} holds arrays {found} in {TENSORS_FILE}, but its config.json says {blocks.arrays}: the two are "
                "not from one save; copy both from where the model was saved."
            )
    try:
        return build_partitioner(blocks.kind, blocks.settings, arrays, provide)
    except ProlocError as error:
        raise _wrong(name, str(error)) from error
    except Exception as error:  # a value of the wrong type may fail anywhere
        problem = f"'{blocks.kind}' blocks cannot be made from its settings ({type(error).__name__}: {error})"
        raise _wrong(name, problem) from error


def save_tensors(state: LocalityState, folder: str | Path) -> None:
    """Write the partitioner's arrays into a model's folder; where it has none, those of an earlier save are removed."""
    file, tensors = Path(folder) / TENSORS_FILE, state.blocks.tensors()
    if tensors:
        write_atomically(file, save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    else:
        file.unlink(missing_ok=True)


def _from_format_1(data: dict[str, Any]) -> dict[str, Any]:
    """Format 1 had no versions, base model, figures or shapes; its dial could be missing."""
    blocks = data.get("blocks")
    if isinstance(blocks, dict):
        blocks = {"arrays": None, **blocks}
    added: dict[str, Any] = {"made_with": {}, "base_model": None, "figures": [], "dial": 1.0}
    return {**added, **data, "format": FORMAT, **({} if blocks is None else {"blocks": blocks})}


def _read_arrays(file: str | Path | None) -> dict[str, Tensor]:
    if file is None:
        return {}
    try:
        arrays: dict[str, Tensor] = load(Path(file).read_bytes())
    except (OSError, SafetensorError) as error:
        raise ProlocError(f"cannot read {file} ({error}); copy it from where the model was saved.") from error
    return arrays


def _hub_id(name: str) -> str | None:
    """The name when it is a Hub id; a folder of this machine says nothing to anybody else."""
    is_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name, re.ASCII)
    return name if is_id and not Path(name).exists() else None


def _wrong(name: str, problem: str) -> ProlocError:
    problem = problem.rstrip(".")
    return ProlocError(
        f'{name}: the locality setting ("proloc" in config.json) is not right: {problem}; mend it, or save the model '
        "again."
    )


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f'"{place}" is missing'
    if problem["type"] == "extra_forbidden":
        return f'there is no "{place}"'
    return f'"{place}" is {problem["input"]!r}, but {problem["msg"].replace("Input", "it", 1)}'
