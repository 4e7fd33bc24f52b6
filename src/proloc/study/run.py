"""One run: load the model, localise it, tune it, measure it on the held-out windows."""

import math
import os
import platform
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from proloc.errors import ProlocError
from proloc.evaluation import Evaluation, evaluate
from proloc.hf import find_state, localize, recording, set_dial
from proloc.hf.card import add_figures
from proloc.hf.models import load_model, load_tokenizer
from proloc.schedule import Uniform
from proloc.study.config import REFERENCE, STANDARD_CONDITIONS, Condition, StudyConfig
from proloc.study.faithful import Reading, explain_run
from proloc.study.plan import model_folder, teacher_folder
from proloc.study.prepare import Prepared, load_prepared
from proloc.study.results import (
    DialMetrics,
    Metrics,
    PerHead,
    RunResult,
    Sample,
    SampleLayer,
    Training,
    load_run,
    run_path,
)
from proloc.study.text import describe_source
from proloc.study.tuning import OnProgress, budget_of, teacher_of, tune
from proloc.study.windows import Windows, make_windows, sink_token_of
from proloc.versions import versions

SAMPLE_TOKENS = 112


def baseline(config: StudyConfig, prepared: Prepared, progress: OnProgress) -> Metrics:
    """The unmodified model on the held-out windows, measured with the semantic blocks."""
    blocks = prepared.blocks("semantic", 0)
    model = localize(
        load_model(config.model), Uniform(value=0.0), blocks.partitioner, sinks=config.sinks, halo=config.halo
    )
    return _metrics(
        evaluate(model, prepared.held_out, blocks.held_out, progress=lambda *done: progress("measuring", *done))
    )


def run(folder: Path, config: StudyConfig, condition: Condition, seed: int, progress: OnProgress) -> RunResult:
    """Measure one condition, tune it with one seed and measure it again; resumes from its last checkpoint.

    Args:
        folder: of the study; the prepared windows are read from it, checkpoints are kept in it while the run lasts.
        progress: called with the phase ("tuning", "measuring", "explaining"), what is done and what is to do.
    """
    started = datetime.now(UTC)
    teaches = condition.name == REFERENCE and bool(config.taught_by_reference())
    every_step = bool(config.budgeted())
    num_sinks = config.most_sinks()  # the same sources for all conditions, with no condition's sinks among them
    study, config = config.of(STANDARD_CONDITIONS[REFERENCE]), config.of(condition)
    prepared = load_prepared(folder)
    blocks = prepared.blocks(condition.blocks, seed)
    model = localize(
        load_model(config.model),
        condition.build(),
        blocks.partitioner,
        sinks=config.sinks + int(config.sink_token),
        halo=config.halo,
    )
    position = _position(config, condition)
    sink_token = sink_token_of(load_tokenizer(config.model)) if config.sink_token else None
    train = make_windows(prepared.train, blocks.train, sink_token)
    held_out = make_windows(prepared.held_out, blocks.held_out, sink_token)

    def measure(localised: PreTrainedModel, dial: float) -> Evaluation:
        set_dial(localised, dial)
        return evaluate(
            localised,
            held_out.ids,
            held_out.block_ids,
            leading=held_out.leading,
            progress=lambda *done: progress("measuring", *done),
        )

    decisive = run_config(config, condition, prepared.text_sha256)
    untuned = None if prepared.differs_by_seed(condition.blocks) else _untuned_before(folder, decisive, config.seeds)
    if untuned is None:
        untuned = _metrics(measure(model, position))
    teacher, budget = teacher_of(study, config, folder, seed), budget_of(config, folder, seed)
    tuned, log = tune(folder, config, condition, seed, model, train, teacher, budget, every_step, progress)
    at = {dial: measure(tuned, dial) for dial in sorted({*config.dials, position})}
    if not all(math.isfinite(each.loss) for each in at.values()):
        raise ProlocError("the loss is not a finite number any more; lower learning_rate.")
    set_dial(tuned, position)
    result = at[position]
    if teaches and not teacher_folder(folder, seed).is_dir():  # others may be reading it
        _save(teacher_folder(folder, seed), tuned)
    if config.explain is not None:
        reading = Reading(
            blocks=blocks.partitioner,
            held_out=blocks.held_out,
            num_sinks=num_sinks,
            target_tokens=config.explain.target_tokens,
            sink_token=sink_token,
        )
        explain_run(
            folder,
            config,
            condition,
            seed,
            tuned,
            load_tokenizer(config.model),
            prepared,
            reading,
            lambda done, total: progress("explaining", done, total),
        )
    if config.keep_models:
        _keep(model_folder(folder, condition.name, seed), config, condition, seed, tuned, result)
    return RunResult(
        study=config.name,
        condition=condition.name,
        seed=seed,
        status="finished",
        config=decisive,
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
        untuned=untuned,
        dials=[DialMetrics(dial=dial, metrics=_metrics(each)) for dial, each in at.items()] if config.dials else None,
        sample=_sample(config, tuned, held_out) if seed == config.seeds[0] else None,
    )


