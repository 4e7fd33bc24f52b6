"""A localised model is the base model at dial 0, hides what it says at dial 1, and never sees the future."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from tiny import VOCAB, random_ids, tiny_model, twin
from transformers import (
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertLMHeadModel,
    BloomConfig,
    BloomForCausalLM,
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
)

import proloc
from proloc.blocks import OnlineBlocks, RecruitmentBlocks

FAMILIES = ("gpt2", "llama", "mistral")
BLOCKS = proloc.FixedBlocks(5)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def localised(family="llama", layers=3, schedule=None, blocks=BLOCKS, attention="reference", **kwargs):
    schedule = schedule or proloc.Polynomial(beta=1)
    return proloc.localize(tiny_model(family, layers), schedule, blocks, attention=attention, **kwargs)


def padded(ids, width, side):
    pad = torch.zeros(ids.shape[0], width, dtype=torch.long)
    mask = torch.ones_like(ids)
    parts = (pad, ids) if side == "left" else (ids, pad)
    masks = (pad, mask) if side == "left" else (mask, pad)
    return {"input_ids": torch.cat(parts, 1), "attention_mask": torch.cat(masks, 1)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_dial_zero_is_the_base_model_bit_for_bit(family, side):
    base = tiny_model(family)
    model = proloc.localize(twin(base), proloc.Uniform(value=1.0), BLOCKS, attention="reference")
    inputs = {"input_ids": random_ids(2, 23)} if side == "none" else padded(random_ids(2, 18), 5, side)
    with proloc.dial(model, 0.0), torch.no_grad():
        assert torch.equal(model(**inputs).logits, base(**inputs).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_dial_zero_has_the_gradients_of_the_base_model(family):
    base = tiny_model(family).train()
    model = proloc.localize(twin(base), proloc.Uniform(value=1.0), BLOCKS, attention="reference")
    ids = random_ids(2, 23)
    with proloc.dial(model, 0.0):
        model(input_ids=ids, labels=ids).loss.backward()
    base(input_ids=ids, labels=ids).loss.backward()
    for ours, theirs in zip(model.parameters(), base.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("position", [0.0, 0.4, 1.0])
def test_the_fast_path_equals_the_reference(family, position):
    inputs = padded(random_ids(2, 18), 5, "left")
    real = inputs["attention_mask"].bool()
    logits = []
    for attention in ("reference", "auto"):
        model = localised(family, attention=attention)
        with proloc.dial(model, position), torch.no_grad():
            logits.append(model(**inputs).logits[real])
    torch.testing.assert_close(*logits, **CLOSE)


@pytest.mark.parametrize("attention", ["reference", "auto"])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_layer_at_locality_one_leaks_nothing_from_away_blocks(family, attention):
    model = localised(family, layers=1, schedule=proloc.Uniform(value=1.0), sinks=1, attention=attention)
    ids = random_ids(1, 20)
    changed = ids.clone()
    changed[0, 6] = (changed[0, 6] + 1) % VOCAB
    with torch.no_grad():
        difference = (model(input_ids=ids).logits - model(input_ids=changed).logits).abs().amax(-1)[0]
    assert (difference[10:] == 0).all(), "tokens 10.. are in later blocks"
    assert (difference[:6] == 0).all(), "tokens 0..5 come before"
    assert (difference[6:10] > 0).all(), "the changed token's own block must notice"


@pytest.mark.parametrize("attention", ["reference", "auto"])
def test_a_halo_is_read_by_as_many_later_blocks_and_no_more(attention):
    model = localised(layers=1, schedule=proloc.Uniform(value=1.0), sinks=1, halo=2, attention=attention)
    ids = random_ids(1, 30)
    changed = ids.clone()
    changed[0, 6] = (changed[0, 6] + 1) % VOCAB
    with torch.no_grad():
        difference = (model(input_ids=ids).logits - model(input_ids=changed).logits).abs().amax(-1)[0]
    assert (difference[:6] == 0).all()
    assert (difference[6:20] > 0).all(), "its own block (5..9) and the two after it"
    assert (difference[20:] == 0).all()


def test_a_sink_is_read_from_every_block():
    model = localised(layers=1, schedule=proloc.Uniform(value=1.0), sinks=1)
    ids = random_ids(1, 20)
    changed = ids.clone()
    changed[0, 0] = (changed[0, 0] + 1) % VOCAB
    with torch.no_grad():
        assert ((model(input_ids=ids).logits - model(input_ids=changed).logits).abs().amax(-1) > 0).all()


def every_partitioner():
    generator = torch.Generator().manual_seed(3)
    ends = list(range(5, 15))
    embedding = torch.randn(VOCAB, 8, generator=generator)
    return {
        "fixed": proloc.FixedBlocks(5),
        "sentence": proloc.SentenceBlocks(ends, min_length=2),
        "drift": proloc.DriftBlocks.from_embedding(ends, embedding, dim=8, threshold=0.9, min_length=2, max_length=12),
        "random": proloc.RandomBlocks({3: 2, 5: 1, 8: 1}, seed=1),
        "random with leads": proloc.RandomBlocks({3: 2, 5: 1, 8: 1}, seed=1, leads={(3, 2): 1, (5, 7): 1}),
        "recruitment with hindsight": RecruitmentBlocks(
            ends, [1] * VOCAB, cost=-1, min_sentence=2, min_length=2, hindsight=True
        ),
        "online": OnlineBlocks(ends, embedding, penalty=0.02, min_sentences=1, min_sentence=2),
    }


@pytest.mark.parametrize("kind", sorted(every_partitioner()))
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_no_earlier_logit_moves_when_a_later_token_changes(kind, data):
    model = localised("llama", blocks=every_partitioner()[kind], attention="auto")
    ids = random_ids(1, 24, seed=data.draw(st.integers(0, 10**6)))
    place = data.draw(st.integers(1, 23))
    changed = ids.clone()
    changed[0, place:] = torch.tensor(
        data.draw(st.lists(st.integers(1, VOCAB - 1), min_size=24 - place, max_size=24 - place))
    )
    with torch.no_grad():
        before, after = (model(input_ids=each).logits[:, :place] for each in (ids, changed))
    assert torch.equal(before, after)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_does_not_move_the_logits_of_real_tokens(family):
    model, ids = localised(family), random_ids(2, 18)
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        left, right = (padded(ids, 5, side) for side in ("left", "right"))
        positions = (left["attention_mask"].cumsum(1) - 1).clamp_min(0)
        torch.testing.assert_close(model(**left, position_ids=positions).logits[:, 5:], plain, **CLOSE)
        torch.testing.assert_close(model(**right).logits[:, :18], plain, **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_equal_separate_rows(family):
    model, ids = localised(family), random_ids(2, 11)
    packed = {"input_ids": ids.view(1, 22), "position_ids": torch.arange(11).repeat(2)[None]}
    with torch.no_grad():
        torch.testing.assert_close(
            model(**packed, use_cache=False).logits.view(2, 11, VOCAB), model(input_ids=ids).logits, **CLOSE
        )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", ["dynamic", "static", "none"])
@pytest.mark.parametrize("position", [0.0, 0.6, 1.0])
def test_cached_decoding_equals_the_full_forward(family, cache, position):
    model = localised(family)
    inputs = padded(random_ids(2, 9), 3, "left")
    how = {"none": {"use_cache": False}, "static": {"cache_implementation": "static"}, "dynamic": {}}[cache]
    with proloc.dial(model, position), torch.no_grad():
        out = model.generate(
            **inputs, max_new_tokens=14, do_sample=False, eos_token_id=None, pad_token_id=0, output_logits=True,
            return_dict_in_generate=True, disable_compile=True, **how,
        )  # fmt: skip
        mask = torch.cat([inputs["attention_mask"], torch.ones(2, 14, dtype=torch.long)], 1)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        full = model(input_ids=out.sequences, attention_mask=mask, position_ids=positions).logits[:, 11:-1]
    torch.testing.assert_close(torch.stack(out.logits, 1), full, **CLOSE)


def test_beam_search_scores_are_those_of_the_full_forward():
    model, ids = localised("llama", blocks=every_partitioner()["sentence"]), random_ids(1, 9)
    with torch.no_grad():
        out = model.generate(
            ids, max_new_tokens=12, num_beams=4, num_return_sequences=4, do_sample=False, eos_token_id=None,
            length_penalty=0.0, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        logp = model(input_ids=out.sequences).logits.log_softmax(-1)[:, 8:-1]
        expected = logp.gather(2, out.sequences[:, 9:, None])[..., 0].sum(1)
    torch.testing.assert_close(out.sequences_scores, expected, **CLOSE)


def test_block_ids_given_to_generate_cover_the_prompt_and_continue():
    model, ids = localised(schedule=proloc.Uniform(value=1.0), layers=1), random_ids(1, 8)
    block_ids = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])
    with torch.no_grad():
        tokens = model.generate(ids, block_ids=block_ids, max_new_tokens=6, do_sample=False, eos_token_id=None)
        extended = torch.cat([block_ids, torch.ones(1, 6, dtype=torch.long)], 1)
        full = model(input_ids=tokens, block_ids=extended).logits
    assert tokens[:, 8:].tolist() == full[:, 7:-1].argmax(-1).tolist()


def test_models_built_from_one_config_object_do_not_share_locality():
    config = tiny_model("gpt2").config
    first, second = (GPT2LMHeadModel(config) for _ in range(2))
    proloc.localize(first, proloc.Uniform(value=1.0), BLOCKS)
    assert second.config._attn_implementation == "eager"
    assert not hasattr(second.config, "proloc")


def test_recorded_fidelity_is_that_of_the_weights_the_model_returns():
    model, ids = localised(), random_ids(2, 21)
    with proloc.recording(model) as recorder, torch.no_grad():
        weights = model(input_ids=ids, output_attentions=True).attentions
    blocks = BLOCKS(ids)
    near = (blocks[:, None, :, None] == blocks[:, None, None, :]) | (torch.arange(21) == 0)
    for layer, statistics in recorder.layers.items():
        torch.testing.assert_close(statistics.fidelity, (weights[layer] * near).sum(-1))


def test_checkpointing_changes_no_gradient_of_loss_plus_fidelity():
    gradients = []
    for checkpointing in (False, True):
        model, ids = localised().train(), random_ids(2, 21)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        with proloc.recording(model, "fidelity") as recorder:
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            (loss - sum(fidelity.mean() for fidelity in recorder.fidelity.values())).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, ids: m.model(ids), "a part of a localised model was called by itself"),
        (lambda m, ids: m(ids, attention_mask=torch.zeros(1, 1, 12, 12)), "2D attention masks"),
        (lambda m, ids: m(ids, position_ids=torch.arange(6).repeat(2)[None]), "pass use_cache=False"),
        (lambda m, ids: m(ids, is_causal=False), "is_causal=False"),
        (lambda m, ids: m(ids, position_bias=torch.zeros(1)), "was given position_bias"),
        (lambda m, ids: m.generate(ids, prefill_chunk_size=4, max_new_tokens=2), "leave prefill_chunk_size out"),
        (lambda m, ids: m._replicate_for_data_parallel()(ids), "DistributedDataParallel"),
        (
            lambda m, ids: m.set_attn_implementation("eager") or m(ids),
            "leaves its locality out",
        ),
        (lambda m, ids: m(inputs_embeds=torch.zeros(1, 12, 32)), "pass block_ids"),
        (lambda m, ids: m(ids, block_ids=torch.zeros(1, 5, dtype=torch.long)), r"\[batch, past \+ seq\] = \(1, 12\)"),
        (lambda m, ids: m(ids[:, -1:], past_key_values=m(ids[:, :-1]).past_key_values), "the cache holds 11 tokens"),
        (lambda m, ids: proloc.set_dial(m, 2.0), "the dial is 2.0"),
        (lambda m, ids: proloc.set_dial(tiny_model(), 0.5), "not localised"),
        (lambda m, ids: proloc.set_dial(m, "half"), "the dial is 'half'"),
        (lambda m, ids: m.generate(ids, block_ids=torch.zeros(1, 15, dtype=torch.long)), "cover 15 tokens"),
        (lambda m, ids: proloc.localize(m.model, proloc.Uniform(value=1.0), BLOCKS), "part of a localised model"),
        (lambda m, ids: localised(attention="fast"), "no attention 'fast'"),
        (lambda m, ids: localised(sinks=-1), "sinks is -1"),
        (lambda m, ids: localised(halo=-1), "halo is -1"),
        (lambda m, ids: localised(halo=1)(ids, block_ids=ids % 2), "interrupted by another block"),
        (lambda m, ids: localised(schedule=proloc.Explicit([1.0])), "the model has 3 layers"),
    ],
)
def test_calls_that_would_go_wrong_in_silence_are_refused(call, message):
    with pytest.raises(proloc.ProlocError, match=message):
        call(localised(), random_ids(1, 12))


def test_measuring_on_a_forced_sdpa_path_is_refused():
    model = localised(attention="sdpa")
    with proloc.recording(model), pytest.raises(proloc.ProlocError, match="no weights"):
        model(input_ids=random_ids(1, 12))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BloomForCausalLM(BloomConfig(hidden_size=32, n_layer=2, n_head=2)), "registry"),
        (lambda: BartForCausalLM(BartConfig(d_model=16, decoder_layers=1)), "cannot tell its layers apart"),
        (lambda: torch.nn.Linear(2, 2), "needs a Hugging Face model"),
        (lambda: BertLMHeadModel(BertConfig(num_hidden_layers=1, hidden_size=12)), "reads later tokens"),
    ],
)  # fmt: skip
def test_architectures_that_cannot_be_right_are_refused(build, message):
    with pytest.raises(proloc.ProlocError, match=message):
        proloc.localize(build(), proloc.Uniform(value=1.0), BLOCKS)


def test_a_cache_continues_when_block_ids_cover_past_and_query():
    model, ids = localised(), random_ids(1, 12)
    blocks, cache = BLOCKS(ids), DynamicCache()
    with torch.no_grad():
        model(ids[:, :7], past_key_values=cache)
        rest = model(ids[:, 7:], past_key_values=cache, block_ids=blocks).logits
        torch.testing.assert_close(rest, model(ids).logits[:, 7:], **CLOSE)


def test_gpt2_attention_dropout_is_active_in_training_only():
    model = proloc.localize(
        GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=VOCAB, n_positions=32, attn_pdrop=0.5,
                                   resid_pdrop=0.0, embd_pdrop=0.0)),
        proloc.Uniform(value=0.5), BLOCKS, attention="reference",
    )  # fmt: skip
    ids = random_ids(1, 12)
    with torch.no_grad():
        assert not torch.equal(model.train()(ids).logits, model(ids).logits)
        assert torch.equal(model.eval()(ids).logits, model(ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_that_are_asked_for_are_given_on_the_automatic_path(family):
    model, ids = localised(family, attention="auto"), random_ids(1, 14)
    with torch.no_grad():
        weights = model(input_ids=ids, output_attentions=True).attentions
    assert [tuple(layer.shape) for layer in weights] == [(1, 4, 14, 14)] * 3
    assert (weights[-1][..., 1:5].sum(-1)[:, :, 5:] == 0).all(), "the last layer has locality 1"


def test_a_dial_turned_between_forward_and_recomputation_is_refused():
    model, ids = localised().train(), random_ids(1, 12)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with proloc.dial(model, 0.0):
        loss = model(ids, labels=ids, use_cache=False).loss
    with pytest.raises(proloc.ProlocError, match=r"stood at 0.0 in the forward pass and at 1.0"):
        loss.backward()


def test_gpt2_with_upcast_attention_is_refused():
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, reorder_and_upcast_attn=True)
    with pytest.raises(proloc.ProlocError, match="reorder_and_upcast_attn"):
        proloc.localize(GPT2LMHeadModel(config), proloc.Uniform(value=1.0), BLOCKS)
