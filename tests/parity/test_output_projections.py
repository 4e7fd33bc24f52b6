"""Value norms are of what attention really writes: over all keys and heads it sums to the module's own output."""

import sys
from pathlib import Path

import pytest
import torch

import proloc
from proloc.explaining.passage import Passage, count_units
from proloc.explaining.readout import read_out
from proloc.hf import recording
from proloc.hf.localize import attention_layers
from proloc.hf.prefix import full_cache
from proloc.hf.projection import output_projections

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))
from families import LOCALISED, build


@pytest.mark.parametrize("family", LOCALISED)
def test_weights_times_projected_values_are_the_output_of_every_layer(family):
    model = proloc.localize(build(*LOCALISED[family]), proloc.Explicit([0.0, 0.5, 1.0]), proloc.FixedBlocks(8))
    ids = torch.randint(1, 61, (1, 24), generator=torch.Generator().manual_seed(0))
    outputs, hooks, cache = [], [], full_cache()
    for attention in attention_layers(model):
        hooks.append(attention.register_forward_hook(lambda _, __, given: outputs.append(given[0].detach())))
    with torch.no_grad(), recording(model, keep_weights=True) as recorder, output_projections(model) as project:
        model(input_ids=ids, past_key_values=cache, use_cache=True)
        kept = list(outputs)
        for layer, written in enumerate(kept):
            weights, values = recorder.weights[layer][0], cache.layers[layer].values[0]
            values = values.repeat_interleave(len(weights) // len(values), dim=0)
            parts = project(layer, (weights[..., None] * values[:, None]).movedim(0, 2))
            difference = written[0] - parts.sum(dim=1)
            bias = difference.mean(dim=0, keepdim=True)
            assert torch.allclose(difference, bias.expand_as(difference), atol=2e-5), "all but a bias is accounted for"
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("family", LOCALISED)
def test_every_family_can_be_read_out(family):
    model = proloc.localize(build(*LOCALISED[family]), proloc.Explicit([0.0, 0.5, 1.0]), proloc.FixedBlocks(8))
    ids, blocks = torch.arange(1, 33), torch.arange(32) // 8
    passage = Passage(ids=ids, block_ids=blocks, units=count_units(blocks), start=31, end=32, num_sinks=1)
    readout = read_out(model, passage)
    assert not readout.enters[2].any()
    for scores in readout.scores().values():
        assert torch.isfinite(scores).all()
        assert (scores >= 0).all()
