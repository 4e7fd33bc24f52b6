"""Loading models and tokenizers by name, with errors a person can act on."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from proloc.blocks import FixedBlocks
from proloc.errors import ProlocError
from proloc.hf.localize import localize
from proloc.model_store import resolve
from proloc.schedule import Uniform


@dataclass(frozen=True)
class ModelFacts:
    """What must be known of a model before its weights are read."""

    num_layers: int
    num_heads: int
    num_parameters: int
    max_context: int | None


def model_facts(name: str) -> ModelFacts:
    """Shape and size of a model from its configuration alone; no weights are read.

    Raises:
        ProlocError: no such model, or one that cannot be localised.
    """
    # A saved localised model asks for the attention "proloc" so that plain loading stops; here it is meant.
    config = _load(AutoConfig, name, attn_implementation=None)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise ProlocError(
            f"the model {name} is of type {config.model_type}, which is no causal language model."
        ) from error
    localize(model, Uniform(value=0.0), FixedBlocks(8))
    text = config.get_text_config(decoder=True)
    return ModelFacts(
        num_layers=text.num_hidden_layers,
        num_heads=text.num_attention_heads,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        max_context=getattr(text, "max_position_embeddings", None),
    )


def load_tokenizer(name: str) -> Any:
    return _load(AutoTokenizer, name)


def load_model(name: str) -> PreTrainedModel:
    """The model with fp32 weights, as it is."""
    model: PreTrainedModel = _load(AutoModelForCausalLM, name, dtype=torch.float32, attn_implementation=None)
    return model


def _load(kind: Any, name: str, **kwargs: Any) -> Any:
    try:
        return kind.from_pretrained(resolve(name), **kwargs)
    except ProlocError:
        raise
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        raise ProlocError(
            f"cannot load the model {name!r}: give builtin, smollm2-135m, a folder, or a Hub id that can be reached "
            f"({reason[:200]})."
        ) from error
