"""What training asks for beside the cross-entropy and the penalty: a teacher's help, a moving dial, a budget."""

from proloc.objective.budget import Budget
from proloc.objective.dials import DialSampler
from proloc.objective.distil import Distillation

__all__ = ["Budget", "DialSampler", "Distillation"]
