"""Cut edges mean what they say, on random edges, layers and heads, against attention written out with a mask."""

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from tiny import random_ids, tiny_model

import proloc
from proloc.hf import recording

LENGTH = 14
MODEL = proloc.localize(tiny_model(), proloc.Explicit([0.0, 0.6, 1.0]), proloc.FixedBlocks(4), sinks=1)


@st.composite
def cuts(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    heads = draw(st.sampled_from([1, 4]))
    edges = torch.rand(2, heads, LENGTH, LENGTH, generator=generator) < draw(st.sampled_from([0.1, 0.5, 1.0]))
    edges &= ~torch.eye(LENGTH, dtype=torch.bool)
    return edges, draw(st.sets(st.integers(0, 2)))


@settings(max_examples=25, deadline=None)
@given(cuts())
def test_lost_edges_weigh_nothing_and_the_rest_is_what_it_was_normalised_again(cut):
    """In the first layer that is cut, whose scores are those of the uncut model; earlier layers are as they were."""
    edges, layers = cut[0][:, :1], cut[1]
    ids = random_ids(2, LENGTH)

    def weights():
        with torch.no_grad(), recording(MODEL, keep_weights=True) as recorder:
            MODEL(input_ids=ids, use_cache=False)
        return recorder.weights

    before = weights()
    if not layers:
        return
    seen = {}

    def look(layer, attention, keys):
        seen[layer] = attention.weights

    with torch.no_grad(), proloc.cutting(MODEL, edges, layers), recording(MODEL, visit=look):
        MODEL(input_ids=ids, use_cache=False)
    first = min(layers)
    for layer in range(first):
        assert torch.equal(seen[layer], before[layer])
    expected = before[first].double() * ~edges
    expected = expected / expected.sum(dim=-1, keepdim=True)
    assert torch.allclose(seen[first].double(), expected, atol=1e-5)
    assert (seen[first][edges.expand_as(seen[first])] == 0).all()


@settings(max_examples=10, deadline=None)
@given(cuts())
def test_every_attention_and_every_cache_cuts_alike(cut):
    edges, layers = cut
    ids, blocks = random_ids(2, LENGTH), torch.arange(LENGTH).expand(2, -1) // 4
    found = []
    for attention in ("reference", "auto"):
        proloc.localize(MODEL, proloc.Explicit([0.0, 0.6, 1.0]), proloc.FixedBlocks(4), sinks=1, attention=attention)
        with torch.no_grad(), proloc.cutting(MODEL, edges, layers or None):
            found.append(MODEL(input_ids=ids, use_cache=False).logits)
            past = MODEL(input_ids=ids[:, :9], use_cache=True)
            rest = MODEL(input_ids=ids[:, 9:], block_ids=blocks, past_key_values=past.past_key_values)
            found.append(torch.cat([past.logits, rest.logits], dim=1))
    for other in found[1:]:
        assert torch.allclose(other, found[0], atol=2e-5)
