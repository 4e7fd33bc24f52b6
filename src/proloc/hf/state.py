"""The locality of one model: what its attention layers look up while they run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from proloc.attention import Attention, Choice, Keys, Requested, check_requested
from proloc.blocks import Partitioner
from proloc.errors import ProlocError
from proloc.locality import Layout, check_halo, check_leads, mark_sinks, retained
from proloc.metrics import AttentionStatistics, measure
from proloc.penalty import Quantity
from proloc.schedule import Schedule

ATTRIBUTE = "_proloc_state"
Recording = Quantity | Literal["nothing", "all"]


@dataclass(frozen=True)
class Current:
    """The blocks of the forward pass that is running.

    Attributes:
        layout: of past and query tokens.
        prepared: masks are made in advance, for a static cache; transformers hands only matrices on from there.
        held: positions of the keys that hard layers still have (``LocalCache``); None = all.
        cut: edges that attention loses (``cutting``); None = it keeps them all.
        dropped: keys of the blocks that block dropout drops, bool ``[batch, key]``; None = none.
    """

    layout: Layout
    prepared: bool = False
    held: Tensor | None = None
    cut: "Cut | None" = None
    dropped: Tensor | None = None


@dataclass(frozen=True)
class Cut:
    """Edges that attention loses: the query keeps none of the key's content in these layers.

    Attributes:
        edges: bool ``[batch, head or 1, text, text]`` (query, key), True = lost; ``batch`` may be 1 for all rows.
        layers: where; None = in all.
    """

    edges: Tensor
    layers: frozenset[int] | None

    def between(self, queries: Tensor, keys: range) -> Tensor:
        """The part ``[batch, head or 1, query, key]`` for queries and keys at these positions of the text.

        Raises:
            ProlocError: positions outside of the text that the edges are given for.
        """
        length = self.edges.shape[-1]
        if keys.stop > length:
            raise ProlocError(f"edges are cut in a text of {length} tokens; this one has {keys.stop}.")
        return self.edges[..., keys.start : keys.stop][..., queries, :]


# Set by the forward wrapper, read by the mask function only: attention layers may run again during the backward pass
# (checkpointing), when it is gone, so what they need travels in their arguments.
current_layout: ContextVar[Current | None] = ContextVar("proloc_layout", default=None)


@dataclass
class Recorder:
    """Collects attention statistics by layer while somebody wants them.

    The first write wins: checkpointing computes a layer twice, and only the first belongs to the graph of the loss.

    Attributes:
        wanted: "nothing"; "all"; or, for a penalty and of layers with locality above 0 only, one quantity before the
            dial: "fidelity", "entropy" or "weights".
        fidelity: undialled fidelity ``[batch, head, query]`` by layer, differentiable.
        entropy_undialled: entropy in bits before the dial, likewise; for "entropy" alone.
        weights_undialled: weights before the dial ``[batch, head, query, key]``, likewise; for "weights" alone.
        relations: what their keys are, uint8 ``[batch, 1, query, key]`` by layer.
        layout: of the latest forward pass.
        layers: all statistics by layer, where all are wanted.
        weights: the weights as used, ``[batch, head, query, key]`` by layer, where they are kept.
        keep_weights: for pictures of single passages.
        visit: called with every layer's number, attention (weights included) and keys while the layer runs, so that
            nobody has to hold the weights of all layers at once.
    """

    wanted: Recording = "nothing"
    fidelity: dict[int, Tensor] = field(default_factory=dict)
    entropy_undialled: dict[int, Tensor] = field(default_factory=dict)
    weights_undialled: dict[int, Tensor] = field(default_factory=dict)
    relations: dict[int, Tensor] = field(default_factory=dict)
    layout: Layout | None = None
    layers: dict[int, AttentionStatistics] = field(default_factory=dict)
    weights: dict[int, Tensor] = field(default_factory=dict)
    keep_weights: bool = False
    visit: Callable[[int, Attention, Keys], None] | None = None

    @property
    def wants_weights(self) -> bool:
        return self.keep_weights or self.visit is not None

    def start(self, layout: Layout) -> None:
        """Forget the forward pass before this one."""
        kept: list[dict[int, Any]] = [self.recorded(quantity) for quantity in get_args(Quantity)]
        for each in (*kept, self.relations, self.layers, self.weights):
            each.clear()
        self.layout = layout

    def recorded(self, quantity: Quantity) -> dict[int, Tensor]:
        """What was recorded for a penalty, by layer."""
        by_name = {"fidelity": self.fidelity, "entropy": self.entropy_undialled, "weights": self.weights_undialled}
        return by_name[quantity]

    def record(self, layer: int, attention: Attention, keys: Keys, entropy: Tensor | None = None) -> None:
        """Keep what is wanted of one layer; ``entropy`` is that before the dial."""
        if self.wanted == "all":
            self.layers.setdefault(layer, measure(attention, keys))
        if attention.fidelity_undialled is not None:
            self.fidelity.setdefault(layer, attention.fidelity_undialled)
        if entropy is not None:
            self.entropy_undialled.setdefault(layer, entropy)
        if self.wanted == "weights" and attention.weights_undialled is not None:
            self.weights_undialled.setdefault(layer, attention.weights_undialled)
            self.relations.setdefault(layer, keys.relation())
        if self.keep_weights and attention.weights is not None:
            self.weights.setdefault(layer, attention.weights.detach())
        if self.visit is not None:
            self.visit(layer, attention, keys)

    def wants(self, locality: float) -> Recording:
        """What is wanted of a layer of this locality."""
        return "nothing" if self.wanted != "all" and locality == 0.0 else self.wanted


class LocalityState:
    """Schedule, partitioner, sinks, halo and dial of one localised model."""

    def __init__(
        self,
        schedule: Schedule,
        blocks: Partitioner,
        sinks: int,
        requested: Requested,
        num_layers: int,
        halo: int = 0,
    ) -> None:
        check_requested(requested)
        check_halo(halo)
        if not isinstance(sinks, int) or sinks < 0:
            raise ProlocError(f"sinks is {sinks!r}; it must be a whole number, 0 or more.")
        if not blocks.causal:
            raise ProlocError(
                f"{type(blocks).__name__} looks at later text, so it can only explain a finished one; "
                "localize needs a causal partitioner."
            )
        self.schedule = schedule
        self.blocks = blocks
        self.sinks = sinks
        self.halo = halo
        self.requested: Requested = requested
        self.chosen: dict[int, Choice] = {}  # by layer, in the latest forward pass
        self.localities = schedule.localities(num_layers)
        self.recorder = Recorder()
        self.attention_released = False  # to a tool that computes attention itself, see proloc.interop
        self.cut: Cut | None = None
        self.block_dropout = 0.0  # of forward passes in training mode
        self.weights_asked_for = False  # by output_attentions; not every model passes that on to its layers
        with torch.inference_mode(False):  # a tensor born in inference mode could not be changed later
            self.retain = torch.ones(num_layers, dtype=torch.float64)
        self.learned_retain: Tensor | None = None  # takes its place where lambda itself is learned
        self.set_dial(1.0)
        self.forward_dial = self.dial  # of the latest forward pass

    def set_dial(self, dial: float) -> None:
        """Turn the dial; the tensor is changed in place, so compiled code sees the new value."""
        try:
            dial = float(dial)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ProlocError(f"the dial is {dial!r}; it must be a number in [0, 1].") from error
        self.retain.copy_(retained(torch.tensor(self.localities, dtype=torch.float64), dial))
        self.dial = dial

    def set_schedule(self, schedule: Schedule) -> None:
        """Give the model another schedule and leave the dial where it stands."""
        self.localities = schedule.localities(len(self.localities))
        self.schedule = schedule
        self.set_dial(self.dial)

    def retain_of(self, layer: int) -> Tensor:
        """The share that away keys keep in a layer, 0-dim; with its gradient where lambda is learned."""
        learned = self.learned_retain if torch.is_grad_enabled() else None
        return (self.retain if learned is None else learned)[layer]

    def layout(
        self, input_ids: Tensor | None, block_ids: Tensor | None, valid: Tensor | None, starts: Tensor | None
    ) -> Layout:
        """Blocks and sinks of a batch; the partitioner runs when no block ids are given."""
        if block_ids is None:
            if input_ids is None:
                raise ProlocError("with inputs_embeds the blocks cannot be computed; pass block_ids [batch, seq].")
            block_ids = self.blocks(input_ids, valid, starts)
        check_leads(block_ids)
        if valid is None:
            valid = torch.ones_like(block_ids, dtype=torch.bool)
        return Layout(block_ids, mark_sinks(self.sinks, valid, starts), self.halo)


def find_state(model: nn.Module) -> LocalityState:
    """The state of a localised model, also behind wrappers such as PEFT's or DDP's.

    Raises:
        ProlocError: the model was not localised.
    """
    for module in model.modules():
        state = module.__dict__.get(ATTRIBUTE)
        if isinstance(state, LocalityState):
            return state
    raise ProlocError(f"this {type(model).__name__} is not localised; call proloc.localize(model, ...) first.")


def set_dial(model: nn.Module, position: float) -> None:
    """Turn the dial of a localised model and leave it there: 0 = the unmodified model, 1 = the whole schedule."""
    find_state(model).set_dial(position)


@contextmanager
def dial(model: nn.Module, position: float) -> Iterator[None]:
    """Turn the dial of a localised model inside a ``with`` block.

    Raises:
        ProlocError: not localised, or a position outside [0, 1].
    """
    state = find_state(model)
    before = state.dial
    state.set_dial(position)
    try:
        yield
    finally:
        state.set_dial(before)


@contextmanager
def recording(
    model: nn.Module,
    wanted: Quantity | Literal["all"] = "all",
    *,
    keep_weights: bool = False,
    visit: Callable[[int, Attention, Keys], None] | None = None,
) -> Iterator[Recorder]:
    """Collect attention statistics inside a ``with`` block; read them from the recorder after a forward pass.

    Args:
        model: a localised model.
        wanted: "all" fills ``recorder.layers`` and ``recorder.fidelity``; "fidelity", "entropy" or "weights" what a
            penalty of that kind reads, with its gradient, where locality is above 0.
        keep_weights: also keep the weights as used in ``recorder.weights``.
        visit: called with the number, attention (weights as used) and keys of every layer while it runs.
    """
    state = find_state(model)
    before = state.recorder
    state.recorder = Recorder(wanted=wanted, keep_weights=keep_weights, visit=visit)
    try:
        yield state.recorder
    finally:
        state.recorder = before


@contextmanager
def dropping_blocks(model: nn.Module, probability: float) -> Iterator[None]:
    """Block dropout inside a ``with`` block, for forward passes in training mode (ours).

    With this probability a block is hidden, for one forward pass and in all layers with locality above 0, from the
    queries it is away from. Own block, halo and sinks stay, so a layer with dial * lambda = 1 does not notice. It is
    drawn by torch's generator. Attention over what is left is written out, which takes T x T memory.

    Raises:
        ProlocError: not localised, or a probability outside [0, 1].
    """
    state = find_state(model)
    check_block_dropout(probability)
    before = state.block_dropout
    state.block_dropout = probability
    try:
        yield
    finally:
        state.block_dropout = before


def check_block_dropout(probability: float) -> None:
    """Raise a ProlocError unless the probability lies in [0, 1]."""
    if not 0.0 <= probability <= 1.0:
        raise ProlocError(f"block_dropout is {probability}; it must lie in [0, 1].")


def describe(model: nn.Module) -> dict[str, Any]:
    """What a localised model does, as JSON-able data."""
    state = find_state(model)
    return {
        "localities": list(state.localities),
        "dial": state.dial,
        "blocks": state.blocks.kind,
        "sinks": state.sinks,
        "halo": state.halo,
        "attention": state.requested,
        "computed_by": sorted({f"{each.name}: {each.reason}" for each in state.chosen.values()}),
    }
