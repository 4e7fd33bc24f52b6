"""A 5-gram baseline for the built-in model: same text, same tokens, same predictions.

    python recipes/ngram.py OUT

Reads ``train.npy`` and ``eval.npy`` that ``pretrain.py`` left in OUT and writes ``ngram.json``: held-out perplexity of
the n-gram models of order 1 to 5, over the tokens that ``pretrain.py`` predicts. A prediction uses the tokens before it
in its own window only, as the model's does: the first in a window is not predicted, the second has a context of one.

The model is interpolated Kneser-Ney with modified discounts: the highest order counts occurrences, the lower ones count
different left neighbours, order 0 is uniform over the vocabulary, and
``p(w | h) = (c(hw) - D(c(hw))) / c(h) + gamma(h) p(w | h')`` with h' = h without its first token.
Source: Chen and Goodman (1998), An Empirical Study of Smoothing Techniques for Language Modeling, section 3.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ORDER, VOCAB, CONTEXT = 5, 4096, 512
BITS = 12  # a token id below 4096; five of them fit into one uint64


@dataclass(frozen=True)
class Level:
    """One order's counts: sorted packed n-grams, and for each sorted packed context what interpolation needs."""

    keys: np.ndarray
    discounted: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    gammas: np.ndarray

    def interpolate(self, ngrams: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Probability of each packed n-gram's last token, given the same under the next lower order."""
        context, known = find(self.contexts, ngrams >> BITS)
        key, seen = find(self.keys, ngrams)
        interpolated = seen * self.discounted[key] / self.totals[context] + self.gammas[context] * lower
        return np.where(known, interpolated, lower)


def find(haystack: np.ndarray, needles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each needle is in a sorted array, and whether it is there at all."""
    places = np.searchsorted(haystack, needles).clip(max=len(haystack) - 1)
    return places, haystack[places] == needles


def pack(tokens: np.ndarray, order: int) -> np.ndarray:
    """Every n-gram along the last axis as one number: ``[..., length] -> [..., length - order + 1]``."""
    length = tokens.shape[-1] - order + 1
    packed = np.zeros((*tokens.shape[:-1], length), dtype=np.uint64)
    for offset in range(order):
        packed = packed << BITS | tokens[..., offset : offset + length].astype(np.uint64)
    return packed


def estimate_discounts(counts: np.ndarray) -> np.ndarray:
    """Discounts of counts 0, 1, 2 and 3 or more, from the counts of counts (Chen and Goodman, equation 17).

    Only tiny corpora lack a count (it is taken as 1) or give a discount outside (0, k] (it is set to k / 2).
    """
    n1, n2, n3, n4 = (max(1, int((counts == k).sum())) for k in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2)
    estimated = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    k = np.arange(4)
    return np.where((estimated > 0) & (estimated <= k), estimated, k / 2)


def build_level(keys: np.ndarray, counts: np.ndarray) -> Level:
    discounts = estimate_discounts(counts)[counts.clip(max=3)]
    contexts, starts = np.unique(keys >> BITS, return_index=True)
    totals = np.add.reduceat(counts, starts)
    return Level(keys, counts - discounts, contexts, totals, np.add.reduceat(discounts, starts) / totals)


def probabilities(train: np.ndarray, windows: np.ndarray, order: int, vocab: int) -> list[np.ndarray]:
    """Probability of every token but the first of each window under the models of order 1 to `order`.

    Where a window does not reach back far enough, a model of lower order predicts.

    Returns:
        For each order an array ``[window, length - 1]``.
    """
    lower = best = np.full((len(windows), windows.shape[1] - 1), 1 / vocab)
    results = []
    for n in range(1, order + 1):
        first = max(n - 2, 0)  # the first prediction with a full context of n - 1 tokens
        ngrams = pack(windows, n)[:, 1 if n == 1 else 0 :]
        occurrences = build_level(*np.unique(pack(train, n), return_counts=True))
        best = np.hstack([best[:, :first], occurrences.interpolate(ngrams, lower[:, first:])])
        results.append(best)
        if n < order:
            different = np.unique(pack(train, n + 1)) & np.uint64((1 << BITS * n) - 1)
            neighbours = build_level(*np.unique(different, return_counts=True))
            lower = np.hstack([lower[:, :first], neighbours.interpolate(ngrams, lower[:, first:])])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    train, held = np.load(out / "train.npy"), np.load(out / "eval.npy")
    windows = held[: len(held) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)
    results = probabilities(train, windows, ORDER, VOCAB)
    figures = {
        "smoothing": "interpolated Kneser-Ney, modified discounts",
        "train_tokens": len(train),
        "tokens_predicted": results[0].size,
        "perplexity_by_order": {n: math.exp(-np.log(p).mean()) for n, p in enumerate(results, start=1)},
    }
    (out / "ngram.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
