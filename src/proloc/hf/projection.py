"""What every attention layer multiplies its heads' outputs with, found by watching it run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from proloc.errors import ProlocError
from proloc.hf.localize import attention_layers


@contextmanager
def output_projections(model: PreTrainedModel) -> Iterator[Callable[[int, Tensor], Tensor]]:
    """The output projection of every layer, without its bias; known once a forward pass ran inside the ``with`` block.

    It is the last part with weights that an attention module calls; architectures name it differently.

    Yields:
        a function of a layer's number and head outputs ``[..., head, head_dim]``; it gives ``[..., width]``.
    """
    last: dict[int, nn.Module] = {}

    def watch(layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def called(part: nn.Module, given: Any, result: Any) -> None:
            if any(True for _ in part.parameters()):
                last[layer] = part

        return called

    hooks = [
        part.register_forward_hook(watch(layer))
        for layer, attention in enumerate(attention_layers(model))
        for part in attention.children()
    ]

    def project(layer: int, heads: Tensor) -> Tensor:
        if layer not in last:
            raise ProlocError(f"{type(model).__name__} shows no output projection in layer {layer}.")
        flat = heads.flatten(-2)
        projected: Tensor = last[layer](flat) - last[layer](torch.zeros_like(flat[..., :1, :]))
        return projected

    try:
        yield project
    finally:
        for hook in hooks:
            hook.remove()
