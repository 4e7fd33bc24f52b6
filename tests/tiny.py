"""Tiny random models and small helpers for tests; no hub."""

import copy

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

VOCAB = 61


def tiny_model(family: str = "llama", layers: int = 3, seed: int = 0, attention: str = "eager") -> PreTrainedModel:
    """A random model whose attention is far from uniform, so that a wrong mask shows."""
    torch.manual_seed(seed)
    common = {
        "vocab_size": VOCAB,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "attn_implementation": attention,
    }
    if family == "gpt2":
        config = GPT2Config(
            n_embd=32,
            n_layer=layers,
            n_head=4,
            n_positions=96,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **common,
        )
        model = GPT2LMHeadModel(config)
    else:
        shape = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 96,
        }
        if family == "llama":
            model = LlamaForCausalLM(LlamaConfig(**shape, **common))
        elif family == "mistral":
            model = MistralForCausalLM(MistralConfig(**shape, sliding_window=7, **common))
        else:
            raise ValueError(family)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and any(part in name for part in ("q_proj", "k_proj", "c_attn")):
                parameter.mul_(8.0)
    return model.eval()


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """An untouched copy to compare with."""
    return copy.deepcopy(model)


def random_ids(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))
