"""The partitioners on texts small enough to check by eye."""

import math

import numpy as np
import pytest
import torch
from texts import CATS, LAW, STOP, TOPICS, lengths, sentence_corpus, word_tokenizer

from proloc.blocks import (
    DriftBlocks,
    FixedBlocks,
    RandomBlocks,
    SentenceBlocks,
    SentenceEnds,
    block_lengths,
    calibrate,
    length_distribution,
    matched_fixed,
    matched_random,
    mean_block_length,
    token_counts,
)
from proloc.errors import ProlocError


def sentences(text: str, **settings: int) -> list[str]:
    """The text cut into its sentence blocks."""
    tokenizer = word_tokenizer(text)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    block_ids = SentenceBlocks(tokenizer, **settings)(ids)[0]
    return [tokenizer.decode(ids[0, block_ids == block]).strip(" ") for block in range(int(block_ids.max()) + 1)]


class TestFixed:
    def test_a_block_opens_at_every_lengthth_token(self) -> None:
        assert FixedBlocks(3)(torch.zeros(1, 7, dtype=torch.long)).tolist() == [[0, 0, 0, 1, 1, 1, 2]]

    @pytest.mark.parametrize("length", [0, -3, 2.5, None])
    def test_a_length_that_is_no_number_of_tokens_is_refused(self, length) -> None:
        with pytest.raises(ProlocError, match=f">= 1, not {length}"):
            FixedBlocks(length)


class TestSentence:
    def test_a_block_closes_after_a_sentence(self) -> None:
        text = "The cat sat. Did it sleep? It did! Good."
        assert sentences(text, min_length=1) == ["The cat sat.", "Did it sleep?", "It did!", "Good."]

    def test_a_short_sentence_is_merged_with_the_next(self) -> None:
        text = "No. The cat sat on the mat. It slept."
        assert sentences(text, min_length=4) == ["No. The cat sat on the mat.", "It slept."]

    def test_a_block_of_max_length_closes_inside_the_sentence(self) -> None:
        assert sentences("one two three four five six. seven", min_length=1, max_length=4) == [
            "one two three four",
            "five six.",
            "seven",
        ]

    def test_titles_initials_and_short_forms_end_no_sentence(self) -> None:
        text = "Ask Mr. J. Mill, vol. two, p. nine. He knows."
        assert sentences(text, min_length=1) == ["Ask Mr. J. Mill, vol. two, p. nine.", "He knows."]

    def test_the_pronoun_and_other_words_before_a_period_end_one(self) -> None:
        assert sentences("So do I. We saw Mr. Mill.", min_length=1) == ["So do I.", "We saw Mr. Mill."]

    def test_a_quote_or_bracket_in_the_token_belongs_to_the_sentence(self) -> None:
        text = 'He said "go." (It was late.) She went.'
        assert sentences(text, min_length=1) == ['He said "go."', "(It was late.)", "She went."]

    def test_a_paragraph_ends_without_a_period_but_a_wrapped_line_does_not(self) -> None:
        text = "A heading\n\nThe cat\nsat down"
        assert sentences(text, min_length=1) == ["A heading\n\n", "The cat\nsat down"]

    def test_known_limit_a_decimal_point_ends_a_sentence(self) -> None:
        assert sentences("Pi is 3.14 or so", min_length=1) == ["Pi is 3.", "14 or so"]

    def test_bare_ids_do_instead_of_a_tokenizer(self) -> None:
        assert lengths(SentenceBlocks([7, 9], min_length=2), [7, 1, 7, 1, 1, 9, 10_000]) == [3, 3, 1]

    def test_ids_and_tokenizer_give_the_same_blocks(self) -> None:
        tokenizer = word_tokenizer("The cat sat. Did it sleep? Mr. Mill.")
        assert SentenceBlocks(SentenceEnds.from_tokenizer(tokenizer)).settings() == SentenceBlocks(tokenizer).settings()

    @pytest.mark.parametrize(
        ("source", "settings", "message"),
        [
            ([1], {"min_length": 0}, "min_length .* not 0"),
            ([1], {"min_length": 8, "max_length": 7}, ">= min_length = 8, not 7"),
            ([], {}, "No token ends a sentence"),
            ([-1], {}, ">= 0, not -1"),
            (["."], {}, r"not '\.'"),
            ({"stops": [1]}, {}, "'newlines'.* not .'stops'"),
            ({"ends": [1], "newlines": [1]}, {}, "twice"),
        ],
    )
    def test_what_cannot_be_is_refused(self, source, settings, message) -> None:
        with pytest.raises(ProlocError, match=message):
            SentenceBlocks(source, **settings)

    def test_a_negative_id_is_refused(self) -> None:
        with pytest.raises(ProlocError, match="not -100"):
            SentenceBlocks([1])(torch.tensor([[4, -100]]))


def drift(**settings) -> DriftBlocks:
    return DriftBlocks([STOP], TOPICS, **settings)


