"""What must not matter: later tokens, and at dial 1 other blocks."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from proloc.check.finding import Outcome, difference, worst
from proloc.check.subject import HARD, Subject

# Rounding may differ where a changed token changes the shapes inside a layer (experts); a leak is far larger.
LIMIT = 1e-6


@contextmanager
def _one_thread() -> Iterator[None]:
    """Matrix products may be split among another number of threads, and rounded otherwise, when a machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def future(subject: Subject) -> Outcome:
    """Changing every token from the middle on moves no logit before it, at any dial and with either attention."""
    middle = subject.length // 2
    changed = subject.changed(range(middle, subject.length))
    errors = []
    for attention in ("auto", "reference"):
        for position in (0.5, 1.0):
            before, after = (
                subject.logits(subject.twin(attention=attention), position, ids) for ids in (subject.ids, changed)
            )
            errors.append(difference(after[:, :middle], before[:, :middle]))
            if torch.equal(after[:, middle:], before[:, middle:]):
                return Outcome(verdict="FAILED", note="the changed tokens did not change their own logits either")
    return Outcome(worst(errors), LIMIT)


@_one_thread()
def other_blocks(subject: Subject) -> Outcome:
    """All layers hard, dial 1: a changed token moves no logit outside its own block, or, with a halo or a block's lead,
    out of reach."""
    block_ids = subject.blocks(subject.ids)
    nothing = torch.zeros_like(block_ids, dtype=torch.bool)
    reads = subject.oracle.near(block_ids, nothing).tril()
    errors = []
    for place in {subject.sinks, subject.length // 2}:
        changed = subject.changed([place])
        own, reached = block_ids == block_ids[:, place : place + 1], nothing.clone()
        reached[:, place] = True
        for _ in range(subject.num_layers):  # each carries it to all that read what was reached
            reached = (reads & reached[:, None, :]).any(dim=2)
        away = ~reached
        for attention in ("auto", "reference"):
            twin = subject.twin(HARD, attention)
            before, after = (subject.logits(twin, 1.0, ids, block_ids=block_ids) for ids in (subject.ids, changed))
            errors.append(difference(after[away], before[away]))
            if torch.equal(after[own], before[own]):
                return Outcome(verdict="FAILED", note="the changed token did not change the logits of its own block")
    return Outcome(worst(errors), LIMIT)
