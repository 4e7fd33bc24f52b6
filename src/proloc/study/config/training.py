"""How a study tunes: the parts of its file on training, on the penalty and on a budget."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, model_validator

from proloc.study.config.section import Section

PenaltyKind = Literal["fidelity", "group", "entropy", "kl"]
Targets = float | list[float] | list[list[float]]
Position = Annotated[float, Field(ge=0.0, le=1.0)]


class TrainingSection(Section):
    """How every run is tuned; the same budget for all."""

    steps: int = Field(ge=1)
    """Optimiser steps."""
    context: int = Field(ge=2)
    """Tokens per window."""
    batch_size: int = Field(default=4, ge=1)
    """Windows per forward pass."""
    accumulation: int = Field(default=1, ge=1)
    """Forward passes per optimiser step."""
    learning_rate: float = Field(default=1e-4, gt=0.0)
    """Peak of AdamW's learning rate; linear warm-up over 10% of the steps, then cosine to 0."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    precision: Literal["fp32", "bf16"] = "fp32"
    """"bf16" computes in mixed precision; weights and optimiser stay fp32, evaluation is fp32. On processors without
    hardware for it, bf16 is many times slower than fp32."""
    lora_rank: int | None = Field(default=None, ge=1)
    """Tune low-rank adapters of this rank on all linear layers (needs peft); None = all weights."""
    gradient_checkpointing: bool = False
    dial: Literal["sampled"] | Position | list[Position] = 1.0
    """Where the dial stands while modes "hard" and "both" tune: a position for all steps, "sampled" = drawn uniformly
    from [0, 1] for every optimiser step, or a list of positions to draw from. A model tuned at a position is measured
    there, one tuned at many at 1."""
    distil: float = Field(default=0.0, ge=0.0, le=1.0)
    """Weight w of a frozen undialled teacher: the loss is (1 - w) * cross-entropy + w * KL(teacher || student)."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Divides the logits of teacher and student; their KL is multiplied by its square."""
    teacher: Literal["base", "distributed"] = "base"
    """"base": the model before tuning; "distributed": the reference tuned with the same seed, which then runs first."""
    block_dropout: float = Field(default=0.0, ge=0.0, le=1.0)
    """Probability of hiding a block, in one forward pass and in layers with lambda > 0, from later blocks."""
    checkpoint_every: int | None = Field(default=None, ge=1)
    """Steps between checkpoints, from which an interrupted run resumes, rounded up to whole log intervals (a
    twentieth of the run); None = every tenth of the run."""
    report_to: list[str] = Field(default=[])
    """Trackers of transformers' Trainer, for example ["tensorboard"]."""


class PenaltySection(Section):
    """What modes "soft" and "both" add to the cross-entropy; all kinds read attention as it was before the dial."""

    kind: PenaltyKind = "fidelity"
    """"fidelity": the low-fidelity constraint; "group": sparsity over away blocks (writes attention out, slow);
    "entropy": bits above a target; "kl": what the dial would move."""
    phi: Targets = 0.5
    """Wanted fidelity ("fidelity"): a number, one for each layer, or one for each head of each layer."""
    target_bits: Targets = 2.0
    """Wanted entropy in bits ("entropy"), likewise."""
    weight: float = Field(default=0.1, ge=0.0)
    """Nats per token for each unit of the penalty: missing fidelity, away mass, bits, or nats of divergence."""

    @model_validator(mode="after")
    def _target_of_its_kind(self, info: ValidationInfo) -> "PenaltySection":
        if info.context is not None:  # a condition that overrides the kind need not take back the study's target
            return self
        for key, kind in (("phi", "fidelity"), ("target_bits", "entropy")):
            if key in self.model_fields_set and self.kind != kind:
                raise ValueError(f'{key} belongs to a penalty of kind "{kind}", and this one is "{self.kind}"')
        return self


class BudgetSection(Section):
    """As local as a cost allows: what is pushed goes up while the cross-entropy stays within the budget."""

    cost: float | None = Field(default=None, gt=0.0)
    """Allowed rise of the perplexity over that of the reference tuned with the same seed, which then runs first, on the
    same batches: 0.01 = one per cent. None = no budget."""
    push: Literal["hard-layers", "lambda", "phi", "schedule"] = "hard-layers"
    """"hard-layers": how many last layers are hard, instead of the schedule; "lambda": a factor on the schedule;
    "phi": the penalty's fidelity target (modes "soft" and "both"); "schedule": a lambda for each layer, learned, which
    writes attention out (slow)."""
