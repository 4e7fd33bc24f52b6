"""Every penalty through a real model: the backend it may have, the gradient of the reference, and the Trainer."""

import pytest
import torch
from test_training import history, trainer
from tiny import random_ids, tiny_model

import proloc
from proloc.hf import find_state
from proloc.training import queries_with_target

PENALTIES = {
    "fidelity": proloc.LowFidelity(phi=[[0.9] * 4, [0.8] * 4, [0.7, 0.9, 1.0, 0.5]], weight=2.0),
    "group": proloc.GroupSparsity(weight=1.0),
    "entropy": proloc.Entropy(target_bits=0.2, weight=1.0),
    "kl": proloc.DialledKL(weight=1.0),
}
BACKENDS = {"fidelity": {"fused"}, "group": {"reference"}, "entropy": {"fused"}, "kl": {"fused"}}
every = pytest.mark.parametrize("kind", PENALTIES)


def localised(family="llama", schedule=None, attention="auto", blocks=None):
    blocks = blocks or proloc.FixedBlocks(3)
    schedule = schedule or proloc.Polynomial(beta=1)
    return proloc.localize(tiny_model(family), schedule, blocks, halo=1, attention=attention)


def value_and_gradient(model, penalty, ids, dial):
    queries = queries_with_target(ids)
    with proloc.dial(model, dial), proloc.recording(model, penalty.needs) as recorder:
        model(input_ids=ids)
        value = penalty.summed(recorder, find_state(model).localities, queries) / queries.sum()
        model.zero_grad()
        value.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    zeros = [torch.zeros_like(parameter) for parameter in model.parameters()]
    return value.detach(), [zero if grad is None else grad for grad, zero in zip(gradients, zeros, strict=True)]


@every
@pytest.mark.parametrize("dial", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
def test_value_and_gradient_are_the_references_at_every_dial(kind, dial, family):
    penalty, ids = PENALTIES[kind], random_ids(2, 30)
    (ours, gradients), (oracle, expected) = (
        value_and_gradient(localised(family, attention=attention), penalty, ids, dial)
        for attention in ("auto", "reference")
    )
    assert oracle > 0
    torch.testing.assert_close(ours, oracle, rtol=1e-4, atol=1e-6)
    largest = max(float(gradient.abs().max()) for gradient in expected)
    assert largest > 0
    for found, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * largest)


@every
def test_one_layer_is_penalised_the_same_wherever_the_dial_stands(kind):
    """All read what a layer does before the dial; deeper layers would see other inputs."""
    schedule = proloc.Explicit([1.0, 0.0, 0.0])
    values = [
        value_and_gradient(localised(schedule=schedule), PENALTIES[kind], random_ids(2, 30), dial)[0]
        for dial in (0.0, 0.5, 1.0)
    ]
    assert values[0] > 0
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=1e-5, atol=1e-6)


@every
def test_the_choice_of_attention_says_what_a_penalty_costs(kind):
    model = localised(schedule=proloc.Uniform(value=1.0))
    value_and_gradient(model, PENALTIES[kind], random_ids(1, 30), 1.0)
    chosen = find_state(model).chosen.values()
    assert {choice.name for choice in chosen} == BACKENDS[kind]
    if kind == "group":
        assert all("somebody wants the weights" in choice.reason for choice in chosen)


@pytest.mark.parametrize(("kind", "attention"), [("group", "fused"), ("group", "sdpa"), ("entropy", "sdpa")])
def test_a_backend_asked_for_that_cannot_serve_a_penalty_is_refused(kind, attention):
    with pytest.raises(proloc.ProlocError, match="cannot be used here"):
        value_and_gradient(localised(attention=attention), PENALTIES[kind], random_ids(1, 30), 1.0)


def test_capped_scores_take_the_entropy_from_their_weights():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, attn_logit_softcapping=2.0, attn_implementation="eager",
    )  # fmt: skip
    model = proloc.localize(Gemma2ForCausalLM(config).eval(), proloc.Uniform(value=1.0), proloc.FixedBlocks(5))
    ids = random_ids(1, 20)
    with proloc.dial(model, 0.0), torch.no_grad():
        with proloc.recording(model) as everything:
            model(ids)
        with proloc.recording(model, "entropy") as recorder:
            model(ids)
    torch.testing.assert_close(recorder.entropy_undialled[0], everything.layers[0].entropy_bits)


@every
def test_accumulation_and_checkpointing_leave_a_penalty_as_it_is(tmp_path, kind):
    whole = trainer(tmp_path, penalty=PENALTIES[kind])
    parts = trainer(
        tmp_path, penalty=PENALTIES[kind], per_device_train_batch_size=2, gradient_accumulation_steps=4,
        gradient_checkpointing=True,
    )  # fmt: skip
    for each in (whole, parts):
        each.train()
        assert all(value > 0 for value in history(each, "penalty"))
    for key in ("cross_entropy", "penalty"):
        assert history(parts, key) == pytest.approx(history(whole, key), rel=1e-4)


@every
def test_training_makes_the_penalty_smaller(tmp_path, kind):
    schedule = proloc.Uniform(value=1.0)
    trained = trainer(tmp_path, penalty=PENALTIES[kind], schedule=schedule, max_steps=10)
    trained.train()
    found = history(trained, "penalty")
    assert found[-1] < 0.8 * found[0]


@every
def test_recording_around_training_does_not_silence_a_penalty(tmp_path, kind):
    plain, recorded = (trainer(tmp_path, penalty=PENALTIES[kind]) for _ in range(2))
    plain.train()
    with proloc.recording(recorded.model):
        recorded.train()
    assert history(recorded, "penalty") == pytest.approx(history(plain, "penalty"), rel=1e-5)


@every
def test_the_future_never_leaks_into_a_penalty(kind):
    """A penalty on early queries does not change when later tokens do."""
    model, penalty, ids = localised(), PENALTIES[kind], random_ids(1, 30)
    changed = ids.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % 61
    early, values = torch.zeros(1, 30, dtype=torch.bool), []
    early[:, :20] = True
    for text in (ids, changed):
        with torch.no_grad(), proloc.recording(model, penalty.needs) as recorder:
            model(input_ids=text, block_ids=torch.arange(30)[None] // 4)
            values.append(penalty.summed(recorder, find_state(model).localities, early))
    torch.testing.assert_close(values[0], values[1], rtol=1e-6, atol=1e-7)


def test_a_penalty_that_does_not_fit_the_model_is_refused_before_training(tmp_path):
    with pytest.raises(proloc.ProlocError, match="values for 2 layers; the model has 3"):
        trainer(tmp_path, penalty=proloc.LowFidelity(phi=[0.5, 0.5], weight=1.0))
