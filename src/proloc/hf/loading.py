"""``from_pretrained``: a saved localised model comes back with its schedule, blocks and sinks."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import cached_file

from proloc.attention import Backend
from proloc.blocks import build_partitioner
from proloc.errors import ProlocError
from proloc.hf.frozen import provide
from proloc.hf.localize import localize
from proloc.hf.persistence import FORMAT, TENSORS_FILE
from proloc.hf.state import find_state
from proloc.schedule import schedule_from_dict

# Arguments of from_pretrained that say where its files come from; our own file must come from there too.
WHERE = ("subfolder", "revision", "cache_dir", "token", "local_files_only", "force_download")


def from_pretrained(name: str | Path, *, attention: Backend = "auto", **kwargs: Any) -> PreTrainedModel:
    """Load a localised model that ``save_pretrained`` wrote, with its schedule, blocks, sinks and dial.

    Args:
        name: a folder or a Hub id.
        attention: as for ``localize``.
        **kwargs: for ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        ProlocError: no locality setting there, or one of another format.
    """
    model = AutoModelForCausalLM.from_pretrained(str(name), **kwargs)
    saved = getattr(model.config, "proloc", None)
    if not isinstance(saved, dict):
        raise ProlocError(f"{name} has no locality setting in its config.json; load it plainly and call localize().")
    if saved.get("format") != FORMAT:
        raise ProlocError(f"{name} has a locality setting of format {saved.get('format')}; this proloc reads {FORMAT}.")
    where = {key: kwargs[key] for key in WHERE if key in kwargs}
    found = cached_file(str(name), TENSORS_FILE, _raise_exceptions_for_missing_entries=False, **where)
    blocks = build_partitioner(
        saved["blocks"]["kind"], saved["blocks"]["settings"], load_file(found) if found else {}, provide
    )
    localised = localize(
        model, schedule_from_dict(saved["schedule"]), blocks, sinks=saved["sinks"], attention=attention
    )
    find_state(localised).set_dial(saved.get("dial", 1.0))
    return localised
