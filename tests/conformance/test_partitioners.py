"""What every partitioner must keep, whatever its rule; a new kind joins by one line in INSTANCES."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from proloc.blocks import (
    PARTITIONERS,
    ChangePointBlocks,
    DelimiterBlocks,
    DriftBlocks,
    FixedBlocks,
    GivenBlocks,
    OnlineBlocks,
    Partitioner,
    RandomBlocks,
    RecruitmentBlocks,
    SentenceBlocks,
    SentenceEnds,
    SurpriseBlocks,
    TilingBlocks,
    build_partitioner,
)
from proloc.errors import ProlocError
from proloc.locality import check_leads, home_starts, leads_of

VOCAB = 24
# One token in three ends, breaks or abbreviates a sentence, so that short random inputs meet every rule.
ENDS = SentenceEnds(ends=(0, 1), periods=(2, 3), newlines=(4, 5), abbreviations=(6, 7))
TABLE = torch.randn(VOCAB, 5, generator=torch.Generator().manual_seed(0))

# Three states: nothing read, token 8 read, tokens 8 9 read; 8 9 10 is a delimiter, and so is 11.
AUTOMATON = torch.zeros(3, VOCAB + 1, dtype=torch.int16)
AUTOMATON[:, 8] = 2
AUTOMATON[1, 9] = 4
AUTOMATON[2, 10] = 1
AUTOMATON[:, 11] = 1


class PairSurprisal:
    """Bits that depend on the token and the one before it, as a small frozen model's would."""

    name = "pairs"

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        return np.concatenate([[0.0], 12 * ((ids[1:] * 7 + ids[:-1] * 3) % 11 / 11) ** 3])


