"""The only room that knows transformers' internals: registration, ``localize``, the dial, saving and loading."""

from proloc.hf.cache import LocalCache
from proloc.hf.card import add_figures, figures
from proloc.hf.cutting import cutting
from proloc.hf.frozen import provide
from proloc.hf.loading import from_pretrained
from proloc.hf.localize import localize
from proloc.hf.state import (
    LocalityState,
    Recorder,
    check_block_dropout,
    describe,
    dial,
    dropping_blocks,
    find_state,
    recording,
    set_dial,
)

__all__ = [
    "LocalCache",
    "LocalityState",
    "Recorder",
    "add_figures",
    "check_block_dropout",
    "cutting",
    "describe",
    "dial",
    "dropping_blocks",
    "figures",
    "find_state",
    "from_pretrained",
    "localize",
    "provide",
    "recording",
    "set_dial",
]
