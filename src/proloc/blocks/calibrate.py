"""Block lengths on a corpus, and partitioners made to have the block lengths wanted there.

A corpus is a list of windows, cut as the model will read them. The last block of a window is cut short by the window,
so its length is unknown: dropping it would leave out long blocks more often than short ones, and counting it as whole
would make blocks look shorter than they are. It is therefore counted as *at least* as long as what was seen
(censored), by the estimator of Kaplan and Meier. The mean length so found belongs to the partitioner and the text, not
to the window; it is exactly L for ``FixedBlocks(L)``. It is larger than tokens divided by opened blocks.
"""

from collections import Counter
from collections.abc import Iterable
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from proloc.blocks.base import Partitioner
from proloc.blocks.fixed import FixedBlocks
from proloc.blocks.random import RandomBlocks
from proloc.errors import ProlocError

Corpus: TypeAlias = Iterable[ArrayLike]
Kind = TypeVar("Kind", bound=Partitioner)

_MAX_HALVINGS = 30


def block_lengths(partitioner: Partitioner, corpus: Corpus) -> NDArray[np.int64]:
    """Lengths ``[block]`` of the complete blocks, in order; the last block of every window is left out."""
    return _observed_lengths(partitioner, corpus)[0]


def length_distribution(partitioner: Partitioner, corpus: Corpus) -> dict[int, float]:
    """The share of blocks of each length, summing to 1, with the last block of a window counted as censored.

    ``P(length = k) = P(length >= k) * closed_k / (closed_k + longer_k)`` where ``closed_k`` blocks were seen to close
    after k tokens and ``longer_k`` were seen to go on.

    Raises:
        ProlocError: the corpus is empty, or no block closes in it.

    Source: Kaplan and Meier (1958); what is left beyond the longest block seen counts as that long (Efron 1967).
    """
    complete, censored = _observed_lengths(partitioner, corpus)
    if complete.size == 0:
        raise ProlocError("No block closes within a window of the corpus; give longer windows or allow shorter blocks.")
    return _kaplan_meier(complete, censored)


def mean_block_length(partitioner: Partitioner, corpus: Corpus) -> float:
    """Mean block length in tokens, corrected for blocks that a window cuts short; see ``length_distribution``."""
    return _mean(length_distribution(partitioner, corpus))


def lead_distribution(partitioner: Partitioner, corpus: Corpus) -> dict[tuple[int, int], float]:
    """The share of blocks by the length of the block before them and their lead, summing to 1.

    Both are known of every block but the first of a window. A lead goes with the length before it: a rule with
    hindsight is often led by much of the block that it closes.

    Raises:
        ProlocError: the corpus is empty, or a second block opens nowhere in it.
    """
    found: Counter[tuple[int, int]] = Counter()
    for window in _windows(corpus):
        opens, leads = partitioner.boundaries_and_leads(window)
        starts = np.flatnonzero(opens)
        found.update(zip(np.diff(starts).tolist(), leads[starts[1:]].tolist(), strict=True))
    if not found:
        raise ProlocError("No second block opens within a window of the corpus; give longer windows.")
    return {pair: times / found.total() for pair, times in sorted(found.items())}


def token_counts(corpus: Corpus, vocab: int) -> NDArray[np.int64]:
    """How often each token occurs, ``[vocab]``, as ``DriftBlocks.from_embedding`` takes it."""
    counts = np.bincount(np.concatenate(_windows(corpus)), minlength=vocab)
    if counts.size > vocab:
        raise ProlocError(f"The corpus has token id {counts.size - 1}, outside a vocabulary of {vocab} tokens.")
    return counts


def matched_fixed(partitioner: Partitioner, corpus: Corpus) -> FixedBlocks:
    """Fixed blocks with the mean length and lead of ``partitioner``, to the nearest whole token."""
    windows = _windows(corpus)
    length = round(mean_block_length(partitioner, windows))
    lead = sum(lead * share for (_, lead), share in lead_distribution(partitioner, windows).items())
    return FixedBlocks(length, lead=min(round(lead), length))


