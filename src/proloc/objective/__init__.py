"""What training asks for beside the cross-entropy and the penalty: a teacher's help, and where the dial stands."""

from proloc.objective.dials import DialSampler
from proloc.objective.distil import Distillation

__all__ = ["DialSampler", "Distillation"]
