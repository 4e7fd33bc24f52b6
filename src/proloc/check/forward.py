"""Plain forward passes: dial 0, between and 1; padding; packing; statistics; half precision."""

import copy
from typing import Any

import torch
from torch import Tensor

from proloc.check.finding import LIMIT, Outcome, difference, worst
from proloc.check.subject import DIALS, Subject
from proloc.hf import dial, find_state, recording
from proloc.locality import entropy_bits

PADDING = 5


def dial_zero(subject: Subject) -> Outcome:
    """Reference attention at dial 0 against the stock model's eager attention, in the stock model's own precision."""
    with torch.no_grad():
        stock = subject.stock(input_ids=subject.ids, use_cache=False).logits
    return Outcome(difference(subject.logits(subject.twin(attention="reference"), 0.0), stock))


def dialled(subject: Subject) -> Outcome:
    """The automatic and the reference attention at three dials against the oracle."""
    expected = {position: subject.expected(position) for position in DIALS}
    effect = difference(expected[1.0], expected[0.0])
    if not effect > 100 * LIMIT:
        note = f"the dial moves the logits of this text by {effect:.1e} of the largest only, so nothing is shown"
        return Outcome(verdict="FAILED", note=f"{note}; give a longer text or shorter blocks")
    errors = [
        difference(subject.logits(subject.twin(attention=attention), position), expected[position])
        for attention in ("auto", "reference")
        for position in DIALS
    ]
    return Outcome(worst(errors), note=f"turning the dial to 1 moves the logits by {effect:.2g} of the largest")


def left_padding(subject: Subject) -> Outcome:
    return _padded(subject, "left")


def right_padding(subject: Subject) -> Outcome:
    return _padded(subject, "right")


def pad(ids: Tensor, side: str, fill: int = 0) -> tuple[Tensor, Tensor]:
    """The first text padded on one side and the second cut and padded to the same width; bool ``valid`` beside them."""
    rows = [ids[0], ids[1, :-PADDING]]
    width = len(rows[0]) + PADDING
    padded = torch.full((2, width), fill, dtype=ids.dtype, device=ids.device)
    valid = torch.zeros_like(padded, dtype=torch.bool)
    for row, text in enumerate(rows):
        place = slice(width - len(text), width) if side == "left" else slice(len(text))
        padded[row, place], valid[row, place] = text, True
    return padded, valid


def positions(subject: Subject, valid: Tensor) -> dict[str, Any]:
    """Position ids that start at the first real token, where the model takes any."""
    return {"position_ids": (valid.cumsum(1) - 1).clamp_min(0)} if subject.takes("position_ids") else {}


def _padded(subject: Subject, side: str) -> Outcome:
    """Against the oracle with the same padding; and what stands in the padding must not matter."""
    ids, valid = pad(subject.ids, side)
    other, _ = pad(subject.ids, side, fill=7)
    errors = []
    for position in (0.5, 1.0):
        inputs = positions(subject, valid)
        expected = subject.expected(position, ids, valid=valid, **inputs)[valid]
        for attention in ("auto", "reference"):
            twin = subject.twin(attention=attention)
            ours, moved = (
                subject.logits(twin, position, each, attention_mask=valid.long(), **inputs)[valid]
                for each in (ids, other)
            )
            errors += [difference(ours, expected), difference(moved, ours)]
    return Outcome(worst(errors))


def packed(subject: Subject) -> Outcome:
    """Two texts in one row, told apart by their position ids, against the oracle on each alone."""
    if not subject.takes("position_ids"):
        return Outcome(verdict="not applicable", note="its forward takes no position_ids")
    row = {"position_ids": torch.arange(subject.length).repeat(2)[None]}
    ids = subject.ids.reshape(1, -1)
    with torch.no_grad():
        together = subject.stock(input_ids=ids, use_cache=False, **row).logits.view(2, subject.length, -1)
        apart = subject.stock(input_ids=subject.ids, use_cache=False).logits
    if difference(together, apart) > LIMIT:
        return Outcome(verdict="not applicable", note="the unmodified model does not keep packed texts apart")
    ours = {position: subject.logits(subject.twin(), position, ids, **row) for position in (0.5, 1.0)}
    shape = (2, subject.length, -1)
    return Outcome(worst(difference(ours[at].view(shape), subject.expected(at)) for at in ours))


def statistics(subject: Subject) -> Outcome:
    """Recorded fidelity (as used and undialled) and entropy against the oracle's own attention weights."""
    state = find_state(subject.twin())
    layout = state.layout(subject.ids, None, None, None)
    retains = subject.retains(0.5)
    with torch.no_grad():
        output = subject.oracle.forward(
            layout.block_ids, layout.sinks, retains, input_ids=subject.ids, output_attentions=True
        )
        if not output.attentions or any(weights is None for weights in output.attentions):
            return Outcome(verdict="not applicable", note="the unmodified model returns no attention weights")
        with recording(subject.twin(), "all") as recorder:
            subject.logits(subject.twin(), 0.5)
    near = subject.oracle.near(layout.block_ids, layout.sinks)
    errors = []
    for layer, weights in enumerate(output.attentions):
        used, retain = (weights * near[:, None]).sum(-1), retains[layer]
        undialled = used * retain / (1 - used + used * retain)
        ours = recorder.layers[layer]
        errors.append(float((ours.fidelity - used).abs().max()))
        errors.append(float((ours.fidelity_undialled - undialled).abs().max()))
        errors.append(difference(ours.entropy_bits, entropy_bits(weights)))
    return Outcome(worst(errors))


def half_precision(subject: Subject) -> Outcome:
    """bfloat16: dial 0 bit for bit; dialled, no further from float64 than a few times the stock model in bfloat16."""
    stock = copy.deepcopy(subject.stock).bfloat16()
    twin = subject.localised(copy.deepcopy(stock), attention="reference")
    with torch.no_grad():
        plain = stock(input_ids=subject.ids, use_cache=False).logits
    if not torch.equal(subject.logits(twin, 0.0), plain):
        return Outcome(difference(subject.logits(twin, 0.0), plain), limit=0.0, note="at dial 0, bfloat16")
    unavoidable = difference(plain, subject.expected(0.0))
    fast = subject.localised(copy.deepcopy(stock))
    errors = []
    for model in (twin, fast):
        for position in (0.5, 1.0):
            with torch.no_grad(), dial(model, position):
                ours = model(input_ids=subject.ids, use_cache=False).logits
            errors.append(difference(ours, subject.expected(position)))
    return Outcome(
        worst(errors), 4 * unavoidable + 1e-2, note=f"bfloat16 alone costs the stock model {unavoidable:.1e}"
    )
