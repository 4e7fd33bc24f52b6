"""Training's other parts: a teacher's divergence and a dial that moves, normalised, logged and resumed exactly."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_training import BLOCKS, PENALTY, Windows, history, trainer
from tiny import VOCAB, random_ids, tiny_model

import proloc
from proloc.objective import DialSampler, Distillation
from proloc.objective.distil import divergences


def localised(schedule=None):
    return proloc.localize(tiny_model(), schedule or proloc.Polynomial(beta=1), BLOCKS)


def distilling(folder, *, weight=0.5, temperature=1.0, teacher_seed=1, penalty=None, dials=None, **arguments):
    made = trainer(folder, penalty=penalty, **arguments)
    teacher = tiny_model(seed=teacher_seed)
    made.distillation = Distillation(teacher, weight=weight, temperature=temperature)
    made.dials = dials
    return made


@given(st.integers(1, 5), st.integers(2, 9), st.floats(0.3, 4.0), st.integers(0, 10**6))
def test_the_divergence_is_the_sum_written_out(rows, tokens, temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (3 * torch.randn(rows, tokens, generator=generator) for _ in range(2))
    p, q = ((logits.double() / temperature).softmax(-1) for logits in (teacher, student))
    torch.testing.assert_close(
        divergences(teacher, student, temperature).double(), (p * (p / q).log()).sum(-1), rtol=1e-4, atol=1e-6
    )


def test_a_model_taught_by_itself_has_nothing_to_learn(tmp_path):
    student = proloc.localize(tiny_model(), proloc.Uniform(value=0.0), BLOCKS)
    made = trainer(tmp_path, student)
    made.distillation = Distillation(tiny_model(), weight=1.0)
    batch = {"input_ids": random_ids(2, 24), "labels": random_ids(2, 24)}
    student.train()
    loss = made.compute_loss(student, batch)
    loss.backward()
    assert loss.item() < 1e-6
    assert max(p.grad.abs().max() for p in student.parameters() if p.grad is not None) < 1e-5


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_changes_neither_the_divergence_nor_the_weights(tmp_path, accumulation):
    # Plain descent: Adam's steps hardly depend on the size of a gradient, and blow up roundings of small ones.
    whole = distilling(tmp_path, penalty=PENALTY, optim="sgd")
    batch = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    parts = distilling(tmp_path, penalty=PENALTY, optim="sgd", **batch)
    for each in (whole, parts):
        each.train()
    for key in ("loss", "cross_entropy", "penalty", "distillation"):
        assert history(parts, key) == pytest.approx(history(whole, key), rel=1e-5)
        assert all(value > 0 for value in history(whole, key))
    for ours, theirs in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_the_loss_mixes_cross_entropy_and_divergence_and_adds_the_penalty(tmp_path):
    made = distilling(tmp_path, weight=0.3, temperature=2.0, penalty=PENALTY)
    made.train()
    parts = zip(*(history(made, key) for key in ("cross_entropy", "distillation", "penalty")), strict=True)
    assert history(made, "loss") == pytest.approx(
        [0.7 * ce + 0.3 * kl + penalty for ce, kl, penalty in parts], rel=1e-5
    )


def test_the_divergence_is_taken_over_the_queries_that_have_a_target(tmp_path):
    student, windows = localised(), Windows(4)
    made = distilling(tmp_path, weight=1.0)
    student.train()
    loss = made.compute_loss(student, {"input_ids": windows.ids, "labels": windows.labels})
    with torch.no_grad():
        p = made.distillation.teacher(windows.ids).logits.double().softmax(-1)
        q = student(windows.ids).logits.double().softmax(-1)
    kl = (p * (p / q).log()).sum(-1)
    wanted = torch.zeros_like(kl, dtype=torch.bool)
    wanted[:, :-1] = windows.labels[:, 1:] != -100
    assert loss.item() == pytest.approx(kl[wanted].mean().item(), rel=1e-4)


def test_the_teacher_is_shown_everything_but_the_tokens_in_front(tmp_path):
    ids, student = random_ids(2, 12), torch.randn(2, 13, VOCAB)
    with_front = torch.cat([torch.zeros(2, 1, dtype=torch.int64), ids], 1)
    queries = torch.ones(2, 13, dtype=torch.bool)
    queries[:, 0] = False
    plain = Distillation(tiny_model(), weight=1.0).summed(student[:, 1:], ids, None, queries[:, 1:])
    skipping = Distillation(tiny_model(), weight=1.0, skip=1).summed(student, with_front, None, queries)
    assert skipping.item() == pytest.approx(plain.item(), rel=1e-6)


def test_the_teacher_stays_as_it_was_and_never_drops_out(tmp_path):
    made = distilling(tmp_path)
    before = copy.deepcopy(made.distillation.teacher.state_dict())
    made.train()
    teacher = made.distillation.teacher
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_evaluation_does_not_ask_the_teacher(tmp_path):
    windows = Windows()
    taught, plain = distilling(tmp_path), trainer(tmp_path)
    assert taught.evaluate(windows)["eval_loss"] == pytest.approx(plain.evaluate(windows)["eval_loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"weight": 0.0}, "weight of distillation is 0.0"), ({"temperature": 0.0}, "temperature of distillation is 0.0")],
)
def test_impossible_distillation_is_refused(arguments, message):
    with pytest.raises(proloc.ProlocError, match=message):
        Distillation(tiny_model(), **arguments)


def test_a_teacher_of_another_vocabulary_is_refused():
    ids = random_ids(1, 6)
    with pytest.raises(proloc.ProlocError, match="the teacher knows 61 tokens, the student 60"):
        Distillation(tiny_model()).summed(torch.zeros(1, 6, 60), ids, None, torch.ones(1, 6, dtype=torch.bool))


@given(st.integers(0, 2**32 - 1), st.integers(0, 10**6))
def test_a_drawn_dial_lies_in_the_unit_interval_and_depends_on_seed_and_step_alone(seed, step):
    assert 0.0 <= DialSampler(seed).at(step) <= 1.0
    assert DialSampler(seed).at(step) == DialSampler(seed).at(step)
    assert DialSampler(seed, [0.25, 1.0]).at(step) in (0.25, 1.0)


def test_drawn_dials_are_uniform_and_differ_between_seeds():
    drawn = torch.tensor([DialSampler(0).at(step) for step in range(2000)])
    counts = torch.histc(drawn, bins=10, min=0.0, max=1.0)
    assert (counts - 200).abs().max() < 60  # four standard deviations
    assert [DialSampler(0).at(step) for step in range(5)] != [DialSampler(1).at(step) for step in range(5)]


def test_positions_outside_the_dial_are_refused():
    with pytest.raises(proloc.ProlocError, match=r"drawn from \[0.5, 1.5\]"):
        DialSampler(0, [0.5, 1.5])


def test_every_forward_pass_of_a_step_has_the_dial_that_was_drawn_for_it(tmp_path):
    stood = []
    made = trainer(tmp_path, max_steps=3, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    made.dials = DialSampler(7)
    state = proloc.hf.find_state(made.model)
    made.model.model.register_forward_pre_hook(lambda *_: stood.append(state.dial))
    made.train()
    assert stood == [DialSampler(7).at(step) for step in range(3) for _ in range(2)]


def test_an_interrupted_run_with_teacher_and_moving_dial_resumes_to_the_same_weights(tmp_path):
    def make(folder, **arguments):
        return distilling(tmp_path / folder, dials=DialSampler(3), max_steps=6, seed=3, **arguments)

    straight = make("a")
    straight.train()
    saving = {"save_strategy": "steps", "save_steps": 3}
    make("b", **saving).train()
    resumed = make("b", **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-3"))
    for ours, theirs in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
