"""From what a user names, a model, a text, blocks and a target, to a passage that can be explained."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from proloc.blocks import GivenBlocks, Partitioner, SentenceBlocks, blocks_from_offsets, blocks_from_regex, open_ended
from proloc.errors import ProlocError
from proloc.explaining.passage import Passage, count_units
from proloc.hf import find_state, from_pretrained, localize, set_dial
from proloc.hf.models import load_model
from proloc.marking import KINDS, pieces
from proloc.model_store import resolve
from proloc.schedule import Polynomial, Reversed, Schedule, Step, Uniform

PATTERN = "re:"
UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # how a tokenizer shows a character whose last token is still to come
Blocks = str | Sequence[int] | Partitioner


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model and a passage.

    Attributes:
        name: of the model.
        partitioner: what cut the text.
        tokens: pieces of the text, one for every token of the passage.
        generated: whether the model wrote the target.
    """

    name: str
    model: PreTrainedModel
    partitioner: Partitioner
    passage: Passage
    tokens: list[str]
    generated: bool


def named_schedule(name: str, num_layers: int) -> Schedule:
    """A schedule by the name of its condition.

    Raises:
        ProlocError: no such name.
    """
    schedules: dict[str, Schedule] = {
        "distributed": Uniform(value=0.0),
        "localist": Uniform(value=1.0),
        "linear": Polynomial(beta=1),
        "cubic": Polynomial(beta=3),
        "quintic": Polynomial(beta=5),
        "reversed": Reversed(Polynomial(beta=5)),
        "last-third": Step(layers=-(-num_layers // 3)),
    }
    if name not in schedules:
        raise ProlocError(f"there is no schedule {name!r}; choose one of {', '.join(schedules)}.")
    return schedules[name]


def load_localised(name: str, tokenizer: Any, schedule: str | None = None) -> PreTrainedModel:
    """A model by name, localised, in evaluation mode.

    Without a schedule it is taken as it is: as it was saved, or unmodified. One that was saved with blocks keeps them,
    another one gets sentence blocks.

    Raises:
        ProlocError: no such model or schedule.
    """
    saved = isinstance(getattr(_config(name), "proloc", None), dict)
    model = from_pretrained(resolve(name)) if saved else load_model(name)
    if schedule is not None or not saved:
        layers = model.config.get_text_config(decoder=True).num_hidden_layers
        chosen = named_schedule("distributed" if schedule is None else schedule, layers)
        state = find_state(model) if saved else None
        blocks: Partitioner = SentenceBlocks(tokenizer) if state is None else state.blocks
        sinks, halo = (1, 0) if state is None else (state.sinks, state.halo)
        model = localize(model, chosen, blocks, sinks=sinks, halo=halo)
        if schedule is None:
            set_dial(model, 0.0)  # the unmodified model
    return model.eval()


def _config(name: str) -> Any:
    try:
        return AutoConfig.from_pretrained(resolve(name))
    except (OSError, ValueError):
        return None  # load_model says it better


def make_subject(
    model: PreTrainedModel,
    tokenizer: Any,
    text: str,
    *,
    name: str,
    target: str | None = None,
    generate: int = 0,
    blocks: Blocks | None = None,
) -> Subject:
    """Tokens, blocks and target.

    Args:
        model: localised, in evaluation mode; its dial stays where it stands.
        tokenizer: a fast one.
        text: what the model reads.
        name: whose embeddings and surprisal partitioners use that need a model.
        target: a span of the text, its last occurrence; None = the last token, unless ``generate``.
        generate: let the model continue the text greedily by so many tokens, and explain those.
        blocks: a kind (``marking.KINDS``), "re:PATTERN" for blocks that open where a regular expression matches, the
            characters at which blocks open, or a partitioner; None = the model's own. Those that read the whole text
            are allowed here.

    Raises:
        ProlocError: an empty text, a target that is not in it or stands in its first block, unknown blocks, or more
            tokens than the model's context.
    """
    if target is not None and generate:
        raise ProlocError("give a target in the text or a number of tokens to generate, not both.")
    if generate < 0:
        raise ProlocError(f"cannot generate {generate} tokens; give 1 or more.")
    state = find_state(model)
    ids, partitioner = _partition(tokenizer, text, name, blocks, state.blocks)
    shown = pieces(text, open_ended(tokenizer, text)[1])
    _check_length(model, len(ids) + generate)
    block_ids = partitioner(ids[None])[0]
    if generate:
        written = _continue(model, ids, None if blocks is None else block_ids, generate)
        start, end = len(ids), len(ids) + len(written)
        shown += _written_pieces(tokenizer, written)
        ids = torch.cat([ids, written])
        grown = partitioner(ids[None])[0] if partitioner.causal else block_ids[-1].expand(len(ids))
        block_ids = torch.cat([block_ids, grown[start:]])
    elif target is not None:
        start, end = _span(text, target, shown)
    else:
        start, end = len(ids) - 1, len(ids)
    passage = Passage(
        ids=ids, block_ids=block_ids, units=count_units(block_ids), start=start, end=end, num_sinks=state.sinks
    )
    if not passage.sources:
        raise ProlocError(
            "the target stands in the first block or right after it, so no earlier block can have had a part in it; "
            "choose a later target or shorter blocks."
        )
    return Subject(
        name=name, model=model, partitioner=partitioner, passage=passage, tokens=shown, generated=generate > 0
    )


def _partition(
    tokenizer: Any, text: str, name: str, blocks: Blocks | None, own: Partitioner
) -> tuple[Tensor, Partitioner]:
    """Token ids ``[text]`` and what cuts them."""
    if isinstance(blocks, str) and blocks.startswith(PATTERN):
        ids, given = blocks_from_regex(tokenizer, text, blocks.removeprefix(PATTERN))
        return ids[0], given
    starts: Sequence[int] = [] if blocks is None or isinstance(blocks, str | Partitioner) else blocks
    ids, given = blocks_from_offsets(tokenizer, text, starts)
    if isinstance(blocks, str):
        if blocks not in KINDS:
            raise ProlocError(f"there are no '{blocks}' blocks; choose one of {', '.join(KINDS)}, or {PATTERN}PATTERN.")
        return ids[0], KINDS[blocks](name, tokenizer, np.asarray(ids[0], dtype=np.int64))
    if blocks is None:
        return ids[0], own
    partitioner: Partitioner = blocks if isinstance(blocks, Partitioner) else GivenBlocks(given.starts)
    return ids[0], partitioner


def _check_length(model: PreTrainedModel, length: int) -> None:
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is not None and length > limit:
        raise ProlocError(f"the text has {length} tokens with its continuation; this model was made for {limit}.")


@torch.no_grad()
def _continue(model: PreTrainedModel, ids: Tensor, block_ids: Tensor | None, tokens: int) -> Tensor:
    given = {} if block_ids is None else {"block_ids": block_ids[None].to(model.device)}
    prompt = ids[None].to(model.device)
    eos = model.generation_config.eos_token_id
    ends = set(eos if isinstance(eos, list) else [eos])
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=next(iter(ends)) or 0,
        **given,
    )
    written: Tensor = output[0, len(ids) :].cpu()
    # The sign that the text is over is no part of what was said, unless it is all that was said.
    return written[:-1] if len(written) > 1 and int(written[-1]) in ends else written


def _written_pieces(tokenizer: Any, written: Tensor) -> list[str]:
    """What each token adds to the text; the last token of a character adds it."""
    whole = [tokenizer.decode(written[:end]) for end in range(len(written) + 1)]
    for end in range(1, len(written)):
        if whole[end].endswith(UNFINISHED) or not whole[end].startswith(whole[end - 1]):
            whole[end] = whole[end - 1]
    return [after[len(before) :] for before, after in itertools.pairwise(whole)]


def _span(text: str, target: str, shown: list[str]) -> tuple[int, int]:
    """The tokens that a span of characters touches."""
    first = text.rfind(target)
    if first < 0 or not target.strip():
        raise ProlocError(
            f"the target {target!r} is not in the text; copy it from there, capitals and spaces included."
        )
    first += len(target) - len(target.lstrip())
    last = first + len(target.strip())
    ends = np.cumsum([len(piece) for piece in shown])
    start, end = int(np.searchsorted(ends, first, side="right")), int(np.searchsorted(ends, last, side="left")) + 1
    while end < len(shown) and not shown[end]:  # the rest of a character that takes several tokens
        end += 1
    if start < 1:
        raise ProlocError(f"the target {target!r} begins the text; nothing comes before it that could explain it.")
    return start, end
