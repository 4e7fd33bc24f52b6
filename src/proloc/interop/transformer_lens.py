"""TransformerLens: hooks that put the locality back into a bridge over a localised model.

``TransformerBridge`` computes the attention of every layer itself and leaves the locality out without a word. These
hooks add to the scores what ``proloc`` adds::

    bridge = TransformerBridge.boot_transformers(name, hf_model=copy.deepcopy(model), tokenizer=tokenizer)
    release_attention(bridge)  # the bridge computes attention itself and cannot read the masks that proloc makes
    hooks = locality_hooks(bridge, input_ids)
    logits = bridge.run_with_hooks(input_ids, fwd_hooks=hooks)
    with bridge.hooks(fwd_hooks=hooks):
        logits, cache = bridge.run_with_cache(input_ids)

The bridge takes the modules of its model for itself, therefore the copy. Without the hooks it is the base model.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from proloc.errors import ProlocError
from proloc.hf import find_state
from proloc.hf.routing import NAME
from proloc.locality import bias, relate

HOOK = "blocks.{layer}.attn.hook_attn_scores"


def release_attention(bridge: Any) -> None:
    """Let a bridge compute the attention of its model, which from now on is local only through ``locality_hooks``.

    Raises:
        ProlocError: the bridge's model is not localised.
    """
    find_state(bridge).attention_released = True
    bridge.original_model.set_attn_implementation("eager")


def locality_hooks(
    bridge: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None, *, block_ids: Tensor | None = None
) -> list[tuple[str, Callable[..., Tensor]]]:
    """Forward hooks for one batch, in the form ``fwd_hooks`` takes; they follow the dial when it is turned later.

    The bridge hides what the model may not see (the future, padding, keys outside a window) by itself.

    Args:
        bridge: over a localised model.
        input_ids: ``[batch, seq]``, the whole text; a bridge that continues from a cache is not supported.
        attention_mask: ``[batch, seq]``, 0 at padding; None = no padding.
        block_ids: ``[batch, seq]``; None = the model's own partitioner runs.

    Raises:
        ProlocError: a model that is not localised, no bridge or one that still gets proloc's masks, shapes that do not
            fit, or (in a hook) another text than ``input_ids``.
    """
    state = find_state(bridge)
    if any(isinstance(each, PreTrainedModel) and each.config._attn_implementation == NAME for each in bridge.modules()):
        raise ProlocError(
            "proloc still runs this model's attention, or makes masks that a bridge misreads: give the bridge, after "
            "release_attention(bridge)."
        )
    if input_ids.dim() != 2 or input_ids.is_floating_point():
        raise ProlocError(
            f"input_ids are {input_ids.dtype} {tuple(input_ids.shape)}; token ids [batch, seq] are needed."
        )
    for name, given in (("attention_mask", attention_mask), ("block_ids", block_ids)):
        if given is not None and given.shape != input_ids.shape:
            raise ProlocError(f"{name} is {tuple(given.shape)}; input_ids are {tuple(input_ids.shape)}.")
    valid = None if attention_mask is None else attention_mask.bool()
    layout = state.layout(input_ids, block_ids, valid, None)
    batch, length = input_ids.shape
    visible = torch.ones(batch, 1, length, length, dtype=torch.bool, device=input_ids.device)
    relation = relate(layout, torch.arange(length, device=input_ids.device), visible)

    def hook_of(layer: int) -> Callable[..., Tensor]:
        def add_bias(scores: Tensor, hook: Any = None) -> Tensor:
            if (scores.shape[0], *scores.shape[2:]) != (batch, length, length):
                raise ProlocError(
                    f"the locality hooks were made for input_ids {(batch, length)}, but the scores are "
                    f"{tuple(scores.shape)}; make them again for this batch, and run it without a cache."
                )
            return scores + bias(relation.to(scores.device), state.retain[layer], scores.dtype)

        return add_bias

    return [(HOOK.format(layer=layer), hook_of(layer)) for layer in range(len(state.localities))]
