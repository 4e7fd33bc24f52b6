"""A user's model and text as the subject of a check."""

import os

import torch
from transformers import AutoConfig

from proloc.blocks import Partitioner, SentenceBlocks
from proloc.check.subject import FEWEST_TOKENS, Subject
from proloc.errors import ProlocError
from proloc.hf import find_state, from_pretrained
from proloc.hf.models import load_model, load_tokenizer, model_facts
from proloc.model_store import resolve

# The model in float32, the oracle in float64, a copy in bfloat16, and something to work with.
BYTES_PER_PARAMETER = 16
FEWEST_BLOCKS = 3
ROOM = 16  # tokens, for padding and what is generated


def load_subject(name: str, text: str, *, tokens: int = 48) -> Subject:
    """Load a model and cut two pieces from a text.

    A model that was saved with a locality is checked with its own partitioner, sinks and halo, another one with one
    sink, no halo and blocks of sentences, cut so that a piece has at least four.

    Args:
        name: as for ``model_store.resolve``.
        text: long enough for two pieces.
        tokens: length of a piece.

    Raises:
        ProlocError: no such model, one that cannot be localised or does not fit into memory, or a text that is too
            short or has too few blocks.
    """
    if tokens < FEWEST_TOKENS:
        raise ProlocError(f"--tokens is {tokens}; a check needs {FEWEST_TOKENS} or more.")
    facts = model_facts(name)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if facts.num_parameters * BYTES_PER_PARAMETER > memory:
        raise ProlocError(
            f"checking {name} against float64 needs about {facts.num_parameters * BYTES_PER_PARAMETER / 1e9:.0f} GB of "
            f"memory, and this machine has {memory / 1e9:.0f}; check a smaller model of the same architecture."
        )
    if facts.max_context is not None and tokens + ROOM > facts.max_context:
        raise ProlocError(f"--tokens is {tokens}; {name} takes at most {facts.max_context - ROOM}.")
    ids = torch.tensor(load_tokenizer(name)(text)["input_ids"])
    if len(ids) < 2 * tokens:
        raise ProlocError(f"the text has {len(ids)} tokens; a check needs {2 * tokens}.")
    half = len(ids) // 2
    blocks, sinks, halo = _locality(name, tokens)
    subject = Subject(load_model(name), blocks, torch.stack([ids[:tokens], ids[half : half + tokens]]), sinks, halo)
    fewest = min(len(set(row)) for row in blocks(subject.ids).tolist())
    if fewest < FEWEST_BLOCKS:
        raise ProlocError(
            f"a piece of {tokens} tokens of this text has {fewest} blocks; give more --tokens or a text with shorter "
            "blocks, so that there is something away."
        )
    return subject


def _locality(name: str, tokens: int) -> tuple[Partitioner, int, int]:
    if getattr(AutoConfig.from_pretrained(resolve(name)), "proloc", None) is None:
        return SentenceBlocks(load_tokenizer(name), min_length=4, max_length=tokens // 4), 1, 0
    state = find_state(from_pretrained(resolve(name)))
    return state.blocks, state.sinks, state.halo