class TestDrift:
    def test_sentences_on_one_topic_are_one_block(self) -> None:
        assert lengths(drift(), CATS * 5) == [40]

    def test_a_block_closes_after_the_first_sentence_on_another_topic(self) -> None:
        assert lengths(drift(), CATS * 3 + LAW * 3) == [32, 16]

    def test_the_sentence_that_drifted_can_only_stay_in_the_old_block(self) -> None:
        """The first law sentence and its words are the same as cats until they are read, so is the boundary."""
        turn, stay = drift().boundaries(np.array(CATS * 3 + LAW)), drift().boundaries(np.array(CATS * 4))
        np.testing.assert_array_equal(turn, stay)

    def test_a_block_shorter_than_min_length_stays_open(self) -> None:
        assert lengths(drift(min_length=16), CATS + LAW + CATS) == [16, 8]
        assert lengths(drift(min_length=17), CATS + LAW + CATS) == [24]

    def test_a_sentence_too_short_to_judge_is_judged_with_the_next(self) -> None:
        aside = [5, STOP]
        assert lengths(drift(min_sentence=2), CATS * 2 + aside + CATS * 2) == [18, 16]
        assert lengths(drift(min_sentence=8), CATS * 2 + aside + CATS * 2) == [34]

    def test_max_length_cuts_a_topic_that_stays(self) -> None:
        assert lengths(drift(max_length=20), CATS * 6) == [20, 20, 8]

    def test_threshold_two_never_closes_and_zero_closes_at_any_change(self) -> None:
        assert lengths(drift(threshold=2.0, max_length=None), (CATS + LAW) * 20) == [320]
        assert lengths(drift(threshold=0.0), (CATS + LAW) * 20) == [16] * 20

    def test_what_was_read_before_a_block_does_not_move_its_end(self) -> None:
        table = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
        blocks = DriftBlocks.from_embedding([STOP, 1, 2], table, threshold=0.7, min_sentence=3, min_length=4)
        ids = np.random.default_rng(0).integers(0, 50, 3000)
        whole = blocks.boundaries(ids)
        assert 50 < whole.sum() < 500
        for start in np.flatnonzero(whole):
            np.testing.assert_array_equal(blocks.boundaries(ids[start:]), whole[start:])

    def test_blocks_stay_when_the_model_s_embedding_is_trained_on(self) -> None:
        weight = TOPICS.clone()
        snapshot = DriftBlocks([STOP], weight)
        weight.zero_()
        assert lengths(snapshot, CATS * 3 + LAW * 3) == [32, 16]
        assert torch.equal(snapshot.tensors()["embedding"], TOPICS.half())

    def test_a_compressed_embedding_keeps_what_varies_most(self) -> None:
        noise = 0.01 * torch.randn(9, 30, generator=torch.Generator().manual_seed(0))
        wide = torch.cat([50 + 1000 * TOPICS, noise], dim=1)
        blocks = DriftBlocks.from_embedding([STOP], wide, dim=2)
        assert blocks.tensors()["embedding"].shape == (9, 2)
        assert blocks.tensors()["embedding"].abs().max() == 1
        assert lengths(blocks, CATS * 3 + LAW * 3) == [32, 16]

    def test_frequent_tokens_count_less(self) -> None:
        counts = [0, 1000, *[1] * 7]
        table = DriftBlocks.from_embedding([STOP], TOPICS, counts=counts, smoothing=0.1).tensors()["embedding"].float()
        weight = {token: 0.1 / (0.1 + counts[token] / sum(counts)) for token in (1, 2)}
        assert float(table[1].norm() / table[2].norm()) == pytest.approx(weight[1] / weight[2], rel=1e-2)

    @pytest.mark.parametrize("threshold", [-0.1, 2.1, math.nan, math.inf])
    def test_a_threshold_that_is_no_cosine_distance_is_refused(self, threshold: float) -> None:
        with pytest.raises(ProlocError, match=rf"\[0, 2\], not {threshold}"):
            drift(threshold=threshold)
        with pytest.raises(ProlocError, match=r"\[0, 2\]"):
            drift().with_threshold(threshold)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, 1e6])
    def test_an_embedding_that_float16_cannot_hold_is_refused(self, bad: float) -> None:
        with pytest.raises(ProlocError, match="1 rows of the embedding hold NaN or infinity"):
            DriftBlocks([STOP], torch.tensor([[1.0], [bad]]))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"dim": 0}, "dim .* not 0"),
            ({"counts": [1, 2]}, "counts must be 9 numbers"),
            ({"counts": [0] * 9}, "not all 0"),
            ({"counts": [1] * 9, "smoothing": 0.0}, "smoothing .* not 0.0"),
            ({"min_length": 9, "max_length": 8}, ">= min_length = 9, not 8"),
            ({"min_sentence": 0}, "min_sentence"),
        ],
    )
    def test_what_cannot_be_is_refused(self, settings, message) -> None:
        with pytest.raises(ProlocError, match=message):
            DriftBlocks.from_embedding([STOP], TOPICS, **settings)

    def test_a_token_outside_the_table_is_refused(self) -> None:
        with pytest.raises(ProlocError, match=r"id 9 is outside .* 9 tokens"):
            drift()(torch.tensor([[1, 9]]))


