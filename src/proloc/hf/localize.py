"""``localize(model, ...)``: the same model, whose attention now follows a schedule and a dial."""

import copy
import functools
import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import find_packed_sequence_indices

from proloc.attention import Requested
from proloc.blocks import Partitioner
from proloc.errors import ProlocError
from proloc.hf import persistence, routing
from proloc.hf.cache import LocalCache, replace_cache
from proloc.hf.card import save_card
from proloc.hf.state import ATTRIBUTE, Current, LocalityState, current_layout
from proloc.locality import Layout, drop_blocks
from proloc.schedule import Schedule

ATTENDING_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


def localize(
    model: PreTrainedModel,
    schedule: Schedule,
    blocks: Partitioner,
    *,
    sinks: int = 1,
    halo: int = 0,
    attention: Requested = "auto",
) -> PreTrainedModel:
    """Give a Hugging Face decoder a locality schedule and a dial, which starts at 1.

    The model is changed in place: its class becomes a subclass that also takes ``block_ids`` and runs the partitioner
    when none are given, and its attention goes through proloc. Weights and modules stay as they are. Localising again
    replaces the setting.

    Args:
        model: a decoder whose attention goes through transformers' registry.
        schedule: locality of every layer.
        blocks: a causal partitioner.
        sinks: that many first tokens of every sequence can always be read.
        halo: that many blocks before a token's own are home as well.
        attention: "auto" takes the fastest that can do what is asked, and ``describe`` says which; "reference" equals
            eager attention bit for bit at dial 0; "fused", "flash", "triton", "flex" or "sdpa" are used or refused.

    Returns:
        the same object.

    Raises:
        ProlocError: an architecture that cannot be localised, a schedule that does not fit it, a bad argument.
    """
    layers = attention_layers(model)
    if layers[0].__dict__.get(ATTRIBUTE) is not model.__dict__.get(ATTRIBUTE):
        raise ProlocError(
            f"this {type(model).__name__} is part of a localised model; localize the whole model instead."
        )
    state = LocalityState(schedule, blocks, sinks, attention, len(layers), halo)
    _own_config(model)
    routing.register()
    model.set_attn_implementation(routing.NAME)
    if model.config._attn_implementation != routing.NAME:
        raise ProlocError(f"{type(model).__name__} did not accept another attention; it cannot be localised.")
    for module in [model, *layers]:
        module.__dict__[ATTRIBUTE] = state
    persistence.enter_setting(model.config, state)
    if not isinstance(model, LocalisedModel):
        model.__class__ = _localised_class(type(model))  # type: ignore[arg-type]
    return model


