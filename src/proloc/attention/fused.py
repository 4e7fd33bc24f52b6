"""Dialled attention in one pass on a CPU: output, fidelity and entropy together, forward and backward (ours).

With s the scores, L the log-sum of 2^s over visible keys and w = retain, home keys (and sinks) sum to A, away keys to B:
``F = A / (A + B)``, and the dialled log-sum is ``L_d = log2(A + w B)``. Entropy is ``log2 Z - sum p log2 p``, kept along
with the running softmax. In the backward pass a gradient g on F costs nothing more, because it only shifts the row term

    dS = P * (dP - D_home),  D_home = <dO, O> - g Z (1 - F)        for home keys, Z = F + w (1 - F)
    dS = P * (dP - D_away),  D_away = <dO, O> + g Z F / w          for away keys

At w = 0 only home keys are read; if fidelity is wanted, a second pass over away keys computes their log-sum alone.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from proloc.attention.compile import load_kernel
from proloc.attention.layout import KeyRanges
from proloc.attention.result import Attention, Wanted
from proloc.errors import ProlocError

DTYPES = (torch.float32, torch.bfloat16)


class _Strided(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("head", ctypes.c_int64),
        ("row", ctypes.c_int64),
    )

    @classmethod
    def of(cls, tensor: Tensor) -> "_Strided":
        """Of a tensor ``[batch, head, row, head_dim]``."""
        return cls(tensor.data_ptr(), *tensor.stride()[:3])


class _Problem(ctypes.Structure):
    """Field by field the ``Problem`` of ``fused.cpp``."""

    _fields_ = (
        *((name, _Strided) for name in ("query", "key", "value", "output")),
        *((name, _Strided) for name in ("grad_output", "grad_query", "grad_key", "grad_value")),
        *((name, ctypes.c_void_p) for name in ("visible_start", "block_start", "sinks")),
        *((name, ctypes.c_void_p) for name in ("lse", "fidelity", "sink_mass", "entropy", "grad_fidelity")),
        *((name, ctypes.c_int64) for name in ("batch", "heads", "kv_heads", "queries", "keys", "head_dim")),
        *((name, ctypes.c_int64) for name in ("query_offset", "bfloat16", "threads")),
        *((name, ctypes.c_double) for name in ("scaling", "retain")),
    )


def attend_ranges(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ranges: KeyRanges,
    retain: Tensor,
    *,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    wanted: Wanted = "nothing",
) -> Attention:
    """``result.Backend`` for float32 and bfloat16 on a CPU (bfloat16 is computed in float32).

    Raises:
        ProlocError: dropout, softcap, another dtype or device, a retain with gradient, or no kernel (see ``compile``).
    """
    if dropout or softcap is not None:
        raise ProlocError("attention 'fused' has no dropout and no softcap; use 'auto' or 'reference'.")
    if query.dtype not in DTYPES or query.device.type != "cpu":
        raise ProlocError(f"attention 'fused' takes float32 or bfloat16 on a CPU, not {query.dtype} on {query.device}.")
    if retain.requires_grad:
        raise ProlocError("attention 'fused' has no gradient for retain.")
    output, _, fidelity, sink_mass, entropy = fused_attention(
        query,
        key,
        value,
        ranges.visible_start,
        ranges.block_start,
        ranges.sinks,
        retain,
        ranges.query_offset,
        scaling,
        wanted != "nothing",
        wanted == "all",
    )
    return Attention(
        output,
        retain,
        fidelity if wanted != "nothing" else None,
        sink_mass.detach() if wanted == "all" else None,
        entropy.detach() if wanted == "all" else None,
    )


def _outputs(query: Tensor, fidelity: bool, statistics: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, heads, queries, head_dim = query.shape
    rows = [(batch, heads, queries if kept else 0) for kept in (True, fidelity, statistics, statistics)]
    lse, *others = (query.new_empty(shape, dtype=torch.float32) for shape in rows)
    return query.new_empty(batch, queries, heads, head_dim), lse, others[0], others[1], others[2]


@torch.library.custom_op("proloc::fused_attention", mutates_args=(), device_types="cpu")
def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible_start: Tensor,
    block_start: Tensor,
    sinks: Tensor,
    retain: Tensor,
    query_offset: int,
    scaling: float,
    fidelity: bool,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Output ``[batch, query, head, head_dim]``; log-sum, fidelity, sink mass, entropy ``[batch, head, query]``."""
    outputs = _outputs(query, fidelity, statistics)
    if query.numel() == 0:
        return tuple(part.zero_() for part in outputs)  # type: ignore[return-value]
    query, key, value = (_rows(part) for part in (query, key, value))
    ranges = [part.contiguous() for part in (visible_start, block_start, sinks)]
    problem = _problem(query, key, value, ranges, retain, query_offset, scaling)
    problem.output = _Strided.of(outputs[0].transpose(1, 2))
    problem.lse = outputs[1].data_ptr()
    problem.fidelity, problem.sink_mass, problem.entropy = (
        part.data_ptr() if part.numel() else None for part in outputs[2:]
    )
    load_kernel().proloc_forward(ctypes.byref(problem))
    return outputs