class MeanToken:
    """A sentence embedder that is no table of tokens."""

    name = "mean-token"

    def __call__(self, ids: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        parts = [ids[left:right] for left, right in itertools.pairwise(bounds)]
        return np.array([[np.cos(part.mean()), np.sin(part.mean())] for part in parts])


PROVIDED = {"pairs": PairSurprisal(), "mean-token": MeanToken()}

# name: (partitioner, shortest block that may close, longest block)
INSTANCES: dict[str, tuple[Partitioner, int, float]] = {
    "fixed-1": (FixedBlocks(1), 1, 1),
    "fixed-7": (FixedBlocks(7), 7, 7),
    "fixed-lead": (FixedBlocks(7, lead=3), 7, 7),
    "sentence": (SentenceBlocks(ENDS), 8, np.inf),
    "sentence-short": (SentenceBlocks([0, 5], min_length=1), 1, np.inf),
    "sentence-forced": (SentenceBlocks(ENDS, min_length=3, max_length=5), 3, 5),
    "sentence-always-5": (SentenceBlocks(ENDS, min_length=5, max_length=5), 5, 5),
    "drift": (DriftBlocks(ENDS, TABLE, threshold=0.6, min_sentence=2, min_length=4, max_length=None), 4, np.inf),
    "drift-forced": (DriftBlocks(ENDS, TABLE, threshold=0.2, min_sentence=1, min_length=2, max_length=6), 2, 6),
    "drift-compressed": (
        DriftBlocks.from_embedding(
            ENDS, TABLE, dim=3, counts=range(VOCAB), threshold=0.0, min_sentence=1, min_length=1
        ),
        1,
        256,
    ),
    "drift-hindsight": (
        DriftBlocks(ENDS, TABLE, threshold=0.4, min_sentence=2, min_length=4, max_length=40, hindsight=True),
        4,
        40,
    ),
    "random": (RandomBlocks({2: 5, 3: 1, 9: 4}, seed=3), 2, 9),
    "random-leads": (RandomBlocks({2: 5, 3: 1, 9: 4}, seed=3, leads={(2, 0): 1, (2, 2): 3, (9, 12): 1}), 2, 9),
    "random-one-length": (RandomBlocks([(4, 1.0)], seed=1), 4, 4),
    "given": (GivenBlocks(range(5, 3000, 5)), 5, np.inf),
    "delimiter": (DelimiterBlocks(AUTOMATON), 1, np.inf),
    "delimiter-tokens": (DelimiterBlocks.tokens([2, 17], min_length=3, max_length=9), 3, 9),
    "recruitment": (RecruitmentBlocks(ENDS, range(VOCAB), prior=4, min_sentence=1, min_length=3), 3, 256),
    "recruitment-forced": (RecruitmentBlocks(ENDS, [1] * VOCAB, cost=-2, prior=30, min_length=6, max_length=9), 6, 9),
    "recruitment-hindsight": (
        RecruitmentBlocks(ENDS, range(VOCAB), prior=4, min_sentence=1, min_length=3, max_length=None, hindsight=True),
        3,
        np.inf,
    ),
    "recruitment-hindsight-forced": (
        RecruitmentBlocks(ENDS, [1] * VOCAB, cost=-2, prior=30, min_length=2, max_length=9, hindsight=True),
        2,
        9,
    ),
    "online": (OnlineBlocks([3], TABLE, penalty=0.1), 4, np.inf),
    "online-kernel": (OnlineBlocks(ENDS, TABLE, penalty=0.5, min_sentences=1, cost="kernel"), 4, np.inf),
    "online-embedder": (
        OnlineBlocks([3, 4], MeanToken(), penalty=0.2, min_sentences=3, max_sentences=6, min_sentence=1),
        1,
        np.inf,
    ),
    "surprise": (SurpriseBlocks(PairSurprisal(), min_length=2, max_length=None), 2, np.inf),
    "surprise-forced": (SurpriseBlocks(PairSurprisal(), gamma=0.5, window=9, min_length=4, max_length=11), 4, 11),
    "changepoint": (ChangePointBlocks([3], TABLE, penalty=0.3), 4, np.inf),
    "changepoint-embedder": (
        ChangePointBlocks([3, 4], MeanToken(), penalty=0.8, min_sentences=1, min_sentence=1),
        1,
        np.inf,
    ),
    "changepoint-direction": (ChangePointBlocks([3], TABLE, penalty=0.12, cost="direction"), 4, np.inf),
    "changepoint-number": (ChangePointBlocks([3], TABLE, num_blocks=150), 4, np.inf),
    "tiling": (TilingBlocks([3, 4], TABLE, min_sentence=1), 1, np.inf),
    "tiling-embedder": (TilingBlocks([3], MeanToken(), threshold=0.5, window=1), 4, np.inf),
}

# Their search is not exact, or not by the threshold: a score says what a boundary saves, and not why it is there.
PRUNED = {"changepoint", "changepoint-direction", "changepoint-number"}

every_kind = pytest.mark.parametrize("name", INSTANCES)
every_causal_kind = pytest.mark.parametrize("name", [name for name in INSTANCES if INSTANCES[name][0].causal])
sequences = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=60)


def blocks_of(partitioner: Partitioner, ids: list[int]) -> list[int]:
    return partitioner(torch.tensor([ids]))[0].tolist()


def lengths_of(block_ids: list[int]) -> list[int]:
    return [len(list(group)) for _, group in itertools.groupby(block_ids)]


def numbers_of(block_ids: list[int]) -> list[int]:
    """Blocks without their leads."""
    return [block & 0xFFFFFFFF for block in block_ids]


def long_input(length: int = 20_000) -> np.ndarray:
    return np.random.default_rng(5).integers(0, VOCAB, length)


def test_every_registered_kind_is_in_this_suite() -> None:
    assert {partitioner.kind for partitioner, _, _ in INSTANCES.values()} == set(PARTITIONERS)


@every_kind
def test_kinds_are_registered_under_their_name(name: str) -> None:
    partitioner = INSTANCES[name][0]
    assert PARTITIONERS[partitioner.kind] is type(partitioner)


def test_only_the_kinds_that_read_the_whole_text_are_not_causal() -> None:
    assert {kind for kind, partitioner in PARTITIONERS.items() if not partitioner.causal} == {"changepoint", "tiling"}


@every_causal_kind
@settings(deadline=None)
@given(ids=sequences, data=st.data())
def test_neither_a_token_nor_what_follows_moves_the_boundary_before_it(name: str, ids: list[int], data) -> None:
    at = data.draw(st.integers(0, len(ids) - 1))
    future = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=60))
    partitioner = INSTANCES[name][0]
    assert blocks_of(partitioner, ids)[: at + 1] == blocks_of(partitioner, ids[:at] + future)[: at + 1]


