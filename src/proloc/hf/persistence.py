"""Saving: the setting lives in ``config.json`` under "proloc", a partitioner's arrays in one safetensors file."""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from proloc.hf.state import LocalityState
from proloc.schedule import schedule_to_dict

FORMAT = 1
TENSORS_FILE = "proloc.safetensors"


def setting(state: LocalityState) -> dict[str, Any]:
    """The JSON-able setting of a localised model."""
    return {
        "format": FORMAT,
        "schedule": schedule_to_dict(state.schedule),
        "blocks": {"kind": state.blocks.kind, "settings": state.blocks.settings()},
        "sinks": state.sinks,
        "dial": state.dial,
    }


def save_tensors(state: LocalityState, folder: str | Path) -> None:
    """Write the partitioner's arrays into a model's folder; where it has none, those of an earlier save are removed."""
    file, tensors = Path(folder) / TENSORS_FILE, state.blocks.tensors()
    if tensors:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    else:
        file.unlink(missing_ok=True)
