"""How far fast attention is from a float64 oracle, beside PyTorch's own attention on the same numbers."""

from collections.abc import Callable
from typing import Any

import torch

from proloc.attention import plain, reference
from proloc.attention.layout import KeyRanges
from proloc.attention.proof import BACKENDS

HEADS, HEAD_DIM = 2, 64
NAMES = ("output", "fidelity", "gradient of q", "gradient of k", "gradient of v")
LIMIT = {torch.float32: 2e-6, torch.bfloat16: 1e-2}  # wanted, relative to the answer's largest entry
FIDELITY_LIMIT = {torch.float32: 5e-6, torch.bfloat16: 1e-2}


def errors(ranges: KeyRanges) -> list[dict[str, object]]:
    """Rows: for every type, dial, way and answer the largest difference, as it is and over the answer's largest entry.

    The loss is a random sum of outputs and undialled fidelities; queries, keys and values are standard normal.
    """
    generator = torch.Generator().manual_seed(0)
    length = ranges.visible_start.shape[1]
    qkv = [torch.randn(1, HEADS, length, HEAD_DIM, generator=generator) for _ in range(3)]
    grads = [
        torch.randn(1, length, HEADS, HEAD_DIM, generator=generator),
        torch.randn(1, HEADS, length, generator=generator),
    ]
    rows: list[dict[str, object]] = []
    for dtype in (torch.float32, torch.bfloat16):
        given = [part.to(dtype) for part in (*qkv, grads[0])]
        given.append(grads[1])
        oracle = _answers(reference.attend_ranges, given, torch.float64, ranges, 1.0, "nothing")
        rows += _compare("PyTorch's own", dtype, 0.0, _answers(plain.attend_ranges, given, dtype, ranges, 1.0), oracle)
        for dial in (0.0, 0.5, 1.0):
            oracle = _answers(reference.attend_ranges, given, torch.float64, ranges, 1.0 - dial, "fidelity")
            for name in ("fused", "flash"):
                found = _answers(BACKENDS[name], given, dtype, ranges, 1.0 - dial, "fidelity")
                rows += _compare(name, dtype, dial, found, oracle)
    return rows


def _answers(
    attend: Callable[..., Any],
    given: list[torch.Tensor],
    dtype: torch.dtype,
    ranges: KeyRanges,
    retain: float,
    wanted: str = "nothing",
) -> dict[str, torch.Tensor]:
    inputs = [part.to(dtype).requires_grad_() for part in given[:3]]
    share = torch.tensor(retain, dtype=torch.float64)
    result = attend(*inputs, ranges, share, scaling=HEAD_DIM**-0.5, wanted=wanted)
    parts = [part for part in (result.output, result.fidelity_undialled) if part is not None]
    weights = [weight.to(part.dtype) for weight, part in zip(given[3:], parts, strict=False)]
    found = dict(zip(NAMES[2:], torch.autograd.grad(parts, inputs, weights), strict=True))
    return found | {name: part.detach() for name, part in zip(NAMES[:2], parts, strict=False)}


def _compare(
    way: str, dtype: torch.dtype, dial: float, found: dict[str, torch.Tensor], oracle: dict[str, torch.Tensor]
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for name in (name for name in NAMES if name in found):
        error = float((found[name].double() - oracle[name]).abs().max())
        row = {"way": way, "dtype": str(dtype).removeprefix("torch."), "dial": dial, "what": name, "absolute": error}
        row |= {"relative": error / float(oracle[name].abs().max())}
        rows.append(row | {"limit": (FIDELITY_LIMIT if name == "fidelity" else LIMIT)[dtype]})
    return rows
