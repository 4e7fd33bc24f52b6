"""Pk and WindowDiff are what segeval, an independent implementation, says they are."""

import numpy as np
import pytest
import segeval
from hypothesis import given
from hypothesis import strategies as st

from proloc.blocks.segmentation import pk, window_diff, window_size
from proloc.errors import ProlocError


@st.composite
def two_segmentations(draw) -> tuple[list[int], list[int]]:
    """Segment numbers of one text of 8 to 80 units, twice; the reference has two segments or more."""
    units = draw(st.integers(8, 80))
    flags = st.lists(st.booleans(), min_size=units - 1, max_size=units - 1)
    reference, found = draw(flags.filter(any)), draw(flags)
    return [np.cumsum([0, *cuts]).tolist() for cuts in (reference, found)]


def masses(numbers: list[int]) -> tuple[int, ...]:
    return tuple(np.bincount(numbers).tolist())


@given(two_segmentations())
def test_both_measures_and_their_window_are_those_of_segeval(pair) -> None:
    reference, found = pair
    assert window_size(reference) == segeval.compute_window_size(
        masses(reference), fnc_round=round, boundary_format=segeval.BoundaryFormat.mass
    )
    assert pk(reference, found) == pytest.approx(float(segeval.pk(masses(found), masses(reference))))
    assert window_diff(reference, found) == pytest.approx(float(segeval.window_diff(masses(found), masses(reference))))


@given(two_segmentations())
def test_pk_never_exceeds_windowdiff_and_a_perfect_answer_has_no_error(pair) -> None:
    reference, found = pair
    assert 0 <= pk(reference, found) <= window_diff(reference, found) <= 1
    assert pk(reference, reference) == window_diff(reference, reference) == 0


def test_names_of_segments_do_not_matter() -> None:
    assert pk([5, 5, 2, 2, 9, 9], [0, 0, 1, 1, 2, 2]) == 0


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ProlocError, match=r"\[3\] and \[2\]"):
        pk([0, 0, 1], [0, 1])
    with pytest.raises(ProlocError, match="window of 5 units does not fit into a text of 3"):
        pk([0, 0, 1], [0, 1, 1], window=5)
    with pytest.raises(ProlocError, match="at least one unit"):
        window_size([])
