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
    }


def save_tensors(state: LocalityState, folder: str | Path) -> None:
    """Write the partitioner's arrays into a saved model's folder; nothing where it has none."""
    tensors = state.blocks.tensors()
    if tensors:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, Path(folder) / TENSORS_FILE)
