"""The cost of a stretch of sentences that do not point one way, for the searches of ruptures."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def direction_cost(base: Any, vectors: NDArray[np.float64]) -> Any:
    """``cost(i, j) = (j - i) - |x_i + ... + x_(j-1)|``, a custom cost for ruptures.

    For vectors of length 1 that is, up to a factor, what a von Mises-Fisher distribution of fixed concentration around
    the stretch's own direction lacks in log-likelihood. Takes ``sentences^2`` numbers.

    Args:
        base: ``ruptures.base.BaseCost``.
        vectors: ``[sentence, dim]``, of length 1 or 0.

    Source: ours.
    """
    sums = np.zeros((len(vectors) + 1, len(vectors) + 1))
    sums[1:, 1:] = (vectors @ vectors.T).cumsum(axis=0).cumsum(axis=1)
    corner = np.diag(sums)
    lengths = np.sqrt(np.maximum(corner[:, None] + corner - 2 * sums, 0.0))

    class Direction(base):  # type: ignore[misc]
        model = "direction"
        min_size = 1

        def fit(self, signal: NDArray[np.float64]) -> "Direction":
            self.signal = signal
            return self

        def error(self, start: int, end: int) -> float:
            return float(end - start - lengths[start, end])

    return Direction()
