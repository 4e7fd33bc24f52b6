"""Ranges of keys say the same as the relation of every query and key, in memory that grows with T."""

import hypothesis.strategies as st
import pytest
import torch
from attention_problems import problems, random_leads
from hypothesis import given, settings

from proloc.attention.layout import KeyRanges
from proloc.errors import ProlocError
from proloc.locality import HIDDEN, HOME, Layout, relate

CASES = settings(max_examples=60, deadline=None)


@CASES
@given(
    st.integers(0, 2**31),
    st.integers(1, 20),
    st.sampled_from([0.0, 0.2, 1.0]),
    st.sampled_from([1, 3, 20]),
    st.integers(0, 3),
    st.booleans(),
)
def test_ranges_and_relate_agree_wherever_a_query_sees_itself(seed, length, opens, window, halo, leads):
    generator = torch.Generator().manual_seed(seed)
    ids = (torch.rand(2, length, generator=generator) < opens).long().cumsum(1)
    if leads:
        ids = random_leads(ids, generator)
    sinks = torch.rand(2, length, generator=generator) < 0.2
    positions = torch.arange(length)
    start = torch.maximum(torch.randint(0, length, (2, 1), generator=generator), positions - window + 1)
    visible = (positions >= start[..., None]) & (positions <= positions[:, None])
    expected = relate(Layout(ids, sinks, halo), positions, visible[:, None])
    rows = positions >= start
    found = KeyRanges.from_blocks(ids, sinks, start, halo=halo).relation()
    assert torch.equal(found[:, 0][rows], expected[:, 0][rows])


@CASES
@given(problems())
def test_every_query_sees_itself_at_home_and_nothing_later(problem):
    ranges = problem.ranges
    relation = ranges.relation()[:, 0]
    positions = torch.arange(relation.shape[1]) + ranges.query_offset
    own = relation.gather(2, positions.expand(len(relation), -1)[..., None])
    assert (own >= HOME).all()
    later = torch.arange(relation.shape[2]) > positions[:, None]
    assert (relation.masked_select(later) == HIDDEN).all()
    near, visible = (relation >= HOME).sum(-1), (relation != HIDDEN).sum(-1)
    torch.testing.assert_close(ranges.uniform(), near / visible)


@CASES
@given(problems(), st.integers(0, 2**31))
def test_some_of_the_keys_are_related_as_among_all(problem, seed):
    ranges = problem.ranges
    relation = ranges.relation()
    kept = torch.rand(relation.shape[3], generator=torch.Generator().manual_seed(seed)) < 0.5
    kept |= (relation >= HOME).any(0).any(0).any(0)  # home keys and sinks that somebody reads
    positions = kept.nonzero()[:, 0]
    assert torch.equal(ranges.at(positions).relation(), relation[..., positions])


NOTHING = torch.zeros(1, 5, dtype=torch.bool)


def test_a_block_in_two_parts_is_refused_with_its_place():
    with pytest.raises(ProlocError, match="block 0 of row 0 is not contiguous at token 3"):
        KeyRanges.from_blocks(torch.tensor([[0, 0, 1, 0, 2]]), NOTHING, torch.zeros(1, 5).long())


def test_a_block_interrupted_where_nobody_looks_is_fine():
    start = torch.tensor([[0, 0, 0, 2, 2]])
    ranges = KeyRanges.from_blocks(torch.tensor([[0, 0, 1, 0, 2]]), NOTHING, start)
    assert ranges.home_start.tolist() == [[0, 0, 2, 3, 4]]


@pytest.mark.parametrize(("queries", "offset"), [(6, 0), (2, 4), (1, -1)])
def test_queries_outside_the_keys_are_refused(queries, offset):
    with pytest.raises(ProlocError, match="do not fit 5 keys"):
        KeyRanges.from_blocks(torch.zeros(1, 5).long(), NOTHING, torch.zeros(1, queries).long(), offset)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ProlocError, match=r"must be \[batch, key\]"):
        KeyRanges.from_blocks(torch.zeros(2, 5).long(), NOTHING, torch.zeros(1, 5).long())
