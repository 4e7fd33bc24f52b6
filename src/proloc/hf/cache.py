"""A key/value cache in which hard layers keep only the sinks and the current block, with its halo (ours).

A layer whose away keys keep nothing of their weight never reads a block again once every row has left it. Its keys are
dropped then, so what a hard layer holds and reads for a new token grows with the block and not with the text. The cache
still counts every token it has seen: positions and masks are made for the whole text, and layers that dropped keys take
the part of the mask that belongs to the keys they still have (``attention.Keys.local``).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from proloc.errors import ProlocError
from proloc.hf.state import LocalityState, find_state
from proloc.locality import Layout, home_starts

FULL_CACHE = "pass past_key_values=DynamicCache(config=model.config) to keep every key"
FORWARD_ONLY = {"greedy_search", "sample", "beam_search", "beam_sample"}  # ways to generate that roll nothing back


class LocalLayer(DynamicLayer):  # type: ignore[misc]
    """The keys and values that one hard layer still needs; the ``LocalCache`` around it says which.

    Args:
        window: how many keys the layer sees at most, itself included; None = all.

    Attributes:
        seen: tokens that went through, dropped ones included.
    """

    is_croppable = False

    def __init__(self, window: int | None = None) -> None:
        super().__init__()
        self.is_sliding = window is not None
        self.sliding_window = window
        self.seen = 0
        self._announced = False
        self._needed: Tensor | None = None

    def announce(self, needed: Tensor | None) -> None:
        """Say which keys are needed after the next update: their places among old and new ones; None = all."""
        self._announced, self._needed = True, needed

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The keys and values held, followed by the new ones ``[batch, kv_head, held + query, head_dim]``.

        Raises:
            ProlocError: called from anything but a localised model's forward pass.
        """
        if not self._announced:
            raise ProlocError(
                "a LocalCache was used by a model that is not localised; it works with localised ones only."
            )
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        if self._needed is not None:
            self.keys, self.values = (part.index_select(-2, self._needed.to(part.device)) for part in (keys, values))
        self.seen += key_states.shape[-2]
        self._announced = False
        return keys, values

    def first_seen(self) -> int:
        """Position of the first key that the next token could see."""
        return 0 if self.sliding_window is None else max(self.seen - self.sliding_window + 1, 0)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that masks are made for: those of the text, dropped ones included."""
        return self.seen + query_length - self.first_seen(), self.first_seen()

    def get_seq_length(self) -> int:
        """Tokens seen, dropped ones included."""
        return self.seen

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens.

        Args:
            tokens_to_remove: below 0, how many; above 0, how many to leave.

        Raises:
            ProlocError: keys were dropped, so it is not known whether what is left is enough.
        """
        left = tokens_to_remove if tokens_to_remove > 0 else self.seen + tokens_to_remove
        if left >= self.seen or not self.is_initialized:
            return
        if self.keys.shape[-2] < self.seen:
            raise ProlocError(
                f"a local cache that dropped {self.seen - self.keys.shape[-2]} of {self.seen} keys cannot be rolled "
                f"back; {FULL_CACHE}."
            )
        self.keys, self.values = self.keys[..., : max(left, 0), :], self.values[..., : max(left, 0), :]
        self.seen = self.keys.shape[-2]


