"""The penalty that a study asks for."""

from collections.abc import Callable

from proloc.penalty import DialledKL, Entropy, GroupSparsity, LowFidelity, Penalty
from proloc.study.config import PenaltyKind, PenaltySection

_BUILD: dict[PenaltyKind, Callable[[PenaltySection], Penalty]] = {
    "fidelity": lambda section: LowFidelity(phi=section.phi, weight=section.weight),
    "group": lambda section: GroupSparsity(weight=section.weight),
    "entropy": lambda section: Entropy(target_bits=section.target_bits, weight=section.weight),
    "kl": lambda section: DialledKL(weight=section.weight),
}


def build_penalty(section: PenaltySection) -> Penalty:
    """The penalty of a study's file.

    Raises:
        ProlocError: a target that is out of range, or not one for each layer or each head.
    """
    return _BUILD[section.kind](section)
