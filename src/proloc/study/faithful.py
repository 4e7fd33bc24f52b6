"""The study's question about explanations: passages and questions on which every run's attributions are measured."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from proloc.blocks import Partitioner
from proloc.errors import ProlocError
from proloc.explaining.faithfulness import Effort, Probe, measure_faithfulness
from proloc.explaining.passage import Passage, count_units
from proloc.explaining.questions import make_question, question_tokens
from proloc.hf import provide
from proloc.study.config import HELD_OUT, QUESTION, Condition, ExplainSection, StudyConfig
from proloc.study.prepare import Prepared
from proloc.study.results import FaithfulnessResult, faithfulness_path, save_record
from proloc.study.windows import make_windows

MIN_SOURCES = 4


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How one run reads a passage.

    Attributes:
        blocks: its partitioner.
        held_out: blocks of the held-out windows, int64 ``[window, context]``.
        num_sinks: first tokens that belong to no source, the same for every condition, the sink token not counted.
        target_tokens: explained at the end of a window.
        sink_token: what stands in front of every text; None = nothing.
    """

    blocks: Partitioner
    held_out: Tensor
    num_sinks: int
    target_tokens: int
    sink_token: int | None = None

    def passage(self, ids: Tensor, block_ids: Tensor, units: Tensor, start: int) -> Passage:
        """The text from its ids, blocks and units ``[text]``; everything from ``start`` on is the target."""
        read = make_windows(ids[None], block_ids[None], self.sink_token)
        return Passage(
            ids=read.ids[0],
            block_ids=read.block_ids[0],
            units=torch.cat([units[: read.leading], units]),
            start=start + read.leading,
            end=len(ids) + read.leading,
            num_sinks=self.num_sinks + read.leading,
        )


def explain_run(
    folder: Path,
    config: StudyConfig,
    condition: Condition,
    seed: int,
    model: PreTrainedModel,
    tokenizer: Any,
    prepared: Prepared,
    reading: Reading,
    progress: Callable[[int, int], None],
) -> None:
    """Measure one tuned model and write ``faithfulness/<run>.json``; passages that are on disk are not done again."""
    section = config.explain
    assert section is not None  # the caller asked
    probes = make_probes(prepared, section, tokenizer, reading)
    effort = Effort(ablations=section.ablations, fitted=section.fitted, how=section.how, erasure=section.erasure)
    path = faithfulness_path(folder, condition.name, seed)
    passages = measure_faithfulness(model, probes, effort, path.with_suffix(""), progress)
    save_record(path, FaithfulnessResult(study=config.name, condition=condition.name, seed=seed, passages=passages))


def check_explain(config: StudyConfig, prepared: Prepared, tokenizer: Any, max_context: int | None) -> None:
    """Whether there are enough windows, and room for the questions.

    Raises:
        ProlocError: if not.
    """
    if config.explain is None:
        return
    semantic = prepared.blocks("semantic", 0)
    reading = Reading(
        blocks=semantic.partitioner,
        held_out=semantic.held_out,
        num_sinks=config.most_sinks(),
        target_tokens=config.explain.target_tokens,
    )
    probes = make_probes(prepared, config.explain, tokenizer, reading)
    longest = max((len(probe.passage.ids) for probe in probes if probe.true_source is not None), default=0)
    if max_context is not None and longest >= max_context:  # a sink token may come on top
        raise ProlocError(
            f"the built-in questions have up to {longest} tokens; {config.model} was made for at most {max_context}: "
            "set explain.questions = 0."
        )


def make_probes(prepared: Prepared, section: ExplainSection, tokenizer: Any, reading: Reading) -> list[Probe]:
    """What is explained: held-out windows and questions, with the same sources for every condition.

    Raises:
        ProlocError: not enough windows with four sources.
    """
    semantic = prepared.blocks("semantic", 0)
    ours, theirs = (blocks.connect(provide) for blocks in (semantic.partitioner, reading.blocks))
    probes = _windows(HELD_OUT, prepared.held_out, semantic.held_out, reading.held_out, section.passages, reading)
    for name, windows in prepared.passages.items():
        probes += _windows(name, windows, ours(windows), theirs(windows), section.text_passages, reading)
    return [*probes, *_questions(tokenizer, section, reading)]


def _windows(kind: str, windows: Tensor, semantic: Tensor, read: Tensor, num: int, reading: Reading) -> list[Probe]:
    """So many windows whose last tokens are explained by the semantic blocks before them, whatever blocks a run reads.

    Those with fewer than four sources are passed over: a rank correlation over fewer says nothing.
    """
    probes = []
    for number, ids in enumerate(windows):
        passage = reading.passage(ids, read[number], count_units(semantic[number]), len(ids) - reading.target_tokens)
        if len(passage.sources) >= MIN_SOURCES:
            probes.append(Probe(name=f"{kind}-{number}", kind=kind, passage=passage))
    if len(probes) < num:
        raise ProlocError(
            f"only {len(probes)} of the {len(windows)} {kind} windows have {MIN_SOURCES} blocks before "
            f"their last {reading.target_tokens} tokens, and {num} passages are asked for: take a longer "
            "context, shorter blocks or fewer passages."
        )
    places = np.linspace(0, len(probes) - 1, num).round().astype(int)
    return [probes[place] for place in places]


def _questions(tokenizer: Any, section: ExplainSection, reading: Reading) -> list[Probe]:
    probes, blocks = [], reading.blocks.connect(provide)
    for seed in range(section.questions):
        question = make_question(seed)
        ids, units, start = question_tokens(tokenizer, question)
        passage = reading.passage(ids, blocks(ids[None])[0], units, start)
        true_source = passage.sources.index(question.true_block)
        probes.append(Probe(name=f"{QUESTION}-{seed}", kind=QUESTION, passage=passage, true_source=true_source))
    return probes
