"""The identities of the idea, against weights written out in float64."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from proloc import locality
from proloc.attention import reference, sdpa
from proloc.errors import ProlocError
from proloc.locality import AWAY, HIDDEN, HOME, SINK, Layout

CASES = settings(max_examples=40, deadline=None)


@st.composite
def problems(draw, dtype=torch.float64):
    """Random queries, keys, values and a relation with ragged blocks, sinks, padding and grouped heads."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch, kv_heads, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    length, size = draw(st.integers(1, 17)), draw(st.sampled_from([2, 8]))
    query = 2 * torch.randn(batch, kv_heads * groups, length, size, dtype=dtype, generator=generator)
    key, value = (torch.randn(batch, kv_heads, length, size, dtype=dtype, generator=generator) for _ in range(2))
    opens = torch.rand(batch, length, generator=generator) < draw(st.sampled_from([0.0, 0.2, 1.0]))
    valid = torch.arange(length) >= torch.randint(0, length, (batch, 1), generator=generator)
    visible = (torch.ones(length, length).tril().bool() & valid[:, None, :])[:, None]
    layout = Layout(opens.long().cumsum(1), locality.mark_sinks(draw(st.integers(0, 2)), valid))
    relation = locality.relate(layout, torch.arange(length), visible)
    retain = torch.tensor(draw(st.sampled_from([0.0, 1e-3, 0.5, 1.0])), dtype=torch.float64)
    return query, key, value, relation, retain


def rows_that_see(relation):
    return (relation != HIDDEN).any(-1)[:, 0]


@CASES
@given(problems())
def test_dialled_weights_are_the_away_weights_scaled_and_renormalised(problem):
    *qkv, relation, retain = problem
    attended = reference.attend(*qkv, relation, retain, scaling=0.5)
    scaled = torch.where(relation == AWAY, retain, 1.0) * attended.undialled_weights
    expected = scaled / scaled.sum(-1, keepdim=True)
    rows = rows_that_see(relation)
    torch.testing.assert_close(attended.weights.movedim(1, 2)[rows], expected.movedim(1, 2)[rows])


@CASES
@given(problems())
def test_fidelity_and_output_follow_from_two_undialled_passes(problem):
    query, key, value, relation, retain = problem
    one, nothing = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    full = reference.attend(query, key, value, relation, one, scaling=0.5)
    home = reference.attend(query, key, value, relation, nothing, scaling=0.5)
    dialled = reference.attend(query, key, value, relation, retain, scaling=0.5)
    undialled_fidelity = locality.fidelity(full.weights, relation)
    rows = rows_that_see(relation)
    fidelity = locality.dialled_fidelity(undialled_fidelity, retain)
    torch.testing.assert_close(
        locality.fidelity(dialled.weights, relation).movedim(1, 2)[rows], fidelity.movedim(1, 2)[rows]
    )
    output = locality.dialled_output(
        full.output.transpose(1, 2), home.output.transpose(1, 2), undialled_fidelity, retain
    )
    torch.testing.assert_close(dialled.output[rows], output.transpose(1, 2)[rows])


@CASES
@given(problems())
def test_at_locality_one_away_keys_weigh_exactly_nothing(problem):
    *qkv, relation, _ = problem
    weights = reference.attend(*qkv, relation, torch.zeros(()), scaling=0.5).weights
    assert (weights.masked_select(relation == AWAY) == 0.0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


@CASES
@given(problems())
def test_sdpa_equals_the_reference_with_its_gradients(problem):
    query, key, value, relation, retain = problem
    rows = rows_that_see(relation)
    results = []
    for attend in (lambda *a, **k: reference.attend(*a, **k).output, sdpa.attend):
        inputs = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
        output = attend(*inputs, relation, retain, scaling=0.5)[rows]
        output.square().sum().backward()
        results.append([output.detach(), *(tensor.grad for tensor in inputs)])
    for ours, oracle in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, oracle, rtol=1e-9, atol=1e-9)


@CASES
@given(problems())
def test_entropy_lies_between_zero_and_that_of_uniform_attention(problem):
    *qkv, relation, retain = problem
    entropy = locality.entropy_bits(reference.attend(*qkv, relation, retain, scaling=0.5).weights)
    visible = (relation != HIDDEN).sum(-1).expand_as(entropy)
    rows = visible > 0
    assert (entropy[rows] >= 0).all()
    assert (entropy[rows] <= torch.log2(visible[rows].double()) + 1e-9).all()


def test_uniform_attention_over_eight_keys_has_three_bits():
    assert locality.entropy_bits(torch.full((1, 1, 1, 8), 0.125)).item() == pytest.approx(3.0)


def test_keys_are_home_away_sink_or_hidden():
    layout = Layout(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[True, False, False, False]]))
    relation = locality.relate(layout, torch.arange(4), torch.ones(4, 4).tril().bool()[None, None])
    assert relation[0, 0].tolist() == [
        [SINK, HIDDEN, HIDDEN, HIDDEN],
        [SINK, HOME, HIDDEN, HIDDEN],
        [SINK, AWAY, HOME, HIDDEN],
        [SINK, AWAY, HOME, HOME],
    ]


