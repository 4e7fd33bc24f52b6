"""Dialled attention in one pass on a CPU: output, fidelity and entropy together, forward and backward (ours).

With s the scores in powers of two and w = retain, the 2^s of home keys (and sinks) sum to A, those of away keys to B:
``F = A / (A + B)``, and the dialled log-sum is ``L_d = log2(A + w B)``. Entropy is ``-sum p log2 p``, kept along with
the running softmax. In the backward pass a gradient g on F costs nothing more, because it only shifts the row term:

    dS = P * (dP - D_home),  D_home = <dO, O> - g Z (1 - F)        for home keys, Z = F + w (1 - F)
    dS = P * (dP - D_away),  D_away = <dO, O> + g Z F / w          for away keys

At w = 0 only home keys are read; if fidelity is wanted, a second pass over away keys computes their log-sum alone.
"""

import ctypes

import torch
from torch import Tensor

from proloc.attention.compile import load_kernel
from proloc.attention.layout import KeyRanges
from proloc.attention.operator import Gradients, Operator, Outputs, new_gradients

SMALLEST = 1e-30  # a smaller retain is 0 to float32 weights
_QKV = ("query", "key", "value")


class _Strided(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("head", ctypes.c_int64),
        ("row", ctypes.c_int64),
    )


class _Problem(ctypes.Structure):
    """Field by field the ``Problem`` of ``fused.cpp``."""

    _fields_ = (
        *((name, _Strided) for name in ("query", "key", "value", "output")),
        *((name, _Strided) for name in ("grad_output", "grad_query", "grad_key", "grad_value")),
        *((name, ctypes.c_void_p) for name in ("visible_start", "home_start", "sinks")),
        *((name, ctypes.c_void_p) for name in ("lse", "fidelity", "sink_mass", "entropy", "grad_fidelity")),
        *((name, ctypes.c_int64) for name in ("batch", "heads", "kv_heads", "queries", "keys", "head_dim")),
        *((name, ctypes.c_int64) for name in ("query_offset", "bfloat16", "threads")),
        *((name, ctypes.c_double) for name in ("scaling", "retain")),
    )


class FusedKernel:
    """``fused.cpp`` behind ``operator.Kernel``; bfloat16 is computed in float32."""

    def forward(
        self, qkv: tuple[Tensor, Tensor, Tensor], ranges: KeyRanges, retain: Tensor, scaling: float, outputs: Outputs
    ) -> None:
        output, lse, fidelity, sink_mass, entropy = outputs
        rows = {**_rows(qkv), "output": output.transpose(1, 2)}
        _run(
            "proloc_forward", rows, ranges, float(retain), scaling, lse, fidelity, sink_mass=sink_mass, entropy=entropy
        )

    def backward(
        self,
        grad_output: Tensor,
        grad_fidelity: Tensor | None,
        qkv: tuple[Tensor, Tensor, Tensor],
        ranges: KeyRanges,
        retain: Tensor,
        scaling: float,
        output: Tensor,
        lse: Tensor,
        fidelity: Tensor,
    ) -> Gradients:
        grads = new_gradients(*qkv)
        rows = {**_rows(qkv), "output": output.transpose(1, 2), "grad_output": _dense(grad_output).transpose(1, 2)}
        rows |= {f"grad_{name}": grad for name, grad in zip(_QKV, grads, strict=True)}
        extra = {} if grad_fidelity is None else {"grad_fidelity": grad_fidelity.float().contiguous()}
        _run("proloc_backward", rows, ranges, float(retain), scaling, lse, fidelity, **extra)
        return grads


def _run(
    function: str,
    rows: dict[str, Tensor],
    ranges: KeyRanges,
    retain: float,
    scaling: float,
    lse: Tensor,
    fidelity: Tensor,
    **statistics: Tensor,
) -> None:
    """Call the kernel: ``rows`` are ``[batch, head, row, head_dim]``, the rest as in ``Problem``; empty = unwanted."""
    query, key = rows["query"], rows["key"]
    starts = {"visible_start": ranges.visible_start, "home_start": ranges.home_start, "sinks": ranges.sinks}
    flat = {name: part.contiguous() for name, part in starts.items()} | {"lse": lse, "fidelity": fidelity} | statistics
    problem = _Problem(
        **{name: _Strided(part.data_ptr(), *part.stride()[:3]) for name, part in rows.items()},
        **{name: part.data_ptr() if part.numel() else None for name, part in flat.items()},
        batch=query.shape[0],
        heads=query.shape[1],
        kv_heads=key.shape[1],
        queries=query.shape[2],
        keys=key.shape[2],
        head_dim=query.shape[3],
        query_offset=ranges.query_offset,
        bfloat16=query.dtype == torch.bfloat16,
        threads=torch.get_num_threads(),
        scaling=scaling,
        retain=retain if retain >= SMALLEST else 0.0,
    )
    getattr(load_kernel(), function)(ctypes.byref(problem))


def _rows(qkv: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
    return {name: _dense(part) for name, part in zip(_QKV, qkv, strict=True)}


def _dense(tensor: Tensor) -> Tensor:
    """The tensor with a last axis without gaps."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


attend_ranges = Operator("fused", FusedKernel(), "cpu")
