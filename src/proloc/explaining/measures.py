"""How faithful an attribution is: it predicts what interventions do, or it does not (``docs/explain.md``)."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from proloc.errors import ProlocError

Flags = NDArray[np.bool_]
Values = NDArray[np.float64]
LogProbs = Callable[[Flags], Values]
BINS = (0.01, 0.05, 0.1, 0.2, 0.5)
ROUNDING = 1e-4  # nats: outcomes that differ by less are the same


def lds(scores: ArrayLike, kept: ArrayLike, log_probs: ArrayLike) -> float | None:
    """Linear datamodeling score: Spearman's correlation of predicted and true log-probabilities.

    The prediction for an ablation is the sum of the scores of the sources it keeps.

    Args:
        scores: ``[source]``.
        kept: bool ``[ablation, source]``.
        log_probs: ``[ablation]``, measured.

    Returns:
        In [-1, 1]; 0 where all predictions are equal, None where all measurements are, to a ten-thousandth of a nat:
        there is nothing to predict.

    Source: ContextCite (arXiv 2409.00729), after Park et al. (2023).
    """
    truth: Values = np.asarray(log_probs, dtype=np.float64)
    predicted: Values = np.asarray(kept, dtype=np.float64) @ np.asarray(scores, dtype=np.float64)
    # Where no source can reach the target, ablations still differ in how float32 rounds; that is no outcome.
    if np.ptp(truth) < ROUNDING:
        return None
    # Sums of the same scores in another order may differ in the last bit; that is no prediction.
    ranked = np.round(predicted / (float(np.abs(predicted).max()) or 1.0), 12)
    return 0.0 if np.ptp(ranked) == 0 else float(stats.spearmanr(ranked, (truth / ROUNDING).round()).statistic)


def strongest(scores: ArrayLike, num: int) -> Flags:
    """Bool ``[source]``, True for the ``num`` sources with the highest scores; the earlier one where they tie."""
    values = np.asarray(scores, dtype=np.float64)
    chosen = np.zeros(values.size, dtype=bool)
    chosen[np.argsort(-values, kind="stable")[:num]] = True
    return chosen


def top_drop(scores: ArrayLike, num: int, intact: float, log_probs: LogProbs) -> float:
    """``log p(target) - log p(target without the num strongest sources)`` in nats; higher = they mattered more.

    Source: ContextCite (arXiv 2409.00729), top-k log-probability drop.
    """
    return intact - float(log_probs(~strongest(scores, num)[None])[0])


def bins(num_sources: int, shares: Sequence[float] = BINS) -> list[int]:
    """How many sources each share is, rounded up."""
    if not num_sources or not all(0 < share <= 1 for share in shares):
        raise ProlocError(f"shares must lie in (0, 1] and there must be sources; got {list(shares)} of {num_sources}.")
    return [math.ceil(share * num_sources) for share in shares]


def comprehensiveness(scores: ArrayLike, intact: float, log_probs: LogProbs, num_targets: int = 1) -> float:
    """Mean over ``BINS`` of ``p(target) - p(target without the strongest sources)``; higher is better.

    ``p`` is the probability per token, the geometric mean over the target's tokens.

    Source: ERASER (DeYoung et al. 2020, arXiv 1911.03429), area over the perturbation curve; here over blocks.
    """
    return _area(intact, log_probs(np.array([~strongest(scores, num) for num in _sizes(scores)])), num_targets)


def sufficiency(scores: ArrayLike, intact: float, log_probs: LogProbs, num_targets: int = 1) -> float:
    """Mean over ``BINS`` of ``p(target) - p(target with the strongest sources alone)``; lower is better.

    Source: as for ``comprehensiveness``.
    """
    return _area(intact, log_probs(np.array([strongest(scores, num) for num in _sizes(scores)])), num_targets)


def precision_at_1(scores: ArrayLike, true_source: int) -> bool:
    """Whether the highest score is the true source's, and nobody else's."""
    values = np.asarray(scores, dtype=np.float64)
    others = np.delete(values, true_source)
    return bool((values[true_source] > others).all())


def _sizes(scores: ArrayLike) -> list[int]:
    return bins(np.asarray(scores).size)


def _area(intact: float, ablated: Values, num_targets: int) -> float:
    return math.exp(intact / num_targets) - float(np.mean(np.exp(ablated / num_targets)))
