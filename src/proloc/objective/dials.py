"""One model for the whole dial: every optimiser step is tuned at a position of its own (ours)."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from proloc.errors import ProlocError


@dataclass(frozen=True)
class DialSampler:
    """Draws the dial's position for an optimiser step; the draw depends on seed and step alone, so runs resume exactly.

    Attributes:
        seed: of the run.
        positions: to draw from, all equally likely; None = uniform on [0, 1].
    """

    seed: int
    positions: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.positions is not None and (
            not self.positions or not all(0.0 <= each <= 1.0 for each in self.positions)
        ):
            raise ProlocError(f"the dial is drawn from {list(self.positions)}; give positions in [0, 1].")

    def at(self, step: int) -> float:
        """Where the dial stands at optimiser step ``step``, in [0, 1]."""
        random = Random(f"dial {self.seed} {step}")
        return random.random() if self.positions is None else random.choice(self.positions)