@every_causal_kind
def test_no_boundary_in_a_long_text_moves_with_the_token_at_it(name: str) -> None:
    partitioner, ids = INSTANCES[name][0], long_input(400)
    before = partitioner.boundaries_and_leads(ids)
    for at in range(ids.size):
        changed = ids.copy()
        changed[at:] = (changed[at:] + 1) % VOCAB
        for found, known in zip(partitioner.boundaries_and_leads(changed), before, strict=True):
            np.testing.assert_array_equal(found[: at + 1], known[: at + 1])


@every_causal_kind
@settings(deadline=None)
@given(ids=sequences)
def test_token_by_token_gives_the_blocks_of_the_whole(name: str, ids: list[int]) -> None:
    partitioner = INSTANCES[name][0]
    whole = blocks_of(partitioner, ids)
    assert [blocks_of(partitioner, ids[: end + 1])[-1] for end in range(len(ids))] == whole


@every_kind
@settings(deadline=None)
@given(ids=sequences)
@example(ids=[0, 3, 9, 2, 2, 3, 0, 0, 0, 0])  # a short first sentence
def test_blocks_are_counted_from_zero_without_gaps_and_keep_the_lengths(name: str, ids: list[int]) -> None:
    partitioner, shortest, longest = INSTANCES[name]
    block_ids = blocks_of(partitioner, ids)
    assert block_ids[0] == 0
    assert set(np.diff(numbers_of(block_ids))) <= {0, 1}
    *complete, last = lengths_of(block_ids)
    assert all(shortest <= length <= longest for length in complete)
    assert last <= longest


@every_kind
@settings(deadline=None)
@given(rows=st.lists(sequences, min_size=1, max_size=4), left=st.booleans())
def test_neither_batch_nor_padding_moves_a_boundary(name: str, rows: list[list[int]], left: bool) -> None:
    partitioner = INSTANCES[name][0]
    width = max(map(len, rows)) + 2
    input_ids, valid = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.bool)
    for row, ids in enumerate(rows):
        place = slice(width - len(ids), width) if left else slice(0, len(ids))
        input_ids[row, place], valid[row, place] = torch.tensor(ids), True
    batched = partitioner(input_ids, valid=valid)
    assert torch.equal(batched, partitioner(torch.where(valid, input_ids, 17), valid=valid))
    for row, ids in enumerate(rows):
        assert batched[row, valid[row]].tolist() == blocks_of(partitioner, ids)
        assert set(batched[row, ~valid[row]].tolist()) == {0 if left else blocks_of(partitioner, ids)[-1]}


@every_kind
@settings(deadline=None)
@given(parts=st.lists(sequences, min_size=1, max_size=4), padding=st.integers(0, 3))
def test_packed_sequences_get_the_blocks_they_get_alone(name: str, parts: list[list[int]], padding: int) -> None:
    partitioner = INSTANCES[name][0]
    packed = torch.tensor([[*itertools.chain(*parts), *[0] * padding]])
    starts = torch.zeros_like(packed, dtype=torch.bool)
    starts[0, list(itertools.accumulate(map(len, parts[:-1]), initial=0))] = True
    valid = torch.arange(packed.shape[1])[None] < packed.shape[1] - padding
    expected: list[int] = []
    for part in parts:
        offset = numbers_of(expected)[-1] + 1 if expected else 0
        expected += [offset + block for block in blocks_of(partitioner, part)]
    assert partitioner(packed, valid=valid, starts=starts)[0].tolist() == expected + expected[-1:] * padding


@every_kind
@settings(deadline=None, max_examples=30)
@given(ids=sequences)
def test_saved_and_rebuilt_it_gives_the_same_blocks(name: str, ids: list[int]) -> None:
    partitioner = INSTANCES[name][0]
    rebuilt = build_partitioner(
        partitioner.kind,
        json.loads(json.dumps(partitioner.settings())),
        load(save(partitioner.tensors())),
        PROVIDED.__getitem__,
    )
    assert blocks_of(rebuilt, ids) == blocks_of(partitioner, ids)
    assert rebuilt.settings() == partitioner.settings()
    assert all(torch.equal(tensor, partitioner.tensors()[key]) for key, tensor in rebuilt.tensors().items())


