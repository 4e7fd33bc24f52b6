"""Partitioners: rules that cut a token sequence into semantic blocks.

Nearly every partitioner here is causal: a boundary before token t is decided from tokens before t alone, not even from
t itself, so that the blocks tell no query anything about its future. That is why a sentence's closing quote can land in
the next block, and why a sentence that changes the topic is the last of the old block; with *hindsight* it leads the
new one as well, home to its later queries. The others (``causal = False``) explain a finished text, and are refused
where a model trains, is measured or generates.
"""

from proloc.blocks.base import Partitioner, Trace
from proloc.blocks.calibrate import (
    block_lengths,
    calibrate,
    lead_distribution,
    length_distribution,
    matched_fixed,
    matched_random,
    mean_block_length,
    token_counts,
)
from proloc.blocks.changepoint import ChangePointBlocks
from proloc.blocks.delimiter import DelimiterBlocks
from proloc.blocks.drift import DriftBlocks
from proloc.blocks.embedders import SentenceEmbedder
from proloc.blocks.fixed import FixedBlocks
from proloc.blocks.given import GivenBlocks, blocks_from_messages, blocks_from_offsets, blocks_from_regex, open_ended
from proloc.blocks.online import OnlineBlocks
from proloc.blocks.random import RandomBlocks
from proloc.blocks.recruitment import RecruitmentBlocks
from proloc.blocks.registry import PARTITIONERS, build_partitioner
from proloc.blocks.sentence import SentenceBlocks
from proloc.blocks.sentence_ends import SentenceEnds
from proloc.blocks.surprise import Surprisal, SurpriseBlocks
from proloc.blocks.tiling import TilingBlocks

__all__ = [
    "PARTITIONERS",
    "ChangePointBlocks",
    "DelimiterBlocks",
    "DriftBlocks",
    "FixedBlocks",
    "GivenBlocks",
    "OnlineBlocks",
    "Partitioner",
    "RandomBlocks",
    "RecruitmentBlocks",
    "SentenceBlocks",
    "SentenceEmbedder",
    "SentenceEnds",
    "Surprisal",
    "SurpriseBlocks",
    "TilingBlocks",
    "Trace",
    "block_lengths",
    "blocks_from_messages",
    "blocks_from_offsets",
    "blocks_from_regex",
    "build_partitioner",
    "calibrate",
    "lead_distribution",
    "length_distribution",
    "matched_fixed",
    "matched_random",
    "mean_block_length",
    "open_ended",
    "token_counts",
]
