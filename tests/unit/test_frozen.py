"""The frozen models that partitioners name give what they promise."""

import math
import sys

import numpy as np
import pytest
import torch
from tiny import VOCAB, tiny_model
from transformers import AutoModelForCausalLM

from proloc.blocks import ChangePointBlocks, SentenceBlocks, SurpriseBlocks
from proloc.errors import ProlocError
from proloc.hf import from_pretrained, localize, provide
from proloc.schedule import Uniform


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A tiny GPT-2 with a context of 96 tokens."""
    path = tmp_path_factory.mktemp("tiny")
    tiny_model("gpt2").save_pretrained(path)
    return str(path)


IDS = np.random.default_rng(0).integers(0, VOCAB, 400)


def test_surprisal_is_the_model_s_own_loss_in_bits(folder: str) -> None:
    ids = IDS[:90]
    bits = provide(f"surprisal:{folder}")(ids)
    tokens = torch.from_numpy(ids)[None]
    loss = AutoModelForCausalLM.from_pretrained(folder)(input_ids=tokens, labels=tokens).loss
    assert bits[1:].mean() == pytest.approx(float(loss) / math.log(2), rel=1e-5)
    assert bits[0] == 0


def test_surprisal_beyond_the_context_reads_earlier_tokens_only_and_at_least_half_of_it(folder: str) -> None:
    surprisal = provide(f"surprisal:{folder}")
    whole = surprisal(IDS)
    for end in (97, 145, 300):
        np.testing.assert_allclose(surprisal(IDS[:end]), whole[:end], rtol=1e-4)
    np.testing.assert_allclose(surprisal(IDS[96:192])[48:], whole[144:192], rtol=1e-4)


def test_surprise_blocks_of_a_real_model_do_not_move_with_later_tokens(folder: str) -> None:
    blocks = SurpriseBlocks(provide(f"surprisal:{folder}"), min_length=2)
    whole = blocks.boundaries(IDS)
    assert 5 < whole.sum() < 200
    for end in (50, 97, 200, 333):
        changed = np.concatenate([IDS[:end], (IDS[end:] + 7) % VOCAB])
        np.testing.assert_array_equal(blocks.boundaries(changed)[: end + 1], whole[: end + 1])


def test_a_saved_model_comes_back_with_its_surprise_blocks_connected(folder: str, tmp_path) -> None:
    blocks = SurpriseBlocks(provide(f"surprisal:{folder}"), min_length=2)
    model = localize(tiny_model(), Uniform(value=0.5), blocks)
    model.save_pretrained(tmp_path)
    tokens = torch.from_numpy(IDS[:40])[None]
    again = from_pretrained(tmp_path)
    torch.testing.assert_close(again(input_ids=tokens).logits, model(input_ids=tokens).logits)


def test_hidden_states_of_a_sentence_do_not_depend_on_the_others(folder: str) -> None:
    embedder = provide(f"hidden:2:{folder}")
    bounds = np.array([0, 5, 9, 40, 55])
    vectors = embedder(IDS[:55], bounds)
    assert vectors.shape == (4, 32)
    np.testing.assert_allclose(embedder(IDS[9:40], np.array([0, 31]))[0], vectors[2], rtol=1e-4, atol=1e-5)
    embeddings = AutoModelForCausalLM.from_pretrained(folder)
    states = embeddings(input_ids=torch.from_numpy(IDS[:5])[None], output_hidden_states=True).hidden_states[2]
    np.testing.assert_allclose(vectors[0], states[0].mean(0).detach().double(), rtol=1e-4, atol=1e-5)


def test_localize_refuses_blocks_that_read_the_whole_text(folder: str) -> None:
    blocks = ChangePointBlocks([1], provide(f"hidden:2:{folder}"))
    assert blocks.settings()["embedding"] == f"hidden:2:{folder}"
    with pytest.raises(ProlocError, match="causal"):
        localize(tiny_model(), Uniform(value=0.5), blocks)


@pytest.mark.parametrize(
    "name", ["", "surprisal", "surprisal:", "hidden:4", "hidden:x:builtin", "sentence:builtin:", "x:y"]
)
def test_a_name_of_no_known_form_is_refused_with_the_forms(name: str) -> None:
    with pytest.raises(ProlocError, match="surprisal:MODEL, hidden:LAYER:MODEL or sentence"):
        provide(name)


def test_layers_and_tokens_that_the_model_lacks_are_refused(folder: str) -> None:
    with pytest.raises(ProlocError, match="hidden states 0 to 3, not 9"):
        provide(f"hidden:9:{folder}")
    with pytest.raises(ProlocError, match=f"outside the model's {VOCAB} tokens"):
        provide(f"surprisal:{folder}")(np.array([VOCAB]))


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ProlocError, match=r"proloc\[embed\]"):
        provide("sentence:builtin:all-MiniLM-L6-v2")
    monkeypatch.setitem(sys.modules, "ruptures", None)
    table = torch.randn(4, 3)
    with pytest.raises(ProlocError, match=r"proloc\[segment\]"):
        ChangePointBlocks([1], table, min_sentence=1).boundaries(np.array([2, 1] * 9))


def test_sentence_blocks_need_no_model() -> None:
    blocks = SentenceBlocks([1])
    assert blocks.connect(provide) is blocks
