"""Continuing a text with the dial where the user wants it."""

import torch
from transformers import AutoConfig, PreTrainedModel

from proloc.blocks import SentenceBlocks
from proloc.errors import ProlocError
from proloc.hf import dial as dial_at
from proloc.hf import from_pretrained, localize
from proloc.hf.models import load_model, load_tokenizer
from proloc.model_store import resolve
from proloc.schedule import Polynomial


def continue_text(name: str, prompt: str, *, dial: float = 1.0, tokens: int = 60, seed: int | None = None) -> str:
    """The prompt and its continuation.

    Args:
        name: as for ``model_store.resolve``. A model saved with a locality keeps it; another one gets a quintic
            schedule over sentence blocks.
        prompt: text, not empty.
        dial: position in [0, 1].
        tokens: how many to add.
        seed: samples with temperature 0.8 and top-p 0.95; None = greedy.

    Raises:
        ProlocError: no such model, an empty prompt, an impossible dial, or more tokens than the model's context.
    """
    if tokens < 1:
        raise ProlocError(f"tokens is {tokens}; it must be 1 or more.")
    if seed is not None and not 0 <= seed < 2**63:
        raise ProlocError(f"the seed is {seed}; it must lie in [0, 2**63).")
    tokenizer = load_tokenizer(name)
    inputs = tokenizer(prompt, return_tensors="pt")
    if inputs["input_ids"].numel() == 0:
        raise ProlocError("the prompt is empty; give some text to continue.")
    model = _localised(name)
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    length = inputs["input_ids"].shape[1] + tokens
    if limit is not None and length > limit:
        raise ProlocError(f"prompt and continuation are {length} tokens; {name} was made for at most {limit}.")
    sampling = {"do_sample": False} if seed is None else {"do_sample": True, "temperature": 0.8, "top_p": 0.95}
    if seed is not None:
        torch.manual_seed(seed)
    with dial_at(model, dial):
        output = model.generate(
            inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=tokens,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            **sampling,
        )
    text: str = tokenizer.decode(output[0], skip_special_tokens=True)
    return text


def _localised(name: str) -> PreTrainedModel:
    if isinstance(getattr(AutoConfig.from_pretrained(resolve(name)), "proloc", None), dict):
        return from_pretrained(resolve(name)).eval()
    return localize(load_model(name), Polynomial(beta=5), SentenceBlocks(load_tokenizer(name))).eval()
