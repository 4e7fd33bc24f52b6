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
NOT_LOCALISED = (
    "a part of a localised model was called by itself, or a saved one was loaded without its locality: call the model "
    "that localize() returned, and load a saved one with proloc.from_pretrained(folder), or, for the plain model, with "
    "attn_implementation='sdpa'."
)

# Arguments that reach an attention function and leave what it means as it is, or are already in the mask. Any other one
# is refused: ignored, it could give wrong logits in silence (attention sinks, position biases, sparse indices ...).
HARMLESS = {
    "cache_position", "cu_seq_lens_k", "cu_seq_lens_q", "max_length_k", "max_length_q", "num_items_in_batch",
    "output_attentions", "output_hidden_states", "output_router_logits", "past_key_values", "position_embeddings",
    "position_ids", "sliding_window", "use_cache",
}  # fmt: skip


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
    layout = _current_layout()
    if layout is None:
        raise ProlocError(NOT_LOCALISED)
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


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _current_layout() -> Layout | None:
    return current_layout.get()


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
    softcap = kwargs.pop("softcap", None)
    if kwargs.pop("is_causal", None) is False:
        raise ProlocError(
            "is_causal=False asks for attention to later tokens; a localised model reads earlier ones only."
        )
    refused = sorted(name for name in kwargs.keys() - HARMLESS if kwargs[name] is not None)
    if refused:
        raise ProlocError(
            f"{type(module).__name__} was given {', '.join(refused)}, and proloc does not know what that does to its "
            "attention: if it is an argument of yours, leave it out; otherwise this architecture cannot be localised."
        )
    state: LocalityState | None = module.__dict__.get(ATTRIBUTE)
    if state is None:
        raise ProlocError(NOT_LOCALISED)
    layer: int = module.layer_idx  # type: ignore[assignment]
    recomputed = not torch.compiler.is_compiling() and current_layout.get() is None
    if recomputed and state.dial != state.forward_dial:
        raise ProlocError(
            f"the dial stood at {state.forward_dial} in the forward pass and at {state.dial} when checkpointing "
            "computed a layer again; call backward() inside the same `with dial(...)`."
        )
    recorder = state.recorder
    recorded = recorder.wants(state.localities[layer])
    backend = select(state.backend, weights_wanted=recorded or state.weights_asked_for, softcap=softcap is not None)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    arguments = (query, key, value, attention_mask, state.retain[layer])
    if backend == "sdpa":
        return sdpa.attend(*arguments, scaling=scaling, dropout=dropout), None
    attended = reference.attend(*arguments, scaling=scaling, dropout=dropout, softcap=softcap)
    if recorded:
        # Checkpointing runs a layer again and must then save the same tensors, so it is measured twice.
        recorder.record(layer, attended, attention_mask)
    return attended.output, attended.weights.to(query.dtype)


def register() -> None:
    """Enter both functions in transformers' registries; doing it again changes nothing."""
    AttentionInterface.register(NAME, dialled_attention)
    AttentionMaskInterface.register(NAME, relation_mask)
