"""Generation: every cache and every strategy against one full forward pass of the oracle over what was generated."""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from proloc.check.finding import LIMIT, Outcome, difference, worst
from proloc.check.forward import pad, positions
from proloc.check.subject import GRADED, Subject
from proloc.hf import LocalCache, dial
from proloc.schedule import Schedule

NEW_TOKENS = 6


def dynamic_cache(subject: Subject) -> Outcome:
    return _decoded(subject)


def no_cache(subject: Subject) -> Outcome:
    return _decoded(subject, use_cache=False)


def static_cache(subject: Subject) -> Outcome:
    return _decoded(subject, cache_implementation="static")


def sliding_cache(subject: Subject) -> Outcome:
    """Caches that keep only a window of keys; the prompt must be longer than the window."""
    layers = DynamicCache(config=subject.stock.config).layers
    windows = [layer.sliding_window for layer in layers if getattr(layer, "is_sliding", False)]
    if not windows:
        return Outcome(verdict="not applicable", note="it has no sliding windows")
    if min(windows) >= subject.length:
        return Outcome(verdict="not applicable", note=f"its window ({min(windows)} tokens) is longer than the text")
    return _decoded(subject)


def local_cache(subject: Subject) -> Outcome:
    """Hard layers that keep sinks and the current block only, over more than one block, from left-padded prompts."""
    ids, valid = pad(subject.ids, "left")
    twin = subject.twin(subject.late)
    errors, dropped = [], False
    beams = {"num_beams": 3, "length_penalty": 0.0}
    ways: tuple[dict[str, Any], ...] = ({}, {"do_sample": True, "temperature": 1.5}, beams)
    for how in ways:
        cache = LocalCache(twin)
        how |= {"attention_mask": valid.long(), "past_key_values": cache, "output_logits": True, "output_scores": True}
        output = _generate(subject, 1.0, ids, schedule=subject.late, **how)
        dropped = dropped or min(cache.num_held().values()) < cache.get_seq_length()
        expected = _rest(subject, 1.0, valid, output.sequences, subject.late)
        if "num_beams" not in how:
            errors.append(difference(torch.stack(output.logits, 1), expected))
        else:
            logp = expected.log_softmax(-1).gather(2, output.sequences[:, ids.shape[1] :, None])[..., 0].sum(1)
            errors.append(difference(output.sequences_scores, logp))
    if not dropped:
        return Outcome(verdict="not applicable", note="the text is one block, so no key was dropped")
    return Outcome(worst(errors))


def sampling(subject: Subject) -> Outcome:
    return _decoded(subject, do_sample=True, temperature=1.5)


def beam_search(subject: Subject) -> Outcome:
    """The scores of all beams, whose caches were reordered on the way, against the oracle's log-probabilities."""
    how: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.0, "output_scores": True}
    errors = []
    for position in (0.5, 1.0):
        output = _generate(subject, position, subject.ids, **how)
        logp = subject.expected(position, output.sequences).log_softmax(-1)[:, subject.length - 1 : -1]
        chosen = output.sequences[:, subject.length :, None]
        errors.append(difference(output.sequences_scores, logp.gather(2, chosen)[..., 0].sum(1)))
    return Outcome(worst(errors))


def assisted(subject: Subject) -> Outcome:
    """Assisted decoding (drafts by the stock model) and prompt lookup choose what the oracle would have chosen."""
    drafts = copy.deepcopy(subject.stock, {id(p): p for p in subject.stock.parameters()})
    errors = []
    ways: tuple[dict[str, Any], ...] = ({"assistant_model": drafts}, {"prompt_lookup_num_tokens": 2})
    for how in ways:
        for position in (0.5, 1.0):
            output = _generate(subject, position, subject.ids[:1], **how)
            logits = subject.expected(position, output.sequences)[:, subject.length - 1 : -1]
            chosen = logits.gather(2, output.sequences[:, subject.length :, None])[..., 0]
            errors.append(float((logits.max(-1).values - chosen).max() / logits.abs().max()))
    return Outcome(worst(errors))


def _decoded(subject: Subject, **how: Any) -> Outcome:
    """Logits of every generated token, from left-padded prompts, against the oracle."""
    ids, valid = pad(subject.ids, "left")
    how = {"attention_mask": valid.long(), "output_logits": True, **how}
    try:
        plain = _generate(subject, None, ids, **how)
    except Exception as error:  # whatever it raises, the unmodified model cannot be run like this
        return Outcome(verdict="not applicable", note=f"the unmodified model raises {type(error).__name__}")
    errors = []
    for position in (0.5, 1.0):
        output = _generate(subject, position, ids, **how)
        errors.append(difference(torch.stack(output.logits, 1), _rest(subject, position, valid, output.sequences)))
    if not worst(errors) <= LIMIT:
        own = difference(torch.stack(plain.logits, 1), _rest(subject, 0.0, valid, plain.sequences))
        if not own <= LIMIT:
            note = f"the unmodified model's own decoding differs from its forward pass by {own:.0e}"
            return Outcome(verdict="not applicable", note=note)
    return Outcome(worst(errors), LIMIT)


def _rest(subject: Subject, position: float, valid: Tensor, sequences: Tensor, schedule: Schedule = GRADED) -> Tensor:
    """The oracle's logits of every generated token, from prompts with padding where ``valid`` is False."""
    mask = torch.cat([valid, torch.ones(len(valid), NEW_TOKENS, dtype=torch.bool)], 1)
    inputs = positions(subject, mask)
    return subject.expected(position, sequences, valid=mask, schedule=schedule, **inputs)[:, valid.shape[1] - 1 : -1]


def _generate(subject: Subject, position: float | None, ids: Tensor, *, schedule: Schedule = GRADED, **how: Any) -> Any:
    """Exactly ``NEW_TOKENS`` new tokens; position None = the stock model."""
    model = subject.stock if position is None else subject.twin(schedule)
    beyond_vocabulary = model.get_input_embeddings().weight.shape[0]  # never chosen, so nothing ends early
    how = {"do_sample": False, "attention_mask": torch.ones_like(ids), **how}
    with torch.random.fork_rng(), torch.no_grad(), dial(subject.twin(schedule), position or 0.0):
        torch.manual_seed(0)
        return model.generate(
            ids, max_new_tokens=NEW_TOKENS, eos_token_id=beyond_vocabulary, pad_token_id=0,
            return_dict_in_generate=True, disable_compile=True, **how,
        )  # fmt: skip
