"""Fast backends prove themselves once per process: a private operator may change, and a compiler may be wrong."""

from functools import cache
from typing import Literal

import torch
from torch import Tensor

from proloc.attention import flash, flex, fused, reference, triton
from proloc.attention.layout import KeyRanges
from proloc.attention.result import Backend

Fast = Literal["flash", "flex", "fused", "triton"]
BACKENDS: dict[Fast, Backend] = {
    "flash": flash.attend_ranges,
    "flex": flex.attend_ranges,
    "fused": fused.attend_ranges,
    "triton": triton.attend_ranges,
}
DEVICE: dict[Fast, str] = {"flash": "cpu", "flex": "cuda", "fused": "cpu", "triton": "cuda"}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 6e-2}


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def objection(name: Fast, dtype: torch.dtype) -> str | None:
    """Why a backend must not be used in this process, or None: it answers as the reference does."""
    return _objection(name, dtype)


@cache
def _objection(name: Fast, dtype: torch.dtype) -> str | None:
    if dtype not in TOLERANCE:
        return f"it does not compute {dtype}"
    # The first use may be inside a checkpointed layer, whose hooks must not count what is saved here.
    own_hooks = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(DEVICE[name], enabled=False), own_hooks:
        try:
            for retain in (0.5, 0.0):
                error = _largest_error(name, dtype, retain)
                if not error <= TOLERANCE[dtype]:
                    return f"it is off by {error:.1e} from the reference on this machine"
        except Exception as problem:  # compilers and private operators fail in ways of their own
            return str(problem) or type(problem).__name__
    return None


def _largest_error(name: Fast, dtype: torch.dtype, retain: float) -> float:
    """Largest difference to the float64 reference in any answer or gradient, relative to the largest value of each."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 70, 24), (2, 2, 70, 24), (2, 2, 70, 24))
    qkv = [torch.randn(shape, generator=generator, device="cpu").to(dtype) for shape in shapes]
    opens = torch.rand(2, 70, generator=generator, device="cpu") < 0.1
    start = torch.tensor([[0], [3]], device="cpu").expand(2, 70)
    sinks = torch.arange(70, device="cpu") == start[:, :1]
    ranges = KeyRanges.from_blocks(opens.long().cumsum(1), sinks, start)
    oracle = _answers(reference.attend_ranges, [part.double() for part in qkv], ranges, retain)
    device = DEVICE[name]
    moved = KeyRanges(ranges.visible_start.to(device), ranges.home_start.to(device), ranges.sinks.to(device))
    answers = (_answers(BACKENDS[name], [part.to(device) for part in qkv], moved, retain), oracle)
    errors = [(a.cpu().double() - b).abs().max() / b.abs().max() for a, b in zip(*answers, strict=True)]
    return float(torch.stack(errors).max())


def _answers(backend: Backend, tensors: list[Tensor], ranges: KeyRanges, retain: float) -> list[Tensor]:
    inputs = [tensor.requires_grad_() for tensor in tensors]
    share = torch.tensor(retain, dtype=torch.float64, device=tensors[0].device)
    attention = backend(inputs[0], inputs[1], inputs[2], ranges, share, scaling=0.3, wanted="all")
    assert attention.fidelity_undialled is not None
    assert attention.entropy_bits is not None
    loss = attention.output.double().square().sum() + attention.fidelity_undialled.double().square().sum()
    grads = torch.autograd.grad(loss, inputs)
    return [attention.output.detach(), attention.fidelity_undialled.detach(), attention.entropy_bits.detach(), *grads]
