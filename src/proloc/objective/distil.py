"""Distillation: a frozen teacher that reads everything tells the local student how likely it finds every token."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from proloc.errors import ProlocError


class Distillation:
    """``(1 - weight) * cross-entropy + weight * T^2 * KL(teacher_T || student_T)`` per target token.

    Both distributions are the softmax of logits divided by T; the factor T^2 keeps the gradient's size (Hinton,
    Vinyals and Dean 2015, arXiv 1503.02531, section 2).

    Args:
        teacher: a causal language model over the same tokens; it is frozen and put into evaluation mode.
        weight: w in (0, 1].
        temperature: T above 0.
        skip: that many first tokens of every row the teacher is not shown (a sink token that only the student has).

    Raises:
        ProlocError: a weight or temperature out of range.
    """

    def __init__(
        self, teacher: PreTrainedModel, *, weight: float = 0.5, temperature: float = 1.0, skip: int = 0
    ) -> None:
        if not 0.0 < weight <= 1.0:
            raise ProlocError(f"the weight of distillation is {weight}; it must lie in (0, 1].")
        if not 0.0 < temperature < float("inf"):
            raise ProlocError(f"the temperature of distillation is {temperature}; it must be a number above 0.")
        if skip < 0:
            raise ProlocError(f"skip is {skip}; it must be a whole number, 0 or more.")
        self.teacher = teacher.eval().requires_grad_(False)
        self.weight, self.temperature, self.skip = weight, temperature, skip

    def summed(self, logits: Tensor, input_ids: Tensor, mask: Tensor | None, queries: Tensor) -> Tensor:
        """``T^2 * KL``, without the weight, summed over queries; divide by the targets of the whole batch.

        Args:
            logits: of the student, ``[batch, query, token]``.
            input_ids: what the student read, int64 ``[batch, query]``.
            mask: its padding mask, ``[batch, query]``; None = no padding.
            queries: bool ``[batch, query]``, True for queries that predict a target.

        Raises:
            ProlocError: the teacher has another vocabulary.
        """
        skip = self.skip
        if self.teacher.device != input_ids.device:
            self.teacher.to(input_ids.device)
        with torch.no_grad():
            taught = self.teacher(
                input_ids=input_ids[:, skip:],
                attention_mask=None if mask is None else mask[:, skip:],
                use_cache=False,
            ).logits
        if taught.shape[-1] != logits.shape[-1]:
            raise ProlocError(f"the teacher knows {taught.shape[-1]} tokens, the student {logits.shape[-1]}.")
        wanted = queries[:, skip:]
        divergence = divergences(taught[wanted], logits[:, skip:][wanted], self.temperature)
        return self.temperature**2 * divergence.sum()


def divergences(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) in nats of every row, from logits ``[row, token]``; differentiable in the student's."""
    log_teacher, log_student = (
        torch.log_softmax(logits.float() / temperature, dim=-1) for logits in (teacher, student)
    )
    return torch.nn.functional.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=-1)
