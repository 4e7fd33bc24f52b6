"""Wanted values: one for all layers, one for each layer, or one for each head of each layer."""

from collections.abc import Sequence

import torch
from torch import Tensor

from proloc.errors import ProlocError

Target = float | Sequence[float] | Sequence[Sequence[float]]


def check_values(name: str, target: Target, highest: float) -> None:
    """Raise a ProlocError unless all values lie in [0, highest]."""
    values = [target] if isinstance(target, (int, float)) else [value for layer in target for value in _heads(layer)]
    if isinstance(target, Sequence) and len({isinstance(layer, Sequence) for layer in target}) != 1:
        raise ProlocError(f"{name} is {target}; give a number, one for each layer, or one for each head of each layer.")
    for value in values:
        if not 0.0 <= value <= highest:
            raise ProlocError(f"{name} is {value}; it must lie in [0, {highest:g}].")


def check_shape(name: str, target: Target, num_layers: int, num_heads: int) -> None:
    """Raise a ProlocError unless there is a value for every layer, or for every head of every layer."""
    if not isinstance(target, Sequence):
        return
    if len(target) != num_layers:
        raise ProlocError(f"{name} has values for {len(target)} layers; the model has {num_layers}.")
    for layer, values in enumerate(target):
        if isinstance(values, Sequence) and len(values) != num_heads:
            raise ProlocError(
                f"{name} has {len(values)} values for the heads of layer {layer}; the model has {num_heads}."
            )


def of_layer(target: Target, layer: int, like: Tensor) -> Tensor:
    """The layer's value, in a shape that broadcasts with ``like`` ``[batch, head, query]``."""
    value = target[layer] if isinstance(target, Sequence) else target
    return torch.tensor(value, dtype=like.dtype, device=like.device)[..., None]


def _heads(layer: float | Sequence[float]) -> Sequence[float]:
    return layer if isinstance(layer, Sequence) else (layer,)
