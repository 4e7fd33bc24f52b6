"""Penalties that ask for locality during training; all read attention as it was before the dial."""

from proloc.penalty.base import Penalty, Quantity, Recorded
from proloc.penalty.divergence import DialledKL
from proloc.penalty.entropy import Entropy
from proloc.penalty.fidelity import LowFidelity
from proloc.penalty.group import GroupSparsity

__all__ = ["DialledKL", "Entropy", "GroupSparsity", "LowFidelity", "Penalty", "Quantity", "Recorded"]
