"""``from_pretrained``: a saved localised model comes back with its schedule, blocks and sinks."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import cached_file

from proloc.attention import Requested
from proloc.hf.frozen import provide
from proloc.hf.localize import localize
from proloc.hf.persistence import TENSORS_FILE, Setting, build_blocks, build_schedule, enter_setting, read_setting
from proloc.hf.state import find_state

# Arguments of from_pretrained that say where its files come from; our own file must come from there too.
WHERE = ("subfolder", "revision", "cache_dir", "token", "local_files_only", "force_download")


def from_pretrained(name: str | Path, *, attention: Requested = "auto", **kwargs: Any) -> PreTrainedModel:
    """Load a localised model that ``save_pretrained`` wrote, with its schedule, blocks, sinks, halo, dial and figures.

    Adapters that PEFT saved load too, where the model they were made for is a saved localised one.

    Args:
        name: a folder or a Hub id.
        attention: as for ``localize``.
        **kwargs: for ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        ProlocError: no locality setting there, one of a newer format, or one that is not right.
    """
    # The saved configuration asks for "proloc", which plain loading must refuse; localize() sets it again.
    model = AutoModelForCausalLM.from_pretrained(str(name), **{"attn_implementation": None, **kwargs})
    setting = read_setting(getattr(model.config, "proloc", None), str(name))
    where = {key: kwargs[key] for key in WHERE if key in kwargs}
    blocks = build_blocks(setting, str(name), _arrays_file(setting, str(name), where, model.name_or_path), provide)
    schedule = build_schedule(setting, str(name))
    localised = localize(model, schedule, blocks, sinks=setting.sinks, halo=setting.halo, attention=attention)
    state = find_state(localised)
    state.set_dial(setting.dial)
    enter_setting(localised.config, state, [figure.model_dump() for figure in setting.figures])
    return localised


def _arrays_file(setting: Setting, name: str, where: dict[str, Any], base: str) -> str | None:
    """The partitioner's arrays: in the model's own place, or, for adapters, in that of the model they were made for."""
    if setting.blocks.arrays == {}:
        return None
    file: str | None = cached_file(name, TENSORS_FILE, _raise_exceptions_for_missing_entries=False, **where)
    if file is None and base != name:
        file = cached_file(base, TENSORS_FILE, _raise_exceptions_for_missing_entries=False)
    return file
