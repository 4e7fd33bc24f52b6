"""What a partitioner is: a rule that says before which tokens a new semantic block opens."""

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proloc.errors import ProlocError
from proloc.locality import with_leads


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Why blocks opened where they did, for one sequence."""

    scores: NDArray[np.float64]
    """``[seq]``; the score that decided whether a block opens before that token, NaN where nothing was asked."""

    threshold: float
    """A block opens where the score is larger, if its length allows it; infinite for a rule without scores."""

    meaning: str
    """What the score is, with its unit; empty for a rule without scores."""


class Partitioner(ABC):
    """Turns tokens into blocks; a subclass decides one sequence, this class handles batches, padding and packing.

    Attributes:
        kind: the name under which configurations choose it.
        causal: True when a boundary before token t depends on tokens before t only. Only causal partitioners may
            train, evaluate or generate; the others explain a finished text.
        model_attribute: where a partitioner keeps the model it runs, or its name until ``connect``; None = it has none.
        threshold_range: smallest and largest threshold that ``calibrate`` tries; None = a rule without a threshold.
    """

    kind: ClassVar[str]
    causal: ClassVar[bool] = True
    model_attribute: ClassVar[str | None] = None
    threshold_range: ClassVar[tuple[float, float] | None] = None

    @abstractmethod
    def boundaries(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Where blocks open in one sequence.

        Args:
            ids: token ids ``[seq]`` of one sequence, no padding, ``seq >= 1``.

        Returns:
            bool ``[seq]``, True where a new block opens before that token; the first is always True.
        """

    def boundaries_and_leads(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """``boundaries``, and how many tokens right before each block are home to it too.

        A rule with *hindsight* overrides this: what it read before it opened a block can lead that block. The lead of
        the block that opens before token t depends on what the boundary depends on, and home never moves back: it
        starts nowhere earlier than that of the block before.

        Args:
            ids: as for ``boundaries``.

        Returns:
            bool ``[seq]``, and tokens, int64 ``[seq]``: 0 where no block opens, and here for all blocks.
        """
        return self.boundaries(ids), np.zeros(ids.shape, dtype=np.int64)

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """JSON-able arguments that, with ``tensors``, rebuild this partitioner."""

    def tensors(self) -> dict[str, Tensor]:
        """Arrays too large for JSON (an embedding); saved beside the model as safetensors."""
        return {}

    def trace(self, ids: NDArray[np.int64]) -> Trace:
        """The scores behind ``boundaries``, for one sequence ``[seq]``; a rule that has none says nothing."""
        return Trace(scores=np.full(ids.shape, np.nan), threshold=np.inf, meaning="")

    def with_threshold(self, threshold: float) -> Self:
        """The same blocks with another threshold, sharing all arrays; larger thresholds make longer blocks.

        Raises:
            ProlocError: a threshold that cannot be, or a rule without one.
        """
        raise ProlocError(f"'{self.kind}' blocks have no threshold.")

    def connect(self, provide: Callable[[str], Any]) -> Self:
        """Fetch the model that this partitioner only knows by name; most name none and return themselves."""
        known = None if self.model_attribute is None else getattr(self, self.model_attribute)
        if self.model_attribute is None or not isinstance(known, str):
            return self
        other = copy.copy(self)
        setattr(other, self.model_attribute, provide(known))
        return other

    @classmethod
    def rebuild(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """The inverse of ``settings`` and ``tensors``.

        Raises:
            ProlocError: a setting or tensor is missing, unknown or given twice.
        """
        signature = inspect.signature(cls)
        try:
            signature.bind(**settings, **tensors)
        except TypeError as error:
            given, wanted = sorted({*settings, *tensors}), list(signature.parameters)
            raise ProlocError(f"'{cls.kind}' blocks take {wanted}, but were given {given}: {error}.") from error
        return cls(**settings, **tensors)

    def __call__(self, input_ids: Tensor, valid: Tensor | None = None, starts: Tensor | None = None) -> Tensor:
        """Block ids of a batch.

        Args:
            input_ids: ``[batch, seq]``.
            valid: bool ``[batch, seq]``, False at padding; None = no padding.
            starts: bool ``[batch, seq]``, True where a packed row starts a new sequence; None = one sequence a row.

        Returns:
            int64 ``[batch, seq]``, counted from 0 in every row; padding repeats the id before it (0 at the left).
            Where the rule gives leads, the ids hold them (``proloc.locality.with_leads``).

        Raises:
            ProlocError: ``input_ids`` is not two-dimensional, or another argument has a different shape.
        """
        if input_ids.dim() != 2:
            raise ProlocError(f"input_ids must be [batch, seq], but its shape is {list(input_ids.shape)}.")
        ids = input_ids.detach().cpu().numpy().astype(np.int64, copy=False)
        real = _flags(valid, "valid", ids.shape, missing=True)
        first = _flags(starts, "starts", ids.shape, missing=False)
        opens, leads = np.zeros(ids.shape, dtype=bool), np.zeros(ids.shape, dtype=np.int64)
        for row in range(ids.shape[0]):
            places = np.flatnonzero(real[row])
            if places.size == 0:
                continue
            cuts = np.flatnonzero(first[row, places])
            for part in np.split(places, cuts[cuts > 0]):
                opens[row, part], leads[row, part] = self._checked(ids[row, part])
        block_ids = torch.from_numpy(np.maximum(opens.cumsum(axis=1) - 1, 0))
        if leads.any():
            last = np.maximum.accumulate(np.where(opens, np.arange(ids.shape[1]), 0), axis=1)
            block_ids = with_leads(block_ids, torch.from_numpy(np.take_along_axis(leads, last, axis=1)))
        return block_ids.to(input_ids.device)

    def _checked(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        opens, leads = self.boundaries_and_leads(ids)
        name = type(self).__name__
        if opens.shape != ids.shape or not opens[0]:
            raise ProlocError(f"{name}.boundaries must give {ids.shape} values, the first of them True.")
        if leads.shape != ids.shape or (leads[~opens] != 0).any() or (leads < 0).any():
            raise ProlocError(f"{name} must give leads >= 0, {ids.shape}, and 0 where no block opens.")
        homes = np.flatnonzero(opens) - leads[opens]
        if homes[0] != 0 or (np.diff(homes) < 0).any():
            raise ProlocError(f"{name} must not move home back, but its blocks are at home from {homes.tolist()} on.")
        return opens, leads


def check_length(name: str, length: int) -> None:
    """Refuse what is no number of tokens."""
    if not isinstance(length, int) or length < 1:
        raise ProlocError(f"{name} must be a whole number of tokens >= 1, not {length!r}.")


def check_lengths(min_length: int, max_length: int | None) -> None:
    """Refuse block lengths that cannot be kept: ``1 <= min_length <= max_length`` (None = no limit)."""
    check_length("min_length", min_length)
    if max_length is not None and (not isinstance(max_length, int) or max_length < min_length):
        raise ProlocError(
            f"max_length must be None or a whole number >= min_length = {min_length}, not {max_length!r}."
        )


def _flags(given: Tensor | None, name: str, shape: tuple[int, ...], *, missing: bool) -> NDArray[np.bool_]:
    if given is None:
        return np.full(shape, missing, dtype=bool)
    if tuple(given.shape) != shape:
        raise ProlocError(f"{name} must have the shape of input_ids, {list(shape)}, but has {list(given.shape)}.")
    return given.detach().cpu().numpy().astype(bool)
