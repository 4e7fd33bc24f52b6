"""``proloc.explain``: which blocks a prediction came from, by attention and by intervention, and how far they agree."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from proloc.errors import ProlocError
from proloc.explaining.ablate import Ablator, How, check_how
from proloc.explaining.measured import Measured, judge, measure
from proloc.explaining.record import Cost, Explanation, Sampled, Source, Target
from proloc.explaining.subject import Blocks, Subject, load_localised, make_subject
from proloc.explaining.surrogate import Values
from proloc.hf import dial as dial_at
from proloc.hf import find_state
from proloc.hf.models import load_tokenizer
from proloc.versions import versions

OnProgress = Callable[[int, int], None]


def explain(
    model: str | PreTrainedModel,
    text: str,
    *,
    tokenizer: Any = None,
    target: str | None = None,
    generate: int = 0,
    dial: float | None = None,
    schedule: str | None = None,
    blocks: Blocks | None = None,
    layers: Iterable[int] | None = None,
    how: How = "cut",
    ablations: int = 64,
    seed: int = 0,
    progress: OnProgress = lambda done, total: None,
) -> Explanation:
    """Explain one prediction by the blocks before it.

    Every earlier block is knocked out alone, by cutting the edges to it and by removing its tokens; ``ablations``
    random halves of the blocks measure how well each attribution foretells such interventions, and half as many others
    fit a linear surrogate.

    Args:
        model: a name as for ``model_store.resolve``, or a localised model. A name without saved locality is taken
            undialled, or with ``schedule``.
        text: what it reads.
        tokenizer: of a model that is not given by name.
        target: a span of the text; None = its last token, or with ``generate`` what the model writes.
        generate: continue the text greedily by so many tokens, and explain those.
        dial: in [0, 1]; None = where it stands.
        schedule: "distributed", "localist", "linear", "cubic", "quintic", "reversed" or "last-third", for a name.
        blocks: see ``subject.make_subject``; None = the model's own where it was saved with some, else sentences.
        layers: where edges are cut; None = in all.
        how: whether the random ablations cut edges or remove tokens.
        ablations: how many random ones the measures are taken on, >= 8.
        seed: of the random ablations.
        progress: called with ablations done and in all.

    Raises:
        ProlocError: anything of this that cannot be, before long work starts.
    """
    if ablations < 8:
        raise ProlocError(f"ablations is {ablations}; a rank correlation needs 8 or more.")
    check_how(how)
    if seed < 0:
        raise ProlocError(f"the seed is {seed}; give a whole number, 0 or more.")
    layers = None if layers is None else sorted(set(layers))
    if isinstance(model, str):
        name, tokenizer = model, load_tokenizer(model)
        model = load_localised(name, tokenizer, schedule)
    elif tokenizer is None:
        raise ProlocError("a model that is not given by name needs its tokenizer.")
    elif schedule is not None:
        raise ProlocError("a model that is not given by name has its schedule; localize it with another one.")
    else:
        name = model.name_or_path
    position = find_state(model).dial if dial is None else dial
    training = model.training
    try:
        with dial_at(model.eval(), position):
            subject = make_subject(model, tokenizer, text, name=name, target=target, generate=generate, blocks=blocks)
            return explain_subject(subject, layers=layers, how=how, ablations=ablations, seed=seed, progress=progress)
    finally:
        model.train(training)


def explain_subject(
    subject: Subject,
    *,
    layers: Sequence[int] | None,
    how: How,
    ablations: int,
    seed: int,
    progress: OnProgress,
) -> Explanation:
    """As ``explain``, of a model and a passage that are there."""
    started = time.monotonic()
    passage, sources = subject.passage, len(subject.passage.sources)
    fitted = ablations // 2
    done, total = 0, 2 * sources + ablations + fitted

    def step(num: int) -> None:
        nonlocal done, total
        done += num
        total = max(total, done)
        progress(done, total)

    cut = Ablator(subject.model, passage, "cut", layers=layers, progress=step)
    removed = Ablator(subject.model, passage, "removed", progress=step)
    sampled = cut if how == "cut" else removed
    measured = measure(subject.model, passage, sampled, ablations=ablations, fitted=fitted, seed=seed)
    faithfulness = {
        name: judge(scores, measured, sampled, num_targets=passage.num_targets)
        for name, scores in measured.scores.items()
    }
    alone = {ablator: ablator.leave_one_out() for ablator in (cut, removed)}
    progress(total, total)
    state = find_state(subject.model)
    return Explanation(
        model=subject.name,
        versions=versions(),
        localities=list(state.localities),
        retain=state.retain.tolist(),
        dial=state.dial,
        num_sinks=passage.num_sinks,
        layers=None if layers is None else list(layers),
        blocks=subject.partitioner.kind,
        causal=subject.partitioner.causal,
        tokens=subject.tokens,
        block_ids=passage.units.tolist(),
        target=Target(
            start=passage.start,
            end=passage.end,
            text="".join(subject.tokens[passage.start : passage.end]),
            log_prob=cut.intact,
            token_log_probs=cut.intact_tokens,
            generated=subject.generated,
        ),
        asking=passage.asking,
        sources=_sources(subject, measured, alone[cut], alone[removed]),
        blocks_read=measured.readout.blocks_read.tolist(),
        sampled=Sampled(num=ablations, num_different=len(np.unique(measured.kept, axis=0)), num_fitted=fitted, how=how),
        faithfulness=faithfulness,
        cost=Cost(
            ablations=cut.num_computed + removed.num_computed,
            tokens=cut.tokens_computed + removed.tokens_computed,
            passes=(cut.tokens_computed + removed.tokens_computed) / passage.read,
            seconds=time.monotonic() - started,
        ),
    )


def _sources(subject: Subject, measured: Measured, cut: Values, removed: Values) -> list[Source]:
    found = []
    for number, unit in enumerate(subject.passage.sources):
        places = np.flatnonzero(subject.passage.units.numpy() == unit)
        found.append(
            Source(
                block=unit,
                start=int(places[0]),
                end=int(places[-1]) + 1,
                cut=float(cut[number]),
                removed=float(removed[number]),
                scores={name: float(values[number]) for name, values in measured.scores.items()},
                enters=torch.nonzero(measured.readout.enters[:, number]).flatten().tolist(),
            )
        )
    return found
