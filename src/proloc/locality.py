"""The idea on one page: keys are home or away, and a dial takes attention away from the keys that are away.

A *partitioner* gives every token a block. A key is HOME to a query when both lie in the same block, a SINK when the
layout marks it (normally the first tokens of a sequence), and AWAY otherwise; keys the model may not see are HIDDEN.
With a *halo* of h, the h blocks before the query's own are home as well; a block's *lead*, some tokens right before its
first, is home to it too (both ours). A *schedule* gives layer l its locality lambda_l, the *dial* d in [0, 1] turns all
of them, and away keys keep the share

    retain_l = 1 - d * lambda_l

of their attention weight before the row is normalised again:

    weights = softmax(scores + log(retain_l) * away)

retain = 1 is the unmodified layer; retain = 0 hides the away keys. *Pointer fidelity* F is the attention mass on keys
that are home or sink; *entropy* is taken in bits. After J. Diederich, arXiv 2511.18375 and 2510.09338; the formulas of
those papers were not available to us, so the definitions here are ours.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from proloc.errors import ProlocError

HIDDEN, AWAY, HOME, SINK = 0, 1, 2, 3
_LEAD_BITS = 32  # how far up in an id its block's lead stands


@dataclass(frozen=True)
class Layout:
    """How the tokens of a batch are divided.

    Attributes:
        block_ids: int64 ``[batch, key]``; equal ids in a row = the same block. Ids may hold leads, see ``with_leads``.
        sinks: bool ``[batch, key]``, True for tokens that every query may read at full weight.
        halo: that many blocks before a query's own are home as well.
    """

    block_ids: Tensor
    sinks: Tensor
    halo: int = 0

    def __post_init__(self) -> None:
        check_halo(self.halo)
        if self.block_ids.dim() != 2 or self.block_ids.shape != self.sinks.shape:
            shapes = f"{tuple(self.block_ids.shape)} and {tuple(self.sinks.shape)}"
            raise ProlocError(f"block_ids and sinks must both be [batch, key]; got {shapes}.")


def mark_sinks(num_sinks: int, valid: Tensor, starts: Tensor | None = None) -> Tensor:
    """The first ``num_sinks`` real tokens of every sequence.

    Args:
        num_sinks: tokens per sequence, 0 = none.
        valid: bool ``[batch, key]``, False at padding.
        starts: bool ``[batch, key]``, True where a packed row starts a new sequence; None = one sequence a row.

    Returns:
        bool ``[batch, key]``.
    """
    order = valid.long().cumsum(dim=1)
    if starts is not None:
        before = torch.where(starts & valid, order - 1, torch.zeros_like(order))
        order = order - before.cummax(dim=1).values
    return valid & (order <= num_sinks)


def check_halo(halo: int) -> None:
    """Raise a ProlocError unless ``halo`` is a whole number, 0 or more."""
    if not isinstance(halo, int) or isinstance(halo, bool) or halo < 0:
        raise ProlocError(f"halo is {halo!r}; it must be a whole number of blocks, 0 or more.")


def block_ordinals(block_ids: Tensor) -> Tensor:
    """Every token's block counted from 0 in its row, runs of equal ids one after the other, int64 ``[batch, key]``."""
    opens = torch.diff(block_ids, dim=1) != 0
    return torch.nn.functional.pad(opens.long().cumsum(dim=1), (min(1, block_ids.shape[1]), 0))


def with_leads(block_ids: Tensor, leads: Tensor) -> Tensor:
    """Ids that say as well how many tokens before a block's first are home to it: ``id + (lead << 32)``.

    So the sentence that changed the topic can lead the block that it opened: later queries read it as their own, while
    its own queries were in the block before. That leaks nothing where a lead depends on earlier tokens alone.

    Args:
        block_ids: int64 ``[batch, key]``, below 2**32; one below 0 holds no lead.
        leads: int64 ``[batch, key]``, tokens, the same for all of a block.
    """
    return block_ids + (leads << _LEAD_BITS)


def leads_of(block_ids: Tensor) -> Tensor:
    """The lead in every id, in tokens, shaped like ``block_ids``."""
    return (block_ids.long() >> _LEAD_BITS).clamp_min(0)


def block_starts(block_ids: Tensor, halo: int = 0) -> Tensor:
    """The first token of every token's own block, or of the block ``halo`` before it, int64 ``[batch, key]``."""
    ordinals = block_ordinals(block_ids)
    return torch.searchsorted(ordinals, ordinals - halo)


def home_starts(block_ids: Tensor, halo: int) -> Tensor:
    """Where every token's home starts: at its block, or the one ``halo`` before it, less that one's lead.

    Returns:
        int64 ``[batch, key]``; below 0 where the ids are part of a row in which the lead starts earlier.
    """
    starts = block_starts(block_ids, halo)
    return starts - leads_of(block_ids).gather(1, starts)


def check_leads(block_ids: Tensor) -> None:
    """Raise a ProlocError unless the homes of whole rows start in their row, none before that of the block before it.

    Args:
        block_ids: int64 ``[batch, key]``.
    """
    leads = leads_of(block_ids)
    if not bool(leads.any()):
        return
    starts = home_starts(block_ids, 0)
    early = starts < torch.nn.functional.pad(starts, (1, -1)).clamp_min(0)
    if bool(early.any()):
        row, token = (int(index) for index in early.nonzero()[0])
        raise ProlocError(
            f"block id {int(block_ids[row, token])} at token {token} of row {row} says by its upper 32 bits that home "
            f"starts {int(leads[row, token])} tokens before its block: before its row or an earlier block's home. "
            "Give ids below 2**32 for blocks without leads."
        )


