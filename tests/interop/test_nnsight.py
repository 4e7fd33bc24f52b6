"""nnsight traces a localised model as it is: the same logits, and interventions on its layers do what hooks do."""

import pytest
import torch
from tiny import random_ids, tiny_model

import proloc

pytestmark = pytest.mark.slow
nnsight = pytest.importorskip("nnsight", reason="pip install 'proloc[interop]'")

DIALS = (0.0, 0.5, 1.0)


def layers(model):
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


def localised(family):
    return proloc.localize(tiny_model(family), proloc.Polynomial(beta=1), proloc.FixedBlocks(5))


@pytest.mark.parametrize("position", DIALS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_traced_logits_are_the_models_own(family, position):
    model, ids = localised(family), random_ids(2, 21)
    traced = nnsight.NNsight(model)
    with proloc.dial(model, position), torch.no_grad():
        with traced.trace(ids):
            logits = traced.output.logits.save()
        assert torch.equal(logits, model(ids).logits)


@pytest.mark.parametrize("position", DIALS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_switching_off_an_mlp_equals_doing_so_with_a_hook(family, position):
    model, ids = localised(family), random_ids(2, 21)
    traced = nnsight.NNsight(model)
    with proloc.dial(model, position), torch.no_grad():
        with traced.trace(ids):
            layers(traced)[1].mlp.output[:] = 0
            logits = traced.output.logits.save()
        untouched = model(ids).logits
        handle = layers(model)[1].mlp.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
        expected = model(ids).logits
        handle.remove()
    assert torch.equal(logits, expected)
    assert (logits - untouched).abs().max() > 0.01


def test_what_an_away_token_wrote_into_the_residual_stream_shows_only_while_the_dial_lets_it():
    """One layer after the intervention: at dial 1 it is hard, so a change in block 1 stays in block 1."""
    model, ids = (
        proloc.localize(tiny_model(layers=1), proloc.Uniform(value=1.0), proloc.FixedBlocks(5)),
        random_ids(1, 20),
    )
    traced = nnsight.NNsight(model)
    moved = {}
    for position in (0.0, 1.0):
        with proloc.dial(model, position), torch.no_grad():
            with traced.trace(ids):
                traced.model.embed_tokens.output[:, 6] += 1.0
                logits = traced.output.logits.save()
            moved[position] = (logits - model(ids).logits).abs().amax(-1)[0]
    assert (moved[1.0][10:] == 0).all()
    assert (moved[1.0][6:10] > 0).all()
    assert (moved[0.0][6:] > 0).all()
