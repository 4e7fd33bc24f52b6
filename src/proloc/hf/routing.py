"""Our two entries in transformers' registries: the mask function and the attention function, both named "proloc".

Registering the attention alone would make transformers build no mask at all, and causality and padding would be lost in
silence; so the mask function is registered under the same name. It turns the visibility transformers computes (causal,
padding, windows, packing, caches) into the relation of ``locality.relate``, which then travels through the layers as
their ordinary mask argument.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function, sdpa_mask

from proloc.attention import reference, sdpa, select
from proloc.errors import ProlocError
from proloc.hf.state import ATTRIBUTE, LocalityState, current_layout
from proloc.locality import Layout, relate

NAME = "proloc"

# Arguments that change what attention means; each is refused until it is implemented: ignored, it gives wrong logits.
UNSUPPORTED = ("softcap", "s_aux", "position_bias", "indices")


def relation_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Tensor:
    """The relation of every query and key, uint8 ``[batch, 1, query, key]`` (see ``locality``).

    Raises:
        ProlocError: the model's layers were called without going through the localised model.
    """
    layout = current_layout.get()
    if layout is None:
        raise ProlocError("a part of a localised model was called by itself; call the model that localize() returned.")
    visible = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        allow_is_causal_skip=False,
        use_vmap=kwargs.get("use_vmap", False),
        device=device,
    )
    positions = torch.arange(q_length, device=device) + q_offset - kv_offset
    return relate(_key_window(layout, kv_offset, kv_length), positions, visible)


def _key_window(layout: Layout, start: int, length: int) -> Layout:
    """The layout of the keys a cache holds; room that a static cache has not filled yet is hidden."""
    block_ids, sinks = (part[:, start : start + length] for part in (layout.block_ids, layout.sinks))
    missing = length - block_ids.shape[1]
    if missing > 0:
        block_ids = torch.nn.functional.pad(block_ids, (0, missing), value=-1)
        sinks = torch.nn.functional.pad(sinks, (0, missing), value=False)
    return Layout(block_ids, sinks)


def dialled_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention of one layer of a localised model; transformers calls it.

    Returns:
        output ``[batch, query, head, head_dim]`` and the weights as used, or None where they were not computed.

    Raises:
        ProlocError: a mask that is not ours, or an argument that is not implemented.
    """
    if attention_mask is None or attention_mask.dtype != torch.uint8:
        raise ProlocError(
            "a localised model takes 2D attention masks [batch, seq] only, not one prepared by the caller."
        )
    refused = [name for name in UNSUPPORTED if kwargs.get(name) is not None]
    if refused:
        raise ProlocError(
            f"{type(module).__name__} needs {', '.join(refused)} in its attention, which proloc does not do."
        )
    state: LocalityState = module.__dict__[ATTRIBUTE]
    layer: int = module.layer_idx  # type: ignore[assignment]
    if current_layout.get() is None and state.dial != state.forward_dial:
        raise ProlocError(
            f"the dial stood at {state.forward_dial} in the forward pass and at {state.dial} when checkpointing "
            "computed a layer again; call backward() inside the same `with dial(...)`."
        )
    recorder = state.recorder
    recorded = recorder.wants(state.localities[layer])
    backend = select(state.backend, weights_wanted=recorded or state.weights_asked_for)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    arguments = (query, key, value, attention_mask, state.retain[layer])
    if backend == "sdpa":
        return sdpa.attend(*arguments, scaling=scaling, dropout=dropout), None
    attended = reference.attend(*arguments, scaling=scaling, dropout=dropout)
    if recorded:
        # Checkpointing runs a layer again and must then save the same tensors, so it is measured twice.
        recorder.record(layer, attended, attention_mask)
    return attended.output, attended.weights.to(query.dtype)


def register() -> None:
    """Enter both functions in transformers' registries; doing it again changes nothing."""
    AttentionInterface.register(NAME, dialled_attention)
    AttentionMaskInterface.register(NAME, relation_mask)
