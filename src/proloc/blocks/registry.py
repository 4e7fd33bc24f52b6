"""The partitioners a configuration or a saved model can name."""

from typing import Any

from torch import Tensor

from proloc.blocks.base import Partitioner
from proloc.blocks.drift import DriftBlocks
from proloc.blocks.fixed import FixedBlocks
from proloc.blocks.random import RandomBlocks
from proloc.blocks.sentence import SentenceBlocks
from proloc.errors import ProlocError

PARTITIONERS: dict[str, type[Partitioner]] = {
    partitioner.kind: partitioner for partitioner in (FixedBlocks, SentenceBlocks, DriftBlocks, RandomBlocks)
}


def build_partitioner(kind: str, settings: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> Partitioner:
    """The partitioner that once gave these ``settings()`` and ``tensors()``.

    Raises:
        ProlocError: no partitioner of this kind, or settings that it does not take.
    """
    if kind not in PARTITIONERS:
        raise ProlocError(f"There are no '{kind}' blocks; choose one of {sorted(PARTITIONERS)}.")
    return PARTITIONERS[kind].rebuild(settings, tensors or {})
