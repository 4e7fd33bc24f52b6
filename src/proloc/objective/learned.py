"""A lambda for every layer, learned by its own gradient against the price of the cross-entropy (ours).

With the multiplier mu of a budget, lambda_l goes up the gradient of ``mean lambda - mu * CE / allowed``:

    gain_l = 1 - (mu / allowed) * L * dCE/dlambda_l,   logit_l  <-  logit_l + rate * clip(gain_l, -1, 1)

with lambda = sigmoid(logit) and a moving average of the gradient. lambda stays in [0.01, 0.99], because the score of
an away key, log(1 - lambda), has no gradient at 1.
"""

import math
from collections.abc import Sequence

START, LIMIT = -4.0, math.log(0.99 / 0.01)
MEMORY = 0.9  # of the moving average


class LearnedSchedule:
    """Logits of lambda for every layer and the moving average of the loss's gradient with respect to lambda.

    Args:
        num_layers: of the model.
        rate: how far a logit can move in a step.
    """

    def __init__(self, num_layers: int, rate: float) -> None:
        self.rate = rate
        self.logits, self.slopes = [START] * num_layers, [0.0] * num_layers

    @property
    def localities(self) -> tuple[float, ...]:
        return tuple(1 / (1 + math.exp(-logit)) for logit in self.logits)

    def update(self, gradient: Sequence[float], price: float) -> None:
        """Answer one step.

        Args:
            gradient: of the loss with respect to every lambda, in nats per token.
            price: mu / allowed, in units of mean locality per nat.
        """
        layers = len(self.logits)
        self.slopes = [MEMORY * old + (1 - MEMORY) * new for old, new in zip(self.slopes, gradient, strict=True)]
        gains = (min(1.0, max(-1.0, 1 - price * layers * slope)) for slope in self.slopes)
        moved = (logit + self.rate * gain for logit, gain in zip(self.logits, gains, strict=True))
        self.logits = [min(LIMIT, max(-LIMIT, logit)) for logit in moved]
