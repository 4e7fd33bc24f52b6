"""Partitioners: rules that cut a token sequence into semantic blocks.

Every partitioner here is causal: a boundary before token t is decided from tokens before t alone, not even from t
itself, so that the blocks tell no query anything about its future. That is why a sentence's closing quote can land in
the next block, and why a sentence that changes the topic is the last of the old block.
"""

from proloc.blocks.base import Partitioner
from proloc.blocks.calibrate import (
    block_lengths,
    calibrate_drift,
    length_distribution,
    matched_fixed,
    matched_random,
    mean_block_length,
    token_counts,
)
from proloc.blocks.drift import DriftBlocks
from proloc.blocks.fixed import FixedBlocks
from proloc.blocks.random import RandomBlocks
from proloc.blocks.registry import PARTITIONERS, build_partitioner
from proloc.blocks.sentence import SentenceBlocks
from proloc.blocks.sentence_ends import SentenceEnds

__all__ = [
    "PARTITIONERS",
    "DriftBlocks",
    "FixedBlocks",
    "Partitioner",
    "RandomBlocks",
    "SentenceBlocks",
    "SentenceEnds",
    "block_lengths",
    "build_partitioner",
    "calibrate_drift",
    "length_distribution",
    "matched_fixed",
    "matched_random",
    "mean_block_length",
    "token_counts",
]
