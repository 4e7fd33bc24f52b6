"""Where a head looks, on a model whose heads are known."""

import pytest
import torch
from planted import induction_model, induction_passage

import proloc
from proloc.blocks import FixedBlocks
from proloc.explaining.heads import look_at_head

PASSAGES = [induction_passage(seed, filler=3) for seed in range(3)]
WINDOWS = torch.stack([passage.ids for passage, _ in PASSAGES])


def localised():
    """Facts have five tokens; the first block also holds the opening token."""
    return proloc.localize(induction_model(), proloc.Uniform(value=0.0), proloc.GivenBlocks([6, 11, 16, 21, 26, 31]))


def test_the_edges_that_cost_most_to_cut_lead_from_each_question_to_its_answer():
    """Among the strongest edges of the induction head; filler that happens to return gives it others, worth little."""
    found, blocks_read, loss, loss_cut = look_at_head(localised(), WINDOWS, layer=1, head=0)
    dearest = sorted(found, key=lambda pair: -pair[1])[:3]
    edges = {(edge.window, edge.query, edge.key) for edge, _ in dearest}
    assert edges == {(number, 6, asked) for number, (_, asked) in enumerate(PASSAGES)}
    assert all(change > 1 for _, change in dearest)
    assert all(edge.mass > 0.3 for edge, _ in dearest), "one of three tokens of the question puts its whole mass there"
    assert loss_cut > loss + 0.05
    assert blocks_read.shape == (2,)


def test_a_head_that_moves_nothing_costs_nothing_wherever_it_looks():
    found, _, loss, loss_cut = look_at_head(localised(), WINDOWS, layer=1, head=1)
    assert len(found) == 8
    assert all(abs(change) < 1e-5 for _, change in found)
    assert loss_cut == pytest.approx(loss, abs=1e-6)


def test_the_previous_token_head_reads_one_block_and_a_uniform_one_reads_many():
    """Layer 0: one head on the previous token, one on everything; of t tokens in equal blocks the latter reads all."""
    model = localised()
    _, blocks_read, _, _ = look_at_head(model, WINDOWS, layer=0, head=0)
    assert 1.5 < float(blocks_read[0]) < 3.5
    with proloc.dial(proloc.localize(model, proloc.Uniform(value=1.0), FixedBlocks(5)), 1.0):
        _, local, _, _ = look_at_head(model, WINDOWS, layer=0, head=0)
    assert float(local[0]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("layer", "head", "message"),
    [(2, 0, "no layer 2"), (-1, 0, "no layer -1"), (0, 2, "no head 2"), (0, -1, "no head -1")],
)
def test_heads_that_are_not_there_are_refused(layer, head, message):
    with pytest.raises(proloc.ProlocError, match=message):
        look_at_head(localised(), WINDOWS, layer, head)