@fused_attention.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible_start: Tensor,
    block_start: Tensor,
    sinks: Tensor,
    retain: Tensor,
    query_offset: int,
    scaling: float,
    fidelity: bool,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _outputs(query, fidelity, statistics)


@torch.library.custom_op("proloc::fused_attention_backward", mutates_args=(), device_types="cpu")
def fused_attention_backward(
    grad_output: Tensor,
    grad_fidelity: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible_start: Tensor,
    block_start: Tensor,
    sinks: Tensor,
    retain: Tensor,
    query_offset: int,
    scaling: float,
    output: Tensor,
    lse: Tensor,
    fidelity: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, each like its tensor."""
    grads = tuple(torch.empty_like(part, memory_format=torch.contiguous_format) for part in (query, key, value))
    if query.numel() == 0:
        return tuple(part.zero_() for part in grads)  # type: ignore[return-value]
    query, key, value, grad_output = (_rows(part) for part in (query, key, value, grad_output))
    ranges = [part.contiguous() for part in (visible_start, block_start, sinks)]
    problem = _problem(query, key, value, ranges, retain, query_offset, scaling)
    problem.output, problem.grad_output = (_Strided.of(part.transpose(1, 2)) for part in (output, grad_output))
    problem.grad_query, problem.grad_key, problem.grad_value = (_Strided.of(part) for part in grads)
    problem.lse = lse.data_ptr()
    if grad_fidelity is not None and fidelity.numel():
        grad_fidelity = grad_fidelity.float().contiguous()
        problem.fidelity, problem.grad_fidelity = fidelity.data_ptr(), grad_fidelity.data_ptr()
    load_kernel().proloc_backward(ctypes.byref(problem))
    return grads  # type: ignore[return-value]


@fused_attention_backward.register_fake
def _(
    grad_output: Tensor, grad_fidelity: Tensor | None, query: Tensor, key: Tensor, value: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.empty_like(part, memory_format=torch.contiguous_format) for part in (query, key, value))  # type: ignore[return-value]


def _problem(
    query: Tensor, key: Tensor, value: Tensor, ranges: list[Tensor], retain: Tensor, query_offset: int, scaling: float
) -> _Problem:
    problem = _Problem(query=_Strided.of(query), key=_Strided.of(key), value=_Strided.of(value))
    problem.visible_start, problem.block_start, problem.sinks = (part.data_ptr() for part in ranges)
    problem.batch, problem.heads, problem.queries, problem.head_dim = query.shape
    problem.kv_heads, problem.keys = key.shape[1], key.shape[2]
    problem.query_offset, problem.scaling, problem.retain = query_offset, scaling, float(retain)
    problem.bfloat16 = query.dtype == torch.bfloat16
    problem.threads = torch.get_num_threads()
    return problem


def _rows(tensor: Tensor) -> Tensor:
    """The tensor with a last axis without gaps."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, retain, query_offset, scaling, _, _ = inputs
    result, lse, fidelity, sink_mass, entropy = output
    # A dial may be turned in place before backward() runs; the gradient belongs to where it stood.
    ctx.save_for_backward(*tensors, retain.clone(), result, lse, fidelity)
    ctx.query_offset, ctx.scaling = query_offset, scaling
    ctx.mark_non_differentiable(lse, sink_mass, entropy)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_output: Tensor | None, _lse: None, grad_fidelity: Tensor | None, *_: None) -> Any:
    *inputs, output, lse, fidelity = ctx.saved_tensors
    if grad_output is None:
        grad_output = torch.zeros_like(output)
    grads = fused_attention_backward(
        grad_output, grad_fidelity, *inputs, ctx.query_offset, ctx.scaling, output, lse, fidelity
    )
    return (*grads, *[None] * 8)


fused_attention.register_autograd(_backward, setup_context=_setup_context)
