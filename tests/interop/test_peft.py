"""LoRA over a localised model: exact at the start, trained, generated with, merged, saved and loaded as expected."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import random_ids, tiny_model, twin

import proloc
from proloc.hf import find_state

FAMILIES = ("gpt2", "llama", "mistral")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
PENALTY = proloc.LowFidelity(phi=0.9, weight=2.0)


def localised(family="llama"):
    return proloc.localize(tiny_model(family), proloc.Polynomial(beta=1), proloc.FixedBlocks(5))


def with_lora(model, *, trained):
    """LoRA on every linear layer; PEFT starts with the identity, ``trained`` stands for some training."""
    torch.manual_seed(1)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    if trained:
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return wrapped


def logits(model, ids, position):
    with proloc.dial(model, position), torch.no_grad():
        return model(input_ids=ids).logits


def backward(model, ids):
    with proloc.recording(model, "fidelity") as recorder:
        loss = model(input_ids=ids, labels=ids).loss
        queries = torch.ones_like(ids, dtype=torch.bool)
        penalty = PENALTY.summed(recorder, find_state(model).localities, queries) / ids.numel()
        (loss + penalty).backward()


@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_adapters_change_nothing_at_any_dial_and_dial_zero_is_the_base_model(family):
    ids, base = random_ids(2, 21), tiny_model(family)
    plain = proloc.localize(twin(base), proloc.Polynomial(beta=1), proloc.FixedBlocks(5), attention="reference")
    wrapped = with_lora(twin(plain), trained=False)
    for position in (0.0, 0.5, 1.0):
        assert torch.equal(logits(wrapped, ids, position), logits(plain, ids, position))
    with torch.no_grad():
        assert torch.equal(logits(wrapped, ids, 0.0), base(ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_get_the_gradient_that_the_chain_rule_gives_them(family):
    ids, model = random_ids(2, 21), localised(family)
    wrapped = with_lora(twin(model), trained=True).train()
    backward(wrapped, ids)
    merged = twin(wrapped).merge_and_unload().train()
    for parameter in merged.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None
    backward(merged, ids)
    full = {name: module.weight.grad for name, module in merged.named_modules() if hasattr(module, "weight")}
    checked = 0
    for name, module in wrapped.base_model.model.named_modules():
        if hasattr(module, "lora_A"):
            scaling, first, second = module.scaling["default"], module.lora_A["default"], module.lora_B["default"]
            weight = full[name].T if module.fan_in_fan_out else full[name]
            torch.testing.assert_close(second.weight.grad, scaling * weight @ first.weight.T, **CLOSE)
            torch.testing.assert_close(first.weight.grad, scaling * second.weight.T @ weight, **CLOSE)
            checked += 1
    assert checked >= 3 * 4


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_equals_unmerged_at_every_dial_and_is_still_localised(family):
    ids, wrapped = random_ids(2, 21), with_lora(localised(family), trained=True)
    before = {position: logits(wrapped, ids, position) for position in (0.0, 0.5, 1.0)}
    state = find_state(wrapped)
    merged = wrapped.merge_and_unload()
    assert find_state(merged) is state
    for position, expected in before.items():
        torch.testing.assert_close(logits(merged, ids, position), expected, **CLOSE)
    assert (before[1.0] - before[0.0]).abs().max() > 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_behind_the_wrapper_equals_generate_after_merging(family):
    ids, how = random_ids(2, 9), {"max_new_tokens": 14, "do_sample": False, "eos_token_id": None}
    wrapped = with_lora(localised(family), trained=True)
    for position in (0.0, 1.0):
        with proloc.dial(wrapped, position):
            expected = twin(wrapped).merge_and_unload().generate(ids, **how)
            assert torch.equal(wrapped.generate(input_ids=ids, **how), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_saved_alone_load_over_a_saved_localised_model(family, tmp_path):
    ids, model = random_ids(2, 21), localised(family)
    model.save_pretrained(tmp_path / "model")
    wrapped = with_lora(model, trained=True)
    wrapped.save_pretrained(tmp_path / "adapters")
    again = PeftModel.from_pretrained(proloc.from_pretrained(tmp_path / "model"), str(tmp_path / "adapters")).eval()
    assert proloc.describe(again) == proloc.describe(wrapped)
    for position in (0.0, 0.5, 1.0):
        assert torch.equal(logits(again, ids, position), logits(wrapped, ids, position))


def test_a_merged_model_that_was_saved_comes_back_localised(tmp_path):
    ids, merged = random_ids(2, 21), with_lora(localised(), trained=True).merge_and_unload()
    merged.save_pretrained(tmp_path)
    assert torch.equal(logits(proloc.from_pretrained(tmp_path), ids, 1.0), logits(merged, ids, 1.0))
