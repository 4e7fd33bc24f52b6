"""Training: the penalty is normalised like the cross-entropy, resumes exactly, and works with LoRA."""

import pytest
import torch
from tiny import random_ids, tiny_model
from transformers import TrainingArguments

import proloc

BLOCKS = proloc.FixedBlocks(5)


class Windows(torch.utils.data.Dataset):
    """Windows of random tokens, of which some labels are ignored so that batches have different numbers of targets."""

    def __init__(self, count=16):
        self.ids = random_ids(count, 24)
        self.labels = self.ids.clone()
        for row in range(count):
            self.labels[row, : row % 7 * 3] = -100

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, row):
        return {"input_ids": self.ids[row], "labels": self.labels[row]}


def trainer(folder, model=None, penalty=None, schedule=None, block_dropout=0.0, **arguments):
    model = model or proloc.localize(tiny_model(), schedule or proloc.Polynomial(beta=1), BLOCKS)
    defaults = {
        "max_steps": 2, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "logging_steps": 1, "report_to": [],
        "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "lr_scheduler_type": "constant",
    }  # fmt: skip
    return proloc.LocalityTrainer(
        model=model, args=TrainingArguments(str(folder), **{**defaults, **arguments}), train_dataset=Windows(),
        penalty=penalty, block_dropout=block_dropout,
    )  # fmt: skip


def history(trained, key):
    return [entry[key] for entry in trained.state.log_history if key in entry]


PENALTY = proloc.LowFidelity(phi=0.9, weight=2.0)


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_changes_neither_loss_nor_penalty_nor_weights(tmp_path, accumulation):
    whole = trainer(tmp_path, penalty=PENALTY)
    parts = trainer(
        tmp_path,
        penalty=PENALTY,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
    )
    for each in (whole, parts):
        each.train()
    for key in ("loss", "cross_entropy", "penalty"):
        assert history(parts, key) == pytest.approx(history(whole, key), rel=1e-5)
        assert all(value > 0 for value in history(whole, key))
    for ours, theirs in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_the_logged_loss_is_cross_entropy_plus_penalty(tmp_path):
    trained = trainer(tmp_path, penalty=PENALTY)
    trained.train()
    total = [a + b for a, b in zip(history(trained, "cross_entropy"), history(trained, "penalty"), strict=True)]
    assert history(trained, "loss") == pytest.approx(total, rel=1e-5)


def test_the_penalty_is_the_formula_written_out(tmp_path):
    model = proloc.localize(tiny_model(), proloc.Polynomial(beta=1), BLOCKS)
    windows = Windows(4)
    with proloc.recording(model) as recorder, torch.no_grad():
        model(windows.ids)
    expected, targets = 0.0, 0
    for row in range(4):
        for query in range(23):
            if windows.labels[row, query + 1] != -100:
                targets += 1
                for layer, locality in enumerate((0.0, 0.5, 1.0)):
                    shortfall = (0.9 - recorder.layers[layer].fidelity_undialled[row, :, query]).clamp_min(0)
                    expected += 2.0 * locality * shortfall.mean().item()
    batch = {"input_ids": windows.ids, "labels": windows.labels}
    model.train()
    with_penalty = trainer(tmp_path, model, PENALTY).compute_loss(model, batch)
    without = trainer(tmp_path, model).compute_loss(model, batch)
    assert (with_penalty - without).item() == pytest.approx(expected / targets, rel=1e-5)


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_training_with_the_penalty_raises_undialled_fidelity(tmp_path, mode):
    model = proloc.localize(tiny_model(), proloc.Uniform(value=1.0), BLOCKS)
    proloc.set_dial(model, 0.0 if mode == "soft" else 1.0)
    ids = Windows().ids
    before = proloc.evaluate(model, ids).statistics["fidelity_undialled"]
    trainer(tmp_path, model, PENALTY, max_steps=8).train()
    after = proloc.evaluate(model, ids).statistics["fidelity_undialled"]
    assert (torch.tensor(after).mean() - torch.tensor(before).mean()) > 0.05


