"""Whether mixed precision is worth its name on this machine (ours)."""

import time
from collections.abc import Callable

SLOW = 2.0
_SIZE = 256
_REPEATS = 3


def precision_warning(precision: str) -> str | None:
    """A sentence for a study that asks for bf16 on a machine that computes it much more slowly than fp32, or None."""
    if precision != "bf16" or (slowdown := bf16_slowdown()) < SLOW:
        return None
    return (
        f'precision = "bf16": a matrix product in bf16 takes {slowdown:.0f} times as long as in fp32 on this machine, '
        'which has no hardware for it; precision = "fp32" is faster here.'
    )


def bf16_slowdown() -> float:
    """Time of a matrix product in bf16 over that in fp32, measured now in a few milliseconds; 0 on a GPU."""
    import torch

    if torch.cuda.is_available():
        return 0.0
    matrix = torch.ones(_SIZE, _SIZE)
    single, half = (_seconds(lambda part=part: part @ part) for part in (matrix, matrix.bfloat16()))  # type: ignore[misc]
    return half / single


def _seconds(work: Callable[[], object]) -> float:
    """The shortest of some runs, after one to warm up."""
    work()
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
