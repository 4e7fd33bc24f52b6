"""Training: the Hugging Face Trainer with a locality penalty, normalised exactly like the cross-entropy."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from proloc.errors import ProlocError
from proloc.hf import Recorder, find_state, recording
from proloc.penalty import Penalty

IGNORED_LABEL = -100


class LocalityTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that adds ``penalty`` to the loss of a localised model; everything else is the Trainer's.

    The penalty is summed over the queries that have a target and divided by the number of targets of the whole
    (accumulated, distributed) batch, as the cross-entropy is, so that accumulation does not change it. Both parts are
    logged: ``cross_entropy`` and ``penalty``, per token, averaged over the logged steps. Evaluation's ``eval_loss``
    is the cross-entropy alone.

    Args:
        penalty: one of ``proloc.penalty``; None trains on the cross-entropy alone, and the dial does all the work.
        **kwargs: for ``transformers.Trainer``.

    Raises:
        ProlocError: the model is not localised, the penalty does not fit it, or reentrant checkpointing would drop the
            penalty's gradient.
    """

    def __init__(self, *args: Any, penalty: Penalty | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.penalty = penalty
        self._parts = [0.0, 0.0]
        self._noted_until: int | None = None
        state = find_state(self.model)  # raises here rather than in the first step
        if penalty is not None:
            penalty.check(len(state.localities), self.model.config.get_text_config(decoder=True).num_attention_heads)
        reentrant = (self.args.gradient_checkpointing_kwargs or {}).get("use_reentrant", False)
        if penalty is not None and self.args.gradient_checkpointing and reentrant:
            raise ProlocError(
                "reentrant checkpointing drops the penalty's gradient; "
                'set gradient_checkpointing_kwargs={"use_reentrant": False}.'
            )

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The Trainer's step; recording goes on through the backward pass, where checkpointing runs layers again."""
        if self._noted_until is None:
            self._noted_until = self.state.global_step  # a resumed run starts later
        with self._recording():
            loss: Tensor = super().training_step(*args, **kwargs)
            return loss

    def _recording(self) -> AbstractContextManager[Recorder]:
        active = find_state(self.model).recorder
        in_all = self.penalty is not None and self.penalty.needs == "fidelity"
        if self.penalty is None or active.wanted == self.penalty.needs or (active.wanted == "all" and in_all):
            return nullcontext(active)
        return recording(self.model, self.penalty.needs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Cross-entropy of the model plus the penalty."""
        labels = inputs.get("labels")  # the Trainer may take them out of the inputs
        with self._recording() as recorder:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            penalty = self._penalty(recorder, labels, num_items_in_batch)
            self._note(loss, penalty, num_items_in_batch)
            loss = loss + penalty
        return (loss, outputs) if return_outputs else loss

    def _penalty(self, recorder: Recorder, labels: Tensor | None, num_items_in_batch: Tensor | int | None) -> Tensor:
        """The penalty per target of the whole batch."""
        if self.penalty is None:
            return torch.zeros(())
        if labels is None:
            raise ProlocError("the penalty needs labels, to know which queries have a target; the batch has none.")
        localities = find_state(self.model).localities
        recorded = recorder.recorded(self.penalty.needs)
        missing = [layer for layer, value in enumerate(localities) if value > 0 and layer not in recorded]
        if missing:
            raise ProlocError(f"layers {missing} gave no {self.penalty.needs}, so they would not be penalised.")
        queries = queries_with_target(labels)
        penalty = self.penalty.summed(recorder, localities, queries)
        if recorded and not penalty.requires_grad:
            raise ProlocError(
                "the penalty has no gradient; reentrant checkpointing or a frozen model would cause this."
            )
        if num_items_in_batch is None:
            return penalty / queries.sum()
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return penalty * processes / num_items_in_batch

    def _note(self, cross_entropy: Tensor, penalty: Tensor, num_items_in_batch: Tensor | int | None) -> None:
        """Add one forward pass to the parts of the loss; without a count of the whole batch it is a mean of its own."""
        share = 1.0 if num_items_in_batch is not None else 1.0 / self.args.gradient_accumulation_steps
        self._parts[0] += share * float(cross_entropy.detach())
        self._parts[1] += share * float(penalty.detach())

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add both parts of the loss to what the trackers see."""
        steps = self.state.global_step - (self._noted_until or 0)
        if "loss" in logs and steps > 0:
            logs["cross_entropy"], logs["penalty"] = (part / steps for part in self._parts)
            self._parts, self._noted_until = [0.0, 0.0], self.state.global_step
        super().log(logs, *args, **kwargs)


def queries_with_target(labels: Tensor) -> Tensor:
    """Bool ``[batch, query]``: query t predicts token t + 1, where that has a label; the last predicts none."""
    queries = torch.zeros_like(labels, dtype=torch.bool)
    queries[:, :-1] = labels[:, 1:] != IGNORED_LABEL
    return queries
