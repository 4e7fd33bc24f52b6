"""A compiled localised model computes what the plain one does, and is compiled once, wherever the dial is turned."""

import pytest
import torch
import torch._dynamo.testing
from tiny import random_ids, tiny_model
from transformers import CompileConfig

import proloc
from proloc.hf import find_state

pytestmark = pytest.mark.slow

FAMILIES = ("gpt2", "llama", "mistral")
DIALS = tuple(step / 9 for step in range(10))
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
PENALTY = proloc.LowFidelity(phi=0.9, weight=2.0)


def compiled(family, backend):
    torch._dynamo.reset()
    model = proloc.localize(tiny_model(family), proloc.Polynomial(beta=1), proloc.FixedBlocks(5))
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    return model, torch.compile(model, backend=counter), counter


def assert_one_compilation_for_every_dial(family, backend):
    model, fast, counter = compiled(family, backend)
    ids, graphs = random_ids(2, 21), set()
    for position in DIALS:
        with proloc.dial(model, position), torch.no_grad():
            with torch._dynamo.config.patch(error_on_recompile=bool(graphs)):
                logits = fast(input_ids=ids, use_cache=False).logits
            torch.testing.assert_close(logits, model(input_ids=ids, use_cache=False).logits, **CLOSE)
        graphs.add(counter.frame_count)
    assert len(graphs) == 1
    assert min(graphs) > 0


def gradients(model, call, ids):
    model.zero_grad()
    with proloc.recording(model, "fidelity") as recorder:
        loss = call(input_ids=ids, labels=ids, use_cache=False).loss
        queries = torch.ones_like(ids, dtype=torch.bool)
        penalty = PENALTY.summed(recorder, find_state(model).localities, queries) / ids.numel()
        (loss + penalty).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_turning_the_dial_recompiles_nothing_and_the_logits_are_the_plain_ones(family, backend):
    assert_one_compilation_for_every_dial(family, backend)


def test_the_same_holds_for_the_code_that_inductor_writes():
    assert_one_compilation_for_every_dial("llama", "inductor")


@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_gradients_of_loss_and_penalty_are_the_plain_ones(family):
    model, fast, _ = compiled(family, "aot_eager")
    model.train()
    for position in (0.0, 0.5, 1.0):
        with proloc.dial(model, position):
            plain, found = gradients(model, model, random_ids(2, 21)), gradients(model, fast, random_ids(2, 21))
        for name, expected in plain.items():
            torch.testing.assert_close(found[name], expected, **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_with_a_static_cache_compiles_once_and_writes_the_same(family):
    torch._dynamo.reset()
    model = proloc.localize(tiny_model(family), proloc.Polynomial(beta=1), proloc.FixedBlocks(5))
    how = {"max_new_tokens": 14, "do_sample": False, "eos_token_id": None, "cache_implementation": "static"}
    setting = CompileConfig(backend="aot_eager", mode=None, fullgraph=False)
    setting._compile_all_devices = True  # transformers compiles on accelerators only, unless told otherwise
    for position in (0.0, 0.5, 1.0):
        with proloc.dial(model, position), torch._dynamo.config.patch(error_on_recompile=position > 0):
            found = model.generate(random_ids(2, 9), compile_config=setting, **how)
            assert torch.equal(found, model.generate(random_ids(2, 9), disable_compile=True, **how))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
