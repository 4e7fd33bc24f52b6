"""The keys and values of a text's first tokens, computed once and used for many continuations."""

import inspect

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from proloc.hf.state import find_state

# Settings of layers to which the number of tokens matters, and not their positions alone.
COUNTING = ("sliding_window", "attention_chunk_size", "attn_temperature_tuning")


def full_cache() -> DynamicCache:
    """A cache whose layers keep every key, also where a window hides old ones: it can be cropped anywhere."""
    return DynamicCache()


def repeat_prefix(cache: DynamicCache, length: int, rows: int) -> DynamicCache:
    """A copy with the first ``length`` tokens of a one-row ``full_cache``, for ``rows`` rows.

    Args:
        cache: of at least that many tokens; it stays as it is.
        length: tokens kept, >= 0.
        rows: how many times.
    """
    if length == 0:
        return full_cache()
    repeated = full_cache()
    for number, layer in enumerate(cache.layers):
        keys, values = (part[..., :length, :].repeat_interleave(rows, dim=0) for part in (layer.keys, layer.values))
        repeated.update(keys, values, number)
    return repeated


def can_leave_out(model: PreTrainedModel, num_sinks: int) -> bool:
    """Whether leaving out tokens that nobody reads changes nothing, as long as all others keep their positions.

    So it is where positions can be given and nothing counts tokens: no window, chunk, halo, temperature that grows with
    the text, or sink beyond those that are never left out.

    Args:
        model: a localised model.
        num_sinks: first tokens that are never left out.
    """
    config, state = model.config.get_text_config(decoder=True), find_state(model)
    counts = any(getattr(config, name, None) for name in COUNTING) or state.halo > 0 or state.sinks > num_sinks
    others = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    return "position_ids" in inspect.signature(model.forward).parameters and not counts and not others


def last_logits(model: PreTrainedModel, last: int, **inputs: object) -> Tensor:
    """Logits ``[batch, last, vocab]`` of the last tokens; others are left out where the model can."""
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        inputs["logits_to_keep"] = last
    logits: Tensor = model(**inputs).logits
    return logits[:, -last:]
