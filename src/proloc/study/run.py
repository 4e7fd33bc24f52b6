"""One run: load the model, localise it, tune it, measure it on the held-out windows."""

import math
import os
import platform
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from proloc.errors import ProlocError
from proloc.evaluation import Evaluation, evaluate
from proloc.hf import find_state, localize, recording, set_dial
from proloc.hf.card import add_figures
from proloc.hf.models import load_model, load_tokenizer
from proloc.penalty import LowFidelity
from proloc.schedule import Uniform
from proloc.study.config import Condition, StudyConfig
from proloc.study.faithful import explain_run
from proloc.study.plan import model_folder
from proloc.study.prepare import Prepared, load_prepared
from proloc.study.results import (
    Metrics,
    PerHead,
    RunResult,
    Sample,
    SampleLayer,
    Training,
    TrainingPoint,
    run_name,
)
from proloc.study.text import describe_source
from proloc.training import LocalityTrainer
from proloc.versions import versions

SAMPLE_TOKENS = 112
OnProgress = Callable[[str, int, int], None]


class Windows(Dataset[dict[str, Tensor]]):
    """Training windows with their blocks; every token but the first is a target."""

    def __init__(self, ids: Tensor, block_ids: Tensor) -> None:
        self.ids, self.block_ids = ids, block_ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[row], "labels": self.ids[row], "block_ids": self.block_ids[row]}


class _Report(TrainerCallback):  # type: ignore[misc]
    """Passes optimiser steps on to a progress bar."""

    def __init__(self, progress: OnProgress) -> None:
        self.progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress("tuning", state.global_step, state.max_steps)


def baseline(config: StudyConfig, prepared: Prepared, progress: OnProgress) -> Metrics:
    """The unmodified model on the held-out windows, measured with the semantic blocks."""
    model = localize(
        load_model(config.model), Uniform(value=0.0), prepared.partitioners["semantic"], sinks=config.sinks
    )
    return _metrics(evaluate(model, prepared.held_out, progress=lambda *done: progress("measuring", *done)))


def run(folder: Path, config: StudyConfig, condition: Condition, seed: int, progress: OnProgress) -> RunResult:
    """Tune and measure one condition with one seed; resumes from its last checkpoint if there is one.

    Args:
        folder: of the study; the prepared windows are read from it, checkpoints are kept in it while the run lasts.
        progress: called with the phase ("tuning", "measuring", "explaining"), what is done and what is to do.
    """
    started = datetime.now(UTC)
    prepared = load_prepared(folder)
    partitioner = prepared.partitioners[condition.blocks]
    model = localize(load_model(config.model), condition.build(), partitioner, sinks=config.sinks_of(condition))
    mode = config.mode_of(condition)
    set_dial(model, 0.0 if mode == "soft" else 1.0)
    train_blocks, held_blocks = partitioner(prepared.train), partitioner(prepared.held_out)
    tuned, log = _tune(folder, config, condition, seed, model, Windows(prepared.train, train_blocks), progress)
    result = evaluate(
        tuned, prepared.held_out, held_blocks, progress=lambda done, total: progress("measuring", done, total)
    )
    if not math.isfinite(result.loss):
        raise ProlocError("the loss is not a finite number any more; lower learning_rate.")
    if config.explain is not None:
        explain_run(
            folder,
            config,
            condition,
            seed,
            tuned,
            load_tokenizer(config.model),
            prepared,
            lambda done, total: progress("explaining", done, total),
        )
    if config.keep_models:
        _keep(model_folder(folder, condition.name, seed), config, condition, seed, tuned, result)
    return RunResult(
        study=config.name,
        condition=condition.name,
        seed=seed,
        status="finished",
        config=run_config(config, condition, prepared.text_sha256),
        versions=versions(),
        machine=machine(),
        started=started.isoformat(timespec="seconds"),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        localities=list(find_state(tuned).localities),
        training=Training(
            steps=config.training.steps,
            tokens=config.training.steps
            * config.training.batch_size
            * config.training.accumulation
            * config.training.context,
            log=log,
        ),
        metrics=_metrics(result),
        sample=_sample(config, tuned, prepared) if seed == config.seeds[0] else None,
    )