def attention_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The attention module of every layer, or a ProlocError that says why this architecture is refused."""
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise ProlocError(f"localize needs a Hugging Face model (PreTrainedModel), not {name}.")
    config = model.config.get_text_config(decoder=True)
    if model.config.is_encoder_decoder or not getattr(config, "is_causal", True):
        raise ProlocError(f"{name} is not a decoder-only language model; it cannot be localised.")
    if not model._can_set_attn_implementation():
        raise ProlocError(
            f"{name} does not route its attention through transformers' registry; it cannot be localised."
        )
    others = set(getattr(config, "layer_types", None) or ()) - ATTENDING_LAYERS
    if others:
        raise ProlocError(
            f"{name} has layers of type {', '.join(sorted(others))}, whose recurrence carries away tokens past any "
            "attention mask; it cannot be localised."
        )
    if getattr(config, "reorder_and_upcast_attn", False):
        raise ProlocError(
            f"{name} uses reorder_and_upcast_attn, which proloc does not do; set it to False in its config."
        )
    found = [
        module
        for module in model.modules()
        if isinstance(getattr(module, "layer_idx", None), int) and "Attention" in type(module).__name__
    ]
    numbers = [module.layer_idx for module in found]
    if numbers != list(range(config.num_hidden_layers)):
        raise ProlocError(
            f"{name} has {config.num_hidden_layers} layers but attention modules with layer_idx {numbers}; "
            "proloc cannot tell its layers apart and refuses it."
        )
    if any(getattr(module, "is_causal", None) is False for module in found):
        raise ProlocError(f"{name} reads later tokens (is_causal=False, is_decoder=False); it cannot be localised.")
    return found


def _own_config(model: PreTrainedModel) -> None:
    """Give the model a config of its own: models built from one config object share it, and we write into it."""
    shared, own = model.config, copy.deepcopy(model.config)
    for module in model.modules():
        if getattr(module, "config", None) is shared:
            module.config = own


class LocalisedModel:
    """Mixed into the class of a localised model: computes the blocks, then runs the model as it is."""

    @functools.partial(torch.compiler.disable, recursive=False)
    def forward(self, *args: Any, block_ids: Tensor | None = None, **kwargs: Any) -> Any:
        """The model's own forward, with ``block_ids [batch, past + seq]`` as one more argument."""
        if getattr(self, "_is_replica", False):
            raise ProlocError(
                "torch.nn.DataParallel runs copies of a localised model that share one recorder; use "
                "DistributedDataParallel."
            )
        signature = inspect.signature(super().forward)  # type: ignore[misc]
        given = signature.bind_partial(*args, **kwargs)
        arguments = {**given.arguments.pop("kwargs", {}), **given.arguments}
        state: LocalityState = self.__dict__[ATTRIBUTE]
        attention = self.config._attn_implementation  # type: ignore[attr-defined]
        if attention != routing.NAME and not state.attention_released:
            raise ProlocError(
                f"the attention of this localised model was set to {attention!r}, which leaves its locality out; "
                'call set_attn_implementation("proloc"), or turn the dial to 0 for the unmodified model.'
            )
        state.forward_dial = state.dial
        state.weights_asked_for = bool(arguments.get("output_attentions"))
        use_cache = arguments.get("use_cache")
        if use_cache is None:
            use_cache = getattr(self.config, "use_cache", False)  # type: ignore[attr-defined]
        layout, cache = _layout(state, block_ids, arguments, use_cache=use_cache), arguments.get("past_key_values")
        state.recorder.start(layout)
        held = cache.follow(state, layout) if isinstance(cache, LocalCache) else None
        drops = self.training and state.block_dropout > 0.0  # type: ignore[attr-defined]
        dropped = drop_blocks(layout, state.block_dropout) if drops else None
        token = current_layout.set(Current(layout, held=held, dropped=dropped, cut=state.cut))
        try:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            current_layout.reset(token)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, block_ids: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The model's own preparation; blocks are computed from the full, already reordered ids at every step.

        Block ids given to ``generate`` cover the prompt; what is generated continues its last block.
        """
        if input_ids.shape[1] == 0 or kwargs.get("inputs_embeds") is not None:
            raise ProlocError("generate with inputs_embeds is not supported: blocks are computed from input_ids.")
        if block_ids is not None:
            missing = input_ids.shape[1] - block_ids.shape[1]
            if missing < 0:
                raise ProlocError(f"block_ids cover {block_ids.shape[1]} tokens; the prompt has {input_ids.shape[1]}.")
            block_ids = torch.cat([block_ids, block_ids[:, -1:].expand(-1, missing)], dim=1)
        cache = kwargs.get("past_key_values")
        past = int(cache.get_seq_length()) if cache is not None else 0
        if past >= input_ids.shape[1]:
            raise ProlocError(
                f"the cache holds {past} tokens, but only {input_ids.shape[1]} were given, so their blocks cannot be "
                "computed: leave prefill_chunk_size out, and continue a cache with the whole text."
            )
        state: LocalityState = self.__dict__[ATTRIBUTE]
        layout = state.layout(input_ids, block_ids, _valid(kwargs.get("attention_mask"), input_ids), None)
        token = current_layout.set(Current(layout, prepared=True, cut=state.cut))
        try:
            prepared: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)  # type: ignore[misc]
        finally:
            current_layout.reset(token)
        return {**prepared, "block_ids": layout.block_ids}

    def _prepare_cache_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        # Private to transformers: in a version that lacks it, or calls it in another way, generate keeps its own cache.
        parent = super()._prepare_cache_for_generation  # type: ignore[misc]
        given = inspect.signature(parent).bind(*args, **kwargs).arguments
        return replace_cache(self, given, lambda: parent(*args, **kwargs))

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, *args: Any, **kwargs: Any) -> None:
        """The model's own saving, with the setting as it is now, the partitioner's arrays and a model card."""
        self._save_beside(save_directory, is_main_process)
        with persistence.asking_for_our_attention(self.config):  # type: ignore[attr-defined]
            super().save_pretrained(save_directory, is_main_process, *args, **kwargs)  # type: ignore[misc]

    def _upload_modified_files(self, working_dir: Any, repo_id: str, files_timestamps: Any, **kwargs: Any) -> Any:
        # transformers has just written a card of its own, and would leave out what is older than its part of the save.
        self._save_beside(working_dir, True)
        older = {file: time for file, time in files_timestamps.items() if file not in persistence.OUR_FILES}
        return super()._upload_modified_files(working_dir, repo_id, older, **kwargs)  # type: ignore[misc]

    def _save_beside(self, folder: Any, is_main_process: bool) -> None:
        state: LocalityState = self.__dict__[ATTRIBUTE]
        persistence.enter_setting(self.config, state, self.config.proloc["figures"])  # type: ignore[attr-defined]
        if getattr(self, "_hf_peft_config_loaded", False):
            warnings.warn(
                f"transformers saves only the adapter; its locality is that of the model it is made for, "
                f"{self.name_or_path!r}, which must be a saved localised model.",  # type: ignore[attr-defined]
                stacklevel=3,
            )
        elif is_main_process:
            persistence.save_tensors(state, folder)
            save_card(self, folder)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The dynamic class cannot be found by name, so pickle the base class and swap when loading.
        reduced: tuple[Any, ...] = super().__reduce_ex__(protocol)  # type: ignore[assignment]
        return (_blank, (type(self).__mro__[2],), *reduced[2:])


def _blank(base: type[Any]) -> Any:
    cls = _localised_class(base)  # type: ignore[arg-type]
    return cls.__new__(cls)


@functools.cache
def _localised_class(base: Any) -> Any:
    """A subclass with the same name, so that code which looks at class names or modules finds what it knows."""
    cls: Any = type(base.__name__, (LocalisedModel, base), {"__module__": base.__module__, "__doc__": base.__doc__})
    signature = inspect.signature(base.forward)
    block_ids = inspect.Parameter("block_ids", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Tensor | None)
    positional = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    variable = [p for p in signature.parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD]

    # torch.compile passes over this frame and the blocks, and compiles the model itself.
    @functools.partial(torch.compiler.disable, recursive=False)
    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return LocalisedModel.forward(self, *args, **kwargs)

    # Trainer's column filter, find_labels and generate's argument check all read the signature.
    forward.__signature__ = signature.replace(parameters=[*positional, block_ids, *variable])
    cls.forward = forward
    return cls


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _layout(state: LocalityState, block_ids: Tensor | None, arguments: dict[str, Any], *, use_cache: bool) -> Layout:
    """Blocks and sinks for one forward pass, from what the caller passed."""
    input_ids, mask = arguments.get("input_ids"), arguments.get("attention_mask")
    cache, positions = arguments.get("past_key_values"), arguments.get("position_ids")
    past = int(cache.get_seq_length()) if cache is not None else 0
    if past and block_ids is None:
        raise ProlocError(
            f"the cache holds {past} tokens whose blocks are not known here; pass block_ids [batch, past + seq], "
            "or use generate(), which does."
        )
    given = input_ids if input_ids is not None else arguments.get("inputs_embeds")
    if block_ids is not None and given is not None:
        wanted = (given.shape[0], past + given.shape[1])
        if tuple(block_ids.shape) != wanted:
            raise ProlocError(f"block_ids are {tuple(block_ids.shape)}; [batch, past + seq] = {wanted} is needed.")
    starts = None
    if mask is None and cache is None and positions is not None and given is not None:
        packed = find_packed_sequence_indices(positions.expand(given.shape[0], -1))
        if packed is not None:
            if use_cache:
                raise ProlocError(
                    "position_ids say that rows hold several packed sequences, which transformers keeps apart only "
                    "without a cache: pass use_cache=False."
                )
            starts = torch.diff(packed, dim=1, prepend=packed[:, :1] - 1) != 0
    reference = block_ids if block_ids is not None else input_ids
    valid = _valid(mask, reference) if reference is not None else None
    return state.layout(input_ids, block_ids, valid, starts)


def _valid(mask: Any, like: Tensor) -> Tensor | None:
    """The 2D padding mask as bool ``[batch, past + seq]``, None = no padding.

    A prepared 4D relation (static caches) no longer holds the padding, but then the blocks were computed with it.
    """
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return None
    if mask.shape[1] < like.shape[1]:
        raise ProlocError(
            f"attention_mask covers {mask.shape[1]} tokens; [batch, past + seq] = {like.shape[1]} is needed."
        )
    return mask[:, : like.shape[1]].bool()