@CASES
@given(st.lists(st.integers(0, 4), min_size=1, max_size=15, unique=False), st.integers(0, 4), st.integers(-5, 5))
def test_a_halo_makes_that_many_blocks_before_the_own_one_home(lengths, halo, first):
    """Whatever the ids are called: here they rise, fall or jump, and a length of 0 is a block that is not there."""
    names = [(first + 7 * number) % 31 for number in range(len(lengths))]
    tokens = [
        (number, name) for number, (name, size) in enumerate(zip(names, lengths, strict=True)) for _ in range(size)
    ]
    numbers = {number: place for place, number in enumerate(dict.fromkeys(number for number, _ in tokens))}
    length = len(tokens)
    layout = Layout(
        torch.tensor([[name for _, name in tokens]]).view(1, -1).long(), torch.zeros(1, length).bool(), halo
    )
    relation = locality.relate(layout, torch.arange(length), torch.ones(1, 1, length, length).tril().bool())
    for query in range(length):
        for key in range(query + 1):
            back = numbers[tokens[query][0]] - numbers[tokens[key][0]]
            assert relation[0, 0, query, key] == (HOME if back <= halo else AWAY)


def test_a_halo_around_an_interrupted_block_is_refused_and_without_one_it_is_home():
    ids, nothing = torch.tensor([[5, 5, 6, 5]]), torch.zeros(1, 4).bool()
    visible = torch.ones(4, 4).tril().bool()[None, None]
    assert locality.relate(Layout(ids, nothing), torch.arange(4), visible)[0, 0, 3].tolist() == [HOME, HOME, AWAY, HOME]
    with pytest.raises(ProlocError, match="block 5 of row 0 is interrupted by another block, so a halo of 2"):
        locality.relate(Layout(ids, nothing, 2), torch.arange(4), visible)
    visible[..., :2] = False  # where nobody sees the first part, nothing is interrupted
    assert locality.relate(Layout(ids, nothing, 1), torch.arange(4), visible)[0, 0, 3].tolist()[2:] == [HOME, HOME]


@pytest.mark.parametrize("halo", [-1, 0.5, True, "1", None])
def test_a_halo_that_is_no_number_of_blocks_is_refused(halo):
    with pytest.raises(ProlocError, match=r"halo is .*; it must be a whole number of blocks, 0 or more"):
        Layout(torch.zeros(1, 1).long(), torch.zeros(1, 1).bool(), halo)


def test_sinks_are_the_first_real_tokens_of_every_sequence():
    valid = torch.tensor([[0, 0, 1, 1, 1, 1]]).bool()
    starts = torch.tensor([[0, 0, 1, 0, 1, 0]]).bool()
    assert locality.mark_sinks(1, valid).tolist() == [[False, False, True, False, False, False]]
    assert locality.mark_sinks(1, valid, starts).tolist() == [[False, False, True, False, True, False]]
    assert not locality.mark_sinks(0, valid, starts).any()


@pytest.mark.parametrize("position", [-0.1, 1.1, float("nan")])
def test_a_dial_outside_the_unit_interval_is_refused(position):
    with pytest.raises(ProlocError, match="must lie in"):
        locality.retained(torch.ones(3), position)


@CASES
@given(st.lists(st.integers(1, 5), min_size=1, max_size=9), st.lists(st.integers(0, 9), min_size=9), st.integers(0, 2))
def test_a_lead_makes_the_tokens_right_before_a_block_home_to_it(sizes, wanted, halo):
    tokens = [number for number, size in enumerate(sizes) for _ in range(size)]
    starts = [tokens.index(number) for number in range(len(sizes))]
    homes = []
    for start, lead in zip(starts, wanted, strict=False):
        homes.append(max(start - lead, homes[-1] if homes else 0))
    ids = torch.tensor([tokens])
    leads = torch.tensor([[starts[number] - homes[number] for number in tokens]])
    led = locality.with_leads(ids, leads)
    locality.check_leads(led)
    assert torch.equal(locality.leads_of(led), leads)
    assert torch.equal(locality.block_ordinals(led), ids)
    relation = locality.relate(
        Layout(led, torch.zeros_like(led).bool(), halo),
        torch.arange(len(tokens)),
        torch.ones(1, 1, len(tokens), len(tokens)).tril().bool(),
    )
    for query, number in enumerate(tokens):
        home = homes[max(number - halo, 0)]
        assert relation[0, 0, query, : query + 1].tolist() == [
            HOME if key >= home else AWAY for key in range(query + 1)
        ]


def test_ids_below_zero_and_narrow_ones_hold_no_lead():
    assert locality.leads_of(torch.tensor([[-1, -(2**40), 2**32 - 1, 2**32]])).tolist() == [[0, 0, 0, 1]]
    assert locality.leads_of(torch.tensor([[-1, 2**31 - 1]], dtype=torch.int32)).tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("ids", "leads", "message"),
    [
        ([0, 0, 1], [0, 0, 3], r"token 2 of row 0 says by its upper 32 bits that home starts 3 tokens before"),
        ([0, 0, 1], [1, 1, 0], r"token 0 of row 0 .* starts 1 tokens before"),
        ([0, 0, 1, 2], [0, 0, 1, 3], r"token 3 .* before its row or an earlier block's home"),
        ([0, 7651230987 * 2**29 % 2**32], [0, 7651230987 * 2**29 >> 32], r"ids below 2\*\*32 for blocks without"),
    ],
)
def test_leads_that_cannot_be_are_refused(ids, leads, message):
    with pytest.raises(ProlocError, match=message):
        locality.check_leads(locality.with_leads(torch.tensor([ids]), torch.tensor([leads])))
