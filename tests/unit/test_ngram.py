"""The n-gram baseline of the recipes is a probability distribution, and the one its formula says."""

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "ngram.py"
VOCAB = 11


def load_recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ngram_recipe", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


ngram = load_recipe()


def corpus(length: int = 800) -> np.ndarray:
    """A skewed Markov chain in which the last token of the vocabulary never occurs."""
    generator = np.random.default_rng(0)
    tokens = [0]
    for draw in generator.geometric(0.35, length):
        tokens.append((3 * tokens[-1] + int(draw)) % (VOCAB - 1))
    return np.array(tokens, dtype=np.uint16)


def slow_probability(counts: list[Counter[tuple[int, ...]]], history: tuple[int, ...], token: int) -> float:
    """The formula of the recipe, one n-gram at a time; `counts[m]` are those of order m."""
    order = len(history) + 1
    lower = slow_probability(counts, history[1:], token) if order > 1 else 1 / VOCAB
    following = {gram: count for gram, count in counts[order].items() if gram[:-1] == history}
    if not following:
        return lower
    discounts = ngram.estimate_discounts(np.array(list(counts[order].values())))
    total = sum(following.values())
    mass = sum(discounts[min(count, 3)] for count in following.values()) / total
    count = following.get((*history, token), 0)
    return float((count - discounts[min(count, 3)]) / total + mass * lower)


def slow_counts(tokens: list[int], order: int) -> list[Counter[tuple[int, ...]]]:
    def grams(n: int) -> list[tuple[int, ...]]:
        return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]

    continuations = [Counter(gram[1:] for gram in set(grams(n + 1))) for n in range(order)]
    return [*continuations, Counter(grams(order))]


def test_probabilities_over_the_vocabulary_sum_to_one() -> None:
    generator = np.random.default_rng(1)
    for history in generator.integers(0, VOCAB, (40, 4)):
        rows = np.array([[*history, token] for token in range(VOCAB)])
        for probability in ngram.probabilities(corpus(), rows, order=5, vocab=VOCAB):
            assert (probability[:, -1] > 0).all()
            assert probability[:, -1].sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_agrees_with_the_formula_one_ngram_at_a_time(order: int) -> None:
    train = corpus()
    row = np.concatenate([train[100:110], np.random.default_rng(2).integers(0, VOCAB, 10)])
    fast = ngram.probabilities(train, row[None], order, VOCAB)[-1][0]
    for position in range(1, len(row)):
        reach = min(order, position + 1)  # a short context: the model of that lower order
        history = tuple(row[position - reach + 1 : position].tolist())
        expected = slow_probability(slow_counts(train.tolist(), reach), history, int(row[position]))
        assert fast[position - 1] == pytest.approx(expected, rel=1e-12)


def test_discounts_follow_the_counts_of_counts() -> None:
    counts = np.repeat([1, 2, 3, 4], [40, 20, 10, 5])
    y = 40 / (40 + 2 * 20)
    expected = [0, 1 - 2 * y * 20 / 40, 2 - 3 * y * 10 / 20, 3 - 4 * y * 5 / 10]
    np.testing.assert_allclose(ngram.estimate_discounts(counts), expected)


@pytest.mark.parametrize("counts", [[1], [1, 1, 1, 3, 3], [2, 2, 3, 3, 3, 3], [5, 7]])
def test_discounts_of_a_tiny_corpus_stay_between_zero_and_the_count(counts: list[int]) -> None:
    discounts = ngram.estimate_discounts(np.array(counts))
    assert discounts[0] == 0
    assert (discounts[1:] > 0).all()
    assert (discounts <= np.arange(4)).all()


def test_the_recipe_writes_its_figures(tmp_path: Path) -> None:
    tokens = np.tile(corpus(), 3)
    np.save(tmp_path / "train.npy", tokens)
    np.save(tmp_path / "eval.npy", tokens[:1300])
    subprocess.run([sys.executable, str(RECIPE), str(tmp_path)], check=True, capture_output=True)
    figures = json.loads((tmp_path / "ngram.json").read_text())
    assert figures["tokens_predicted"] == 2 * 511
    assert list(figures["perplexity_by_order"]) == ["1", "2", "3", "4", "5"]
    assert figures["perplexity_by_order"]["5"] < figures["perplexity_by_order"]["1"]