def _tune(
    folder: Path,
    config: StudyConfig,
    condition: Condition,
    seed: int,
    model: PreTrainedModel,
    windows: Windows,
    progress: OnProgress,
) -> tuple[PreTrainedModel, list[TrainingPoint]]:
    training = config.training
    checkpoints = folder / "checkpoints" / run_name(condition.name, seed)
    logging_steps = max(1, training.steps // 20)
    # A checkpoint inside a log interval would lose the interval's first part, and the log would differ after a resume.
    save_steps = math.ceil((training.checkpoint_every or training.steps / 10) / logging_steps) * logging_steps
    arguments = TrainingArguments(
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
    # Adapters start from random numbers, so the seed must hold before they are made.
    torch.manual_seed(seed)
    trainable = _with_adapters(model, training.lora_rank) if training.lora_rank else model
    soft = config.mode_of(condition) != "hard"
    trainer = LocalityTrainer(
        model=trainable,
        args=arguments,
        train_dataset=windows,
        penalty=LowFidelity(phi=config.penalty.phi, weight=config.penalty.weight) if soft else None,
        callbacks=[_Report(progress)],
    )
    trainer.remove_callback(PrinterCallback)  # the study's own bars say it better
    trainer.train(resume_from_checkpoint=_last_checkpoint(checkpoints))
    log = [
        TrainingPoint(step=entry["step"], loss=entry["cross_entropy"], penalty=entry["penalty"])
        for entry in trainer.state.log_history
        if "cross_entropy" in entry
    ]
    shutil.rmtree(checkpoints, ignore_errors=True)
    return (trainable.merge_and_unload() if training.lora_rank else model), log


def _keep(
    folder: Path, config: StudyConfig, condition: Condition, seed: int, tuned: PreTrainedModel, result: Evaluation
) -> None:
    """Save a tuned model with its tokenizer and card; the folder is whole or not there."""
    text = f"{describe_source(config.text)}, held-out part"
    add_figures(tuned, result, text=text, how=f"study {config.name}, {condition.name}, seed {seed}")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    tuned.save_pretrained(partial)
    load_tokenizer(config.model).save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was made again
    partial.rename(folder)


def _last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint; one that a kill cut short is removed. The Trainer writes trainer_state.json last."""
    for partial in folder.glob("checkpoint-*"):
        if not (partial / "trainer_state.json").is_file():
            shutil.rmtree(partial)
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def _with_adapters(model: PreTrainedModel, rank: int) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ProlocError('lora_rank needs the package peft: pip install "proloc[peft]".') from error
    return get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    )


def _metrics(result: Evaluation) -> Metrics:
    return Metrics(
        perplexity=result.perplexity,
        loss=result.loss,
        tokens=result.tokens,
        fidelity_uniform=result.fidelity_uniform,
        mean_block_length=result.mean_block_length,
        **{name: _per_head(values) for name, values in result.statistics.items()},
    )


def _per_head(values: list[list[float]]) -> PerHead:
    per_layer = [sum(heads) / len(heads) for heads in values]
    return PerHead(mean=sum(per_layer) / len(per_layer), per_layer=per_layer, per_head=values)


@torch.no_grad()
def _sample(config: StudyConfig, model: PreTrainedModel, prepared: Prepared) -> Sample:
    """Attention of an early and the last layer, mean over heads, on the first held-out tokens."""
    state, tokenizer = find_state(model), load_tokenizer(config.model)
    ids = prepared.held_out[:1, :SAMPLE_TOKENS]
    layout = state.layout(ids, None, None, None)
    layers = [len(state.localities) // 4, len(state.localities) - 1]
    with recording(model, keep_weights=True) as recorder:
        model.eval()(input_ids=ids.to(model.device), use_cache=False)
        weights = {layer: recorder.weights[layer][0].mean(dim=0).double().cpu() for layer in dict.fromkeys(layers)}
    return Sample(
        tokens=[tokenizer.decode([token]) for token in ids[0].tolist()],
        block_ids=layout.block_ids[0].tolist(),
        sinks=layout.sinks[0].tolist(),
        layers=[
            SampleLayer(layer=layer, weights=[[round(x, 3) for x in row] for row in matrix.tolist()])
            for layer, matrix in weights.items()
        ],
    )


def run_config(config: StudyConfig, condition: Condition, text_sha256: str | None) -> dict[str, Any]:
    """What decides a run's result beside its seed; the text's folder is left out, it differs between machines."""
    decisive = config.model_dump(mode="json", exclude={"conditions", "seeds", "name"})
    if config.text.file is not None:
        decisive["text"]["file"] = Path(config.text.file).name
    decisive["text"]["sha256"] = text_sha256
    return {**decisive, "condition": condition.model_dump(mode="json"), "mode": config.mode_of(condition)}


def machine() -> dict[str, str]:
    """Where a result was computed."""
    cuda = torch.cuda.is_available()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "byteorder": sys.byteorder,
    }