class LocalCache(DynamicCache):  # type: ignore[misc]
    """A cache for ``generate`` whose hard layers (dial * lambda = 1) hold sinks and the current block with its halo.

    Other layers have what transformers gives them, sliding windows included; what is generated is the same.
    Rows whose blocks start at different tokens keep the keys from the earliest start on. Blocks that are not contiguous
    drop nothing. ``generate`` uses it by itself where a layer is hard; pass one to be told where that cannot be.

    Args:
        model: a localised model; its layers that are hard now are the ones that drop keys.

    Raises:
        ProlocError: not localised, or a model whose layers share keys or cache something else.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._config = model.config.get_text_config(decoder=True)
        super().__init__(config=self._config)
        state = find_state(model)
        if not _known(self.layers, state):
            raise ProlocError(f"the cache of {type(model).__name__} is of a kind that LocalCache does not know.")
        self._hard = [number for number, kept in enumerate(state.retain.tolist()) if kept == 0.0]
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.layers = DynamicCache(config=self._config).layers  # reset() of older transformers only zeroes them
        for number in self._hard:
            self.layers[number] = LocalLayer(getattr(self.layers[number], "sliding_window", None))
        self._held = torch.empty(0, dtype=torch.int64)  # positions of the keys held, windows aside
        self._complete_from = 0  # every key from here on is held

    @property
    def local(self) -> dict[int, LocalLayer]:
        """The hard layers by number."""
        return {number: self.layers[number] for number in self._hard}

    def num_held(self) -> dict[int, int]:
        """Keys that every hard layer holds now, by layer."""
        return {number: layer.keys.shape[-2] if layer.is_initialized else 0 for number, layer in self.local.items()}

    def crop(self, tokens_to_remove: int) -> None:
        """``LocalLayer.crop`` for hard layers, then transformers' own for the others."""
        for layer in sorted(self.layers, key=lambda layer: not isinstance(layer, LocalLayer)):
            layer.crop(tokens_to_remove)
        if self.local:
            seen = next(iter(self.local.values())).seen
            self._held, self._complete_from = self._held[self._held < seen], min(self._complete_from, seen)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def follow(self, state: LocalityState, layout: Layout) -> Tensor | None:
        """Plan one forward pass: what hard layers hold for it, and what they drop after it.

        Args:
            state: of the model that runs.
            layout: of past and query tokens.

        Returns:
            positions int64 ``[held + query]`` of the keys in hard layers, or None if these are all keys.

        Raises:
            ProlocError: a layer that dropped keys would have to read them.
        """
        if not self.local:
            return None
        past, total = self.get_seq_length(), layout.block_ids.shape[1]
        if any(layer.seen != past for layer in self.local.values()):
            raise ProlocError("the latest forward pass with this cache did not come to its end; start with a new one.")
        hard = all(float(state.retain[number]) == 0.0 for number in self.local)
        starts = _home_starts(layout)
        if len(self._held) < past:
            self._check(layout, past, hard, None if starts is None else starts[:, past:])
        self._held = self._held.to(layout.block_ids.device)
        given = torch.cat([self._held, torch.arange(past, total, device=self._held.device)])
        needed = None
        if hard and starts is not None:
            self._complete_from = int(starts[:, -1].min())
            needed = (given >= self._complete_from) | layout.sinks.any(dim=0)[given]
        for window in {layer.sliding_window for layer in self.local.values()}:
            places = _needed_in_window(given, needed, window, past, total)
            for layer in self.local.values():
                if layer.sliding_window == window:
                    layer.announce(places)
        self._held = given if needed is None else given[needed]
        return given if len(given) < total else None

    def _check(self, layout: Layout, past: int, hard: bool, starts: Tensor | None) -> None:
        """Raise unless every key that the new tokens may read is still held."""
        dropped = torch.ones(past, dtype=torch.bool, device=layout.sinks.device)
        dropped[self._held] = False
        count = f"{int(dropped.sum())} of {past} keys were dropped"
        if not hard:
            raise ProlocError(
                f"{count} from the cache while layers were hard, and the dial has been turned since; start with a new "
                f"cache, or {FULL_CACHE}."
            )
        back = starts is None or int(starts.min()) < self._complete_from
        if back or bool(layout.sinks[:, :past][:, dropped].any()):
            raise ProlocError(
                f"blocks or sinks of new tokens reach back to tokens whose keys were dropped ({count}); {FULL_CACHE}."
            )


def _home_starts(layout: Layout) -> Tensor | None:
    """Where the home of every token starts, ``[batch, token]``; None where a block is interrupted by another."""
    block_ids = layout.block_ids
    steps = torch.diff(block_ids, dim=1)
    if bool((steps < 0).any()):
        ordered = block_ids.sort(dim=1).values
        if not torch.equal((steps != 0).sum(dim=1), (torch.diff(ordered, dim=1) != 0).sum(dim=1)):
            return None
    return home_starts(block_ids, layout.halo)


def _needed_in_window(given: Tensor, needed: Tensor | None, window: int | None, past: int, total: int) -> Tensor | None:
    """Places, among the keys a layer has in this pass, of those it needs after it; None = all of them."""
    if window is not None:
        first_now, first_then = (max(seen - window + 1, 0) for seen in (past, total))
        here = given >= first_now
        given, needed = given[here], None if needed is None else needed[here]
        within = given >= first_then
        needed = within if needed is None else needed & within
    return None if needed is None or bool(needed.all()) else needed.nonzero()[:, 0]


def replace_cache(model: Any, arguments: dict[str, Any], prepare: Callable[[], Any]) -> Any:
    """Let ``generate`` prepare its cache, then put a ``LocalCache`` in its place where a layer is hard.

    Only a cache that ``generate`` made itself is replaced, and only where nobody rolls it back, wants weights, or has
    compiled the model, whose code would be specialised to every length.

    Args:
        model: the localised model that generates.
        arguments: of transformers' ``_prepare_cache_for_generation``, by name.
        prepare: calls it; it writes the cache into ``model_kwargs``.

    Raises:
        ProlocError: assisted decoding, which rolls its cache back, with a ``LocalCache``.
    """
    config: Any = arguments.get("generation_config")
    inputs: dict[str, Any] = arguments.get("model_kwargs") or {}
    mode = getattr(arguments.get("generation_mode"), "value", None)
    given = inputs.get("past_key_values")
    prepared = prepare()
    if isinstance(given, LocalCache) and mode not in FORWARD_ONLY:
        raise ProlocError(f"{mode} rolls its cache back, which a LocalCache cannot; {FULL_CACHE}.")
    cache: Any = inputs.get("past_key_values")
    state = find_state(model)
    if (
        given is None
        and type(cache) is DynamicCache
        and not cache.offloading
        and mode in FORWARD_ONLY
        and not getattr(config, "is_assistant", False)
        and not (getattr(config, "output_attentions", False) or model.config.output_attentions)
        and state.recorder.wanted == "nothing"
        and not state.recorder.keep_weights
        and not state.attention_released
        and getattr(model, "_compiled_call_impl", None) is None
        and 0.0 in state.retain.tolist()
        and _known(cache.layers, state)
    ):
        inputs["past_key_values"] = LocalCache(model)
    return prepared


def _known(layers: list[Any], state: LocalityState) -> bool:
    """Whether there is one plain or sliding cache layer for every layer of the model."""
    kinds = {type(layer) for layer in layers}
    return len(layers) == len(state.retain) and kinds <= {DynamicLayer, DynamicSlidingWindowLayer}
