"""Which backend computes a layer, and why; never another one than asked for, and never in silence."""

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch

from proloc.attention import plain, reference, sdpa
from proloc.attention.keys import Keys
from proloc.attention.proof import BACKENDS, DEVICE, Fast, objection
from proloc.attention.result import Backend, Wanted
from proloc.errors import ProlocError

Name = Literal["plain", "reference", "sdpa", "flash", "flex", "fused", "triton"]
Requested = Literal["auto", "reference", "sdpa", "flash", "flex", "fused", "triton"]

# Made of PyTorch's public operators alone, so that there is nothing to prove; they take any keys.
OPEN: dict[str, Backend] = {
    "plain": plain.attend_ranges,
    "reference": reference.attend_ranges,
    "sdpa": sdpa.attend_ranges,
}
SHORT = 128  # below this many keys two flash passes gain nothing over written-out weights


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What one layer is asked for.

    Attributes:
        device: type of device, "cpu" or "cuda".
        dtype: of the queries.
        queries: how many.
        keys: how many.
        wanted: statistics.
        weights: somebody wants the weights themselves.
        dropout: attention dropout is on.
        softcap: the scores are capped.
        contiguous: visible keys and blocks are ranges (``layout.KeyRanges``).
        windowed: some queries do not see back to the start of their text.
        unmasked: plain attention without a mask is the same (``Keys.unmasked``).
        slope: somebody wants the gradient with respect to retain.
    """

    device: str
    dtype: torch.dtype
    queries: int
    keys: int
    wanted: Wanted = "nothing"
    weights: bool = False
    dropout: bool = False
    softcap: bool = False
    contiguous: bool = True
    windowed: bool = False
    unmasked: bool = False
    slope: bool = False


@dataclass(frozen=True)
class Choice:
    """A backend and the reason for it."""

    name: Name
    reason: str

    @property
    def attend(self) -> Backend:
        """The backend itself."""
        return OPEN[self.name] if self.name in OPEN else BACKENDS[cast(Fast, self.name)]

    def keys_for(self, keys: Keys) -> Any:
        """What this backend takes: the ranges, or, where it needs a matrix, the keys that can make one."""
        return keys if self.name in OPEN else keys.ranges


def check_requested(name: str) -> None:
    """Raise a ProlocError unless ``name`` is an attention that there is."""
    if name not in get_args(Requested):
        raise ProlocError(f"there is no attention {name!r}; choose one of {', '.join(get_args(Requested))}.")


def choose(requested: Requested, needs: Needs) -> Choice:
    """The backend for a layer: the fastest that can do it, or the one asked for.

    Raises:
        ProlocError: an unknown name, or the backend asked for cannot do what is needed.
    """
    check_requested(requested)
    if requested != "auto":
        if against := _against(requested, needs):
            raise ProlocError(f"attention {requested!r} cannot be used here: {against}; 'auto' chooses one that can.")
        return Choice(requested, "it was asked for")
    objections: list[str] = []
    for name in _fastest_first(needs):
        against = _against(name, needs)
        if name == "flash" and against is None and needs.keys < SHORT:
            against = f"it gains nothing below {SHORT} keys"
        if against is None:
            reasons = [*objections, *["every key is read at full weight, so no mask is needed"] * (name == "plain")]
            return Choice(name, "; ".join(reasons) or "the fastest there is")
        objections.append(f"not {name}: {against}")
    return Choice("reference", "; ".join(objections))


def _fastest_first(needs: Needs) -> tuple[Name, ...]:
    if needs.device == "cuda":
        return ("plain", "triton", "sdpa") if needs.unmasked else ("triton", "sdpa")
    if needs.unmasked:
        return ("plain", "fused", "flash") if needs.queries == 1 else ("fused", "plain", "flash", "sdpa")
    return ("fused", "flash", "sdpa")


def _against(name: Name, needs: Needs) -> str | None:
    """Why a backend cannot do what is needed, or None."""
    if name == "reference":
        return None
    if needs.weights:
        return "somebody wants the weights"
    if needs.slope:
        return "lambda itself is learned"
    if needs.softcap:
        return "the scores are capped"
    if name == "plain" or name == "sdpa":
        return None if needs.wanted == "nothing" else "it has no weights to measure"
    if needs.dropout:
        return "attention dropout is on (set attention_dropout or attn_pdrop to 0)"
    if not needs.contiguous:
        return "visible keys or blocks are not contiguous"
    if needs.device != DEVICE[name]:
        return f"it runs on {DEVICE[name]}, not on {needs.device}"
    if name == "flash" and (needs.windowed or 1 < needs.queries < needs.keys):
        return "it does neither sliding windows nor several queries after a cache"
    against: str | None = objection(name, needs.dtype)
    return against
