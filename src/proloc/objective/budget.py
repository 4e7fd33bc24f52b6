"""As local as a budget allows: locality is pushed up while the cross-entropy stays within a cost of the reference's.

The constraint is ``CE_t - CE_ref_t <= log(1 + cost)``: the model's cross-entropy on the batch of step t against that of
the same model tuned undialled on the same batches with the same seed, so that what a batch does to both cancels. A
multiplier mu answers it as in GECO (Rezende and Viola 2018, arXiv 1810.00597, algorithm 1; for attention arXiv
2512.05865), on an exponential moving average of the violation in units of what is allowed:

    log mu  <-  log mu + rate * clip(average((CE_t - CE_ref_t) / log(1 + cost) - 1), -1, 1),   kept in [-RANGE, RANGE]

What is pushed has one share in [0, 1], 0 = not local at all, which answers the multiplier's logarithm linearly (ours:
neither the number of hard layers nor a fidelity target has a gradient to follow):

    share = (1 - log mu / RANGE) / 2

It starts at 0, can be at 1 after a quarter of the steps, and is held after four fifths of them, so that the weights
settle under the locality that the model ends with.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from proloc.errors import ProlocError
from proloc.objective.learned import LIMIT, LearnedSchedule

Push = Literal["hard-layers", "lambda", "phi", "schedule"]

RANGE = 5.0
RISE = 0.25  # of all steps: from nothing local to everything, while nothing of the budget is used
HOLD = 0.8  # of all steps: from then on the share stays
WINDOW = 0.05  # of all steps, of the moving average


class Budget:
    """The multiplier of one run and what it says about locality.

    Args:
        reference: cross-entropy of the undialled run at every step, in nats per token.
        cost: allowed rise of the perplexity as a share, 0.01 = one per cent.
        push: "hard-layers": that share of all layers, counted from the last, is hard, the one at the edge in part;
            "lambda": the schedule is multiplied by the share; "phi": the share is the fidelity asked for; "schedule":
            every layer learns a lambda of its own (``learned``), and the share is their mean.

    Raises:
        ProlocError: a cost of 0 or less, an unknown push, or no reference.
    """

    def __init__(self, reference: Sequence[float], *, cost: float, push: Push = "hard-layers") -> None:
        if not 0.0 < cost < float("inf"):
            raise ProlocError(f"the budget is {cost}; it must be a share above 0, for example 0.01 for one per cent.")
        if push not in get_args(Push):
            raise ProlocError(f"a budget cannot push {push!r}; choose one of {', '.join(get_args(Push))}.")
        if not reference:
            raise ProlocError("a budget needs the cross-entropy of the undialled run at every step.")
        self.reference, self.allowed, self.push = reference, math.log1p(cost), push
        self.log_multiplier, self.gap = RANGE, 0.0
        self._learned: LearnedSchedule | None = None

    @property
    def share(self) -> float:
        """How much of what is pushed is in force, in [0, 1]."""
        if self._learned is not None:
            return sum(self._learned.localities) / len(self._learned.localities)
        return min(1.0, max(0.0, (1 - self.log_multiplier / RANGE) / 2))

    def learns_at(self, step: int) -> bool:
        """Whether ``update`` wants a gradient of optimiser step ``step`` (counted from 1)."""
        return self.push == "schedule" and step <= HOLD * len(self.reference)

    def update(self, step: int, cross_entropy: float, gradient: Sequence[float] | None = None) -> dict[str, Any]:
        """Answer the cross-entropy of optimiser step ``step`` (counted from 1); what happened, for the log.

        Args:
            gradient: of the loss with respect to every lambda, where ``learns_at`` says so.

        Returns:
            ``share``, ``log_multiplier``, and ``gap``: the moving average of CE - CE_ref in nats; where lambda is
            learned, its ``logits`` and ``slopes`` too.

        Raises:
            ProlocError: the reference has no such step.
        """
        total = len(self.reference)
        if not 1 <= step <= total:
            raise ProlocError(f"the reference has {total} steps; there is no step {step} to compare with.")
        used = self.share
        weight = max(1 / step, 1 / max(1.0, WINDOW * total))  # a plain mean until the window is full
        self.gap += weight * (cross_entropy - self.reference[step - 1] - self.gap)
        if step <= HOLD * total:
            violation = min(1.0, max(-1.0, self.gap / self.allowed - 1))
            moved = self.log_multiplier + 2 * RANGE * violation / (RISE * total)
            self.log_multiplier = min(RANGE, max(-RANGE, moved))
        entry: dict[str, Any] = {"share": used, "log_multiplier": self.log_multiplier, "gap": self.gap}
        if self._learned is not None:
            if gradient is not None:
                self._learned.update(gradient, math.exp(self.log_multiplier) / self.allowed)
            entry |= {"logits": list(self._learned.logits), "slopes": list(self._learned.slopes)}
        return entry

    def restore(self, logged: Mapping[str, Any]) -> None:
        """Go on from what ``update`` returned last."""
        self.log_multiplier, self.gap = logged["log_multiplier"], logged["gap"]
        if self.push == "schedule":
            learned = self._schedule(len(logged["logits"]))
            learned.logits, learned.slopes = list(logged["logits"]), list(logged["slopes"])

    def localities(self, schedule: Sequence[float]) -> tuple[float, ...]:
        """lambda of every layer at the present share; ``schedule`` is what the model was localised with."""
        if self.push == "schedule":
            return self._schedule(len(schedule)).localities
        if self.push == "hard-layers":
            return hard_layers(self.share * len(schedule), len(schedule))
        return tuple(self.share * value for value in schedule) if self.push == "lambda" else tuple(schedule)

    def _schedule(self, num_layers: int) -> LearnedSchedule:
        if self._learned is None:
            self._learned = LearnedSchedule(num_layers, rate=2 * LIMIT / (RISE * len(self.reference)))
        return self._learned


def hard_layers(number: float, num_layers: int) -> tuple[float, ...]:
    """lambda_l with the last ``number`` layers hard; of a fraction, the first of them is so in part (ours)."""
    return tuple(min(1.0, max(0.0, number - (num_layers - 1 - layer))) for layer in range(num_layers))
