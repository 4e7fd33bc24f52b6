"""What partitioning costs beside training: CPU time of a partitioner over that of the training step it serves.

One process, one thread, in turn: a batch of real text is cut into blocks, and a training step runs on that batch
(forward pass under a quintic dial, backward pass, AdamW). A share is the median over the turns of one over the other.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

import proloc
from proloc.blocks import (
    DelimiterBlocks,
    DriftBlocks,
    FixedBlocks,
    Partitioner,
    RandomBlocks,
    RecruitmentBlocks,
    SentenceBlocks,
    SurpriseBlocks,
    token_counts,
)
from proloc.hf import provide
from proloc.hf.models import load_model, load_tokenizer
from proloc.text import builtin_text

CONTEXT, BATCH, TURNS = 256, 2, 9


def shares(model_name: str) -> dict[str, object]:
    """CPU seconds of a training step, and every causal partitioner's share of it, in per cent."""
    tokenizer = load_tokenizer(model_name)
    ids = np.asarray(tokenizer(builtin_text(), add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64)
    batches = torch.from_numpy(ids[: TURNS * BATCH * CONTEXT].reshape(TURNS, BATCH, CONTEXT))
    model = load_model(model_name)
    partitioners = _partitioners(model_name, tokenizer, ids, model.get_input_embeddings().weight.detach())
    model = proloc.localize(model, proloc.Polynomial(beta=5), partitioners["sentence"]).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step(batch: torch.Tensor, block_ids: torch.Tensor) -> None:
        model(input_ids=batch, labels=batch, block_ids=block_ids, use_cache=False).loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    step(batches[0], partitioners["sentence"](batches[0]))  # kernels prove themselves at their first use
    steps, cut = [], {name: [] for name in partitioners}
    for batch in batches:
        block_ids = partitioners["sentence"](batch)
        steps.append(_seconds(lambda batch=batch, block_ids=block_ids: step(batch, block_ids)))
        for name, partitioner in partitioners.items():
            cut[name].append(_seconds(lambda batch=batch, partitioner=partitioner: partitioner(batch)))
    share = {
        name: 100 * statistics.median(one / whole for one, whole in zip(taken, steps, strict=True))
        for name, taken in cut.items()
    }
    return {
        "batch": [BATCH, CONTEXT],
        "step_cpu_s": round(statistics.median(steps), 3),
        "per_cent_of_a_step": {name: round(value, 3) for name, value in share.items()},
    }


def _partitioners(model_name: str, tokenizer, ids: np.ndarray, embedding: torch.Tensor) -> dict[str, Partitioner]:
    counts = token_counts([ids], len(embedding))
    return {
        "fixed": FixedBlocks(72),
        "random": RandomBlocks({48: 1, 72: 1, 96: 1}),
        "sentence": SentenceBlocks(tokenizer),
        "paragraph": DelimiterBlocks.paragraphs(tokenizer),
        "drift": DriftBlocks.from_embedding(tokenizer, embedding, counts=counts),
        "recruitment": RecruitmentBlocks(tokenizer, counts),
        "surprise (runs the frozen model)": SurpriseBlocks(provide(f"surprisal:{model_name}")),
    }


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started
