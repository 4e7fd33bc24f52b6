"""The ranges of visible keys are those of transformers' own mask, or there are none."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from transformers.masking_utils import (
    and_masks,
    causal_mask_function,
    chunked_causal_mask_function,
    or_masks,
    packed_sequence_mask_function,
    sliding_window_causal_mask_function,
)

from proloc.attention import KeyRanges, Keys
from proloc.errors import ProlocError
from proloc.hf import visibility
from proloc.hf.visibility import MaskRequest, visible_starts
from proloc.locality import HIDDEN


@st.composite
def requests(draw):
    """A usual request: a text of which some keys are cached, padded on either side, under every usual mask."""
    batch, queries, past = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(0, 9))
    text = past + queries
    dropped = draw(st.integers(0, past))  # a sliding cache has thrown these keys away
    room = draw(st.integers(0, 4))  # a static cache has not filled these
    mask = None
    if draw(st.booleans()):
        mask = torch.zeros(batch, text, dtype=torch.bool)
        for row in mask:
            start = draw(st.integers(0, text - 1))
            row[start : draw(st.integers(start + 1, text))] = True
    window = draw(st.integers(1, 12))
    rows = st.lists(st.integers(0, 1), min_size=text + room, max_size=text + room)
    packed = torch.tensor([draw(rows) for _ in range(batch)]).cumsum(1)
    kinds = {
        "causal": causal_mask_function,
        "sliding": sliding_window_causal_mask_function(window),
        "chunked": chunked_causal_mask_function(window, torch.zeros(batch, dtype=torch.long)),
        "packed": and_masks(causal_mask_function, packed_sequence_mask_function(packed)),
        "both": and_masks(sliding_window_causal_mask_function(window), packed_sequence_mask_function(packed)),
    }
    function = kinds[draw(st.sampled_from(sorted(kinds)))]
    return MaskRequest(batch, queries, text - dropped + room, past, dropped, function, mask, False, "cpu")


@settings(max_examples=200, deadline=None)
@given(requests())
def test_ranges_are_what_transformers_lets_a_query_see(request):
    starts = visible_starts(request)
    assert starts is not None, "all these masks are ranges"
    visible, positions = request.visible()[:, 0], request.query_positions()
    keys = torch.arange(request.kv_length)
    expected = (keys >= starts[..., None]) & (keys <= positions[:, None])
    real = visible.gather(2, positions[None, :, None].expand(len(visible), -1, 1))[..., 0]
    assert torch.equal(expected[real], visible[real])
    assert (starts[~real] > positions.expand_as(starts)[~real]).all(), "a padding query starts after itself"


def request_of(function, mask=None):
    return MaskRequest(1, 6, 6, 0, 0, function, mask, False, "cpu")


def test_masks_that_are_no_ranges_have_none():
    hole = torch.tensor([[True, True, False, True, True, True]])
    assert visible_starts(request_of(causal_mask_function, hole)) is None
    every_second = and_masks(causal_mask_function, lambda b, h, q, k: (q - k) % 2 == 0)
    assert visible_starts(request_of(every_second)) is None
    both_ways = or_masks(causal_mask_function, lambda b, h, q, k: q >= 0)
    assert visible_starts(request_of(both_ways)) is None, "a query that sees the future is no range up to itself"


def test_the_keys_of_a_batch_make_their_matrix_once_and_only_when_asked():
    made = []
    block_ids = torch.tensor([[0, 0, 1, 1, 1, 2]])
    ranges = KeyRanges.from_blocks(block_ids, block_ids < 0, torch.zeros(1, 6, dtype=torch.long))

    def relation():
        made.append(1)
        return ranges.relation()

    keys = Keys(ranges, relation)
    assert keys.uniform().shape == (1, 6)
    assert not made
    assert torch.equal(keys[:, :, 2:4], ranges.relation()[:, :, 2:4]), "code that slices a mask gets the matrix"
    moved = keys.to("cpu", torch.float16)
    assert torch.equal(moved.relation(), keys.relation())
    assert made == [1]


def test_keys_without_ranges_have_the_same_share_of_home_keys():
    block_ids = torch.tensor([[0, 0, 1, 1, 1, 2]])
    ranges = KeyRanges.from_blocks(block_ids, block_ids == 0, torch.zeros(1, 6, dtype=torch.long))
    assert torch.equal(Keys.of_relation(ranges.relation()).uniform(), ranges.uniform())
    assert (ranges.relation() != HIDDEN).any()


def test_the_usual_masks_need_no_matrix(monkeypatch):
    monkeypatch.delattr(visibility, "sdpa_mask")
    for function in (causal_mask_function, sliding_window_causal_mask_function(3)):
        assert visible_starts(request_of(function, torch.tensor([[False, True, True, True, True, False]]))) is not None


def test_an_architecture_that_computes_with_its_mask_is_refused():
    keys = Keys.of_relation(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
    with pytest.raises(ProlocError, match="it asked for 'dtype'"):
        torch.finfo(keys.dtype)
    assert not hasattr(keys, "masked_fill")
