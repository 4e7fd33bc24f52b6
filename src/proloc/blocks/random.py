"""Random blocks: boundaries that know nothing of the text, with block lengths like those of one that does."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from proloc.blocks.base import Partitioner
from proloc.blocks.greedy import leads_from
from proloc.errors import ProlocError

_SEEDS = 2**64
_OF_LEADS = 0x5851F42D4C957F2D  # makes another draw of the same seed and text

Lengths: TypeAlias = Mapping[int, float] | Sequence[tuple[int, float]]
Leads: TypeAlias = Mapping[tuple[int, int], float] | Sequence[tuple[int, int, float]]


class RandomBlocks(Partitioner):
    """A block of ``k`` tokens closes with the chance ``P(length = k | length >= k)``.

    The chance is drawn from a hash of the seed and of *all tokens before the boundary*: the same text always gets the
    same blocks, also token by token, in a batch or packed, and two texts get different ones as soon as they differ
    (seeding by the first token alone would give the same blocks to every text that opens with the same BOS token).

    Args:
        lengths: how often each block length occurs, ``{length: weight}`` or ``[[length, weight], ...]``.
        seed: whole number in ``[0, 2**64)``; another seed gives other boundaries of the same lengths.
        leads: how often a block has some lead after a block of some length, ``{(length, lead): weight}`` or
            ``[[length, lead, weight], ...]``; nothing = no leads. After another length those of the nearest one are
            drawn. Home never moves back: a lead that would reach before that of the block before stops there.

    Raises:
        ProlocError: no lengths, a length < 1, a lead < 0, a weight that is negative or not finite, or a seed out of
            range.

    Source: ours; the hash is SplitMix64 (Steele, Lea and Flood 2014).
    """

    kind: ClassVar[str] = "random"

    def __init__(self, lengths: Lengths, seed: int = 0, leads: Leads = ()) -> None:
        pairs = lengths.items() if isinstance(lengths, Mapping) else lengths
        self.lengths = sorted((int(length), float(weight)) for length, weight in pairs if weight != 0)
        if not self.lengths or self.lengths[0][0] < 1 or not all(0 < weight < np.inf for _, weight in self.lengths):
            raise ProlocError(f"lengths must give a weight >= 0, not all 0, to block lengths >= 1, not {lengths!r}.")
        triples = [(*pair, weight) for pair, weight in leads.items()] if isinstance(leads, Mapping) else leads
        self.leads = sorted((int(length), int(lead), float(weight)) for length, lead, weight in triples if weight != 0)
        if not all(length >= 1 and lead >= 0 and 0 < weight < np.inf for length, lead, weight in self.leads):
            raise ProlocError(f"leads must give weights >= 0 to lengths >= 1 and leads >= 0, not {leads!r}.")
        if not isinstance(seed, int) or not 0 <= seed < _SEEDS:
            raise ProlocError(f"seed must be a whole number in [0, 2**64), not {seed!r}.")
        self.seed = seed
        self._chances = _closing_chances(self.lengths)

    def boundaries(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        opens = np.zeros(ids.shape, dtype=bool)
        draws = self._draws(ids)
        start, longest = 0, self._chances.size
        while start < ids.size:
            opens[start] = True
            # The draw at token s decides whether the block closes after s, so before s + 1.
            ahead = draws[start : start + longest]
            closes = ahead < self._chances[: ahead.size]
            size = int(closes.argmax()) + 1
            if not closes[size - 1]:
                break
            start += size
        return opens

    def boundaries_and_leads(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        opens, evidence = self.boundaries(ids), {}
        if self.leads:
            cuts, draws = np.flatnonzero(opens), self._draws(ids, _OF_LEADS)
            for before, cut in pairwise(cuts.tolist()):  # a lead is drawn from what stands before its block
                evidence[cut] = cut - self._lead_after(cut - before, draws[cut - 1])
        return opens, leads_from(opens, evidence)

    def _lead_after(self, length: int, draw: float) -> int:
        known = min({known for known, _, _ in self.leads}, key=lambda known: (abs(known - length), known))
        sizes, weights = zip(*((lead, weight) for at, lead, weight in self.leads if at == known), strict=True)
        share = np.cumsum(weights) / np.sum(weights)
        return int(sizes[np.searchsorted(share[:-1], draw, side="right")])

    def settings(self) -> dict[str, Any]:
        return {
            "lengths": [list(pair) for pair in self.lengths],
            "seed": self.seed,
            "leads": [list(triple) for triple in self.leads],
        }

    def _draws(self, ids: NDArray[np.int64], stream: int = 0) -> NDArray[np.float64]:
        """Uniform numbers in [0, 1), ``[seq]``; the one at t is a hash of seed, stream and tokens 0 to t."""
        places = np.arange(1, ids.size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        history = np.cumsum(_mix(ids.astype(np.uint64) + _mix(places)), dtype=np.uint64)
        bits = _mix(history ^ _mix(np.array([self.seed ^ stream], dtype=np.uint64)))
        draws = (bits >> np.uint64(11)).astype(np.float64)
        draws *= 2.0**-53
        return draws


def _closing_chances(lengths: list[tuple[int, float]]) -> NDArray[np.float64]:
    """``P(length = k | length >= k)`` for k = 1, 2, ...; the last one is 1."""
    weights = np.zeros(lengths[-1][0])
    for length, weight in lengths:
        weights[length - 1] += weight
    at_least = weights[::-1].cumsum()[::-1]
    chances: NDArray[np.float64] = weights / at_least
    return chances


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, element by element; array products wrap around as it wants."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
