"""Our two entries in transformers' registries: the mask function and the attention function, both named "proloc".

Registering the attention alone would make transformers build no mask at all, and causality and padding would be lost in
silence; so the mask function is registered under the same name. It turns the visibility transformers computes (causal,
padding, windows, packing, caches) and the blocks into ``attention.Keys``, which then travel through the layers as their
ordinary mask argument.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function

from proloc.attention import CutKeys, KeyRanges, Keys, Needs, Wanted, choose, undialled_entropy
from proloc.errors import ProlocError
from proloc.hf.state import ATTRIBUTE, LocalityState, Recording, current_layout
from proloc.hf.visibility import MaskRequest, visible_starts
from proloc.locality import HIDDEN, Layout, relate

NAME = "proloc"
NOT_LOCALISED = (
    "a part of a localised model was called by itself, or a saved one was loaded without its locality: call the model "
    "that localize() returned, and load a saved one with proloc.from_pretrained(folder), or, for the plain model, with "
    "attn_implementation='sdpa'."
)

# What a backend must be able to measure for what is recorded; entropy needs a backend that has all statistics.
STATISTICS: dict[Recording, Wanted] = {
    "nothing": "nothing", "fidelity": "fidelity", "weights": "nothing", "entropy": "all", "all": "all",
}  # fmt: skip

# Arguments that reach an attention function and leave what it means as it is, or are already in the mask. Any other one
# is refused: ignored, it could give wrong logits in silence (attention sinks, position biases, sparse indices ...).
HARMLESS = {
    "cache_position", "cu_seq_lens_k", "cu_seq_lens_q", "max_length_k", "max_length_q", "num_items_in_batch",
    "output_attentions", "output_hidden_states", "output_router_logits", "past_key_values", "position_embeddings",
    "position_ids", "sliding_window", "use_cache",
}  # fmt: skip


@torch.compiler.disable  # type: ignore[untyped-decorator]
def keys_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Keys | Tensor:
    """What the layers get as their mask: the keys of the batch; prepared in advance (static caches), as a matrix.

    Raises:
        ProlocError: the model's layers were called without going through the localised model.
    """
    current = current_layout.get()
    if current is None:
        raise ProlocError(NOT_LOCALISED)
    request = MaskRequest(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=int(q_offset),
        kv_offset=int(kv_offset),
        mask_function=mask_function,
        attention_mask=attention_mask,
        use_vmap=kwargs.get("use_vmap", False),
        device=device,
    )
    layout = _key_window(current.layout, request.kv_offset, kv_length)

    def relation() -> Tensor:
        return relate(layout, request.query_positions(), request.visible())

    if current.prepared:
        if current.cut is not None:
            raise ProlocError("edges cannot be cut with a static cache, whose masks are made in advance.")
        return relation()
    starts = visible_starts(request)
    windowed = starts is not None and kwargs.get("local_size") is not None
    try:
        ranges = None if starts is None else KeyRanges.from_blocks(
            layout.block_ids, layout.sinks, starts, request.q_offset - request.kv_offset, halo=layout.halo
        )  # fmt: skip
    except ProlocError:  # blocks that are not contiguous; with a halo, relation() refuses them
        ranges = None
    held = current.held
    if held is not None:
        held = held[held >= request.kv_offset] - request.kv_offset
        held = held if len(held) < kv_length else None
    dropped = current.dropped
    if dropped is not None:
        dropped = dropped[:, request.kv_offset : request.kv_offset + kv_length]
        dropped = torch.nn.functional.pad(dropped, (0, kv_length - dropped.shape[1]), value=False)
    cut = None
    if current.cut is not None:
        end = request.kv_offset + kv_length
        lost = current.cut.between(request.kv_offset + request.query_positions(), range(request.kv_offset, end))
        less = Keys(None, lambda: relation().masked_fill(lost, HIDDEN), held=held, dropped=dropped)
        cut = CutKeys(less, current.cut.layers)
    return Keys(ranges, relation, windowed=windowed, held=held, dropped=dropped, cut=cut)


def _key_window(layout: Layout, start: int, length: int) -> Layout:
    """The layout of the keys a cache holds; room that a static cache has not filled yet is hidden."""
    block_ids, sinks = (part[:, start : start + length] for part in (layout.block_ids, layout.sinks))
    missing = length - block_ids.shape[1]
    if missing > 0:
        block_ids = torch.nn.functional.pad(block_ids, (0, missing), value=-1)
        sinks = torch.nn.functional.pad(sinks, (0, missing), value=False)
    return Layout(block_ids, sinks, layout.halo)


def dialled_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Keys | Tensor | None,
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
    if isinstance(attention_mask, Tensor) and attention_mask.dtype == torch.uint8:
        keys = Keys.of_relation(attention_mask)
    elif isinstance(attention_mask, Keys):
        keys = attention_mask
    else:
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
    keys = keys.at_layer(layer)
    recorder = state.recorder
    wanted = recorder.wants(state.localities[layer])
    if keys.held is not None and key.shape[2] == len(keys.held):
        _check_local(state, layer, measured=wanted != "nothing" or recorder.wants_weights)
        keys = keys.local()
    elif keys.dropped is not None and state.localities[layer] > 0.0 and state.dial * state.localities[layer] < 1.0:
        keys = keys.thinned()
    query, key, value = _of_one_type(query, key, value)
    retain = state.retain_of(layer)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    choice = choose(
        state.requested,
        Needs(
            device=query.device.type,
            dtype=query.dtype,
            queries=query.shape[2],
            keys=key.shape[2],
            wanted=STATISTICS[wanted],
            weights=state.weights_asked_for or recorder.wants_weights or wanted == "weights",
            dropout=dropout > 0.0,
            softcap=softcap is not None,
            contiguous=keys.ranges is not None,
            windowed=keys.windowed,
            unmasked=not torch.compiler.is_compiling() and keys.unmasked(float(retain.detach())),
            slope=retain.requires_grad,
        ),
    )
    attention = choice.attend(
        query,
        key,
        value,
        choice.keys_for(keys),
        retain,
        scaling=scaling,
        dropout=dropout,
        softcap=softcap,
        wanted="nothing" if wanted == "entropy" else STATISTICS[wanted],
    )
    entropy = None
    if wanted == "entropy":
        entropy = undialled_entropy(choice.attend, attention, query, key, choice.keys_for(keys), scaling)
    if not torch.compiler.is_compiling():
        state.chosen[layer] = choice
    if wanted != "nothing":
        # Checkpointing runs a layer again and must then save the same tensors, so it is measured twice.
        recorder.record(layer, attention, keys, entropy)
    return attention.output, None if attention.weights is None else attention.weights.to(query.dtype)


def _check_local(state: LocalityState, layer: int, *, measured: bool) -> None:
    """Raise where something is asked for that needs keys which were dropped from a cache."""
    if measured or state.weights_asked_for:
        raise ProlocError(
            f"layer {layer} dropped keys from its cache, so its weights and fidelity over the whole text are not known "
            "here; pass past_key_values=DynamicCache(config=model.config) to keep every key."
        )
    if float(state.retain[layer]) != 0.0:
        raise ProlocError(f"layer {layer} takes its keys from a hard layer, which dropped some; it needs a full cache.")


def _of_one_type(*parts: Tensor) -> tuple[Tensor, ...]:
    """Under autocast queries, keys and values may differ in type, which torch's own operators settle by themselves."""
    device = parts[0].device.type
    if torch.is_autocast_enabled(device) and len({part.dtype for part in parts}) > 1:
        return tuple(part.to(torch.get_autocast_dtype(device)) for part in parts)
    return parts


def register() -> None:
    """Enter both functions in transformers' registries; doing it again changes nothing."""
    AttentionInterface.register(NAME, dialled_attention)
    AttentionMaskInterface.register(NAME, keys_mask)
