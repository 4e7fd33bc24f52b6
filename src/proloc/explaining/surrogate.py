"""Attributions that are fitted to ablations (ContextCite's, AT2's), and those that know nothing of the model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from statsmodels.api import OLS
from torch import Tensor

from proloc.errors import ProlocError
from proloc.explaining.passage import Passage

Values = NDArray[np.float64]
LASSO_ALPHA = 0.01
PENALTY = 1e-3


def logit(log_probs: ArrayLike) -> Values:
    """``log(p / (1 - p))`` from ``log p``."""
    values = np.minimum(np.asarray(log_probs, dtype=np.float64), -1e-12)
    return values - np.log(-np.expm1(values))


def lasso(kept: ArrayLike, log_probs: ArrayLike, alpha: float = LASSO_ALPHA) -> Values:
    """A sparse linear surrogate of the model's answer to ablations.

    ``min over w of 1/2n ||y - X w||^2 + alpha ||w||_1`` with X and y centred and scaled to standard deviation 1, y the
    logit of the target's probability; the weights are scaled back.

    Args:
        kept: bool ``[ablation, source]``.
        log_probs: ``[ablation]``, nats.
        alpha: of the penalty.

    Returns:
        ``[source]``; 0 for a source that is always or never kept, and everywhere where nothing varies.

    Source: ContextCite (arXiv 2409.00729).
    """
    features, answers = np.asarray(kept, dtype=np.float64), logit(log_probs)
    scale, spread = features.std(axis=0), answers.std()
    weights = np.zeros(features.shape[1])
    varies = scale > 0
    if spread == 0 or not varies.any():
        return weights
    standard = (features[:, varies] - features[:, varies].mean(axis=0)) / scale[varies]
    fitted = OLS((answers - answers.mean()) / spread, standard).fit_regularized(
        alpha=alpha, L1_wt=1.0, cnvrg_tol=1e-9, maxiter=200
    )
    weights[varies] = fitted.params / scale[varies] * spread
    return weights


@dataclass(frozen=True, kw_only=True)
class Example:
    """What one passage teaches about heads: attention ``[layer, head, source]``, and ablations with their outcomes."""

    attention: Tensor
    kept: NDArray[np.bool_]
    log_probs: Values


def learn_heads(examples: Sequence[Example], *, penalty: float = PENALTY, steps: int = 200) -> Tensor:
    """Weights of heads with which attention predicts ablations best.

    Maximises the mean over passages of the Pearson correlation between ``sum over kept sources of sum over heads of
    weight * attention`` and the logit of the target's probability, minus ``penalty`` times the number of heads times
    the squared distance from equal weights (of length 1, in units in which all heads vary alike), by L-BFGS from equal
    weights: with few passages it stays near the mean over heads.

    Args:
        examples: at least one with outcomes that vary, all of the same model.
        penalty: >= 0.
        steps: at most.

    Returns:
        ``[layer, head]``; the attribution of a source is the sum of weights times attention.

    Raises:
        ProlocError: no example with outcomes that vary.

    Source: AT2 (Cohen-Wang et al., arXiv 2504.13752) for linear weights of heads fitted to ablations; the penalty, the
    start and the optimiser are ours.
    """
    usable = [example for example in examples if np.ptp(example.log_probs) > 0]
    if not usable:
        raise ProlocError("weights of heads need at least one passage whose ablations differ in their outcome.")
    shape = usable[0].attention.shape[:2]
    pairs = []
    for example in usable:
        features = torch.from_numpy(example.kept).double() @ example.attention.flatten(0, 1).double().T
        answers = torch.from_numpy(logit(example.log_probs))
        pairs.append((features - features.mean(dim=0), (answers - answers.mean()) / answers.std(correction=0)))
    unit = torch.sqrt(torch.stack([features.square().mean(dim=0) for features, _ in pairs]).mean(dim=0)).clamp_min(1e-9)
    start = unit / unit.norm()
    weights = start.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([weights], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        correlations = []
        for features, answers in pairs:
            predicted = features @ (weights / unit)
            spread = predicted.square().mean().clamp_min(1e-24).sqrt()
            correlations.append((predicted / spread * answers).mean())
        total: Tensor = penalty * (weights - start).square().sum() * len(weights) - torch.stack(correlations).mean()
        weights.grad = torch.autograd.grad(total, weights)[0]
        return total

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    learned: Tensor = (weights.detach() / unit).reshape(shape)
    return learned


def headed(attention: Tensor, weights: Tensor) -> Values:
    """Attribution ``[source]`` from attention ``[layer, head, source]`` and weights of heads ``[layer, head]``."""
    found: Values = torch.einsum("lhs,lh->s", attention.double(), weights.double()).numpy()
    return found


def baselines(passage: Passage, seed: int) -> dict[str, Values]:
    """Attributions that know nothing of the model, ``[source]`` each.

    ``length``: tokens of the source, which is what uniform attention over the text gives. ``recency``: 1 over the
    distance in blocks from the asking one. ``random``: uniform in [0, 1).
    """
    distance = passage.asking - np.asarray(passage.sources, dtype=np.float64)
    return {
        "length": passage.membership.sum(dim=0).numpy(),
        "recency": 1.0 / distance,
        "random": np.random.default_rng(seed).random(len(passage.sources)),
    }
