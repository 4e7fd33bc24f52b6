"""A budget: the multiplier answers the constraint, locality answers the multiplier, and a run resumes exactly."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_training import PENALTY, history, trainer
from tiny import tiny_model

import proloc
from proloc.objective import Budget
from proloc.objective.budget import HOLD, RANGE, RISE, hard_layers
from proloc.objective.learned import LearnedSchedule

BLOCKS = proloc.FixedBlocks(5)


@given(st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=60), st.floats(1e-3, 0.5))
def test_the_share_stays_in_the_unit_interval_and_moves_against_the_multiplier(gaps, cost):
    budget = Budget([2.0] * len(gaps), cost=cost)
    for step, gap in enumerate(gaps, start=1):
        before, multiplier = budget.share, budget.log_multiplier
        entry = budget.update(step, 2.0 + gap)
        assert entry["share"] == before
        assert 0.0 <= budget.share <= 1.0
        assert -RANGE <= budget.log_multiplier <= RANGE
        assert (budget.share - before) * (budget.log_multiplier - multiplier) <= 0.0


def test_while_nothing_is_used_locality_rises_at_the_full_rate_and_then_stays():
    steps = 200
    budget = Budget([1.0] * steps, cost=0.01)
    assert budget.share == 0.0
    shares = [budget.update(step, 1.0)["share"] for step in range(1, steps + 1)]
    assert shares[round(RISE * steps)] == pytest.approx(1.0)
    assert shares[round(RISE * steps) - 10] < 1.0


def test_a_violated_budget_takes_locality_back_until_it_is_held():
    """The cost of a share s is s^2 times 0.04 nats; allowed are log(1.01), which is a share of one half."""
    steps, random = 400, torch.Generator().manual_seed(0)
    budget = Budget([1.0] * steps, cost=0.01)
    for step in range(1, steps + 1):
        noise = 0.01 * torch.randn((), generator=random).item()
        budget.update(step, 1.0 + 0.04 * budget.share**2 + noise)
    assert budget.share == pytest.approx(math.sqrt(math.log(1.01) / 0.04), abs=0.06)


def test_after_four_fifths_of_the_steps_the_share_is_held_whatever_happens():
    budget = Budget([1.0] * 100, cost=0.01)
    for step in range(1, 101):
        budget.update(step, 1.0 if step <= HOLD * 100 else 9.0)
        if step >= HOLD * 100:
            assert budget.share == 1.0


def test_the_gap_is_a_plain_mean_until_the_window_is_full():
    budget = Budget([0.0] * 100, cost=0.01)
    assert [budget.update(step, float(step))["gap"] for step in (1, 2, 3, 4, 5)] == pytest.approx([1, 1.5, 2, 2.5, 3])
    assert budget.update(6, 6.0)["gap"] == pytest.approx(3 + (6 - 3) / 5)


@given(st.floats(0.0, 12.0), st.integers(1, 12))
def test_hard_layers_add_up_to_their_number_and_fill_from_the_last(number, layers):
    localities = hard_layers(min(number, layers), layers)
    assert sum(localities) == pytest.approx(min(number, layers))
    assert list(localities) == sorted(localities)
    assert sum(0.0 < value < 1.0 for value in localities) <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cost": 0.0}, "the budget is 0.0"),
        ({"cost": -0.1}, "the budget is -0.1"),
        ({"cost": 0.1, "push": "luck"}, "cannot push 'luck'; choose one of hard-layers, lambda, phi, schedule"),
    ],
)
def test_impossible_budgets_are_refused(arguments, message):
    with pytest.raises(proloc.ProlocError, match=message):
        Budget([1.0], **arguments)


def test_a_budget_without_a_reference_or_beyond_its_end_is_refused():
    with pytest.raises(proloc.ProlocError, match="needs the cross-entropy of the undialled run"):
        Budget([], cost=0.1)
    with pytest.raises(proloc.ProlocError, match="no step 2"):
        Budget([1.0], cost=0.1).update(2, 1.0)


def localised():
    return proloc.localize(tiny_model(), proloc.Polynomial(beta=1), BLOCKS)


def spending(folder, reference, push="hard-layers", cost=5.0, **arguments):
    penalty = PENALTY if push == "phi" else None
    made = proloc.LocalityTrainer(
        model=localised(),
        args=trainer(folder, max_steps=8, **arguments).args,
        train_dataset=trainer(folder).train_dataset,
        penalty=penalty,
        budget=Budget(reference, cost=cost, push=push),
    )
    made.train()
    return made


@pytest.mark.parametrize("push", ["hard-layers", "lambda", "phi"])
def test_a_loose_budget_ends_with_everything_that_can_be_pushed(tmp_path, push):
    made = spending(tmp_path, [9.0] * 8, push)
    state = proloc.hf.find_state(made.model)
    assert history(made, "share")[0] == 0.0
    assert history(made, "share")[-1] == 1.0
    if push == "phi":
        assert made.penalty.phi == 1.0
        assert state.localities == (0.0, 0.5, 1.0)
    else:
        assert state.localities == ((1.0, 1.0, 1.0) if push == "hard-layers" else (0.0, 0.5, 1.0))
        assert state.retain.tolist() == [1.0 - value for value in state.localities]


def test_a_budget_that_is_overspent_from_the_start_leaves_the_model_undialled(tmp_path):
    made = spending(tmp_path, [0.0] * 8, cost=0.01)
    assert history(made, "share") == [0.0] * 8
    plain = trainer(tmp_path, proloc.localize(tiny_model(), proloc.Uniform(value=0.0), BLOCKS), max_steps=8)
    plain.train()
    assert history(made, "cross_entropy") == pytest.approx(history(plain, "cross_entropy"), rel=1e-6)


def test_the_same_batches_give_the_reference_itself_a_gap_of_nothing(tmp_path):
    plain = trainer(tmp_path, proloc.localize(tiny_model(), proloc.Uniform(value=0.0), BLOCKS), max_steps=8)
    plain.train()
    made = spending(tmp_path, history(plain, "cross_entropy"), cost=0.01)
    assert history(made, "gap")[0] == pytest.approx(0.0, abs=1e-6)
    assert history(made, "share")[1] > 0.0


@pytest.mark.parametrize("push", ["hard-layers", "schedule"])
def test_an_interrupted_budget_resumes_to_the_same_trajectory_and_weights(tmp_path, push):
    reference = [4.2] * 8
    straight = spending(tmp_path / "a", reference, push, cost=0.05)
    saving = {"save_strategy": "steps", "save_steps": 3}
    spending(tmp_path / "b", reference, push, cost=0.05, **saving)
    resumed = proloc.LocalityTrainer(
        model=localised(),
        args=trainer(tmp_path / "b", max_steps=8, **saving).args,
        train_dataset=trainer(tmp_path / "b").train_dataset,
        budget=Budget(reference, cost=0.05, push=push),
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-3"))
    assert history(resumed, "log_multiplier") == history(straight, "log_multiplier")
    for ours, theirs in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_gradient_of_lambda_is_the_slope_of_the_loss(tmp_path):
    made = proloc.LocalityTrainer(
        model=localised(),
        args=trainer(tmp_path, max_steps=8).args,
        train_dataset=trainer(tmp_path).train_dataset,
        budget=Budget([1.0] * 8, cost=0.5, push="schedule"),
    )
    model, windows = made.model.train(), made.train_dataset
    batch = {"input_ids": windows.ids[:4], "labels": windows.labels[:4]}
    state = proloc.hf.find_state(model)
    made._spend(made.budget)
    made.compute_loss(model, dict(batch)).backward()
    assert {choice.name for choice in state.chosen.values()} == {"reference"}
    slopes, start = made._slopes(), list(state.localities)
    assert state.learned_retain is None
    for layer in range(3):
        losses = []
        for sign in (1, -1):
            moved = [value + sign * 2e-3 * (place == layer) for place, value in enumerate(start)]
            state.set_schedule(proloc.Explicit(moved))
            with torch.no_grad():
                losses.append(made.compute_loss(model, dict(batch)).item())
        assert slopes[layer] == pytest.approx((losses[0] - losses[1]) / 4e-3, rel=0.05, abs=2e-4)


def test_accumulation_does_not_change_the_gradient_of_lambda(tmp_path):
    whole = spending(tmp_path, [9.0] * 8, "schedule")
    parts = spending(tmp_path, [9.0] * 8, "schedule", per_device_train_batch_size=4, gradient_accumulation_steps=2)
    for ours, theirs in zip(history(parts, "slopes")[:2], history(whole, "slopes")[:2], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6)


def test_a_learned_schedule_rises_where_the_budget_is_loose(tmp_path):
    loose = spending(tmp_path, [9.0] * 8, "schedule")
    assert history(loose, "share")[-1] > 0.5
    assert proloc.hf.find_state(loose.model).learned_retain is None


def test_where_the_budget_is_overspent_lambda_only_follows_a_lower_loss(tmp_path):
    tight = spending(tmp_path, [0.0] * 8, "schedule", cost=0.01)
    logits, slopes = history(tight, "logits"), history(tight, "slopes")
    for before, after, slope in zip(logits[:5], logits[1:6], slopes[1:6], strict=True):
        for old, new, each in zip(before, after, slope, strict=True):
            assert (new - old) * each <= 0.0


def test_a_layer_whose_locality_costs_more_learns_less_of_it():
    learned, cheap, dear = LearnedSchedule(2, rate=0.2), 0.001, 0.05
    for _ in range(200):
        learned.update([cheap, dear], price=1 / 0.02)
    assert learned.localities[0] == pytest.approx(0.99)
    assert learned.localities[1] == pytest.approx(0.01)


def test_a_budget_wants_every_step_logged_and_phi_a_penalty(tmp_path):
    budget = Budget([1.0] * 8, cost=0.1)
    with pytest.raises(proloc.ProlocError, match="needs logging_steps = 1; it is 2"):
        proloc.LocalityTrainer(model=localised(), args=trainer(tmp_path, logging_steps=2).args, budget=budget)
    with pytest.raises(proloc.ProlocError, match="needs a LowFidelity penalty"):
        proloc.LocalityTrainer(
            model=localised(), args=trainer(tmp_path).args, budget=Budget([1.0], cost=0.1, push="phi")
        )
