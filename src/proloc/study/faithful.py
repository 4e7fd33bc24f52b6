"""The study's question about explanations: passages and questions on which every run's attributions are measured."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from proloc.blocks import Partitioner
from proloc.errors import ProlocError
from proloc.explaining.faithfulness import Effort, Probe, measure_faithfulness
from proloc.explaining.passage import Passage, count_units
from proloc.explaining.questions import make_question, question_tokens
from proloc.study.config import Condition, ExplainSection, StudyConfig
from proloc.study.prepare import Prepared
from proloc.study.results import FaithfulnessResult, faithfulness_path, save_record

MIN_SOURCES = 4


def explain_run(
    folder: Path,
    config: StudyConfig,
    condition: Condition,
    seed: int,
    model: PreTrainedModel,
    tokenizer: Any,
    prepared: Prepared,
    progress: Callable[[int, int], None],
) -> None:
    """Measure one tuned model and write ``faithfulness/<run>.json``; passages that are on disk are not done again."""
    section = config.explain
    assert section is not None  # the caller asked
    own = prepared.partitioners[condition.blocks]
    probes = [
        *held_out_probes(prepared.held_out, prepared.partitioners["semantic"], own, section, config.sinks),
        *question_probes(tokenizer, own, section, config.sinks),
    ]
    effort = Effort(ablations=section.ablations, fitted=section.fitted, how=section.how, erasure=section.erasure)
    path = faithfulness_path(folder, condition.name, seed)
    passages = measure_faithfulness(model, probes, effort, path.with_suffix(""), progress)
    save_record(path, FaithfulnessResult(study=config.name, condition=condition.name, seed=seed, passages=passages))


def check_explain(config: StudyConfig, prepared: Prepared, tokenizer: Any, max_context: int | None) -> None:
    """Whether there are enough windows, and room for the questions.

    Raises:
        ProlocError: if not.
    """
    if (section := config.explain) is None:
        return
    semantic = prepared.partitioners["semantic"]
    held_out_probes(prepared.held_out, semantic, semantic, section, config.sinks)
    questions = question_probes(tokenizer, semantic, section, config.sinks)
    longest = max((len(probe.passage.ids) for probe in questions), default=0)
    if max_context is not None and longest > max_context:
        raise ProlocError(
            f"the built-in questions have up to {longest} tokens; {config.model} was made for at most {max_context}: "
            "set explain.questions = 0."
        )


def held_out_probes(
    held_out: Tensor, semantic: Partitioner, own: Partitioner, section: ExplainSection, sinks: int
) -> list[Probe]:
    """Held-out windows whose last tokens are explained by the semantic blocks before them.

    The sources are the same for every condition, whatever blocks its attention goes by. Windows with fewer than four
    sources are passed over: a rank correlation over fewer says nothing.

    Raises:
        ProlocError: not enough windows with four sources.
    """
    windows = []
    for number, ids in enumerate(held_out):
        units = count_units(semantic(ids[None])[0])
        passage = Passage(
            ids=ids,
            block_ids=own(ids[None])[0],
            units=units,
            start=len(ids) - section.target_tokens,
            end=len(ids),
            num_sinks=sinks,
        )
        if len(passage.sources) >= MIN_SOURCES:
            windows.append(Probe(name=f"held-out-{number}", kind="held-out", passage=passage))
    if len(windows) < section.passages:
        raise ProlocError(
            f"only {len(windows)} of the {len(held_out)} held-out windows have {MIN_SOURCES} blocks before their last "
            f"{section.target_tokens} tokens, and {section.passages} passages are asked for: take a longer context, "
            "shorter blocks or fewer passages."
        )
    places = np.linspace(0, len(windows) - 1, section.passages).round().astype(int)
    return [windows[place] for place in places]


def question_probes(tokenizer: Any, own: Partitioner, section: ExplainSection, sinks: int) -> list[Probe]:
    """Questions whose answer stands in one known block."""
    probes = []
    for seed in range(section.questions):
        question = make_question(seed)
        ids, units, start = question_tokens(tokenizer, question)
        passage = Passage(ids=ids, block_ids=own(ids[None])[0], units=units, start=start, end=len(ids), num_sinks=sinks)
        true_source = passage.sources.index(question.true_block)
        probes.append(Probe(name=f"question-{seed}", kind="question", passage=passage, true_source=true_source))
    return probes
