"""Block dropout: what is dropped is hidden exactly, in training only, by torch's generator; what is near stays."""

import pytest
import torch
from test_training import Windows, history, trainer
from tiny import random_ids, tiny_model

import proloc
from proloc.attention import Keys, reference
from proloc.attention.choose import OPEN
from proloc.hf import find_state
from proloc.locality import AWAY, HIDDEN, Layout, drop_blocks

BLOCKS = proloc.FixedBlocks(4)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def localised(schedule=None, family="llama", **settings):
    schedule = schedule or proloc.Explicit([0.0, 0.5, 1.0])
    return proloc.localize(tiny_model(family), schedule, BLOCKS, **settings).train()


def outputs(model, ids, probability, seed=0):
    """Logits and gradients of one training forward pass."""
    torch.manual_seed(seed)
    model.zero_grad()
    with proloc.dropping_blocks(model, probability):
        logits = model(input_ids=ids, use_cache=False).logits
    logits.square().mean().backward()
    return [logits.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


def same(ours, theirs):
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_without_dropout_nothing_changes_and_nothing_is_drawn():
    model, ids = localised(), random_ids(2, 30)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    plain = model(input_ids=ids, use_cache=False).logits
    with proloc.dropping_blocks(model, 0.0):
        assert torch.equal(model(input_ids=ids, use_cache=False).logits, plain)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert find_state(model).chosen[1].name != "reference", "and it is computed as ever"


@pytest.mark.parametrize("attention", ["auto", "reference"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
@pytest.mark.parametrize("dial", [0.0, 0.6, 1.0])
def test_dropping_every_block_is_hard_locality_in_all_local_layers(family, dial, attention):
    ids, settings = random_ids(2, 30), {"family": family, "halo": 1, "sinks": 2, "attention": attention}
    soft, hard = localised(**settings), localised(proloc.Explicit([0.0, 1.0, 1.0]), **settings)
    with proloc.dial(soft, dial):
        ours = outputs(soft, ids, 1.0)
    for found, expected in zip(ours, outputs(hard, ids, 0.0), strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)


def test_at_locality_one_or_zero_it_changes_nothing():
    ids = random_ids(2, 30)
    for schedule in (proloc.Explicit([0.0, 1.0, 1.0]), proloc.Uniform(value=0.0)):
        model = localised(schedule)
        assert same(outputs(model, ids, 0.7), outputs(model, ids, 0.0))


@pytest.mark.parametrize("halo", [0, 1])
def test_outputs_and_gradients_are_those_of_the_reference_over_a_matrix_made_by_hand(monkeypatch, halo):
    """The oracle gets the same draws, and hides by plain comparison of block numbers."""
    ids, settings = random_ids(2, 30), {"halo": halo, "sinks": 1}
    ours = outputs(localised(**settings), ids, 0.5, seed=3)
    torch.manual_seed(3)
    drawn = torch.rand(2, 30) < 0.5
    block = torch.arange(30) // 4
    hidden = drawn[:, block][:, None, None, :] & (block[:, None] - block[None, :] > halo) & (torch.arange(30) > 0)
    assert hidden.any()
    real = reference.attend_ranges

    def by_hand(query, key, value, keys, retain, **how):
        relation = keys.relation()
        if float(retain) == 0.5:
            relation = torch.where(hidden, HIDDEN, relation).to(torch.uint8)
        return real(query, key, value, Keys.of_relation(relation), retain, **how)

    monkeypatch.setitem(OPEN, "reference", by_hand)
    oracle = outputs(localised(attention="reference", **settings), ids, 0.0)
    for found, expected in zip(ours, oracle, strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)


def test_evaluation_and_generation_are_untouched():
    model, ids = localised().eval(), random_ids(2, 30)
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with proloc.dropping_blocks(model, 1.0):
            assert torch.equal(model(input_ids=ids).logits, plain)
            kept = model.generate(ids, max_new_tokens=4, do_sample=False)
        assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False), kept)


def test_one_seed_is_one_draw_and_every_pass_draws_anew():
    model, ids = localised(proloc.Uniform(value=0.5)), random_ids(2, 30)
    first = outputs(model, ids, 0.5, seed=1)
    assert same(outputs(model, ids, 0.5, seed=1), first)
    assert not same(outputs(model, ids, 0.5, seed=2), first)
    torch.manual_seed(1)
    with proloc.dropping_blocks(model, 0.5), torch.no_grad():
        one, other = (model(input_ids=ids, use_cache=False).logits for _ in range(2))
    assert not torch.equal(one, other)


def test_blocks_are_dropped_whole_by_row_and_as_often_as_asked():
    block_ids = torch.arange(400).expand(50, -1) // 4
    dropped = drop_blocks(Layout(block_ids, torch.zeros_like(block_ids).bool()), 0.3)
    by_block = dropped.view(50, 100, 4)
    assert torch.equal(by_block.all(-1), by_block.any(-1))
    assert by_block[..., 0].float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert not torch.equal(dropped[0], dropped[1])


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_computes_again_with_the_same_blocks(reentrant):
    plain, checkpointed = (localised(proloc.Uniform(value=0.5)) for _ in range(2))
    checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    checkpointed.enable_input_require_grads()
    ids = random_ids(2, 30)
    for found, expected in zip(outputs(checkpointed, ids, 0.5), outputs(plain, ids, 0.5), strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)


def test_the_future_never_leaks():
    model, ids = localised(proloc.Uniform(value=0.5)), random_ids(2, 30)
    changed = ids.clone()
    changed[:, 18:] = (changed[:, 18:] + 1) % 61
    before, after = (outputs(model, each, 0.5)[0] for each in (ids, changed))
    torch.testing.assert_close(after[:, :18], before[:, :18], rtol=0, atol=1e-6)


@pytest.mark.parametrize("penalty", [None, proloc.LowFidelity(phi=0.9, weight=2.0)])
def test_an_interrupted_run_with_block_dropout_resumes_to_the_same_weights(tmp_path, penalty):
    runs = []
    for folder, resume in (("a", None), ("b", None), ("b", str(tmp_path / "b" / "checkpoint-3"))):
        saving = {"save_strategy": "steps", "save_steps": 3} if folder == "b" else {}
        made = proloc.localize(tiny_model(), proloc.Polynomial(beta=1), BLOCKS)
        run = trainer(tmp_path / folder, made, penalty, max_steps=6, seed=3, block_dropout=0.5, **saving)
        run.train(resume_from_checkpoint=resume)
        runs.append([parameter.detach().clone() for parameter in run.model.parameters()])
    assert same(runs[2], runs[0])
    plain = trainer(tmp_path / "c", penalty=penalty, max_steps=6, seed=3)
    plain.train()
    assert not same(list(plain.model.parameters()), runs[0])


def test_the_trainer_drops_blocks_in_its_steps_only(tmp_path):
    made = localised(proloc.Uniform(value=0.5))
    run = trainer(tmp_path, made, block_dropout=1.0, max_steps=1)
    windows = Windows()
    plain = trainer(tmp_path, made).evaluate(windows)["eval_loss"]
    assert run.evaluate(windows)["eval_loss"] == plain
    run.train()
    hard = localised(proloc.Uniform(value=1.0))
    other = trainer(tmp_path, hard, max_steps=1)
    other.train()
    assert history(run, "cross_entropy") == pytest.approx(history(other, "cross_entropy"), rel=1e-4)
    assert find_state(made).block_dropout == 0.0


@pytest.mark.parametrize("probability", [-0.1, 1.5, float("nan")])
def test_what_is_no_probability_is_refused(tmp_path, probability):
    with pytest.raises(proloc.ProlocError, match="block_dropout is"):
        trainer(tmp_path, block_dropout=probability)
    with pytest.raises(proloc.ProlocError, match="block_dropout is"), proloc.dropping_blocks(localised(), probability):
        pass


def test_own_block_halo_and_sinks_stay():
    model, ids = localised(proloc.Uniform(value=0.5), halo=1, sinks=2), random_ids(1, 30)
    with proloc.dropping_blocks(model, 1.0), proloc.recording(model, "weights") as recorder:
        model(input_ids=ids, use_cache=False)
    relation, block = recorder.relations[0][0, 0], torch.arange(30) // 4
    back = block[:, None] - block[None, :]
    stays = (back <= 1) | (torch.arange(30) < 2)
    assert not (relation == AWAY).any()
    assert torch.equal(relation != HIDDEN, stays & (torch.arange(30)[:, None] >= torch.arange(30)))
