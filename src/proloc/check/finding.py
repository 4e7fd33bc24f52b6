"""What one check found, and how errors become verdicts."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Verdict = Literal["exact", "equal", "refused", "not applicable", "FAILED"]

# Largest difference from the float64 oracle over the largest logit, for float32 models.
LIMIT = 1e-4


@dataclass(frozen=True)
class Finding:
    """The outcome of one way of running a model.

    Attributes:
        way: short name, as in ``WAYS``.
        claim: what was to be shown, as a sentence.
        verdict: "exact" = no difference in any bit; "equal" = the error is within the limit; "refused" = proloc raises;
            "not applicable" = this model cannot be run that way, localised or not; "FAILED" = the claim does not hold.
        error: largest difference over the largest value it was compared with; None where nothing is compared.
        limit: what the error may be.
        note: the reason, in words a person can act on.
    """

    way: str
    claim: str
    verdict: Verdict
    error: float | None = None
    limit: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a check returns to the runner: an error to be judged, or why there is none."""

    error: float | None = None
    limit: float = LIMIT
    verdict: Verdict | None = None
    note: str = ""

    def judged(self) -> Verdict:
        if self.verdict is not None:
            return self.verdict
        if self.error is None or not self.error <= self.limit:  # not a number must fail too
            return "FAILED"
        return "exact" if self.error == 0 else "equal"


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference over the largest absolute value of ``theirs``; NaN anywhere gives NaN."""
    ours, theirs = ours.detach().double(), theirs.detach().double()
    if ours.shape != theirs.shape:
        return float("nan")
    largest = theirs.abs().max() if theirs.numel() else torch.ones(())
    return float((ours - theirs).abs().max() / largest.clamp_min(1e-12)) if ours.numel() else 0.0


def worst(errors: Iterable[float]) -> float:
    """The largest of some errors; not a number counts as the largest."""
    return float(torch.tensor(list(errors), dtype=torch.float64).max())  # max() of a tensor passes NaN on
