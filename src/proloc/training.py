"""Training: the Hugging Face Trainer with a locality penalty and a teacher, normalised like the cross-entropy."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from proloc.errors import ProlocError
from proloc.hf import Recorder, check_block_dropout, dropping_blocks, find_state, recording, set_dial
from proloc.objective import Budget, DialSampler, Distillation
from proloc.penalty import LowFidelity, Penalty
from proloc.schedule import Explicit

IGNORED_LABEL = -100


class LocalityTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that adds ``penalty`` to the loss of a localised model; everything else is the Trainer's.

    Penalty and distillation are summed over the queries that have a target and divided by the number of targets of the
    whole (accumulated, distributed) batch, as the cross-entropy is, so that accumulation does not change them. All
    parts are logged: ``cross_entropy``, ``penalty`` and ``distillation``, per token, averaged over the logged steps.
    Evaluation's ``eval_loss`` is the cross-entropy alone.

    Args:
        penalty: one of ``proloc.penalty``; None trains without one; the dial then does all the work.
        distillation: a teacher whose divergence takes the place of a part of the cross-entropy.
        dials: where the dial stands at every optimiser step; None = where it was left.
        budget: pushes locality as far as the cross-entropy allows; its trajectory is logged, for which every step must
            be. When training ends, the model has the schedule (or the penalty the phi) that the budget arrived at.
        block_dropout: probability of hiding a block in a training step, see ``dropping_blocks``.
        **kwargs: for ``transformers.Trainer``.

    Raises:
        ProlocError: the model is not localised, the penalty does not fit it, ``block_dropout`` is no probability,
            reentrant checkpointing would drop the penalty's gradient, or a budget has no log of every step or, where it
            pushes phi, no penalty that has one.
    """

    def __init__(
        self,
        *args: Any,
        penalty: Penalty | None = None,
        distillation: Distillation | None = None,
        dials: DialSampler | None = None,
        budget: Budget | None = None,
        block_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.penalty, self.distillation, self.dials, self.budget = penalty, distillation, dials, budget
        check_block_dropout(block_dropout)
        self.block_dropout = block_dropout
        self._parts: dict[str, float] = {}
        self._noted_until: int | None = None
        state = find_state(self.model)  # raises here rather than in the first step
        self._schedule = state.localities
        if penalty is not None:
            penalty.check(len(state.localities), self.model.config.get_text_config(decoder=True).num_attention_heads)
        if budget is not None and (self.args.logging_steps != 1 or self.args.logging_strategy != "steps"):
            raise ProlocError(f"a budget needs logging_steps = 1; it is {self.args.logging_steps}.")
        if budget is not None and budget.push == "phi" and not isinstance(penalty, LowFidelity):
            raise ProlocError('a budget that pushes "phi" needs a LowFidelity penalty to ask for it.')
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
            if self.budget is not None and self.state.global_step:
                self.budget.restore(next(e for e in reversed(self.state.log_history) if "log_multiplier" in e))
        if self.dials is not None:
            set_dial(self.model, self.dials.at(self.state.global_step))
        if self.budget is not None:
            self._spend(self.budget)
        dropping = dropping_blocks(self.model, self.block_dropout) if self.block_dropout else nullcontext()
        with self._recording(), dropping:
            loss: Tensor = super().training_step(*args, **kwargs)
            return loss

    def _spend(self, budget: Budget) -> None:
        """Bring what the budget pushes to where its multiplier says."""
        if budget.push == "phi":
            assert isinstance(self.penalty, LowFidelity)  # checked at the start
            self.penalty = replace(self.penalty, phi=budget.share)
            return
        state = find_state(self.model)
        if state.learned_retain is not None:  # a later part of an accumulated batch adds to its gradient
            return
        state.set_schedule(Explicit(budget.localities(self._schedule)))
        if budget.learns_at(self.state.global_step + 1):
            state.learned_retain = state.retain.clone().requires_grad_()

    def _slopes(self) -> list[float] | None:
        """Gradient of the step's loss with respect to lambda of every layer, where it is learned; taken once."""
        state = find_state(self.model)
        learned, state.learned_retain = state.learned_retain, None
        return None if learned is None or learned.grad is None else (-learned.grad).tolist()

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
        """Cross-entropy of the model, or its mixture with the teacher's divergence, plus the penalty."""
        labels = inputs.get("labels")  # the Trainer may take them out of the inputs
        with self._recording() as recorder:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            parts = {"cross_entropy": loss, **self._others(recorder, inputs, labels, outputs, num_items_in_batch)}
            self._note(parts, num_items_in_batch)
            if self.distillation is not None:
                weight = self.distillation.weight
                loss = (1 - weight) * loss + weight * parts["distillation"]
            if self.penalty is not None:
                loss = loss + parts["penalty"]
        return (loss, outputs) if return_outputs else loss

    def _others(
        self,
        recorder: Recorder,
        inputs: dict[str, Any],
        labels: Tensor | None,
        outputs: Any,
        num_items_in_batch: Tensor | int | None,
    ) -> dict[str, Tensor]:
        """The parts of the loss beside the cross-entropy, each per target of the whole batch, unweighted or as used."""
        parts: dict[str, Tensor] = {}
        if self.penalty is None and self.distillation is None:
            return parts
        if labels is None:
            raise ProlocError("penalty and distillation need labels, to know which queries have a target.")
        queries = queries_with_target(labels)
        if self.distillation is not None:
            with self.accelerator.autocast():
                parts["distillation"] = self.distillation.summed(
                    outputs["logits"], inputs["input_ids"], inputs.get("attention_mask"), queries
                )
        if self.penalty is not None:
            parts["penalty"] = self._penalty(self.penalty, recorder, queries)
        return {name: self._per_target(total, queries, num_items_in_batch) for name, total in parts.items()}

    def _penalty(self, penalty: Penalty, recorder: Recorder, queries: Tensor) -> Tensor:
        """The penalty summed over queries, or an error where it would not act."""
        localities = find_state(self.model).localities
        recorded = recorder.recorded(penalty.needs)
        missing = [layer for layer, value in enumerate(localities) if value > 0 and layer not in recorded]
        if missing:
            raise ProlocError(f"layers {missing} gave no {penalty.needs}, so they would not be penalised.")
        total = penalty.summed(recorder, localities, queries)
        if recorded and not total.requires_grad:
            raise ProlocError(
                "the penalty has no gradient; reentrant checkpointing or a frozen model would cause this."
            )
        return total

    def _per_target(self, total: Tensor, queries: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        """A sum over queries as its share of the mean over the targets of the whole batch."""
        if num_items_in_batch is None:
            return total / queries.sum()
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return total * processes / num_items_in_batch

    def _note(self, parts: dict[str, Tensor], num_items_in_batch: Tensor | int | None) -> None:
        """Add one forward pass to the parts of the loss; without a count of the whole batch it is a mean of its own."""
        share = 1.0 if num_items_in_batch is not None else 1.0 / self.args.gradient_accumulation_steps
        for name, part in parts.items():
            self._parts[name] = self._parts.get(name, 0.0) + share * float(part.detach())

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the parts of the loss to what the trackers see."""
        steps = self.state.global_step - (self._noted_until or 0)
        if "loss" in logs and steps > 0:
            logs |= {"penalty": 0.0} | {name: total / steps for name, total in self._parts.items()}
            self._parts, self._noted_until = {}, self.state.global_step
            if self.budget is not None:
                logs |= self.budget.update(self.state.global_step, logs["cross_entropy"], self._slopes())
        super().log(logs, *args, **kwargs)


def queries_with_target(labels: Tensor) -> Tensor:
    """Bool ``[batch, query]``: query t predicts token t + 1, where that has a label; the last predicts none."""
    queries = torch.zeros_like(labels, dtype=torch.bool)
    queries[:, :-1] = labels[:, 1:] != IGNORED_LABEL
    return queries
