"""Cuts a batch into calls that a flash kernel can answer without a mask: squares on the diagonal, and rectangles."""

from dataclasses import dataclass

import torch
from torch import Tensor

from proloc.attention.layout import KeyRanges
from proloc.errors import ProlocError

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
        blocks: over home keys from ``block_start`` on.
        sinks: over the sinks before the block.
    """

    visible: list[Call]
    blocks: list[Call]
    sinks: list[Call]


def make_plan(ranges: KeyRanges) -> Plan:
    """The calls for a batch.

    Raises:
        ProlocError: queries whose visible keys or blocks start neither with themselves nor where they all start:
            sliding windows shorter than the text, and several queries that continue a cache.
    """
    visible = [_spans(row, ranges.query_offset) for row in ranges.visible_start]
    blocks = [_spans(row, ranges.query_offset) for row in ranges.block_start]
    sinks: list[Call] = []
    for row, marked in enumerate(ranges.sinks):
        positions = marked.nonzero()[:, 0]
        if len(positions):
            sinks += _sink_calls(row, positions, ranges.visible_start[row], ranges.block_start[row])
    return Plan(_calls(visible, ranges.query_offset), _calls(blocks, ranges.query_offset), sinks)


def _spans(starts: Tensor, offset: int) -> list[tuple[int, int, int]]:
    """``(first query, end query, first key)`` of every run of queries with one start."""
    values, counts = torch.unique_consecutive(starts, return_counts=True)
    spans, query = [], 0
    for key, count in zip(values.tolist(), counts.tolist(), strict=True):
        if key != offset + query and len(starts) > 1:
            raise ProlocError(
                "attention 'flash' does neither sliding windows nor several queries after a cache; "
                "use 'auto', 'fused' or 'reference'."
            )
        spans.append((query, query + count, key))
        query += count
    return spans


def _calls(rows: list[list[tuple[int, int, int]]], offset: int) -> list[Call]:
    """Calls for the spans of every row; rows with the same spans share theirs."""
    same = all(spans == rows[0] for spans in rows)
    cut = [(slice(0, len(rows)), rows[0])] if same else [(slice(i, i + 1), spans) for i, spans in enumerate(rows)]
    calls = []
    for row, spans in cut:
        for first, end, key in spans:
            calls.append(Call(row, slice(first, end), slice(key, offset + end), causal=end - first > 1))
    return calls


def _sink_calls(row: int, sinks: Tensor, visible: Tensor, block: Tensor) -> list[Call]:
    """For runs of queries that read the same sinks before their block, a call over those."""
    first, stop = (torch.searchsorted(sinks, start.to(sinks.dtype)) for start in (visible, block))
    pairs, counts = torch.unique_consecutive(first * (len(sinks) + 1) + stop, return_counts=True)
    calls, query = [], 0
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        begin, end = divmod(pair, len(sinks) + 1)
        for start in range(query, query + count, MOST_QUERIES) if begin < end else ():
            part = slice(start, min(start + MOST_QUERIES, query + count))
            calls.append(Call(slice(row, row + 1), part, sinks[begin:end], causal=False))
        query += count
    return calls
