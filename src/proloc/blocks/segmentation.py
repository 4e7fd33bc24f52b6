"""How far a segmentation is from a reference: Pk and WindowDiff."""

from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from proloc.errors import ProlocError


def pk(reference: ArrayLike, found: ArrayLike, window: int | None = None) -> float:
    """The chance that two units ``window`` apart are wrongly said to be in the same segment, or in different ones.

    Args:
        reference: a segment number for every unit (sentence, token), ``[unit]``; a new segment starts where it changes.
        found: the same for the segmentation judged.
        window: distance in units; None = half the mean length of the reference segments, see ``window_size``.

    Returns:
        A share in [0, 1]; 0 is best, and about 0.5 is what no segmentation at all, or one at random, gets.

    Raises:
        ProlocError: the two have different lengths, or no window fits into the text.

    Source: Beeferman, Berger and Lafferty (1999).
    """
    wanted, given = _crossed(reference, found, window)
    return float(np.mean((wanted > 0) != (given > 0)))


def window_diff(reference: ArrayLike, found: ArrayLike, window: int | None = None) -> float:
    """The share of windows in which the two do not have the same number of boundaries; arguments as for ``pk``.

    Source: Pevzner and Hearst (2002).
    """
    wanted, given = _crossed(reference, found, window)
    return float(np.mean(wanted != given))


def window_size(reference: ArrayLike) -> int:
    """Half the mean segment length of the reference, rounded half to even, but at least 2 units."""
    units = np.asarray(reference)
    return max(2, round(Fraction(units.size, 2 * (_boundaries(units).sum().item() + 1))))


def _crossed(reference: ArrayLike, found: ArrayLike, window: int | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Boundaries crossed from every unit to the one a window further, ``[units - window]``, in each of the two."""
    wanted, given = np.asarray(reference), np.asarray(found)
    if wanted.ndim != 1 or wanted.shape != given.shape:
        raise ProlocError(
            f"both segmentations must be [unit], equally long, but they are {list(wanted.shape)} and "
            f"{list(given.shape)}."
        )
    size = window_size(wanted) if window is None else window
    if not 1 <= size < wanted.size:
        raise ProlocError(f"a window of {size} units does not fit into a text of {wanted.size}.")
    wanted, given = (np.concatenate([[0], _boundaries(units).cumsum()]) for units in (wanted, given))
    return wanted[size:] - wanted[:-size], given[size:] - given[:-size]


def _boundaries(units: NDArray[np.generic]) -> NDArray[np.bool_]:
    if units.ndim != 1 or units.size == 0:
        raise ProlocError(f"a segmentation must be [unit] with at least one unit, not {list(units.shape)}.")
    changes: NDArray[np.bool_] = units[1:] != units[:-1]
    return changes
