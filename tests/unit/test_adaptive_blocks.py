"""Delimiter, given, surprise, recruitment, change-point and tiling blocks on texts small enough to check by eye."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import CATS, LAW, STOP, TOPICS, ending_tokenizer, lengths, sentence_corpus, word_tokenizer

from proloc.blocks import (
    ChangePointBlocks,
    DelimiterBlocks,
    FixedBlocks,
    GivenBlocks,
    RecruitmentBlocks,
    SurpriseBlocks,
    TilingBlocks,
    blocks_from_messages,
    blocks_from_offsets,
    blocks_from_regex,
    calibrate,
    mean_block_length,
    open_ended,
)
from proloc.blocks.automaton import Automaton, string_automaton
from proloc.errors import ProlocError


class Letters:
    """A vocabulary of all strings of one or two signs, so that a text has many tokenisations."""

    def __init__(self, signs: str) -> None:
        self.words = [*signs, *(a + b for a in signs for b in signs)]

    def __len__(self) -> int:
        return len(self.words)

    def convert_ids_to_tokens(self, token: int) -> str:
        return self.words[token]

    def decode(self, token_ids) -> str:
        return "".join(self.words[token] for token in token_ids)


SIGNS = Letters("ab\n ")


class TestDelimiters:
    @settings(deadline=None, max_examples=300)
    @given(ids=st.lists(st.integers(0, len(SIGNS) - 1), min_size=1, max_size=30))
    @pytest.mark.parametrize("literals", [["ab"], ["aab", "\n\n"], ["aba", "b b", "a\n"]])
    def test_a_string_is_found_however_it_is_tokenised(self, literals, ids) -> None:
        """The slow reference reads the text sign by sign."""
        expected, read = [], ""
        for token in ids:
            ended = False
            for sign in SIGNS.words[token]:
                read += sign
                if any(read.endswith(literal) for literal in literals):
                    read, ended = "", True
            expected.append(ended)
        assert string_automaton(SIGNS, literals).ends(np.array(ids)).tolist() == expected

    def test_a_paragraph_ends_at_a_blank_line_even_one_with_spaces(self) -> None:
        text = "a b\nb a\n\nb\n \na"
        ids = [SIGNS.words.index(sign) for sign in text]
        blocks = DelimiterBlocks.paragraphs(SIGNS, min_length=1)
        assert [
            text[i:j] for i, j in itertools.pairwise([*np.flatnonzero(blocks.boundaries(np.array(ids))), len(ids)])
        ] == [
            "a b\nb a\n\n",
            "b\n \n",
            "a",
        ]

    def test_a_short_paragraph_is_merged_with_the_next(self) -> None:
        ids = [SIGNS.words.index(part) for part in ("a", "\n\n", "b", "b", "\n\n", "a")]
        assert lengths(DelimiterBlocks.paragraphs(SIGNS, min_length=3), ids) == [5, 1]

    def test_bare_ids_and_strings_agree_where_the_string_is_one_token(self) -> None:
        tokenizer = word_tokenizer("one stop two stop three")
        stop = tokenizer.convert_tokens_to_ids("Ġstop")
        ids = tokenizer("one stop two two stop three")["input_ids"]
        assert lengths(DelimiterBlocks.tokens([stop]), ids) == lengths(
            DelimiterBlocks.strings(tokenizer, [" stop"]), ids
        )
        assert lengths(DelimiterBlocks.tokens([stop]), ids) == [2, 3, 1]

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: DelimiterBlocks.strings(SIGNS, []), r"list of strings.* not \[\]"),
            (lambda: DelimiterBlocks.strings(SIGNS, "ab"), "not 'ab'"),
            (lambda: DelimiterBlocks.strings(SIGNS, [""]), "none of them empty"),
            (lambda: DelimiterBlocks.tokens([]), "at least one"),
            (lambda: DelimiterBlocks.tokens([-2]), r">= 0.*\[-2\]"),
            (lambda: DelimiterBlocks.tokens([1], min_length=0), "min_length"),
            (lambda: DelimiterBlocks(torch.zeros(3)), r"\[states, ids\], not torch.float32 \[3\]"),
            (lambda: Automaton(torch.tensor([[0, 4]])), "states 0 to 0 only"),
            (lambda: DelimiterBlocks.tokens([1])(torch.tensor([[4, -100]])), "not -100"),
        ],
    )
    def test_what_cannot_be_is_refused(self, make, message) -> None:
        with pytest.raises(ProlocError, match=message):
            make()


class TestGiven:
    TEXT = "first document here second one is longer third"

    def pieces(self, ids, blocks) -> list[str]:
        tokenizer = word_tokenizer(self.TEXT)
        block_ids = blocks(ids)[0]
        return [tokenizer.decode(ids[0, block_ids == block]).strip() for block in range(int(block_ids.max()) + 1)]

    def test_documents_open_blocks_at_their_characters_in_any_order(self) -> None:
        ids, blocks = blocks_from_offsets(word_tokenizer(self.TEXT), self.TEXT, [self.TEXT.index("third"), 20])
        assert self.pieces(ids, blocks) == ["first document here", "second one is longer", "third"]

    @given(text=st.lists(st.sampled_from(["one", "two", "three", "</s>"]), min_size=1).map(" ".join))
    def test_an_appended_end_of_sequence_is_left_out_and_a_written_one_stays(self, text) -> None:
        ending = ending_tokenizer("one two three")
        ids, ends = open_ended(ending, text)
        assert ids == ending(text, add_special_tokens=False)["input_ids"]
        assert [*ids, ending.eos_token_id] == ending(text)["input_ids"]
        assert ends[-1] == len(text)

    def test_a_regular_expression_opens_a_block_at_each_match(self) -> None:
        ids, blocks = blocks_from_regex(word_tokenizer(self.TEXT), self.TEXT, "second|third")
        assert self.pieces(ids, blocks) == ["first document here", "second one is longer", "third"]

    def test_what_is_generated_stays_in_the_last_block_unless_its_start_is_given(self) -> None:
        longer = torch.zeros(1, 6, dtype=torch.long)
        assert GivenBlocks([2])(longer).tolist() == [[0, 0, 1, 1, 1, 1]]
        assert GivenBlocks([2, 4])(longer).tolist() == [[0, 0, 1, 1, 2, 2]]

    def test_every_turn_of_a_chat_is_a_block_and_so_is_the_answer(self) -> None:
        tokenizer = word_tokenizer("user : assistant hello good day bye")
        tokenizer.chat_template = (
            "{% for m in messages %} {{ m.role }} : {{ m.content }}{% endfor %}"
            "{% if add_generation_prompt %} assistant :{% endif %}"
        )
        messages = [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "good day"},
            {"role": "user", "content": "bye"},
        ]
        ids, blocks = blocks_from_messages(tokenizer, messages)
        block_ids = blocks(ids)[0]
        assert [tokenizer.decode(ids[0, block_ids == block]).strip() for block in range(4)] == [
            "user : hello",
            "assistant : good day",
            "user : bye",
            "assistant :",
        ]

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda t: GivenBlocks([-1]), "not -1"),
            (lambda t: blocks_from_offsets(t, "first", [5]), "characters 0 to 4 of the text, not 5"),
            (lambda t: blocks_from_offsets(t, "", []), "empty"),
            (lambda t: blocks_from_offsets(SIGNS, "ab", []), "Letters gives no character offsets"),
            (lambda t: blocks_from_regex(t, "first", "("), "no regular expression"),
            (lambda t: blocks_from_messages(t, []), "messages are empty"),
            (lambda t: blocks_from_messages(t, [{"role": "user", "content": "x"}]), "no chat template"),
        ],
    )
    def test_what_cannot_be_is_refused(self, make, message) -> None:
        with pytest.raises(ProlocError, match=message):
            make(word_tokenizer(self.TEXT))


class Bits:
    """Token v tells v bits, whatever came before."""

    name = "bits"

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        return ids.astype(float)


def surprise(**arguments) -> SurpriseBlocks:
    return SurpriseBlocks(Bits(), **{"min_length": 1, **arguments})


class TestSurprise:
    def test_a_block_closes_after_the_token_that_surprised(self) -> None:
        assert lengths(surprise(gamma=3.0), [0, *[3, 4] * 10, 15, *[3, 4] * 10]) == [22, 20]

    def test_a_rise_is_measured_by_how_much_the_recent_tokens_differ(self) -> None:
        calm, wild = [4, 5] * 20, [0, 9] * 20
        assert lengths(surprise(gamma=2.0), [*calm, 8, 4, 4]) == [41, 2]
        assert lengths(surprise(gamma=2.0), [*wild, 8, 4, 4]) == [43]

    def test_the_score_is_that_of_the_definition(self) -> None:
        ids = np.random.default_rng(0).integers(0, 16, 200)
        scores = surprise(window=20).trace(ids).scores
        recent = ids[79:99].astype(float)
        assert scores[100] == pytest.approx((ids[99] - recent.mean()) / recent.std())
        assert np.isnan(scores[:10]).all()
        assert np.isfinite(scores[10:]).all()

    def test_one_model_connected_later_gives_the_same_blocks(self) -> None:
        ids = np.random.default_rng(0).integers(0, 16, 200)
        named = SurpriseBlocks("bits", min_length=1)
        with pytest.raises(ProlocError, match=r"need the model 'bits'; connect it"):
            named.boundaries(ids)
        connected = named.connect({"bits": Bits()}.__getitem__)
        np.testing.assert_array_equal(connected.boundaries(ids), surprise().boundaries(ids))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"gamma": math.nan}, "gamma .* not nan"),
            ({"window": 4}, "8 tokens or more, not 4"),
            ({"min_length": 0}, "0"),
        ],
    )
    def test_what_cannot_be_is_refused(self, arguments, message) -> None:
        with pytest.raises(ProlocError, match=message):
            surprise(**arguments)

    def test_a_surprisal_that_is_not_finite_is_refused(self) -> None:
        broken = SurpriseBlocks(type("Broken", (), {"name": "x", "__call__": lambda self, ids: ids * np.nan})())
        with pytest.raises(ProlocError, match="finite numbers of bits"):
            broken.boundaries(np.arange(5))


def recruitment(**arguments) -> RecruitmentBlocks:
    return RecruitmentBlocks([STOP], [10, *[1] * 8], **{"prior": 9.0, "min_length": 8, **arguments})


class TestRecruitment:
    def test_a_block_closes_after_the_first_sentence_on_another_topic(self) -> None:
        assert lengths(recruitment(), CATS * 3 + LAW * 3) == [32, 16]

    def test_a_block_may_be_one_sentence_long(self) -> None:
        """Its first sentence was judged with the old block, but its words were already counted as its own."""
        assert lengths(recruitment(), CATS * 3 + LAW + CATS + LAW + CATS) == [32, 8, 8, 8]

    def test_the_score_is_the_log_ratio_of_two_urn_models_in_bits(self) -> None:
        blocks = recruitment(min_length=1)
        counts, pseudo = np.zeros(9), 9.0 * np.array([11, *[2] * 8]) / 27

        def bits(sentence, counts) -> float:
            seen, total = counts.copy(), 0.0
            for token in sentence:
                total -= math.log2((seen[token] + pseudo[token]) / (seen.sum() + pseudo.sum()))
                seen[token] += 1
            return total

        for token in CATS + CATS:
            counts[token] += 1
        expected = bits(LAW, counts) - bits(LAW, np.zeros(9))
        assert blocks.trace(np.array([*CATS, *CATS, *LAW, 1])).scores[24] == pytest.approx(expected)

    def test_a_higher_cost_recruits_less(self) -> None:
        ids = np.random.default_rng(0).integers(0, 9, 2000)
        found = [recruitment(cost=cost).boundaries(ids).sum() for cost in (-1000.0, -5.0, 0.0, 5.0, 1000.0)]
        assert found == sorted(found, reverse=True)
        assert found[0] > found[-1]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"cost": math.inf}, "cost .* not inf"),
            ({"prior": 0.0}, "prior .* not 0.0"),
            ({"background": [[1.0]]}, r"\[1, 1\]"),
            ({"background": [-1.0]}, ">= 0"),
        ],
    )
    def test_what_cannot_be_is_refused(self, arguments, message) -> None:
        with pytest.raises(ProlocError, match=message):
            RecruitmentBlocks(**{"sentence_ends": [STOP], "background": [1] * 9, **arguments})

    def test_a_token_without_a_background_is_refused(self) -> None:
        with pytest.raises(ProlocError, match=r"id 9 is outside .* 9 tokens"):
            recruitment().boundaries(np.array([9]))


def cost(vectors: np.ndarray) -> float:
    return float(((vectors - vectors.mean(axis=0)) ** 2).sum())


COSTS = {"kernel": cost, "direction": lambda vectors: len(vectors) - float(np.linalg.norm(vectors.sum(axis=0)))}


class TestChangePoints:
    def test_the_boundary_is_before_the_sentence_that_changed_the_topic(self) -> None:
        assert lengths(ChangePointBlocks([STOP], TOPICS, penalty=0.5), CATS * 3 + LAW * 3) == [24, 24]

    @settings(deadline=None, max_examples=60)
    @given(
        seed=st.integers(0, 10_000),
        sentences=st.integers(2, 9),
        penalty=st.floats(0.05, 2.0),
        fewest=st.integers(1, 3),
        kind=st.sampled_from(["kernel", "direction"]),
    )
    def test_no_other_cut_is_cheaper_or_not_by_much(self, seed, sentences, penalty, fewest, kind) -> None:
        """The slow reference tries every cut; PELT prunes too much where blocks have a shortest length."""
        table = torch.randn(20, 3, generator=torch.Generator().manual_seed(seed))
        ids = np.random.default_rng(seed).integers(1, 20, 2 * sentences)
        ids[1::2] = STOP
        vectors = table.double().numpy()[ids].reshape(sentences, 2, 3).sum(axis=1)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        possible = [
            sum(COSTS[kind](vectors[i:j]) for i, j in itertools.pairwise(edges)) + penalty * (len(edges) - 2)
            for number in range(sentences)
            for cuts in itertools.combinations(range(1, sentences), number)
            if min(np.diff(edges := [0, *cuts, sentences])) >= fewest or not cuts
        ]
        limits = {"penalty": penalty, "min_sentences": fewest, "min_sentence": 1}
        blocks = ChangePointBlocks([STOP], table, cost=kind, **limits)
        edges = [*(np.flatnonzero(blocks.boundaries(ids)) // 2), sentences]
        found = sum(COSTS[kind](vectors[i:j]) for i, j in itertools.pairwise(edges)) + penalty * (len(edges) - 2)
        assert found == pytest.approx(min(possible), rel=1e-6 if fewest == 1 else 0.15)

    def test_a_number_of_blocks_can_be_asked_for(self) -> None:
        ids = [*CATS * 2, *LAW * 2, *CATS * 2]
        assert lengths(ChangePointBlocks([STOP], TOPICS, num_blocks=3), ids) == [16, 16, 16]
        assert lengths(ChangePointBlocks([STOP], TOPICS, num_blocks=99), ids) == [16, 16, 16]
        assert lengths(ChangePointBlocks([STOP], TOPICS, num_blocks=1), ids) == [48]
        assert lengths(ChangePointBlocks([STOP], TOPICS, num_blocks=3, cost="direction"), ids) == [16, 16, 16]

    def test_what_all_sentences_share_is_no_topic(self) -> None:
        """A direction common to all sentences hides the topics until the centre takes it off."""
        shifted = TOPICS + 20.0
        ids = [*CATS * 3, *LAW * 3]
        blocks = ChangePointBlocks([STOP], shifted, penalty=0.5, cost="direction")
        assert lengths(blocks, ids) == [48]
        centred = blocks.centred([np.array(ids)])
        assert lengths(centred, ids) == [24, 24]
        assert lengths(ChangePointBlocks.rebuild(centred.settings(), centred.tensors()), ids) == [24, 24]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"penalty": -1.0}, "not -1.0"),
            ({"num_blocks": 0}, "not 0"),
            ({"min_sentences": 0}, "min_sentences"),
            ({"cost": "angle"}, "kernel, direction, not 'angle'"),
        ],
    )
    def test_what_cannot_be_is_refused(self, arguments, message) -> None:
        with pytest.raises(ProlocError, match=message):
            ChangePointBlocks([STOP], TOPICS, **arguments)

    def test_an_embedder_known_by_name_only_is_asked_for(self) -> None:
        with pytest.raises(ProlocError, match="need the model 'hidden:4:builtin'"):
            ChangePointBlocks([STOP], "hidden:4:builtin").boundaries(np.array(CATS))

    def test_an_embedder_that_gives_something_else_is_refused(self) -> None:
        broken = type("Broken", (), {"name": "x", "__call__": lambda self, ids, bounds: np.ones((1, 2))})()
        with pytest.raises(ProlocError, match="2 finite vectors"):
            ChangePointBlocks([STOP], broken).boundaries(np.array(CATS * 2))


class TestTiling:
    def test_the_valley_between_two_topics_is_a_boundary(self) -> None:
        assert lengths(TilingBlocks([STOP], TOPICS, window=2), CATS * 4 + LAW * 4) == [32, 32]

    def test_one_topic_is_one_block(self) -> None:
        assert lengths(TilingBlocks([STOP], TOPICS), CATS * 6) == [48]

    def test_what_cannot_be_is_refused(self) -> None:
        with pytest.raises(ProlocError, match=r"threshold .* not nan"):
            TilingBlocks([STOP], TOPICS, threshold=math.nan)


ADAPTIVE = {
    "recruitment": RecruitmentBlocks([STOP], [1] * 9, prior=30.0, min_length=8),
    "surprise": SurpriseBlocks(Bits()),
    "changepoint": ChangePointBlocks([STOP], TOPICS, min_sentences=1),
    "changepoint-direction": ChangePointBlocks([STOP], TOPICS, min_sentences=1, cost="direction"),
    "tiling": TilingBlocks([STOP], TOPICS),
}


class TestCalibration:
    @pytest.mark.parametrize("kind", ADAPTIVE)
    def test_every_threshold_can_be_set_to_a_mean_length(self, kind: str) -> None:
        corpus = sentence_corpus(60)
        blocks = ADAPTIVE[kind]
        found = calibrate(blocks, corpus, 90, tolerance=0.05)
        assert mean_block_length(found, corpus) == pytest.approx(90, rel=0.05)

    def test_blocks_without_a_threshold_say_so(self) -> None:
        with pytest.raises(ProlocError, match="'fixed' blocks have no threshold"):
            calibrate(FixedBlocks(4), sentence_corpus(2), 30)
        with pytest.raises(ProlocError, match="'fixed' blocks have no threshold"):
            FixedBlocks(4).with_threshold(1.0)
