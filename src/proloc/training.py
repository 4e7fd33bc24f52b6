"""Training: the Hugging Face Trainer with a locality penalty, normalised exactly like the cross-entropy."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from proloc.errors import ProlocError
from proloc.hf import Recorder, find_state, recording
from proloc.penalty import LowFidelity

IGNORED_LABEL = -100


class LocalityTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that adds ``penalty`` to the loss of a localised model; everything else is the Trainer's.

    The penalty is summed over the queries that have a target and divided by the number of targets of the whole
    (accumulated, distributed) batch, as the cross-entropy is, so that accumulation does not change it. Both parts are
    logged: ``cross_entropy`` and ``penalty``, per token, averaged over the logged steps.

    Args:
        penalty: None trains on the cross-entropy alone; the dial then does all the work.
        **kwargs: for ``transformers.Trainer``.

    Raises:
        ProlocError: the model is not localised, or reentrant checkpointing would drop the penalty's gradient.
    """

    def __init__(self, *args: Any, penalty: LowFidelity | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.penalty = penalty
        self._state = find_state(self.model)
        self._logged: list[tuple[float, float]] = []
        reentrant = (self.args.gradient_checkpointing_kwargs or {}).get("use_reentrant", False)
        if penalty is not None and self.args.gradient_checkpointing and reentrant:
            raise ProlocError(
                "reentrant checkpointing drops the penalty's gradient; "
                'set gradient_checkpointing_kwargs={"use_reentrant": False}.'
            )

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The Trainer's step; recording goes on through the backward pass, where checkpointing runs layers again."""
        with self._recording():
            loss: Tensor = super().training_step(*args, **kwargs)
            return loss

    def _recording(self) -> AbstractContextManager[Recorder]:
        active = self._state.recorder
        if self.penalty is None or active.wanted != "nothing":
            return nullcontext(active)
        return recording(self.model, "fidelity")

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Cross-entropy of the model plus the penalty."""
        if self.penalty is None:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            self._note(model, loss, torch.zeros(()))
            return (loss, outputs) if return_outputs else loss
        with self._recording() as recorder:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        queries = queries_with_target(inputs["labels"])
        penalty = self.penalty.summed(recorder.fidelity, self._state.localities, queries)
        if model.training and recorder.fidelity and not penalty.requires_grad:
            raise ProlocError(
                "the penalty has no gradient; reentrant checkpointing or a frozen model would cause this."
            )
        penalty = penalty / (queries.sum() if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            penalty = penalty * self.accelerator.num_processes
        self._note(model, loss, penalty)
        return (loss + penalty, outputs) if return_outputs else loss + penalty

    def _note(self, model: nn.Module, cross_entropy: Tensor, penalty: Tensor) -> None:
        if model.training:
            self._logged.append((float(cross_entropy.detach()), float(penalty.detach())))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add both parts of the loss to what the trackers see."""
        if self._logged and "loss" in logs:
            share = self.args.gradient_accumulation_steps / len(self._logged)
            logs["cross_entropy"] = sum(part for part, _ in self._logged) * share
            logs["penalty"] = sum(part for _, part in self._logged) * share
            self._logged.clear()
        super().log(logs, *args, **kwargs)


def queries_with_target(labels: Tensor) -> Tensor:
    """Bool ``[batch, query]``: query t predicts token t + 1, where that has a label; the last predicts none."""
    queries = torch.zeros_like(labels, dtype=torch.bool)
    queries[:, :-1] = labels[:, 1:] != IGNORED_LABEL
    return queries
