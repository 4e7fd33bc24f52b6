"""Tuning one run of a study with the Trainer: arguments, adapters, teacher, checkpoints."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from proloc.errors import ProlocError
from proloc.hf.models import load_model
from proloc.objective import Budget, DialSampler, Distillation
from proloc.study.config import REFERENCE, Condition, StudyConfig
from proloc.study.penalty import build_penalty
from proloc.study.plan import reference_log, teacher_folder
from proloc.study.results import TrainingPoint, run_name
from proloc.study.windows import Windows
from proloc.training import LocalityTrainer

OnProgress = Callable[[str, int, int], None]


class _Report(TrainerCallback):  # type: ignore[misc]
    """Passes optimiser steps on to a progress bar."""

    def __init__(self, progress: OnProgress) -> None:
        self.progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress("tuning", state.global_step, state.max_steps)


def tune(
    folder: Path,
    config: StudyConfig,
    condition: Condition,
    seed: int,
    model: PreTrainedModel,
    windows: Windows,
    teacher: Distillation | None,
    budget: Budget | None,
    every_step: bool,
    progress: OnProgress,
) -> tuple[PreTrainedModel, list[TrainingPoint]]:
    """Tune a localised model; resumes from its last checkpoint if there is one.

    Args:
        folder: of the study; checkpoints are kept in it while the run lasts.
        config: the study as the condition sees it (``StudyConfig.of``).
        teacher: from ``teacher_of``.
        budget: from ``budget_of``.
        every_step: log every optimiser step, as budgets and their reference need.

    Returns:
        the tuned model, adapters merged, and its training log.
    """
    training = config.training
    checkpoints = folder / "checkpoints" / run_name(condition.name, seed)
    # Adapters start from random numbers, so the seed must hold before they are made.
    torch.manual_seed(seed)
    trainable = _with_adapters(model, training.lora_rank, windows) if training.lora_rank else model
    soft = config.mode_of(condition) != "hard"
    trainer = LocalityTrainer(
        model=trainable,
        args=_arguments(config, condition, seed, checkpoints, every_step),
        train_dataset=windows,
        penalty=build_penalty(config.penalty) if soft else None,
        distillation=teacher,
        dials=_dials(training.dial, seed),
        budget=budget,
        block_dropout=training.block_dropout,
        callbacks=[_Report(progress)],
    )
    trainer.remove_callback(PrinterCallback)  # the study's own bars say it better
    trainer.train(resume_from_checkpoint=_last_checkpoint(checkpoints))
    log = [
        TrainingPoint(
            loss=entry["cross_entropy"],
            **{name: entry.get(name) for name in TrainingPoint.model_fields if name != "loss"},
        )
        for entry in trainer.state.log_history
        if "cross_entropy" in entry
    ]
    shutil.rmtree(checkpoints, ignore_errors=True)
    return (trainable.merge_and_unload() if training.lora_rank else model), log


def _arguments(
    config: StudyConfig, condition: Condition, seed: int, checkpoints: Path, every_step: bool
) -> TrainingArguments:
    training = config.training
    logging_steps = 1 if every_step else max(1, training.steps // 20)
    # A checkpoint inside a log interval would lose the interval's first part, and the log would differ after a resume.
    save_steps = math.ceil((training.checkpoint_every or training.steps / 10) / logging_steps) * logging_steps
    return TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=training.steps,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.accumulation,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, training.steps // 10),
        bf16=training.precision == "bf16",
        **({"gradient_checkpointing": True} if training.gradient_checkpointing else {}),
        logging_steps=logging_steps,
        save_strategy="steps",
        save_steps=save_steps,
        save_total_limit=1,
        report_to=training.report_to,
        run_name=f"{config.name}/{run_name(condition.name, seed)}",
        seed=seed,
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _dials(dial: str | float | list[float], seed: int) -> DialSampler | None:
    if isinstance(dial, float):
        return None
    return DialSampler(seed, None if isinstance(dial, str) else dial)


def teacher_of(study: StudyConfig, config: StudyConfig, folder: Path, seed: int) -> Distillation | None:
    """The frozen, undialled teacher of a run; the model before tuning has never seen a sink token and is shown none.

    Args:
        study: as the reference sees it.
        config: as the run's condition sees it.

    Raises:
        ProlocError: the tuned reference should teach and is not there.
    """
    training = config.training
    if not training.distil:
        return None
    name, skip = config.model, int(config.sink_token)
    if training.teacher == REFERENCE:
        name, skip = str(teacher_folder(folder, seed)), skip - int(study.sink_token)
        if not Path(name).is_dir():
            raise ProlocError(f"its teacher {run_name(REFERENCE, seed)} is not there, most likely because it failed.")
    return Distillation(load_model(name), weight=training.distil, temperature=training.temperature, skip=skip)


def budget_of(config: StudyConfig, folder: Path, seed: int) -> Budget | None:
    """The budget of a run, measured against the reference of the same seed.

    Raises:
        ProlocError: the reference is not there, or has no log of every step.
    """
    if config.budget.cost is None:
        return None
    reference = reference_log(folder, seed, config.training.steps)
    if reference is None:
        raise ProlocError(f"its reference {run_name(REFERENCE, seed)} is not there, most likely because it failed.")
    return Budget(reference, cost=config.budget.cost, push=config.budget.push)


def _last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint; one that a kill cut short is removed. The Trainer writes trainer_state.json last."""
    for partial in folder.glob("checkpoint-*"):
        if not (partial / "trainer_state.json").is_file():
            shutil.rmtree(partial)
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def _with_adapters(model: PreTrainedModel, rank: int, windows: Windows) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ProlocError('lora_rank needs the package peft: pip install "proloc[peft]".') from error
    sink_token = [int(windows.ids[0, 0])] if windows.leading else None
    return get_peft_model(
        model,
        LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules="all-linear",
            trainable_token_indices=sink_token,
            task_type="CAUSAL_LM",
        ),
    )