def matched_random(partitioner: Partitioner, corpus: Corpus, seed: int = 0) -> RandomBlocks:
    """Random blocks with the length distribution of ``partitioner``, and its leads where it has any."""
    windows = _windows(corpus)
    lengths, leads = length_distribution(partitioner, windows), lead_distribution(partitioner, windows)
    return RandomBlocks(lengths, seed=seed, leads=leads if any(lead for _, lead in leads) else ())


def calibrate(partitioner: Kind, corpus: Corpus, mean_length: float, *, tolerance: float = 0.02) -> Kind:
    """The partitioner with the threshold at which its mean length on the corpus is ``mean_length``, by bisection.

    The mean length is a step function of the threshold; where no step lies within the tolerance, the nearest found is
    taken. Text of another kind gets another mean length: to compare partitioners at equal lengths, calibrate each of
    them on the text where they are compared, from its lengths alone, or report the lengths found there.

    Args:
        partitioner: any with a threshold (drift, surprise, recruitment, change points, tiling); all else of it is kept.
        corpus: windows of token ids, several blocks long, and not those of the test text.
        mean_length: tokens per block wanted, as ``mean_block_length`` counts them.
        tolerance: relative error at which the search stops.

    Raises:
        ProlocError: a partitioner without a threshold, or none that can give that mean length; the message names the
            reachable range.
    """
    if partitioner.threshold_range is None:
        raise ProlocError(f"'{partitioner.kind}' blocks have no threshold to calibrate.")
    windows = _windows(corpus)

    def mean_at(threshold: float) -> float:
        # Where no block closes this is the longest window, so that "too long" is still a number.
        return _mean(_kaplan_meier(*_observed_lengths(partitioner.with_threshold(threshold), windows)))

    low, high = lowest, highest = partitioner.threshold_range
    shortest, longest = mean_at(low), mean_at(high)
    if not shortest * (1 - tolerance) <= mean_length <= longest * (1 + tolerance):
        raise ProlocError(
            f"No threshold gives blocks of {mean_length} tokens on this corpus: their mean length is {shortest:.1f} at "
            f"threshold {lowest:g} and {longest:.1f} at {highest:g}; change the shortest and longest lengths allowed, "
            "or the windows."
        )
    best, error = low, abs(shortest - mean_length)
    for _ in range(_MAX_HALVINGS):
        if error <= tolerance * mean_length:
            break
        middle = (low + high) / 2
        found = mean_at(middle)
        if abs(found - mean_length) < error:
            best, error = middle, abs(found - mean_length)
        low, high = (middle, high) if found < mean_length else (low, middle)
    return partitioner.with_threshold(best)


def _mean(distribution: dict[int, float]) -> float:
    return sum(length * share for length, share in distribution.items())


def _kaplan_meier(complete: NDArray[np.int64], censored: NDArray[np.int64]) -> dict[int, float]:
    longest = int(max(complete.max(initial=0), censored.max()))
    closed = np.bincount(complete, minlength=longest + 1).astype(np.float64)
    cut = np.bincount(censored, minlength=longest + 1)
    # A block cut short after k tokens never showed whether it would have closed there: it says nothing at k.
    candidates = (closed + cut)[::-1].cumsum()[::-1] - cut
    chance = np.divide(closed, candidates, out=np.zeros_like(closed), where=candidates > 0)
    chance[longest] = 1.0
    share = chance * np.concatenate([[1.0], np.cumprod(1.0 - chance)[:-1]])
    return {int(k): float(share[k]) for k in np.flatnonzero(share)}


def _observed_lengths(partitioner: Partitioner, corpus: Corpus) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lengths of the complete blocks, and of the last block of every window."""
    complete, censored = [], []
    for window in _windows(corpus):
        opened = np.flatnonzero(partitioner.boundaries(window))
        complete.append(np.diff(opened))
        censored.append(window.size - opened[-1])
    return np.concatenate(complete), np.array(censored, dtype=np.int64)


def _windows(corpus: Corpus) -> list[NDArray[np.int64]]:
    windows = [np.asarray(window, dtype=np.int64) for window in corpus]
    if not windows or any(window.ndim != 1 or window.size == 0 for window in windows):
        raise ProlocError("The corpus must be windows of token ids: at least one, each [seq] with seq >= 1.")
    return windows
