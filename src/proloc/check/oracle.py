"""The oracle: the unmodified model in float64 with transformers' eager attention, and the bias added by hooks.

It shares nothing with the code it judges but the definition: no mask function, no attention function, no context
variable of ours. A hook before every attention module adds ``log(retain)`` at away keys to the mask that transformers
made; which keys those are is worked out here with plain comparisons.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from proloc.errors import ProlocError


class Oracle:
    """A float64 copy of a stock model that can be dialled by hooks.

    Args:
        stock: an unmodified model.
        attention_modules: the attention module of every layer, found in ``stock``.
        halo: that many blocks before a query's own are home as well.
    """

    def __init__(self, stock: PreTrainedModel, attention_modules: Sequence[nn.Module], halo: int = 0) -> None:
        names = {module: name for name, module in stock.named_modules()}
        self.model = copy.deepcopy(stock).double()
        self.model.set_attn_implementation("eager")
        if hasattr(self.model, "set_experts_implementation") and self.model._can_set_experts_implementation():
            self.model.set_experts_implementation("eager")  # grouped products of experts take no float64
        self.halo = halo
        self._layers = [self.model.get_submodule(names[module]) for module in attention_modules]

    def forward(self, block_ids: Tensor, sinks: Tensor, retains: Sequence[float], **inputs: Any) -> Any:
        """The model's output of one full forward pass without a cache.

        Args:
            block_ids: int64 ``[batch, seq]``.
            sinks: bool ``[batch, seq]``.
            retains: share of its weight that an away key keeps, one per layer.
            **inputs: for the model's forward.
        """
        away = ~self.near(block_ids, sinks)
        with self._dialled(away[:, None], retains):
            return self.model(use_cache=False, **inputs)

    def near(self, block_ids: Tensor, sinks: Tensor) -> Tensor:
        """Which keys are home or sink, bool ``[batch, query, key]``; later keys are not considered."""
        edges = torch.zeros_like(block_ids)
        edges[:, 1:] = block_ids[:, 1:] != block_ids[:, :-1]
        between = (edges.cumsum(1)[:, :, None] - edges.cumsum(1)[:, None, :]).abs()  # edges between query and key
        near = (block_ids[:, :, None] == block_ids[:, None, :]) | (between <= self.halo) | sinks[:, None, :]
        for row, first in edges.nonzero().tolist():
            if (lead := int(block_ids[row, first]) >> 32) > 0:
                readers = between[row, :, first] <= self.halo
                readers[:first] = False
                near[row, readers, first - lead : first] = True
        return near

    @contextmanager
    def _dialled(self, away: Tensor, retains: Sequence[float]) -> Iterator[None]:
        handles = [
            layer.register_forward_pre_hook(_adding(away, retain), with_kwargs=True)
            for layer, retain in zip(self._layers, retains, strict=True)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _adding(away: Tensor, retain: float) -> Any:
    """A hook that adds ``log(retain)`` at away keys to the mask argument of an attention layer."""
    bias = math.log(retain) if retain > 0 else -math.inf

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if _is_mask(kwargs.get("attention_mask"), away):
            return args, {**kwargs, "attention_mask": dialled(kwargs["attention_mask"])}
        if not any(_is_mask(value, away) for value in args):
            raise ProlocError(
                "the oracle found no mask among the arguments of an attention layer; nothing was checked."
            )
        return tuple(dialled(value) if _is_mask(value, away) else value for value in args), kwargs

    def dialled(mask: Tensor) -> Tensor:
        # Many models take the softmax in float32 at any precision, where the lowest float64 would become -inf.
        lowest = mask.clamp_min(torch.finfo(torch.float32).min)
        return torch.where(away, lowest + bias, lowest)

    return hook


def _is_mask(value: Any, away: Tensor) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.dim() == 4
        and value.shape[-2:] == away.shape[-2:]
        and value.shape[1] == 1
    )
