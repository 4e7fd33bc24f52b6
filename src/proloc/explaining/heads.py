"""Where a head looks, and what for: its strongest block-to-block edges in a corpus, and the loss without them."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from proloc.attention import Attention, Keys
from proloc.errors import ProlocError
from proloc.explaining.passage import count_units
from proloc.explaining.record import HeadEdge, HeadView
from proloc.explaining.subject import load_localised
from proloc.hf import cutting, find_state, recording
from proloc.hf.models import load_tokenizer
from proloc.versions import versions

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, order=True)
class _Edge:
    """A head's mean attention from the tokens of one block to the tokens of another."""

    mass: float
    window: int
    query: int
    key: int


class _Looking:
    """Adds up, while a window runs, how many blocks every layer reads, and keeps one head's weights."""

    def __init__(self, layer: int, head: int, num_layers: int) -> None:
        self._layer, self._head = layer, head
        self.blocks_read = torch.zeros(num_layers, dtype=torch.float64)
        self.blocks = torch.zeros(0, 0)
        self.weights = torch.zeros(0, 0)

    def visit(self, layer: int, attention: Attention, keys: Keys) -> None:
        assert attention.weights is not None  # the recorder asked for them
        mass = attention.weights[0].double().cpu() @ self.blocks
        if layer == self._layer:
            if self._head >= len(mass):
                raise ProlocError(f"there is no head {self._head}; layer {layer} has heads 0 to {len(mass) - 1}.")
            self.weights = mass[self._head]
        share = mass / mass.sum(dim=-1, keepdim=True).clamp_min(1e-12)
        counted = self.blocks.any(dim=1)
        self.blocks_read[layer] += torch.special.entr(share).sum(dim=-1).exp()[:, counted].mean()


@torch.no_grad()
def look_at_head(
    model: PreTrainedModel,
    windows: Tensor,
    layer: int,
    head: int,
    *,
    num_edges: int = 8,
    progress: OnProgress = lambda done, total: None,
) -> tuple[list[tuple[_Edge, float]], Tensor, float, float]:
    """The strongest edges of a head between blocks, and the loss that cutting them costs.

    Args:
        model: localised, in evaluation mode; its blocks are used, its dial stays where it stands.
        windows: int64 ``[window, text]``.
        layer, head: which.
        num_edges: how many of the strongest.
        progress: called with passes done and in all.

    Returns:
        the edges, strongest first, each with the change of the loss (nats per token, over what the reading block
        predicts) when this head loses this edge alone; the effective number of blocks read by layer; the loss of all
        windows; and the same without any edge of this head between blocks.

    Raises:
        ProlocError: no such layer or head, or windows too short.
    """
    state, count = find_state(model), len(windows)
    if not 0 <= layer < len(state.localities):
        raise ProlocError(f"there is no layer {layer}; the model has layers 0 to {len(state.localities) - 1}.")
    if head < 0:
        raise ProlocError(f"there is no head {head}; heads count from 0.")
    if windows.dim() != 2 or count == 0 or windows.shape[1] < 2:
        raise ProlocError(f"windows must be [window, text] of two tokens or more, not {tuple(windows.shape)}.")
    blocks = state.blocks(windows)
    looking = _Looking(layer, head, len(state.localities))
    strongest: list[_Edge] = []
    intact, cut = [], []
    for number in range(count):
        units = count_units(blocks[number])
        looking.blocks = torch.nn.functional.one_hot(units).double()
        looking.blocks[: state.sinks] = 0
        with recording(model, visit=looking.visit):
            intact.append(_losses(model, windows[number], blocks[number]))
        strongest += _edges(looking.weights, units, number)
        strongest = heapq.nlargest(num_edges, strongest)
        with cutting(model, _cut_edges(model, units, head), [layer]):
            cut.append(_losses(model, windows[number], blocks[number]))
        progress(number + 1, count + num_edges)
    found = []
    for place, edge in enumerate(strongest):
        units = count_units(blocks[edge.window])
        with cutting(model, _cut_edges(model, units, head, (edge.query, edge.key)), [layer]):
            losses = _losses(model, windows[edge.window], blocks[edge.window])
        asking = units[:-1] == edge.query
        found.append((edge, float((losses - intact[edge.window])[asking].mean())))
        progress(count + place + 1, count + num_edges)
    return found, looking.blocks_read / count, float(torch.stack(intact).mean()), float(torch.stack(cut).mean())