class TestRandom:
    def test_lengths_occur_as_often_as_asked(self) -> None:
        wanted = {2: 0.5, 5: 0.3, 40: 0.2}
        found = length_distribution(RandomBlocks(wanted, seed=1), [np.arange(200_000) % 1000])
        assert found == pytest.approx(wanted, abs=0.01)

    def test_texts_that_differ_after_their_first_token_get_different_blocks(self) -> None:
        rng, blocks = np.random.default_rng(0), RandomBlocks(dict.fromkeys(range(1, 30), 1))
        first = {tuple(lengths(blocks, [1, *rng.integers(0, 50, 100)])) for _ in range(20)}
        assert len(first) == 20

    def test_another_seed_gives_other_blocks_of_the_same_lengths(self) -> None:
        ids, one, other = np.arange(100_000) % 1000, *(RandomBlocks({2: 1, 8: 1}, seed=seed) for seed in (0, 1))
        assert lengths(one, ids) != lengths(other, ids)
        assert mean_block_length(one, [ids]) == pytest.approx(mean_block_length(other, [ids]), rel=0.02)

    @pytest.mark.parametrize("wrong", [{}, {0: 1}, {3: -1}, {3: 0}, {3: math.nan}, {3: math.inf}])
    def test_lengths_that_cannot_be_are_refused(self, wrong) -> None:
        with pytest.raises(ProlocError, match="lengths must"):
            RandomBlocks(wrong)

    @pytest.mark.parametrize("seed", [-1, 2**64, 0.5])
    def test_a_seed_out_of_range_is_refused(self, seed) -> None:
        with pytest.raises(ProlocError, match="seed must"):
            RandomBlocks({3: 1}, seed=seed)


class TestCalibration:
    def test_the_last_block_of_a_window_is_not_complete(self) -> None:
        assert block_lengths(FixedBlocks(4), [np.zeros(10, int), np.zeros(8, int)]).tolist() == [4, 4, 4]

    def test_the_mean_length_is_that_of_the_blocks_not_of_the_windows(self) -> None:
        assert mean_block_length(FixedBlocks(28), torch.zeros(5, 256, dtype=torch.long)) == pytest.approx(28)

    def test_long_blocks_that_windows_cut_still_count(self) -> None:
        """Blocks of 10 and 90 tokens, mean 50: complete ones in windows of 100 are mostly the short ones."""
        windows = np.random.default_rng(0).integers(0, 9, (4000, 100))
        blocks = RandomBlocks({10: 1, 90: 1})
        assert block_lengths(blocks, windows).mean() < 40
        assert mean_block_length(blocks, windows) == pytest.approx(50, rel=0.02)

    def test_matched_controls_have_the_mean_length_of_sentence_blocks(self) -> None:
        corpus = sentence_corpus()
        blocks = SentenceBlocks([STOP], min_length=8)
        wanted = mean_block_length(blocks, corpus)
        assert mean_block_length(matched_fixed(blocks, corpus), corpus) == pytest.approx(wanted, rel=0.02)
        for seed in range(3):
            control = matched_random(blocks, corpus, seed)
            assert mean_block_length(control, corpus) == pytest.approx(wanted, rel=0.02)
            assert block_lengths(control, corpus).size == pytest.approx(block_lengths(blocks, corpus).size, rel=0.02)

    @pytest.mark.parametrize("wanted", [70, 90, 120])
    def test_drift_blocks_get_the_mean_length_wanted(self, wanted: int) -> None:
        corpus = sentence_corpus()
        blocks = calibrate(drift(), corpus, wanted)
        assert mean_block_length(blocks, corpus) == pytest.approx(wanted, rel=0.02)
        assert blocks.settings() == drift().settings() | {"threshold": blocks.threshold}

    @pytest.mark.parametrize("wanted", [5, 400, math.nan, math.inf])
    def test_a_length_out_of_reach_is_refused_with_the_range(self, wanted: float) -> None:
        with pytest.raises(
            ProlocError, match=rf"blocks of {wanted} tokens.* is \d+\.\d at threshold 0 and 256\.0 at 2"
        ):
            calibrate(drift(), sentence_corpus(200), wanted)

    def test_token_counts_feed_from_embedding(self) -> None:
        counts = token_counts([[0, 1, 1], [3]], vocab=5)
        assert counts.tolist() == [1, 2, 0, 1, 0]
        with pytest.raises(ProlocError, match="id 3, outside a vocabulary of 3"):
            token_counts([[0, 1, 1], [3]], vocab=3)

    @pytest.mark.parametrize("corpus", [[], [[]], [[[1, 2]]]])
    def test_a_corpus_that_is_no_list_of_windows_is_refused(self, corpus) -> None:
        with pytest.raises(ProlocError, match="at least one"):
            mean_block_length(FixedBlocks(2), corpus)

    def test_a_corpus_in_which_no_block_closes_is_refused(self) -> None:
        with pytest.raises(ProlocError, match="No block closes"):
            mean_block_length(FixedBlocks(300), [np.zeros(256, int)])