@every_kind
@settings(deadline=None, max_examples=30)
@given(ids=sequences)
def test_the_trace_says_which_scores_opened_the_blocks(name: str, ids: list[int]) -> None:
    partitioner, shortest, longest = INSTANCES[name]
    tokens = np.array(ids)
    trace, opens = partitioner.trace(tokens), partitioner.boundaries(tokens)
    assert trace.scores.shape == tokens.shape
    assert bool(trace.meaning) == (name.split("-")[0] not in {"fixed", "random", "given"})
    if trace.meaning and np.isinf(longest) and np.isfinite(trace.threshold) and name not in PRUNED:
        assert (trace.scores[1:][opens[1:]] > trace.threshold - 1e-9).all()
        asked = np.flatnonzero(trace.scores > trace.threshold + 1e-9)
        starts = np.flatnonzero(opens)
        for at in asked[asked > 0]:
            start = starts[np.searchsorted(starts, at) - 1]
            assert opens[at] or at - start < shortest


@every_kind
def test_one_token_is_one_block(name: str) -> None:
    assert all(blocks_of(INSTANCES[name][0], [token]) == [0] for token in range(VOCAB))


@every_kind
def test_a_row_of_padding_only_is_block_zero(name: str) -> None:
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    assert INSTANCES[name][0](torch.zeros(1, 3, dtype=torch.long), valid=nothing).tolist() == [[0, 0, 0]]


@every_kind
def test_a_long_input_keeps_the_lengths_and_gives_the_same_blocks_twice(name: str) -> None:
    partitioner, shortest, longest = INSTANCES[name]
    ids = torch.from_numpy(long_input())[None]
    block_ids = partitioner(ids)
    *complete, last = lengths_of(block_ids[0].tolist())
    assert len(complete) > 100
    assert all(shortest <= length <= longest for length in complete)
    assert last <= longest
    assert torch.equal(partitioner(ids.int()), block_ids)


@every_kind
def test_home_never_moves_back_and_only_hindsight_gives_leads(name: str) -> None:
    partitioner, ids = INSTANCES[name][0], torch.from_numpy(long_input(5000))[None]
    block_ids = partitioner(ids)
    check_leads(block_ids)
    assert (home_starts(block_ids, 0).diff() >= 0).all()
    leads = leads_of(block_ids)
    assert bool(leads.any()) == ("hindsight" in name or "lead" in name or name.startswith("online"))
    opens, found = partitioner.boundaries_and_leads(ids[0].numpy())
    np.testing.assert_array_equal(opens, partitioner.boundaries(ids[0].numpy()))
    np.testing.assert_array_equal(leads[0, opens].numpy(), found[opens])


@every_kind
def test_input_is_left_as_it_was(name: str) -> None:
    ids = torch.from_numpy(long_input(100))[None]
    INSTANCES[name][0](ids)
    assert torch.equal(ids, torch.from_numpy(long_input(100))[None])


@every_kind
def test_shapes_that_do_not_fit_are_refused(name: str) -> None:
    partitioner = INSTANCES[name][0]
    with pytest.raises(ProlocError, match=r"\[batch, seq\].*\[3\]"):
        partitioner(torch.zeros(3, dtype=torch.long))
    with pytest.raises(ProlocError, match=r"valid must have the shape of input_ids, \[1, 3\], but has \[1, 4\]"):
        partitioner(torch.zeros(1, 3, dtype=torch.long), valid=torch.ones(1, 4, dtype=torch.bool))


@every_kind
def test_unknown_settings_are_refused_by_name(name: str) -> None:
    partitioner = INSTANCES[name][0]
    with pytest.raises(ProlocError, match="lenght"):
        build_partitioner(partitioner.kind, {**partitioner.settings(), "lenght": 8}, partitioner.tensors())


def test_an_unknown_kind_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(ProlocError, match=r"no 'topic' blocks.*'changepoint', 'delimiter', 'drift', 'fixed'"):
        build_partitioner("topic", {})
