"""The truth by intervention: the log-probability of a target when some of its source blocks are knocked out.

Two ways to knock a block out. *cut*: every later block loses the edges to its tokens, in all layers or in some; the
text and its positions stay as they are. *removed*: the text is read without the block's tokens, and later ones move up.
Where edges are cut in all layers nobody reads the block, so its tokens are left out too, and all others keep their
positions.

What stands before the first token that an ablation touches is computed once for all of them. Ablations run as rows of a
batch, sorted so that rows of one batch share as much as they can.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from transformers import PreTrainedModel

from proloc.errors import ProlocError
from proloc.explaining.passage import Passage
from proloc.hf import cutting, find_state
from proloc.hf.prefix import can_leave_out, full_cache, last_logits, repeat_prefix
from proloc.locality import home_starts, leads_of, with_leads

How = Literal["cut", "removed"]
Flags = NDArray[np.bool_]
Values = NDArray[np.float64]
TOKENS_PER_BATCH = 2048


def check_how(how: str) -> None:
    """Raise a ProlocError unless blocks can be knocked out this way."""
    if how not in get_args(How):
        raise ProlocError(f"blocks cannot be {how!r}; choose one of {', '.join(get_args(How))}.")


@dataclass(frozen=True)
class _Row:
    """One ablation: which sources are left out, how many first tokens stay as they are, and how many stay at all."""

    number: int
    left_out: Tensor
    prefix: int
    length: int


class Ablator:
    """Knocks out sources of one passage; every combination is computed once and remembered.

    Args:
        model: a localised model, in evaluation mode; its dial stays where it stands.
        passage: what is explained.
        how: "cut" or "removed".
        layers: where edges are cut; None = in all. Only for "cut".
        progress: called with the number of ablations just done.

    Attributes:
        intact: log-probability of the target with nothing knocked out, nats, summed over its tokens.
        intact_tokens: the same for each of its tokens.
        tokens_computed: tokens that went through the model so far, padding and the intact pass included.

    Raises:
        ProlocError: another ``how``, layers for "removed", or layers that the model does not have.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        passage: Passage,
        how: How = "cut",
        *,
        layers: Iterable[int] | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        check_how(how)
        if how == "removed" and layers is not None:
            raise ProlocError(
                "tokens are removed from the text and so from all layers; choose layers for cut edges only."
            )
        self._model, self._passage, self._how, self._progress = model, passage, how, progress
        self._layers = None if layers is None else sorted(set(layers))
        if self._layers == []:
            raise ProlocError("there are no layers to cut edges in; name some, or None for all.")
        self._shortens = how == "removed" or (layers is None and can_leave_out(model, passage.num_sinks))
        self._known: dict[bytes, float] = {}
        self._cache = full_cache()
        find_state(model)
        ids, blocks = (part[: passage.read][None] for part in (passage.ids, passage.block_ids))
        nothing = torch.zeros(1, len(passage.sources), dtype=torch.bool)
        self.tokens_computed = passage.read
        with torch.no_grad(), cutting(model, passage.edges(nothing).to(model.device), self._layers):
            logits = self._logits(ids, blocks, self._cache, passage.num_targets)
        self.intact_tokens: list[float] = self._log_probs(logits)[0].tolist()
        self.intact = sum(self.intact_tokens)
        self._known[np.ones(len(passage.sources), dtype=bool).tobytes()] = self.intact

    def log_probs(self, kept: ArrayLike) -> Values:
        """Log-probability of the target for every combination of kept sources.

        Args:
            kept: bool ``[ablation, source]``.

        Returns:
            ``[ablation]``, nats, summed over the target's tokens.
        """
        wanted: Flags = np.asarray(kept, dtype=bool).reshape(-1, len(self._passage.sources))
        keys = [row.tobytes() for row in wanted]
        new = {key: row for key, row in zip(keys, wanted, strict=True) if key not in self._known}
        rows = [self._row(number, torch.from_numpy(~row)) for number, row in enumerate(new.values())]
        # Cut rows of a batch start together, shortened ones are filled up to the longest: both should be alike there.
        rows.sort(key=lambda row: row.length if self._shortens else row.prefix)
        names, size = list(new), max(1, TOKENS_PER_BATCH // self._passage.read)
        for first in range(0, len(rows), size):
            batch = rows[first : first + size]
            for row, value in zip(batch, self._compute(batch), strict=True):
                self._known[names[row.number]] = value
            self._progress(len(batch))
        return np.array([self._known[key] for key in keys])

    @property
    def num_computed(self) -> int:
        """How many different ablations were computed."""
        return len(self._known) - 1

    def leave_one_out(self) -> Values:
        """What each source gave: log-probability intact minus without that source alone, ``[source]``, nats."""
        return self.intact - self.log_probs(~np.eye(len(self._passage.sources), dtype=bool))

    def _row(self, number: int, left_out: Tensor) -> _Row:
        marked = self._passage.marked(left_out[None])[0].int()
        first = int(marked.argmax())
        if self._shortens:
            return _Row(number, left_out, first, len(marked) - int(marked.sum()))
        # A block reads itself, so its own tokens are as they were; the next block is the first to miss it.
        unit = self._passage.units[first]
        after = (self._passage.units[: self._passage.read] > unit).int()
        return _Row(number, left_out, int(after.argmax()), len(marked))

    @torch.no_grad()
    def _compute(self, rows: list[_Row]) -> list[float]:
        prefix = min(row.prefix for row in rows)
        left_out = torch.stack([row.left_out for row in rows])
        cache = repeat_prefix(self._cache, prefix, len(rows))
        compute = self._shortened if self._shortens else self._cut
        return [float(value) for value in self._log_probs(compute(left_out, prefix, cache)).sum(dim=1)]

    def _cut(self, left_out: Tensor, prefix: int, cache: object) -> Tensor:
        passage = self._passage
        ids, blocks = (part[: passage.read].expand(len(left_out), -1) for part in (passage.ids, passage.block_ids))
        self.tokens_computed += ids[:, prefix:].numel()
        with cutting(self._model, passage.edges(left_out).to(self._model.device), self._layers):
            return self._logits(ids[:, prefix:], blocks, cache, passage.num_targets)

    def _shortened(self, left_out: Tensor, prefix: int, cache: object) -> Tensor:
        """Shorter rows are filled up at their end, where no token of theirs looks."""
        passage = self._passage
        stays = ~passage.marked(left_out)
        lengths = stays.sum(dim=1)
        longest = int(lengths.max())
        order = (~stays).int().argsort(dim=1, stable=True)[:, :longest]
        ids, blocks = passage.ids[: passage.read][order], _remaining(passage.block_ids[: passage.read], stays)
        blocks = blocks.gather(1, order)
        filling = torch.arange(longest) >= lengths[:, None]
        blocks = torch.where(filling, blocks.gather(1, lengths[:, None] - 1), blocks)
        needed = longest - int(lengths.min()) + passage.num_targets
        self.tokens_computed += ids[:, prefix:].numel()
        at = {"position_ids": order[:, prefix:].to(self._model.device)} if self._how == "cut" else {}
        logits = self._logits(ids[:, prefix:], blocks, cache, needed, **at)
        places = (lengths - passage.num_targets - (longest - needed))[:, None] + torch.arange(passage.num_targets)
        places = places.to(logits.device)
        return logits.gather(1, places[..., None].expand(-1, -1, logits.shape[-1]))

    def _logits(self, ids: Tensor, blocks: Tensor, cache: object, last: int, **at: Tensor) -> Tensor:
        device = self._model.device
        return last_logits(
            self._model,
            last,
            input_ids=ids.to(device),
            block_ids=blocks.to(device),
            past_key_values=cache,
            use_cache=True,
            **at,
        )

    def _log_probs(self, logits: Tensor) -> Tensor:
        """``[row, target]`` from the logits ``[row, target, vocab]`` that predict the target's tokens."""
        targets = self._passage.ids[self._passage.start : self._passage.end].to(logits.device)
        found = torch.log_softmax(logits.double(), dim=-1).gather(2, targets.expand(len(logits), -1)[..., None])
        return found[..., 0].cpu()


def _remaining(block_ids: Tensor, stays: Tensor) -> Tensor:
    """The blocks ``[row, text]`` of a text ``[text]`` whose leads count only what stays of it, ``[row, text]``."""
    leads = leads_of(block_ids)
    home = home_starts(block_ids[None], 0)[0]
    before = torch.nn.functional.pad(stays.cumsum(dim=1), (1, 0))
    return with_leads(block_ids, before[:, home + leads] - before[:, home] - leads)


def draw_kept(num_ablations: int, num_sources: int, seed: int | Sequence[int], keep: float = 0.5) -> Flags:
    """Which sources random ablations keep, each independently with this probability, bool ``[ablation, source]``.

    Source: ContextCite (Cohen-Wang et al., arXiv 2409.00729), with keep = 0.5.
    """
    return np.random.default_rng(seed).random((num_ablations, num_sources)) < keep
