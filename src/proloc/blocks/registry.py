"""The partitioners a configuration or a saved model can name."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from proloc.blocks.base import Partitioner
from proloc.blocks.changepoint import ChangePointBlocks
from proloc.blocks.delimiter import DelimiterBlocks
from proloc.blocks.drift import DriftBlocks
from proloc.blocks.fixed import FixedBlocks
from proloc.blocks.given import GivenBlocks
from proloc.blocks.online import OnlineBlocks
from proloc.blocks.random import RandomBlocks
from proloc.blocks.recruitment import RecruitmentBlocks
from proloc.blocks.sentence import SentenceBlocks
from proloc.blocks.surprise import SurpriseBlocks
from proloc.blocks.tiling import TilingBlocks
from proloc.errors import ProlocError

_CAUSAL: tuple[type[Partitioner], ...] = (
    FixedBlocks,
    RandomBlocks,
    GivenBlocks,
    SentenceBlocks,
    DelimiterBlocks,
    DriftBlocks,
    RecruitmentBlocks,
    SurpriseBlocks,
    OnlineBlocks,
)
_EXPLAINING: tuple[type[Partitioner], ...] = (ChangePointBlocks, TilingBlocks)

PARTITIONERS: dict[str, type[Partitioner]] = {partitioner.kind: partitioner for partitioner in (*_CAUSAL, *_EXPLAINING)}


def build_partitioner(
    kind: str,
    settings: dict[str, Any],
    tensors: dict[str, Tensor] | None = None,
    provide: Callable[[str], Any] | None = None,
) -> Partitioner:
    """The partitioner that once gave these ``settings()`` and ``tensors()``.

    Args:
        kind: a key of ``PARTITIONERS``.
        settings: as ``settings()`` gave them.
        tensors: as ``tensors()`` gave them.
        provide: gives the model that a partitioner names (surprise, sentence embeddings); None = it stays unconnected,
            and says so when it is asked for blocks.

    Raises:
        ProlocError: no partitioner of this kind, or settings that it does not take.
    """
    if kind not in PARTITIONERS:
        raise ProlocError(f"There are no '{kind}' blocks; choose one of {sorted(PARTITIONERS)}.")
    rebuilt = PARTITIONERS[kind].rebuild(settings, tensors or {})
    return rebuilt if provide is None else rebuilt.connect(provide)
