"""Interventions on attention: edges between tokens that a model loses while somebody looks."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from proloc.errors import ProlocError
from proloc.hf.state import Cut, find_state


@contextmanager
def cutting(model: nn.Module, edges: Tensor, layers: Iterable[int] | None = None) -> Iterator[None]:
    """Take edges out of a localised model's attention inside a ``with`` block: an intervention, nothing is trained.

    The query reads nothing of the key in these layers; the weights of what it still reads sum to 1 again. Edges are
    told by positions in the text, so tokens that a cache holds count.

    Args:
        model: a localised model.
        edges: bool ``[batch or 1, head or 1, text, text]``, True = the query (third axis) loses the key (fourth).
        layers: where; None = in all.

    Raises:
        ProlocError: not localised, no such layer, edges of another shape, or edges from a token to itself.
    """
    state = find_state(model)
    chosen = None if layers is None else frozenset(layers)
    if chosen is not None and (wrong := sorted(chosen - set(range(len(state.localities))))):
        raise ProlocError(f"there is no layer {wrong[0]}; the model has layers 0 to {len(state.localities) - 1}.")
    if edges.dim() != 4 or edges.shape[2] != edges.shape[3] or edges.dtype != torch.bool:
        raise ProlocError(f"edges must be bool [batch, head, text, text], not {edges.dtype} {tuple(edges.shape)}.")
    if bool(edges.diagonal(dim1=2, dim2=3).any()):
        raise ProlocError("a token cannot lose itself; leave the diagonal of the edges False.")
    before, state.cut = state.cut, Cut(edges, chosen)
    try:
        yield
    finally:
        state.cut = before
