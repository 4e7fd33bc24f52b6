"""Evaluation of a localised model on held-out windows: perplexity and every attention statistic, in one pass."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from proloc.errors import ProlocError
from proloc.hf import find_state, recording
from proloc.metrics import Averages

STATISTICS = (
    "fidelity",
    "fidelity_undialled",
    "fidelity_without_sinks",
    "fidelity_lift",
    "entropy_bits",
)


@dataclass(frozen=True)
class Evaluation:
    """Figures of one model on one text.

    Attributes:
        loss: cross-entropy in nats per predicted token.
        window_losses: the same for every window, in their order, so that models can be compared window by window.
        tokens: predicted tokens; the first of a window is not predicted.
        statistics: ``[layer][head]`` by name, see ``STATISTICS``.
        fidelity_uniform: fidelity of uniform attention over the visible keys.
        mean_block_length: tokens per block.
    """

    loss: float
    window_losses: list[float]
    tokens: int
    statistics: dict[str, list[list[float]]]
    fidelity_uniform: float
    mean_block_length: float

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.no_grad()
def evaluate(
    model: PreTrainedModel,
    input_ids: Tensor,
    block_ids: Tensor | None = None,
    *,
    leading: int = 0,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Perplexity and attention statistics at the dial's present position.

    Args:
        model: a localised model.
        input_ids: int64 ``[window, seq]``, all of one length.
        block_ids: int64 ``[window, seq]``; None = the model's partitioner computes them.
        leading: that many first tokens of every window are not its text (a sink token): they are read, but neither
            measured nor predicted, and do not predict either.
        batch_size: windows at a time.
        progress: called with windows done and windows in all.

    Raises:
        ProlocError: no windows, or windows of fewer than two tokens.
    """
    if input_ids.dim() != 2 or input_ids.shape[0] == 0 or input_ids.shape[1] < leading + 2:
        raise ProlocError(f"evaluation needs windows of at least two tokens; got shape {tuple(input_ids.shape)}.")
    state = find_state(model)
    if block_ids is None:
        block_ids = state.blocks(input_ids)
    averages = Averages(len(state.localities))
    losses: list[Tensor] = []
    text = torch.arange(input_ids.shape[1]) >= leading
    with _evaluating(model), recording(model, "all") as recorder:
        for start in range(0, len(input_ids), batch_size):
            rows = slice(start, start + batch_size)
            batch = input_ids[rows].to(model.device)
            logits = model(input_ids=batch, block_ids=block_ids[rows].to(model.device), use_cache=False).logits
            nats = torch.nn.functional.cross_entropy(
                logits[:, leading:-1].flatten(0, 1).float(), batch[:, leading + 1 :].flatten(), reduction="none"
            )
            losses.append(nats.view(len(batch), -1).double().mean(dim=1).cpu())
            layers = [recorder.layers[layer] for layer in range(len(state.localities))]
            averages.add(layers, text.expand(batch.shape))
            if progress is not None:
                progress(min(start + batch_size, len(input_ids)), len(input_ids))
    per_window = torch.cat(losses)
    return Evaluation(
        loss=float(per_window.mean()),
        window_losses=per_window.tolist(),
        tokens=input_ids.shape[0] * (input_ids.shape[1] - leading - 1),
        statistics={name: averages.per_head(name) for name in STATISTICS},
        fidelity_uniform=float(torch.tensor(averages.per_head("uniform")).mean()),
        mean_block_length=_mean_length(block_ids[:, leading:]),
    )


def _mean_length(block_ids: Tensor) -> float:
    """Tokens per opened block."""
    return block_ids.numel() / float(len(block_ids) + (block_ids.diff(dim=1) != 0).sum())
