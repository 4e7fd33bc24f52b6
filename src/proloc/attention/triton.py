"""The fused kernels of ``triton_kernels`` behind ``operator.Kernel``.

Numerics are tested under Triton's interpreter; they have not been run or tuned on a GPU by this project, and ``choose``
uses them only after they have answered like the reference on the machine at hand.
"""

import math
from typing import Any

import torch
from torch import Tensor

from proloc.attention.layout import KeyRanges
from proloc.attention.operator import Gradients, Operator, Outputs, new_gradients
from proloc.errors import ProlocError

Heads = tuple[Tensor, Tensor, Tensor]
TILE = 64
SMALLEST = 1e-30


class TritonKernel:
    """One forward kernel, two backward kernels; retain stays on its device and is never waited for."""

    def forward(self, qkv: Heads, ranges: KeyRanges, retain: Tensor, scaling: float, outputs: Outputs) -> None:
        kernels = _kernels()
        output, lse, fidelity, sink_mass, entropy = outputs
        query, key, value = (_dense(part) for part in qkv)
        result = output.transpose(1, 2)
        batch, heads, queries, head_dim = query.shape
        kernels.forward[(-(-queries // TILE), batch * heads)](
            *(query, key, value, result),
            *_range_tensors(ranges, retain),
            *(lse, fidelity, sink_mass, entropy),
            *_strides(query, key, value, result),
            *_sizes(query, key, ranges),
            scaling / math.log(2.0),
            **_tiles(head_dim),
            FIDELITY=fidelity.numel() > 0,
            STATISTICS=entropy.numel() > 0,
        )

    def backward(
        self,
        grad_output: Tensor,
        grad_fidelity: Tensor | None,
        qkv: Heads,
        ranges: KeyRanges,
        retain: Tensor,
        scaling: float,
        output: Tensor,
        lse: Tensor,
        fidelity: Tensor,
    ) -> Gradients:
        kernels, grads = _kernels(), new_gradients(*qkv)
        query, key, value = (_dense(part) for part in qkv)
        grad = _dense(grad_output.transpose(1, 2))
        batch, heads, queries, head_dim = query.shape
        delta = (grad.float() * output.transpose(1, 2).float()).sum(-1)
        constants = _constants(delta, lse, fidelity, grad_fidelity, retain.to(lse))
        shared = (*_range_tensors(ranges, retain), *constants)
        inputs = (query, key, value, grad)
        sizes = (*_sizes(query, key, ranges), scaling / math.log(2.0), scaling)
        options = _tiles(head_dim) | {"FIDELITY": grad_fidelity is not None}
        kernels.backward_query[(-(-queries // TILE), batch * heads)](
            *inputs, grads[0], *shared, *_strides(*inputs, grads[0]), *sizes, **options
        )
        kernels.backward_key[(-(-key.shape[2] // TILE), batch * key.shape[1])](
            *inputs, *grads[1:], *shared, *_strides(*inputs, grads[1]), *sizes, **options
        )
        return grads


def _constants(
    delta: Tensor, lse: Tensor, fidelity: Tensor, grad: Tensor | None, retain: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-sum and shift of home keys, then of away keys, each ``[batch, head, query]``."""
    some = retain > SMALLEST
    share = retain.clamp_min(SMALLEST)
    scaled = lse - share.log2()
    if grad is None:
        return lse, delta, torch.where(some, scaled, 1e30).contiguous(), delta
    slope = grad * (fidelity + retain * (1 - fidelity))
    undialled = torch.where(fidelity > SMALLEST, lse - fidelity.clamp_min(SMALLEST).log2(), 1e30)
    away_shift = torch.where(some, delta + slope * fidelity / share, grad * fidelity)
    away_sum = torch.where(some, scaled, undialled)
    return lse, delta - slope * (1 - fidelity), away_sum.contiguous(), away_shift.contiguous()


def _kernels() -> Any:
    try:
        from proloc.attention import triton_kernels
    except ImportError as error:
        raise ProlocError(f"Triton is not installed: {error}") from error
    return triton_kernels


def _range_tensors(ranges: KeyRanges, retain: Tensor) -> tuple[Tensor, ...]:
    share = torch.where(retain > SMALLEST, retain, 0.0).to(ranges.sinks.device, torch.float32)
    return (
        ranges.visible_start.contiguous(),
        ranges.home_start.contiguous(),
        ranges.sinks.contiguous().view(torch.uint8),
        share,
    )


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()[:3]]


def _sizes(query: Tensor, key: Tensor, ranges: KeyRanges) -> tuple[int, ...]:
    heads, queries = query.shape[1:3]
    return heads, heads // key.shape[1], queries, key.shape[2], ranges.query_offset


def _tiles(head_dim: int) -> dict[str, int]:
    return {"D": head_dim, "WIDTH": max(16, 1 << (head_dim - 1).bit_length()), "M": TILE, "N": TILE}


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


attend_ranges = Operator("triton", TritonKernel(), None)
