"""The model under examination: its unmodified self, localised twins of it, the oracle, and a text."""

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from proloc.attention import Requested
from proloc.blocks import Partitioner
from proloc.check.oracle import Oracle
from proloc.errors import ProlocError
from proloc.hf import dial, localize
from proloc.hf.localize import attention_layers
from proloc.locality import mark_sinks
from proloc.schedule import Polynomial, Schedule, Step, Uniform

FEWEST_TOKENS = 16
DIALS = (0.0, 0.5, 1.0)
# Every layer its own locality, so that a mixed-up layer shows; and every layer hard, so that any leak shows.
GRADED: Schedule = Polynomial(beta=1)
HARD: Schedule = Uniform(value=1.0)


@dataclass
class Subject:
    """One model, one partitioner, one text.

    Attributes:
        stock: the unmodified model, in eval mode and eager attention; float32 (float64 works too).
        blocks: the partitioner whose blocks are used.
        ids: int64 ``[2, seq]``, two texts of one length, no padding.
        sinks: as for ``localize``.
        halo: likewise.
    """

    stock: PreTrainedModel
    blocks: Partitioner
    ids: Tensor
    sinks: int = 1
    halo: int = 0
    _twins: dict[tuple[str, str], PreTrainedModel] = field(default_factory=dict)
    _expected: dict[tuple[float, str], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.ids.dim() != 2 or self.ids.shape[0] != 2 or self.ids.shape[1] < FEWEST_TOKENS:
            raise ProlocError(
                f"a check needs two texts of at least {FEWEST_TOKENS} tokens each; got {tuple(self.ids.shape)}."
            )
        self.stock.set_attn_implementation("eager")
        self.stock.eval()

    @property
    def length(self) -> int:
        return self.ids.shape[1]

    def twin(self, schedule: Schedule = GRADED, attention: Requested = "auto") -> PreTrainedModel:
        """A localised copy that shares the weights of the stock model."""
        key = (repr(schedule), attention)
        if key not in self._twins:
            shared = {id(tensor): tensor for tensor in [*self.stock.parameters(), *self.stock.buffers()]}
            copied = copy.deepcopy(self.stock, shared)
            self._twins[key] = self.localised(copied, schedule, attention)
        return self._twins[key]

    def localised(
        self, model: PreTrainedModel, schedule: Schedule = GRADED, attention: Requested = "auto"
    ) -> PreTrainedModel:
        """The model, localised in place with this subject's blocks, sinks and halo."""
        return localize(model, schedule, self.blocks, sinks=self.sinks, halo=self.halo, attention=attention)

    @cached_property
    def oracle(self) -> Oracle:
        return Oracle(self.stock, attention_layers(self.stock), self.halo)

    @property
    def late(self) -> Schedule:
        """The last half of the layers hard, the others as they are."""
        return Step(layers=(self.num_layers + 1) // 2)

    @property
    def num_layers(self) -> int:
        return len(attention_layers(self.stock))

    def retains(self, position: float, schedule: Schedule = GRADED) -> list[float]:
        """What away keys keep of their weight in every layer."""
        return [1.0 - position * value for value in schedule.localities(self.num_layers)]

    def expected(
        self,
        position: float,
        ids: Tensor | None = None,
        *,
        valid: Tensor | None = None,
        schedule: Schedule = GRADED,
        **inputs: Any,
    ) -> Tensor:
        """The oracle's logits; ``valid`` is bool ``[batch, seq]``, False at padding."""
        if ids is not None:
            return self._of_oracle(position, ids, valid, schedule, **inputs)
        key = (position, repr(schedule))
        if key not in self._expected:
            self._expected[key] = self._of_oracle(position, self.ids, None, schedule)
        return self._expected[key]

    def _of_oracle(
        self, position: float, ids: Tensor, valid: Tensor | None, schedule: Schedule, **inputs: Any
    ) -> Tensor:
        sinks = mark_sinks(self.sinks, torch.ones_like(ids, dtype=torch.bool) if valid is None else valid)
        if valid is not None:
            inputs["attention_mask"] = valid.long()
        with torch.no_grad():
            output = self.oracle.forward(
                self.blocks(ids, valid), sinks, self.retains(position, schedule), input_ids=ids, **inputs
            )
        return output.logits  # type: ignore[no-any-return]

    def logits(self, model: PreTrainedModel, position: float, ids: Tensor | None = None, **inputs: Any) -> Tensor:
        """Logits of a localised twin with the dial at ``position``, without a cache unless one is asked for."""
        inputs.setdefault("use_cache", False)
        with torch.no_grad(), dial(model, position):
            return model(input_ids=self.ids if ids is None else ids, **inputs).logits  # type: ignore[no-any-return]

    def changed(self, places: Sequence[int]) -> Tensor:
        """The texts with other tokens at some places."""
        ids = self.ids.clone()
        vocabulary = self.stock.get_input_embeddings().weight.shape[0]
        for place in places:
            ids[:, place] = (ids[:, place] + 1 + place % 7) % vocabulary
        return ids

    def takes(self, argument: str) -> bool:
        """Whether the model's own forward has a parameter of this name."""
        return argument in inspect.signature(type(self.stock).forward).parameters
