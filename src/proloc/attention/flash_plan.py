"""Cuts a batch into calls that a flash kernel can answer without a mask: squares on the diagonal, and rectangles."""

from dataclasses import dataclass

import torch
from torch import Tensor

from proloc.attention.layout import KeyRanges
from proloc.errors import ProlocError

Span = tuple[int, int, int]  # first query, end query, first key of a run of queries with one start
MOST_QUERIES = 1024  # over sinks at once: answers as large as all queries would be the peak of memory


@dataclass(frozen=True)
class Call:
    """One flash call: the queries of some rows over some keys.

    Attributes:
        rows: of the batch.
        queries: indices of queries.
        keys: a slice of keys, or the positions of sinks.
        causal: the call is square and a query sees keys up to its own; else it sees all of them.
    """

    rows: slice
    queries: slice
    keys: slice | Tensor
    causal: bool


@dataclass(frozen=True)
class Plan:
    """Flash calls whose answers make up dialled attention.

    Attributes:
        visible: over all visible keys.
        home: over home keys, those of a halo aside.
        more: over the halo before these, and over the sinks before that.
    """

    visible: list[Call]
    home: list[Call]
    more: list[Call]


def make_plan(ranges: KeyRanges) -> Plan:
    """The calls for a batch.

    Raises:
        ProlocError: queries whose visible keys start neither with themselves nor where they all start: sliding windows
            shorter than the text, and several queries that continue a cache.
    """
    offset = ranges.query_offset
    visible, before = _calls([_spans(row) for row in ranges.visible_start], offset)
    if before:
        raise ProlocError(
            "attention 'flash' does neither sliding windows nor several queries after a cache; "
            "use 'auto', 'fused' or 'reference'."
        )
    home, more = _calls([_spans(row) for row in ranges.home_start], offset)
    for row, marked in enumerate(ranges.sinks):
        positions = marked.nonzero()[:, 0]
        if len(positions):
            more += _sink_calls(row, positions, ranges.visible_start[row], ranges.home_start[row])
    return Plan(visible, home, more)


def _spans(starts: Tensor) -> list[Span]:
    values, counts = torch.unique_consecutive(starts, return_counts=True)
    ends = counts.cumsum(0)
    return list(zip((ends - counts).tolist(), ends.tolist(), values.tolist(), strict=True))


def _calls(rows: list[list[Span]], offset: int) -> tuple[list[Call], list[Call]]:
    """Calls that together answer every query once, and calls over the keys before their squares.

    Rows with the same spans share their calls. A single query needs no square: it sees all of its keys.
    """
    same = all(spans == rows[0] for spans in rows)
    cut = [(slice(0, len(rows)), rows[0])] if same else [(slice(i, i + 1), spans) for i, spans in enumerate(rows)]
    calls, before = [], []
    for row, spans in cut:
        for first, end, key in spans:
            queries, one = slice(first, end), end - first == 1
            square = key if one and len(spans) == 1 else offset + first
            calls.append(Call(row, queries, slice(square, offset + end), causal=not one))
            if key < square:
                before.append(Call(row, queries, slice(key, square), causal=False))
    return calls, before


def _sink_calls(row: int, sinks: Tensor, visible: Tensor, home: Tensor) -> list[Call]:
    """For runs of queries that read the same sinks before their home, a call over those."""
    first, stop = (torch.searchsorted(sinks, start.to(sinks.dtype)) for start in (visible, home))
    pairs, counts = torch.unique_consecutive(first * (len(sinks) + 1) + stop, return_counts=True)
    calls, query = [], 0
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        begin, end = divmod(pair, len(sinks) + 1)
        for start in range(query, query + count, MOST_QUERIES) if begin < end else ():
            part = slice(start, min(start + MOST_QUERIES, query + count))
            calls.append(Call(slice(row, row + 1), part, sinks[begin:end], causal=False))
        query += count
    return calls
