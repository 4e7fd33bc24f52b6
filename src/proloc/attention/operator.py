"""Turns a pair of functions, forward and backward, into one differentiable operator that torch.compile sees as a unit.

Both fast backends have the same shape: tensors in, output and statistics out, and a backward pass that needs the
inputs, the output, its log-sum and the fidelity, but no weights.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, library

from proloc.attention.layout import KeyRanges
from proloc.attention.result import Attention, Wanted
from proloc.errors import ProlocError

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
Gradients = tuple[Tensor, Tensor, Tensor]


class Kernel(Protocol):
    """The two functions behind an operator; q, k, v are ``[batch, head, row, head_dim]`` and never empty."""

    def forward(
        self,
        qkv: tuple[Tensor, Tensor, Tensor],
        ranges: KeyRanges,
        retain: Tensor,
        scaling: float,
        outputs: Outputs,
    ) -> None:
        """Fill ``outputs``: output ``[batch, query, head, head_dim]``; log-sum, fidelity, sink mass and entropy
        ``[batch, head, query]`` in float32, the last three empty where they are not wanted."""
        ...

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
        """The gradients of q, k and v, laid out like ``new_gradients``."""
        ...


class Operator:
    """A kernel behind ``result.Backend``.

    Args:
        name: of the operator in torch's registry, after "proloc::", and of the backend in messages.
        kernel: computes it.
        device: where it runs; None = anywhere.
    """

    def __init__(self, name: str, kernel: Kernel, device: str | None) -> None:
        self._name = name
        self._compute = _computing(kernel)
        self.registered = _register(name, kernel, self._compute, device)

    def __call__(
        self,
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
        """See ``result.Backend``; sink mass and entropy carry no gradient.

        Raises:
            ProlocError: dropout, softcap, a dtype but float32 and bfloat16, a retain with gradient, or shapes that do
                not fit each other.
        """
        if dropout or softcap is not None:
            raise ProlocError(f"attention {self._name!r} has no dropout and no softcap; use 'auto' or 'reference'.")
        if query.dtype not in (torch.float32, torch.bfloat16):
            raise ProlocError(f"attention {self._name!r} takes float32 or bfloat16, not {query.dtype}.")
        if retain.requires_grad:
            raise ProlocError(f"attention {self._name!r} has no gradient for retain; use 'reference'.")
        _check_shapes(query, key, value, ranges)
        # The dispatch of a registered operator costs as much as a token; only gradients and compilers need it.
        plain = not torch.is_grad_enabled() and not torch.compiler.is_compiling() and type(query) is Tensor
        output, _, fidelity, sink_mass, entropy = (self._compute if plain else self.registered)(
            query,
            key,
            value,
            ranges.visible_start,
            ranges.home_start,
            ranges.sinks,
            retain,
            ranges.query_offset,
            scaling,
            wanted != "nothing",
            wanted == "all",
        )
        if wanted == "all":
            return Attention(output, retain, fidelity, sink_mass, entropy)
        return Attention(output, retain, fidelity if wanted == "fidelity" else None)


def _check_shapes(query: Tensor, key: Tensor, value: Tensor, ranges: KeyRanges) -> None:
    """A kernel reads raw memory, so what it is told about it must be true."""
    batch, heads, queries, head_dim = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    fits = (
        key.shape == value.shape == (batch, kv_heads, keys, head_dim)
        and heads % max(kv_heads, 1) == 0
        and ranges.visible_start.shape == ranges.home_start.shape == (batch, queries)
        and ranges.sinks.shape == (batch, keys)
        and 0 <= ranges.query_offset <= keys - queries
    )
    parts = (query, key, value, ranges.visible_start, ranges.home_start, ranges.sinks)
    kinds = [part.dtype for part in parts] == [*[query.dtype] * 3, torch.int32, torch.int32, torch.bool]
    if not fits or not kinds or len({part.device for part in parts}) != 1:
        shown = ", ".join(f"{tuple(part.shape)} {str(part.dtype).removeprefix('torch.')}" for part in parts)
        raise ProlocError(
            "query, key, value, visible_start, home_start and sinks do not fit each other: "
            f"{shown}, query_offset {ranges.query_offset}."
        )


def _outputs(query: Tensor, fidelity: bool, statistics: bool) -> Outputs:
    batch, heads, queries, head_dim = query.shape
    output = query.new_empty(batch, queries, heads, head_dim)
    kept = (queries, queries * fidelity, queries * statistics, queries * statistics)
    lse, *others = (query.new_empty((batch, heads, rows), dtype=torch.float32) for rows in kept)
    return output, lse, others[0], others[1], others[2]


def new_gradients(query: Tensor, key: Tensor, value: Tensor) -> Gradients:
    """Room for the gradients of q, k and v, in memory ``[batch, row, head, head_dim]``: projections want them so."""
    query, key, value = (part.new_empty(part.transpose(1, 2).shape).transpose(1, 2) for part in (query, key, value))
    return query, key, value


def _computing(kernel: Kernel) -> Any:
    """The forward function of an operator."""

    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        visible_start: Tensor,
        home_start: Tensor,
        sinks: Tensor,
        retain: Tensor,
        query_offset: int,
        scaling: float,
        fidelity: bool,
        statistics: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        outputs = _outputs(query, fidelity, statistics)
        if query.numel():
            ranges = KeyRanges(visible_start, home_start, sinks, query_offset)
            kernel.forward((query, key, value), ranges, retain, scaling, outputs)
        return outputs

    return forward


def _register(name: str, kernel: Kernel, compute: Any, device: str | None) -> Any:
    forward = library.custom_op(f"proloc::{name}_attention", compute, mutates_args=(), device_types=device)

    @library.custom_op(f"proloc::{name}_attention_backward", mutates_args=(), device_types=device)
    def backward(
        grad_output: Tensor,
        grad_fidelity: Tensor | None,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        visible_start: Tensor,
        home_start: Tensor,
        sinks: Tensor,
        retain: Tensor,
        query_offset: int,
        scaling: float,
        output: Tensor,
        lse: Tensor,
        fidelity: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if query.numel() == 0:
            grads = new_gradients(query, key, value)
            for part in grads:
                part.zero_()
            return grads
        ranges, qkv = KeyRanges(visible_start, home_start, sinks, query_offset), (query, key, value)
        return kernel.backward(grad_output, grad_fidelity, qkv, ranges, retain, scaling, output, lse, fidelity)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
        *tensors, retain, query_offset, scaling, _, _ = inputs
        result, lse, fidelity, sink_mass, entropy = output
        # A dial may be turned in place before backward() runs; the gradient belongs to where it stood.
        ctx.save_for_backward(*tensors, retain.clone(), result, lse, fidelity)
        ctx.query_offset, ctx.scaling = query_offset, scaling
        ctx.mark_non_differentiable(lse, sink_mass, entropy)
        ctx.set_materialize_grads(False)

    def run_backward(
        ctx: Any, grad_output: Tensor | None, _lse: None, grad_fidelity: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        *inputs, output, lse, fidelity = ctx.saved_tensors
        if grad_output is None:
            grad_output = torch.zeros_like(output)
        if fidelity.numel() == 0:
            grad_fidelity = None
        grads = backward(grad_output, grad_fidelity, *inputs, ctx.query_offset, ctx.scaling, output, lse, fidelity)
        return (*grads, *[None] * 8)

    forward.register_fake(lambda query, *inputs: _outputs(query, inputs[-2], inputs[-1]))
    backward.register_fake(lambda grad_output, grad_fidelity, query, key, value, *_: new_gradients(query, key, value))
    forward.register_autograd(run_backward, setup_context=setup_context)
    return forward
