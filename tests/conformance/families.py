"""The model families of the conformance matrix: tiny random models of each, no hub."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCAB = 61

_LLAMA_LIKE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
_WINDOWS = {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_NO_GROUPS = {"num_key_value_heads": 4, "head_dim": 8}
_GPT2 = {
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 128,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}

# name -> (model_type, settings)
LOCALISED: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("gpt2", _GPT2),
    "Llama": ("llama", _LLAMA_LIKE),
    "Mistral": ("mistral", {**_LLAMA_LIKE, "sliding_window": 7}),
    "Qwen2": ("qwen2", {**_LLAMA_LIKE, "use_sliding_window": True, **_WINDOWS}),
    "Qwen3": ("qwen3", _LLAMA_LIKE),
    "Gemma2": ("gemma2", {**_LLAMA_LIKE, **_WINDOWS, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0}),
    "Gemma3": ("gemma3_text", {**_LLAMA_LIKE, **_WINDOWS, "query_pre_attn_scalar": 8}),
    "GPT-NeoX (Pythia)": ("gpt_neox", {**_LLAMA_LIKE, "attention_dropout": 0.0, "hidden_dropout": 0.0}),
    "Phi": ("phi", {**_LLAMA_LIKE, "resid_pdrop": 0.0, "embd_pdrop": 0.0}),
    "OLMo2": ("olmo2", _LLAMA_LIKE),
    "SmolLM3": ("smollm3", _LLAMA_LIKE),
    "Granite": ("granite", {**_LLAMA_LIKE, "attention_multiplier": 0.3}),
    "Cohere": ("cohere", {**_LLAMA_LIKE, "logit_scale": 1.0}),
    "StableLM": ("stablelm", {**_LLAMA_LIKE, **_NO_GROUPS}),
}

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "Falcon-H1": (
        "falcon_h1",
        {**_LLAMA_LIKE, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
        "recurrence",
    ),
    "BLOOM": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, "does not route its attention"),
    "GPT-Neo": (
        "gpt_neo",
        {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
        "does not route its attention",
    ),
}


def build(model_type: str, settings: dict[str, Any], seed: int = 0) -> PreTrainedModel:
    """A random model in eager attention, its queries and keys scaled up so that a wrong mask shows."""
    torch.manual_seed(seed)
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = AutoConfig.for_model(model_type, vocab_size=VOCAB, attn_implementation="eager", **special, **settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and any(part in name for part in ("q_proj", "k_proj", "c_attn", "query_key_value")):
                parameter.mul_(8.0)
    return model.eval()
