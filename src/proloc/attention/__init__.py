"""Dialled attention: what it means (``reference``) and a fast way to the same output (``sdpa``)."""

from typing import Literal, get_args

from proloc.errors import ProlocError

Backend = Literal["auto", "reference", "sdpa"]


def check_backend(name: str) -> None:
    """Raise a ProlocError unless ``name`` is a backend."""
    if name not in get_args(Backend):
        raise ProlocError(f"there is no attention {name!r}; choose one of {', '.join(get_args(Backend))}.")


def select(requested: Backend, *, weights_wanted: bool, softcap: bool) -> Literal["reference", "sdpa"]:
    """Which path computes a layer: SDPA unless somebody wants its weights or it caps its scores, or one was asked for.

    Raises:
        ProlocError: "sdpa" was asked for, but weights, fidelity or entropy are wanted, or the layer caps its scores.
    """
    if requested == "sdpa" and weights_wanted:
        raise ProlocError("attention 'sdpa' has no weights to measure; localize with attention='auto' or 'reference'.")
    if requested == "sdpa" and softcap:
        raise ProlocError("attention 'sdpa' cannot cap scores; localize with attention='auto' or 'reference'.")
    if requested == "auto":
        return "reference" if weights_wanted or softcap else "sdpa"
    return requested