def drop_blocks(layout: Layout, probability: float) -> Tensor:
    """Block dropout (ours): every block of every row is dropped with some probability, by torch's generator.

    A dropped block is to be hidden from queries it is away from; to its own, those of its halo and as a sink it stays.

    Returns:
        bool ``[batch, key]``, True for the keys of dropped blocks.
    """
    draws = torch.rand(layout.block_ids.shape, device=layout.block_ids.device) < probability
    return draws.gather(1, block_ordinals(layout.block_ids))


def relate(layout: Layout, query_positions: Tensor, visible: Tensor) -> Tensor:
    """What every key is to every query.

    Args:
        layout: blocks and sinks of all keys.
        query_positions: int64 ``[query]``, where the queries stand among the keys.
        visible: bool ``[batch, 1, query, key]``, what the model itself allows (causal, padding, window).

    Returns:
        uint8 ``[batch, 1, query, key]`` of HIDDEN, AWAY, HOME and SINK.

    Raises:
        ProlocError: a halo around a block that is interrupted by another one; "before" has no meaning there.
    """
    keys = layout.block_ids[:, None, None, :]
    queries = layout.block_ids[:, query_positions][:, None, :, None]
    home = queries == keys
    if layout.halo:
        ordinals = block_ordinals(layout.block_ids)
        back = ordinals[:, query_positions][:, None, :, None] - ordinals[:, None, None, :]
        interrupted = home & (back != 0) & visible
        if bool(interrupted.any()):
            row, _, query, _ = (int(index) for index in interrupted.nonzero()[0])
            raise ProlocError(
                f"block {int(queries[row, 0, query])} of row {row} is interrupted by another block, so a halo of "
                f"{layout.halo} has no meaning there; give contiguous blocks, or halo=0."
            )
        home = (back >= 0) & (back <= layout.halo)
    leads = leads_of(layout.block_ids)
    if bool(leads.any()):
        ordinals = block_ordinals(layout.block_ids)
        first_home = (ordinals[:, query_positions] - layout.halo)[:, None, :, None]
        before = (ordinals[:, None, None, :] < first_home).sum(dim=-1, keepdim=True)  # so many tokens are before it
        lead = leads[:, None, None, :].expand(*before.shape[:-1], -1).gather(-1, before)
        places = torch.arange(leads.shape[1], device=leads.device)
        home = home | ((places < before) & (places >= before - lead))
    code = torch.where(home, HOME, AWAY)
    code = torch.where(layout.sinks[:, None, None, :], SINK, code)
    return torch.where(visible, code, HIDDEN).to(torch.uint8)


def retained(localities: Tensor, dial: float) -> Tensor:
    """``1 - dial * lambda_l``: the share of its weight that an away key keeps, per layer ``[layer]``.

    Raises:
        ProlocError: the dial is outside [0, 1].
    """
    if not 0.0 <= dial <= 1.0:
        raise ProlocError(
            f"the dial is {dial}; it must lie in [0, 1], 0 = the unmodified model, 1 = the whole schedule."
        )
    return 1.0 - dial * localities


def bias(relation: Tensor, retain: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the scores: 0 at home and sink, log(retain) at away, the lowest number at hidden keys.

    Hidden keys get the lowest finite number, as in transformers' eager attention, so that a padding row which sees
    nothing at all stays finite; away keys at retain = 0 get minus infinity and weigh exactly nothing.

    Args:
        relation: uint8 ``[batch, 1, query, key]``.
        retain: scalar in [0, 1].
        dtype: of the scores.
    """
    zero = torch.zeros((), dtype=dtype, device=relation.device)
    away = torch.log(retain.double()).to(relation.device, dtype)
    hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=relation.device)
    return torch.where(relation == HIDDEN, hidden, torch.where(relation == AWAY, away, zero))


def fidelity(weights: Tensor, relation: Tensor) -> Tensor:
    """Pointer fidelity ``F = sum of weights over home and sink keys``.

    Args:
        weights: ``[batch, head, query, key]``, rows sum to 1.
        relation: uint8 ``[batch, 1, query, key]``.

    Returns:
        ``[batch, head, query]`` in [0, 1].
    """
    return (weights * (relation >= HOME)).sum(dim=-1)


def entropy_bits(weights: Tensor) -> Tensor:
    """Shannon entropy of every attention row in bits, ``[batch, head, query]``; 0 log 0 = 0, and so is its gradient."""
    nats: Tensor = torch.special.entr(torch.where(weights == 0, 1.0, weights)).sum(dim=-1)
    return nats / math.log(2.0)


def dialled_fidelity(undialled_fidelity: Tensor, retain: Tensor) -> Tensor:
    """Fidelity after the dial from fidelity before it: ``F / (F + retain * (1 - F))`` (ours)."""
    return undialled_fidelity / (undialled_fidelity + retain * (1 - undialled_fidelity))


def dialled_output(output: Tensor, home_output: Tensor, undialled_fidelity: Tensor, retain: Tensor) -> Tensor:
    """The dialled layer output from two undialled ones (ours); no T x T matrix is needed.

    ``[F * O_home + retain * (O - F * O_home)] / [F + retain * (1 - F)]``

    Args:
        output: attention over all visible keys, ``[batch, head, query, head_dim]``.
        home_output: attention over home and sink keys only, same shape.
        undialled_fidelity: F, ``[batch, head, query]``.
        retain: scalar in [0, 1].
    """
    share = undialled_fidelity[..., None]
    home = share * home_output
    return (home + retain * (output - home)) / (share + retain * (1 - share))
