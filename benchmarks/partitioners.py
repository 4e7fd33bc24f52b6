"""How fast partitioners are: tokens per second on one core, on a million tokens of prose-like sentence lengths; and
what they cost beside training, as a share of a training step of the built-in model and, where installed, SmolLM2-135M.

    python benchmarks/partitioners.py

Times depend on the machine and on what else it does; the last column, the ratio to fixed blocks' batching and copying,
travels better. Partitioners that run a model are as fast as that model, and are not here.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from step_share import shares

from proloc.blocks import (
    ChangePointBlocks,
    DelimiterBlocks,
    DriftBlocks,
    FixedBlocks,
    GivenBlocks,
    Partitioner,
    RandomBlocks,
    RecruitmentBlocks,
    SentenceBlocks,
    TilingBlocks,
)
from proloc.model_store import list_models

VOCAB, TOKENS, ROW = 4096, 2**20, 2048
STOPS = range(8)


def text(seed: int = 0) -> np.ndarray:
    """Token ids ``[TOKENS]``: Zipf's law for words, sentences of 28 tokens on average."""
    rng = np.random.default_rng(seed)
    ranks = np.arange(8, VOCAB)
    ids = rng.choice(ranks, TOKENS, p=(1 / ranks) / (1 / ranks).sum())
    ends = np.cumsum(1 + rng.gamma(2.0, 13.5, TOKENS // 20).astype(int))
    ids[ends[ends < TOKENS]] = rng.choice(STOPS, int((ends < TOKENS).sum()))
    return ids


def partitioners(ids: np.ndarray) -> dict[str, Partitioner]:
    stops, counts = list(STOPS), np.bincount(ids, minlength=VOCAB)
    table = torch.randn(VOCAB, 192, generator=torch.Generator().manual_seed(0))
    drift = DriftBlocks.from_embedding(stops, table, counts=counts)
    return {
        "fixed": FixedBlocks(28),
        "given": GivenBlocks(range(0, ROW, 28)),
        "random": RandomBlocks({16: 1, 28: 1, 40: 1}),
        "sentence": SentenceBlocks(stops),
        "delimiter": DelimiterBlocks.tokens(stops),
        "drift": drift,
        "recruitment": RecruitmentBlocks(stops, counts),
        "tiling (input embeddings)": TilingBlocks(stops, drift.embedding),
        "changepoint (input embeddings)": ChangePointBlocks(stops, drift.embedding),
    }


def seconds(partitioner: Partitioner, ids: torch.Tensor, times: int = 3) -> float:
    """Processor time of the fastest of a few passes."""
    found = []
    for _ in range(times):
        started = time.process_time()
        partitioner(ids)
        found.append(time.process_time() - started)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/partitioners.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ids = text()
    rows = torch.from_numpy(ids).reshape(-1, ROW)
    found = {name: seconds(partitioner, rows) for name, partitioner in partitioners(ids).items()}
    record = {
        name: {"million_tokens_per_s": round(TOKENS / taken / 1e6, 2), "times_fixed": round(taken / found["fixed"], 1)}
        for name, taken in found.items()
    }
    for name, row in record.items():
        print(f"{name:32} {row['million_tokens_per_s']:8.2f} M tokens/s {row['times_fixed']:8.1f}")
    beside = {entry.name: shares(entry.name) for entry in list_models() if entry.path is not None}
    for name, row in beside.items():
        print(f"{name}: {row}")
    result = {"tokens": TOKENS, "row": ROW, "partitioners": record, "beside_training": beside}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
