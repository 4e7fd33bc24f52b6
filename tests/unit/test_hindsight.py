"""Blocks that what was read before they opened leads: by rule, as controls, and what is refused."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from texts import CATS, LAW, STOP, TOPICS, sentence_corpus
from tiny import VOCAB, random_ids, tiny_model

import proloc
from proloc.blocks import (
    DriftBlocks,
    FixedBlocks,
    OnlineBlocks,
    Partitioner,
    RandomBlocks,
    RecruitmentBlocks,
    calibrate,
    lead_distribution,
    length_distribution,
    matched_fixed,
    matched_random,
)
from proloc.errors import ProlocError
from proloc.locality import with_leads

TWO_TOPICS = np.array(CATS * 3 + LAW * 3)


def homes(partitioner, ids) -> list[tuple[int, int]]:
    """First token and first home token of every block."""
    opens, leads = partitioner.boundaries_and_leads(np.asarray(ids))
    return [(int(at), int(at - leads[at])) for at in np.flatnonzero(opens)]


@pytest.mark.parametrize(
    "make",
    [
        lambda **how: RecruitmentBlocks([STOP], [1] * 9, prior=4, **how),
        lambda **how: DriftBlocks([STOP], TOPICS, threshold=0.5, **how),
    ],
    ids=["recruitment", "drift"],
)
def test_the_sentence_that_changed_the_topic_leads_the_block_that_it_opened(make):
    assert homes(make(), TWO_TOPICS) == [(0, 0), (32, 32)]
    assert homes(make(hindsight=True), TWO_TOPICS) == [(0, 0), (32, 24)]


def test_drift_compares_the_next_sentence_to_the_one_that_leads():
    ids = [*CATS * 3, *LAW, *CATS * 3]
    blocks = {"threshold": 0.5, "min_sentence": 4, "min_length": 8}
    assert homes(DriftBlocks([STOP], TOPICS, **blocks), ids) == [(0, 0), (32, 32)]
    assert homes(DriftBlocks([STOP], TOPICS, **blocks, hindsight=True), ids) == [(0, 0), (32, 24), (40, 32)]


def test_a_sentence_cut_by_a_full_block_leads_from_there():
    blocks = RecruitmentBlocks([STOP], [1] * 9, prior=4, min_length=2, max_length=28, hindsight=True)
    assert homes(blocks, TWO_TOPICS)[:3] == [(0, 0), (28, 28), (32, 28)]


def online_by_trying_every_cut(vectors, penalty, fewest, cost):
    """(sentences read, first sentence) of every block, by exhaustive search; None where two cuts are equally cheap."""
    found, start = [], 0
    for end in range(1, len(vectors)):
        cuts = []
        for number in range(end):
            for inner in itertools.combinations(range(1, end), number):
                edges = [0, *inner, end]
                if not inner or min(np.diff(edges[:-1])) >= fewest:
                    price = sum(cost(vectors[i:j]) for i, j in itertools.pairwise(edges)) + penalty * number
                    cuts.append((price, edges[-2]))
        new = [price for price, first in cuts if first >= start + fewest]
        old = [price for price, first in cuts if first <= start]
        if new and abs(min(new) - min(old)) < 1e-4:
            return None
        if new and min(new) < min(old):
            best = sorted(cut for cut in cuts if cut[1] >= start + fewest)
            if len(best) > 1 and best[1][0] - best[0][0] < 1e-4 and best[1][1] != best[0][1]:
                return None
            start = best[0][1]
            found.append((end, start))
    return found


class TestOnline:
    def test_the_sentences_since_the_change_lead_the_block(self):
        assert homes(OnlineBlocks([STOP], TOPICS, penalty=0.2), TWO_TOPICS) == [(0, 0), (32, 24)]
        slow = OnlineBlocks([STOP], TOPICS, penalty=0.8)
        assert homes(slow, np.array(CATS * 3 + LAW * 6)) == [(0, 0), (40, 24)]

    @settings(deadline=None, max_examples=200)
    @given(
        seed=st.integers(0, 10_000),
        sentences=st.integers(2, 9),
        penalty=st.floats(0.05, 1.0),
        fewest=st.integers(1, 3),
        kind=st.sampled_from(["kernel", "direction"]),
    )
    def test_it_takes_the_last_change_of_the_cheapest_cut_at_every_sentence_end(
        self, seed, sentences, penalty, fewest, kind
    ):
        costs = {
            "kernel": lambda part: len(part) - np.square(part.sum(axis=0)).sum() / len(part),
            "direction": lambda part: len(part) - np.linalg.norm(part.sum(axis=0)),
        }
        table = torch.randn(20, 3, generator=torch.Generator().manual_seed(seed))
        ids = np.random.default_rng(seed).integers(1, 20, 2 * sentences)
        ids[1::2] = STOP
        vectors = table.double().numpy()[ids].reshape(sentences, 2, 3).sum(axis=1)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        expected = online_by_trying_every_cut(vectors, penalty, fewest, costs[kind])
        assume(expected is not None)
        limits = {"penalty": penalty, "min_sentences": fewest, "min_sentence": 1}
        found = homes(OnlineBlocks([STOP], table, cost=kind, **limits), ids)[1:]
        assert [(opened // 2, first // 2) for opened, first in found] == expected

    def test_no_block_is_home_to_more_sentences_than_allowed(self):
        blocks = OnlineBlocks([STOP], TOPICS, penalty=9.0, max_sentences=4)
        found = homes(blocks, CATS * 40)
        assert len(found) > 10
        for (_, home), (after, _) in itertools.pairwise(found):
            assert after - home <= 5 * len(CATS)  # the fifth sentence was read before it was known
        assert all(at - home <= 4 * len(CATS) for at, home in found)

    def test_what_stands_far_back_moves_nothing(self):
        """The first topic is another one in each text; from the second on all is alike but the number of tokens."""
        blocks = OnlineBlocks([STOP], TOPICS, penalty=0.2)
        later = [*LAW * 4, *CATS * 4, *LAW * 4]
        one, other = (homes(blocks, first + later) for first in (CATS * 3, CATS * 7))
        assert [(at - 24, home - 24) for at, home in one[1:]] == [(at - 56, home - 56) for at, home in other[1:]]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"penalty": -1.0}, "not -1.0"),
            ({"max_sentences": 3}, "max_sentences must be at least twice min_sentences = 2, not 3"),
            ({"cost": "angle"}, "kernel, direction, not 'angle'"),
        ],
    )
    def test_what_cannot_be_is_refused(self, arguments, message):
        with pytest.raises(ProlocError, match=message):
            OnlineBlocks([STOP], TOPICS, **arguments)

    def test_it_can_be_set_to_a_mean_length(self):
        corpus = sentence_corpus(40)
        set_ = calibrate(OnlineBlocks([STOP], TOPICS), corpus, 90.0, tolerance=0.1)
        assert proloc.blocks.mean_block_length(set_, corpus) == pytest.approx(90, rel=0.1)


class TestControls:
    def test_random_and_fixed_blocks_have_the_leads_of_those_they_are_like(self):
        corpus = sentence_corpus(200)
        led = RecruitmentBlocks([STOP], [1] * 9, prior=20, min_length=40, max_length=None, hindsight=True)
        wanted, random = lead_distribution(led, corpus), matched_random(led, corpus)
        mean, found = (
            sum(lead * share for (_, lead), share in lead_distribution(each, corpus).items()) for each in (led, random)
        )
        assert found == pytest.approx(mean, rel=0.1)
        assert {(length, lead): share for length, lead, share in random.leads} == wanted
        assert dict(random.lengths) == length_distribution(led, corpus)
        assert matched_fixed(led, corpus).lead == round(mean)

    def test_without_hindsight_they_have_none(self):
        corpus, plain = sentence_corpus(50), RecruitmentBlocks([STOP], [1] * 9, min_length=40)
        assert {lead for _, lead in lead_distribution(plain, corpus)} == {0}
        assert matched_fixed(plain, corpus).lead == 0
        ids = torch.from_numpy(np.stack(corpus))
        assert matched_random(plain, corpus)(ids).max() < 2**32

    def test_fixed_blocks_led_by_a_whole_one_have_a_halo_of_one(self):
        ids = random_ids(2, 40)
        led, haloed = (
            proloc.localize(tiny_model(), proloc.Uniform(value=1.0), FixedBlocks(6, lead=lead), halo=halo)
            for lead, halo in ((6, 0), (0, 1))
        )
        with torch.no_grad():
            torch.testing.assert_close(led(input_ids=ids).logits, haloed(input_ids=ids).logits)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: FixedBlocks(5, lead=6), "from 0 to length = 5, not 6"),
            (lambda: FixedBlocks(5, lead=-1), "not -1"),
            (lambda: RandomBlocks({3: 1}, leads={(3, -1): 1}), "leads >= 0"),
            (lambda: RandomBlocks({3: 1}, leads={(0, 1): 1}), "lengths >= 1"),
            (lambda: RandomBlocks({3: 1}, leads=[(3, 1, -2.0)]), "weights >= 0"),
            (lambda: lead_distribution(FixedBlocks(300), sentence_corpus(2)), "No second block opens"),
        ],
    )
    def test_what_cannot_be_is_refused(self, make, message):
        with pytest.raises(ProlocError, match=message):
            make()


class Led(Partitioner):
    """Two blocks of given leads."""

    kind = "led"

    def __init__(self, *leads: int) -> None:
        self.leads = leads

    def boundaries(self, ids):
        return np.isin(np.arange(ids.size), (0, 4, 8))

    def boundaries_and_leads(self, ids):
        leads = np.zeros(ids.size, dtype=np.int64)
        leads[: 4 * len(self.leads) : 4] = self.leads
        return self.boundaries(ids), leads

    def settings(self):
        return {}


@pytest.mark.parametrize("leads", [(1,), (0, 5), (0, 3, 8)])
def test_a_partitioner_that_moves_home_back_is_refused(leads):
    Led(0, 3, 7)(torch.zeros(1, 12).long())
    with pytest.raises(ProlocError, match="Led must not move home back"):
        Led(*leads)(torch.zeros(1, 12).long())


def test_a_hash_as_a_block_id_is_refused_by_the_model_and_a_narrow_one_is_a_name():
    model, ids = proloc.localize(tiny_model(), proloc.Uniform(value=1.0), FixedBlocks(5)), random_ids(1, 8)
    names = torch.tensor([[3, 3, 3, 7, 7, 7, 7, 7]])
    with pytest.raises(
        ProlocError, match=r"block id 6148914691236517205 at token 3 of row 0 says .* 1431655765 tokens"
    ):
        model(input_ids=ids, block_ids=torch.where(names == 7, 0x5555555555555555, names))
    with torch.no_grad():
        narrow, plain = (
            model(input_ids=ids, block_ids=torch.where(names == 7, other, names)).logits for other in (2**32 - 1, 7)
        )
    assert torch.equal(narrow, plain)


@pytest.mark.parametrize("attention", ["auto", "reference"])
def test_at_locality_one_a_lead_is_read_by_its_block_and_the_future_by_nobody(attention):
    """One hard layer: token 7 leads the block of tokens 9 to 11 and is away to the one after that."""
    ids = random_ids(1, 16)
    block_ids = torch.tensor([[0] * 4 + [1] * 5 + [2] * 3 + [3] * 4])
    block_ids = with_leads(block_ids, 2 * (block_ids == 2))
    hard = proloc.Uniform(value=1.0)
    model = proloc.localize(tiny_model(layers=1), hard, FixedBlocks(4), sinks=0, attention=attention)
    changed = ids.clone()
    changed[0, 7] += 1
    with torch.no_grad():
        before, after = (model(input_ids=each, block_ids=block_ids).logits[0] for each in (ids, changed))
    moved = (before != after).any(dim=-1).tolist()
    assert moved == [7 <= token <= 11 for token in range(16)]


TABLE = torch.randn(VOCAB, 6, generator=torch.Generator().manual_seed(1))
ENDS = range(5, 15)
LED = {
    "online": OnlineBlocks(ENDS, TABLE, penalty=0.02, min_sentences=1, min_sentence=2),
    "drift": DriftBlocks(ENDS, TABLE, threshold=0.6, min_sentence=2, min_length=3, hindsight=True),
    "recruitment": RecruitmentBlocks(ENDS, [1] * VOCAB, cost=-1, min_sentence=2, min_length=3, hindsight=True),
    "random": RandomBlocks({2: 1, 5: 1, 9: 1}, leads={(2, 0): 1, (2, 2): 1, (5, 6): 2}),
}


@pytest.mark.parametrize("name", LED)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), place=st.integers(1, 39))
def test_where_every_layer_is_hard_no_logit_moves_with_a_later_token(name, seed, place):
    model = proloc.localize(tiny_model(), proloc.Uniform(value=1.0), LED[name])
    ids = random_ids(1, 40, seed=seed)
    changed = torch.cat([ids[:, :place], random_ids(1, 40, seed=seed + 1)[:, place:]], dim=1)
    with torch.no_grad():
        before, after = (model(input_ids=each).logits[:, :place] for each in (ids, changed))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)