def _untuned_before(folder: Path, decisive: dict[str, Any], seeds: list[int]) -> Metrics | None:
    """What another seed of the condition measured before tuning, where a seed makes no difference yet."""
    name = decisive["condition"]["name"]
    paths = [path for seed in seeds if (path := run_path(folder, name, seed)).is_file()]
    same = (each for each in map(load_run, paths) if (each.config, each.versions) == (decisive, versions()))
    return next((each.untuned for each in same if each.untuned is not None), None)


def _keep(
    folder: Path, config: StudyConfig, condition: Condition, seed: int, tuned: PreTrainedModel, result: Evaluation
) -> None:
    """Save a tuned model with its tokenizer and card."""
    text = f"{describe_source(config.text)}, held-out part"
    add_figures(tuned, result, text=text, how=f"study {config.name}, {condition.name}, seed {seed}")
    _save(folder, tuned, load_tokenizer(config.model))


def _save(folder: Path, *parts: Any) -> None:
    """Save a model, and perhaps its tokenizer, so that the folder is whole or not there."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for part in parts:
        part.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was made again
    partial.rename(folder)


def _position(config: StudyConfig, condition: Condition) -> float:
    """Where the dial stands when a tuned model is measured; tuned at many positions, it is measured at 1."""
    if config.mode_of(condition) == "soft":
        return 0.0
    return config.training.dial if isinstance(config.training.dial, float) else 1.0


def _metrics(result: Evaluation) -> Metrics:
    return Metrics(
        perplexity=result.perplexity,
        loss=result.loss,
        tokens=result.tokens,
        window_losses=result.window_losses,
        fidelity_uniform=result.fidelity_uniform,
        mean_block_length=result.mean_block_length,
        **{name: _per_head(values) for name, values in result.statistics.items()},
    )


def _per_head(values: list[list[float]]) -> PerHead:
    per_layer = [sum(heads) / len(heads) for heads in values]
    return PerHead(mean=sum(per_layer) / len(per_layer), per_layer=per_layer, per_head=values)


@torch.no_grad()
def _sample(config: StudyConfig, model: PreTrainedModel, held_out: Windows) -> Sample:
    """Attention of an early and the last layer, mean over heads, on the first held-out tokens."""
    state, tokenizer = find_state(model), load_tokenizer(config.model)
    ids, block_ids = (part[:1, :SAMPLE_TOKENS] for part in (held_out.ids, held_out.block_ids))
    layout = state.layout(ids, block_ids, None, None)
    layers = [len(state.localities) // 4, len(state.localities) - 1]
    with recording(model, keep_weights=True) as recorder:
        model.eval()(input_ids=ids.to(model.device), block_ids=block_ids.to(model.device), use_cache=False)
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
    config = config.of(condition)
    decisive = config.portable(exclude={"conditions", "seeds", "name"})
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
