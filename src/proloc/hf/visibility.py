"""Which keys transformers lets every query see, as ranges; worked out without a matrix for the usual masks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function, sdpa_mask, sliding_window_causal_mask_function


@dataclass(frozen=True)
class MaskRequest:
    """What transformers passes to a mask function.

    Attributes:
        batch_size: rows.
        q_length: queries.
        kv_length: keys that the cache holds, room not yet filled included.
        q_offset: position of the first query in the text.
        kv_offset: position of the first key in the text.
        mask_function: of (batch, head, query, key) positions in the text.
        attention_mask: bool ``[batch, text]``, False at padding; None = no padding.
        use_vmap: the mask function takes single positions only.
        device: where to.
    """

    batch_size: int
    q_length: int
    kv_length: int
    q_offset: int
    kv_offset: int
    mask_function: Callable[..., Any]
    attention_mask: Tensor | None
    use_vmap: bool
    device: torch.device | str

    def visible(self) -> Tensor:
        """Bool ``[batch, 1, query, key]``."""
        mask: Tensor = sdpa_mask(
            batch_size=self.batch_size,
            q_length=self.q_length,
            kv_length=self.kv_length,
            q_offset=self.q_offset,
            kv_offset=self.kv_offset,
            mask_function=self.mask_function,
            attention_mask=self.attention_mask,
            allow_is_causal_skip=False,
            use_vmap=self.use_vmap,
            device=self.device,
        )
        return mask.expand(self.batch_size, -1, -1, -1)

    def query_positions(self) -> Tensor:
        """Where the queries stand among the keys, ``[query]``."""
        return torch.arange(self.q_length, device=self.device) + (self.q_offset - self.kv_offset)


def visible_starts(request: MaskRequest) -> Tensor | None:
    """The first key that every query sees, int64 ``[batch, query]`` among the keys; it sees all from there to itself.

    A query that sees nothing, or not itself (padding), gets a start after itself. None where the keys that some other
    query sees are no such range.
    """
    window = _window(request.mask_function)
    if window is None or request.use_vmap:
        return _from_matrix(request)
    positions = request.query_positions()
    starts = (positions - window + 1).clamp_min(0) if window else torch.zeros_like(positions)
    starts = starts.expand(request.batch_size, -1)
    if request.attention_mask is None:
        return starts
    end = request.kv_offset + request.kv_length
    valid = torch.nn.functional.pad(request.attention_mask, (0, max(0, end - request.attention_mask.shape[1])))
    valid = valid[:, request.kv_offset : end].to(request.device).bool()
    first = valid.int().argmax(dim=1, keepdim=True)
    last = valid.shape[1] - 1 - valid.int().flip(1).argmax(dim=1, keepdim=True)
    if bool((valid.sum(dim=1, keepdim=True) != last - first + 1).logical_and(valid.any(dim=1, keepdim=True)).any()):
        return None  # padding between real tokens
    real = valid.gather(1, positions.expand(request.batch_size, -1))
    return torch.where(real, torch.maximum(starts, first), positions + 1)


def _window(mask_function: Callable[..., Any]) -> int | None:
    """0 for a plain causal mask, the width of a sliding window, None for any other mask."""
    if mask_function is causal_mask_function:
        return 0
    usual = sliding_window_causal_mask_function(1)
    if getattr(mask_function, "__code__", None) is not usual.__code__:
        return None
    parts, wanted = (_closure(function)[0] for function in (mask_function, usual))
    if len(parts) != len(wanted) or any(a.__code__ is not b.__code__ for a, b in zip(parts, wanted, strict=True)):
        return None
    width = _closure(parts[0])[0]
    return width if isinstance(width, int) and width > 0 else None


def _closure(function: Callable[..., Any]) -> list[Any]:
    return [cell.cell_contents for cell in function.__closure__ or ()]


def _from_matrix(request: MaskRequest) -> Tensor | None:
    visible = request.visible()[:, 0]
    positions = request.query_positions()
    starts = visible.int().argmax(dim=-1)
    itself = visible.gather(2, positions.clamp(0, visible.shape[-1] - 1)[None, :, None].expand(len(visible), -1, 1))
    keys = torch.arange(visible.shape[-1], device=visible.device)
    wanted = (keys >= starts[..., None]) & (keys <= positions[:, None])
    if bool(((visible != wanted).any(dim=-1) & itself[..., 0]).any()):
        return None
    return torch.where(itself[..., 0], starts, positions + 1)
