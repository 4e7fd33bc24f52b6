"""A TransformerLens bridge over a localised model gives the base model's logits; with our hooks, the localised ones."""

import copy

import pytest
import torch
from tiny import VOCAB, random_ids, tiny_model
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import proloc
from proloc.interop.transformer_lens import locality_hooks, release_attention

pytestmark = pytest.mark.slow
lens = pytest.importorskip(
    "transformer_lens.model_bridge", reason="pip install 'proloc[interop]'", exc_type=ImportError
)

FAMILIES = ("gpt2", "llama", "mistral")
CLOSE = {"rtol": 0.0, "atol": 1e-4}


def localised(family):
    return proloc.localize(tiny_model(family), proloc.Polynomial(beta=1), proloc.FixedBlocks(5))


def bridged(family):
    """A localised model, and a bridge over a copy of it."""
    model = localised(family)
    words = Tokenizer(models.WordLevel({str(number): number for number in range(VOCAB)}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="0", pad_token="0")
    bridge = lens.TransformerBridge.boot_transformers(
        "tiny", hf_model=copy.deepcopy(model), tokenizer=tokenizer, device="cpu"
    )
    release_attention(bridge)
    return model, bridge


@pytest.mark.parametrize("family", FAMILIES)
def test_without_hooks_a_bridge_is_the_base_model(family):
    model, bridge = bridged(family)
    ids = random_ids(2, 21)
    with torch.no_grad():
        torch.testing.assert_close(bridge(ids), tiny_model(family)(ids).logits, **CLOSE)
        assert (bridge(ids) - model(ids).logits).abs().max() > 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_with_the_hooks_a_bridge_is_the_localised_model_wherever_the_dial_stands(family):
    model, bridge = bridged(family)
    ids = random_ids(2, 21)
    hooks = locality_hooks(bridge, ids)
    for position in (0.0, 0.5, 1.0):
        with proloc.dial(model, position), proloc.dial(bridge, position), torch.no_grad():
            logits = bridge.run_with_hooks(ids, fwd_hooks=hooks)
            torch.testing.assert_close(logits, model(ids).logits, **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_left_padding_and_given_blocks_are_obeyed(family):
    model, bridge = bridged(family)
    ids, pad = random_ids(2, 18), torch.zeros(2, 5, dtype=torch.long)
    inputs, mask = torch.cat([pad, ids], 1), torch.cat([pad, torch.ones_like(ids)], 1)
    blocks = torch.arange(23).div(7, rounding_mode="floor").expand(2, -1)
    hooks = locality_hooks(bridge, inputs, mask, block_ids=blocks)
    with torch.no_grad():
        logits = bridge.run_with_hooks(inputs, attention_mask=mask, fwd_hooks=hooks)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        expected = model(inputs, attention_mask=mask, position_ids=positions, block_ids=blocks).logits
    torch.testing.assert_close(logits[:, 5:], expected[:, 5:], **CLOSE)


def test_the_cache_holds_the_dialled_pattern():
    model, bridge = bridged("llama")
    ids = random_ids(1, 21)
    with torch.no_grad():
        with bridge.hooks(fwd_hooks=locality_hooks(bridge, ids)):
            _, cache = bridge.run_with_cache(ids)
        weights = model(ids, output_attentions=True).attentions
    for layer, expected in enumerate(weights):
        torch.testing.assert_close(cache[f"blocks.{layer}.attn.hook_pattern"], expected, **CLOSE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda bridge, ids: locality_hooks(tiny_model(), ids), "not localised"),
        (lambda bridge, ids: locality_hooks(localised("gpt2"), ids), "still runs"),
        (lambda bridge, ids: locality_hooks(bridge, ids[0]), r"token ids \[batch, seq\]"),
        (lambda bridge, ids: locality_hooks(bridge, ids.float()), r"token ids \[batch, seq\]"),
        (lambda bridge, ids: locality_hooks(bridge, ids, ids[:, :3]), "attention_mask is"),
        (lambda bridge, ids: locality_hooks(bridge, ids, block_ids=ids[:, :3]), "block_ids is"),
        (lambda bridge, ids: bridge.run_with_hooks(ids[:, :9], fwd_hooks=locality_hooks(bridge, ids)), "made for"),
    ],
)
def test_what_would_go_wrong_in_silence_is_refused(call, message):
    with pytest.raises(proloc.ProlocError, match=message):
        call(bridged("gpt2")[1], random_ids(2, 12))
