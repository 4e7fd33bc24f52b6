"""Dialled attention: what it means (``reference``), faster ways to the same, and which of them runs (``choose``)."""

from proloc.attention.choose import Choice, Needs, Requested, check_requested, choose
from proloc.attention.entropy import undialled_entropy
from proloc.attention.keys import CutKeys, Keys
from proloc.attention.layout import KeyRanges
from proloc.attention.result import Attention, Wanted

__all__ = [
    "Attention",
    "Choice",
    "CutKeys",
    "KeyRanges",
    "Keys",
    "Needs",
    "Requested",
    "Wanted",
    "check_requested",
    "choose",
    "undialled_entropy",
]