def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path):
    straight = trainer(tmp_path / "a", penalty=PENALTY, max_steps=6, seed=3)
    straight.train()
    stopped = trainer(tmp_path / "b", penalty=PENALTY, max_steps=6, seed=3, save_strategy="steps", save_steps=3)
    stopped.train()
    resumed = trainer(tmp_path / "b", penalty=PENALTY, max_steps=6, seed=3, save_strategy="steps", save_steps=3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-3"))
    for ours, theirs in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_checkpointing_and_mixed_precision_train_like_plain_training(tmp_path):
    plain = trainer(tmp_path, penalty=PENALTY)
    checkpointed = trainer(tmp_path, penalty=PENALTY, gradient_checkpointing=True)
    half = trainer(tmp_path, penalty=PENALTY, bf16=True)
    for each in (plain, checkpointed, half):
        each.train()
    assert history(checkpointed, "loss") == pytest.approx(history(plain, "loss"), rel=1e-5)
    assert history(half, "loss") == pytest.approx(history(plain, "loss"), rel=2e-2)


def test_reentrant_checkpointing_is_refused_with_a_penalty(tmp_path):
    with pytest.raises(proloc.ProlocError, match="reentrant"):
        trainer(
            tmp_path,
            penalty=PENALTY,
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": True},
        )


def test_lora_tunes_adapters_only_and_keeps_the_locality(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = proloc.localize(tiny_model(), proloc.Polynomial(beta=1), BLOCKS)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    frozen = {name: p.clone() for name, p in wrapped.named_parameters() if not p.requires_grad}
    trained = trainer(tmp_path, wrapped, PENALTY)
    trained.train()
    assert all(value > 0 for value in history(trained, "penalty"))
    assert all(torch.equal(frozen[name], p) for name, p in wrapped.named_parameters() if name in frozen)
    ids = random_ids(2, 20)
    with torch.no_grad():
        adapted = wrapped.eval()(input_ids=ids).logits
        torch.testing.assert_close(wrapped.merge_and_unload()(input_ids=ids).logits, adapted, rtol=1e-4, atol=1e-5)
        with proloc.dial(wrapped, 0.0):
            assert not torch.allclose(wrapped(input_ids=ids).logits, adapted, atol=1e-3)


def test_evaluation_equals_the_models_own_loss_and_the_statistics_of_one_batch():
    model, ids = proloc.localize(tiny_model(), proloc.Polynomial(beta=1), BLOCKS), random_ids(7, 21)
    result = proloc.evaluate(model, ids, batch_size=3)
    with proloc.recording(model) as recorder, torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    assert result.tokens == 7 * 20
    for name in ("fidelity", "fidelity_undialled", "entropy_bits"):
        expected = torch.stack([getattr(recorder.layers[layer], name).mean((0, 2)) for layer in range(3)])
        torch.testing.assert_close(torch.tensor(result.statistics[name]), expected, rtol=1e-4, atol=1e-5)
    without = recorder.layers[2].home_mass.sum((0, 2)) / (1 - recorder.layers[2].sink_mass).sum((0, 2))
    torch.testing.assert_close(
        torch.tensor(result.statistics["fidelity_without_sinks"][2]), without, rtol=1e-4, atol=1e-5
    )
    assert result.mean_block_length == pytest.approx(21 / 5)


def test_a_partial_last_accumulation_is_logged_right(tmp_path):
    batches = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4, "max_steps": 4}
    trained = trainer(tmp_path, penalty=PENALTY, **batches)
    trained.train()
    total = [a + b for a, b in zip(history(trained, "cross_entropy"), history(trained, "penalty"), strict=True)]
    assert history(trained, "loss") == pytest.approx(total, rel=1e-5)


def test_sparse_logging_averages_over_the_steps_between(tmp_path):
    every, fourth = (trainer(tmp_path, penalty=PENALTY, max_steps=4, logging_steps=steps) for steps in (1, 4))
    for each in (every, fourth):
        each.train()
    assert history(fourth, "penalty") == pytest.approx([sum(history(every, "penalty")) / 4], rel=1e-5)


def test_recording_around_training_does_not_silence_the_penalty(tmp_path):
    plain, recorded = (trainer(tmp_path, penalty=PENALTY) for _ in range(2))
    plain.train()
    with proloc.recording(recorded.model):
        recorded.train()
    assert history(recorded, "penalty") == pytest.approx(history(plain, "penalty"), rel=1e-5)


def test_evaluation_loss_is_the_cross_entropy_alone(tmp_path):
    model, windows = proloc.localize(tiny_model(), proloc.Polynomial(beta=1), BLOCKS), Windows()
    with_penalty, without = (
        trainer(tmp_path, model, penalty).evaluate(windows)["eval_loss"] for penalty in (PENALTY, None)
    )
    assert with_penalty == pytest.approx(without, rel=1e-6)


def test_a_penalty_works_with_label_smoothing(tmp_path):
    smoothed = trainer(tmp_path, penalty=PENALTY, label_smoothing_factor=0.1)
    smoothed.train()
    assert all(value > 0 for value in history(smoothed, "penalty"))