def _losses(model: PreTrainedModel, ids: Tensor, blocks: Tensor) -> Tensor:
    """Cross-entropy of every token but the first, ``[text - 1]``, nats."""
    inputs = {"input_ids": ids[None].to(model.device), "block_ids": blocks[None].to(model.device)}
    logits = model(**inputs, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[1:].to(logits.device), reduction="none").cpu()


def _edges(mass: Tensor, units: Tensor, window: int) -> list[_Edge]:
    """All edges to earlier blocks, from the head's mass ``[query, block]``; a block whose every token predicts nothing,
    the last token alone, has none."""
    found = []
    for query in range(1, int(units[-2]) + 1):
        mean = mass[units == query].mean(dim=0)
        found += [_Edge(float(mean[key]), window, query, key) for key in range(query)]
    return found


def _cut_edges(model: PreTrainedModel, units: Tensor, head: int, pair: tuple[int, int] | None = None) -> Tensor:
    """Edges ``[1, head, text, text]`` of one head between two blocks, or, without a pair, to all earlier blocks."""
    state = find_state(model)
    config = model.config.get_text_config(decoder=True)
    queries, keys = units[:, None], units[None, :]
    wanted = keys < queries if pair is None else (queries == pair[0]) & (keys == pair[1])
    wanted = wanted & (torch.arange(len(units)) >= state.sinks)
    edges = torch.zeros(1, config.num_attention_heads, *wanted.shape, dtype=torch.bool, device=model.device)
    edges[0, head] = wanted.to(model.device)
    return edges


def view_head(
    model: str | PreTrainedModel,
    text: str,
    layer: int,
    head: int,
    *,
    tokenizer: Any = None,
    dial: float | None = None,
    context: int = 256,
    max_windows: int = 16,
    num_edges: int = 8,
    progress: OnProgress = lambda done, total: None,
) -> HeadView:
    """``look_at_head`` on a text, as a record with examples.

    Args:
        model: a name as for ``model_store.resolve``, or a localised model with its ``tokenizer``. A name without saved
            locality is taken undialled, with sentence blocks.
        text: at least one window long.
        layer, head: which.
        tokenizer: of a model that is not given by name.
        dial: in [0, 1]; None = where it stands.
        context: tokens per window.
        max_windows: at most that many, spread evenly over the text.
        num_edges: how many of the strongest edges.
        progress: called with passes done and in all.

    Raises:
        ProlocError: no such model, layer or head, or a text that is too short.
    """
    if max_windows < 1:
        raise ProlocError(f"windows is {max_windows}; look at 1 or more.")
    name = model if isinstance(model, str) else model.name_or_path
    if isinstance(model, str):
        tokenizer = load_tokenizer(model)
        model = load_localised(model, tokenizer)
    elif tokenizer is None:
        raise ProlocError("a model that is not given by name needs its tokenizer.")
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.long)
    if len(ids) < context:
        raise ProlocError(f"the text has {len(ids)} tokens; a window needs {context}.")
    windows = ids[: len(ids) // context * context].reshape(-1, context)
    chosen = torch.linspace(0, len(windows) - 1, min(max_windows, len(windows))).round().long()
    state = find_state(model)
    before, training = state.dial, model.training
    try:
        if dial is not None:
            state.set_dial(dial)
        found, blocks_read, loss, loss_cut = look_at_head(
            model.eval(), windows[chosen], layer, head, num_edges=num_edges, progress=progress
        )
        position = state.dial
    finally:
        state.set_dial(before)
        model.train(training)
    blocks = state.blocks(windows[chosen])

    def passage(window: int, block: int) -> str:
        return str(tokenizer.decode(windows[chosen][window][count_units(blocks[window]) == block]))

    return HeadView(
        model=name,
        versions=versions(),
        localities=list(state.localities),
        dial=position,
        blocks=state.blocks.kind,
        layer=layer,
        head=head,
        windows=len(chosen),
        context=context,
        loss=loss,
        loss_cut=loss_cut,
        blocks_read=blocks_read.tolist(),
        edges=[
            HeadEdge(
                window=int(chosen[edge.window]),
                query_block=edge.query,
                key_block=edge.key,
                mass=edge.mass,
                loss_change=change,
                query_text=passage(edge.window, edge.query),
                key_text=passage(edge.window, edge.key),
            )
            for edge, change in found
        ],
    )
