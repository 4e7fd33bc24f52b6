"""A cache of sinks and the current block: what it returns is what a full cache returns, and it holds no more."""

import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from tiny import VOCAB, random_ids, tiny_model
from transformers import DynamicCache

import proloc
from proloc.attention import Keys
from proloc.blocks import OnlineBlocks, RandomBlocks
from proloc.hf import find_state
from proloc.locality import home_starts, leads_of

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))
from families import LOCALISED, build

ENDS = list(range(5, 15))
SENTENCES = proloc.SentenceBlocks(ENDS, min_length=2)
TABLE = torch.randn(VOCAB, 6, generator=torch.Generator().manual_seed(1))
HINDSIGHT = {
    "online": OnlineBlocks(ENDS, TABLE, penalty=0.02, min_sentences=1, min_sentence=2),
    "drift": proloc.DriftBlocks(ENDS, TABLE, threshold=0.6, min_sentence=2, min_length=3, hindsight=True),
    "random": RandomBlocks({2: 1, 5: 1, 9: 1}, leads={(2, 0): 1, (2, 2): 1, (5, 6): 2}),
}
STRATEGIES = ({"do_sample": False}, {"do_sample": True}, {"num_beams": 3, "do_sample": False})
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def localised(schedule=None, blocks=SENTENCES, family="llama", **kwargs):
    return proloc.localize(tiny_model(family), schedule or proloc.Step(layers=2), blocks, **kwargs)


def generate(model, inputs, cache=None, tokens=12, **how):
    how |= {} if cache is None else {"past_key_values": cache}
    torch.manual_seed(0)
    return model.generate(
        **inputs, max_new_tokens=tokens, eos_token_id=VOCAB, pad_token_id=0, return_dict_in_generate=True,
        output_logits=True, **how,
    )  # fmt: skip


def left_padded(lengths, width=24, seed=0):
    ids, mask = random_ids(len(lengths), width, seed), torch.ones(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, : width - length], mask[row, : width - length] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def held_at_most(block_ids, num_sinks, halo=0):
    """Sinks of all rows and the longest reach of any row into its current block, over every length of the text."""
    longest = 0
    for end in range(1, block_ids.shape[1] + 1):
        longest = max(longest, end - int(home_starts(block_ids[:, :end], halo)[:, -1].min()))
    return num_sinks * len(block_ids) + longest


@pytest.mark.parametrize("how", STRATEGIES, ids=["greedy", "sampled", "beams"])
@pytest.mark.parametrize(("family", "halo"), [("GPT-2", 0), ("Llama", 0), ("Llama", 1), ("Mistral", 1), ("Gemma2", 0)])
def test_generation_equals_that_with_a_full_cache(family, how, halo):
    model = proloc.localize(build(*LOCALISED[family]), proloc.Step(layers=2), SENTENCES, halo=halo)
    inputs = left_padded([24, 19, 11])
    full = generate(model, inputs, DynamicCache(config=model.config), **how)
    local = generate(model, inputs, **how)
    assert isinstance(local.past_key_values, proloc.LocalCache)
    assert torch.equal(local.sequences, full.sequences)
    torch.testing.assert_close(torch.stack(local.logits), torch.stack(full.logits), **CLOSE)
    if "num_beams" in how:
        torch.testing.assert_close(local.sequences_scores, full.sequences_scores, **CLOSE)


@pytest.mark.parametrize("how", STRATEGIES, ids=["greedy", "sampled", "beams"])
@pytest.mark.parametrize("name", HINDSIGHT)
def test_generation_with_leads_equals_that_with_a_full_cache(name, how):
    model = localised(blocks=HINDSIGHT[name], halo=int(name == "random"))
    inputs = left_padded([24, 19, 11])
    full = generate(model, inputs, DynamicCache(config=model.config), **how)
    local = generate(model, inputs, **how)
    assert isinstance(local.past_key_values, proloc.LocalCache)
    assert torch.equal(local.sequences, full.sequences)
    torch.testing.assert_close(torch.stack(local.logits), torch.stack(full.logits), **CLOSE)
    assert leads_of(HINDSIGHT[name](local.sequences)).any()


@pytest.mark.parametrize("name", HINDSIGHT)
def test_pieces_with_leads_equal_one_forward_pass_and_drop_what_is_no_longer_home(name):
    model, blocks = localised(proloc.Explicit([0.0, 1.0, 0.5]), HINDSIGHT[name]), HINDSIGHT[name]
    ids, cache, logits = random_ids(2, 60), proloc.LocalCache(model), []
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        for end in range(1, 61):
            logits.append(model(ids[:, end - 1 : end], past_key_values=cache, block_ids=blocks(ids[:, :end])).logits)
            assert cache.num_held()[1] <= held_at_most(blocks(ids[:, :end]), 1)
    torch.testing.assert_close(torch.cat(logits, 1), whole, **CLOSE)
    assert cache.num_held()[1] < 60


@settings(max_examples=25, deadline=None)
@given(
    localities=st.lists(st.sampled_from([0.0, 0.4, 1.0, 1.0]), min_size=3, max_size=3),
    lengths=st.lists(st.integers(3, 24), min_size=1, max_size=3),
    sinks=st.integers(0, 3),
    halo=st.integers(0, 3),
    family=st.sampled_from(["gpt2", "llama", "mistral"]),
    attention=st.sampled_from(["auto", "reference", "sdpa"]),
    seed=st.integers(0, 99),
)
def test_decoding_equals_the_full_forward_pass(localities, lengths, sinks, halo, family, attention, seed):
    model = localised(proloc.Explicit(localities), family=family, sinks=sinks, halo=halo, attention=attention)
    inputs = left_padded(lengths, seed=seed)
    found = generate(model, inputs, proloc.LocalCache(model), do_sample=True)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 12), value=1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        whole = model(found.sequences, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, 23:-1]
    torch.testing.assert_close(torch.stack(found.logits, 1), whole, **CLOSE)
    at_most = held_at_most(SENTENCES(found.sequences[:, :-1], mask[:, :-1].bool()), sinks, halo)
    assert all(count <= at_most for count in found.past_key_values.num_held().values())


@pytest.mark.parametrize("halo", [0, 2])
def test_a_long_text_holds_sinks_and_one_block_with_its_halo(halo):
    model = localised(proloc.Explicit([0.0, 1.0, 0.5]), proloc.FixedBlocks(6), halo=halo)
    cache, counts = proloc.LocalCache(model), []
    ids = random_ids(1, 60)
    with torch.no_grad():
        for end in range(1, 61):
            model(ids[:, end - 1 : end], past_key_values=cache, block_ids=proloc.FixedBlocks(6)(ids[:, :end]))
            counts.append(cache.num_held()[1])
    assert max(counts) == 1 + 6 * (1 + halo)
    assert cache.get_seq_length() == 60
    assert cache.layers[0].keys.shape[-2] == 60
    chosen = {number: choice.name for number, choice in find_state(model).chosen.items()}
    assert chosen[0] == chosen[1] == "plain" != chosen[2]


@pytest.mark.parametrize("steps", [(60,), (20, 40), (7, 1, 1, 30, 21)])
@pytest.mark.parametrize("halo", [0, 1])
def test_pieces_of_any_size_equal_one_forward_pass(steps, halo):
    model, blocks = localised(blocks=proloc.FixedBlocks(6), halo=halo), proloc.FixedBlocks(6)
    ids, cache, logits, end = random_ids(2, 60), proloc.LocalCache(model), [], 0
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        for step in steps:
            piece, end = ids[:, end : end + step], end + step
            logits.append(model(piece, past_key_values=cache, block_ids=blocks(ids[:, :end])).logits)
    torch.testing.assert_close(torch.cat(logits, 1), whole, **CLOSE)


def test_a_conversation_goes_on_with_its_cache():
    model = localised()
    first = generate(model, {"input_ids": random_ids(1, 24)}, do_sample=False)
    longer = {"input_ids": torch.cat([first.sequences, random_ids(1, 9, seed=1)], dim=1)}
    again = generate(model, longer, first.past_key_values, do_sample=False)
    afresh = generate(model, longer, DynamicCache(config=model.config), do_sample=False)
    assert torch.equal(again.sequences, afresh.sequences)
    torch.testing.assert_close(torch.stack(again.logits), torch.stack(afresh.logits), **CLOSE)


def test_rows_may_be_repeated_chosen_and_reordered():
    model, blocks = localised(blocks=proloc.FixedBlocks(6)), proloc.FixedBlocks(6)
    ids, cache = random_ids(2, 20), proloc.LocalCache(model)
    with torch.no_grad():
        model(ids, past_key_values=cache, block_ids=blocks(ids))
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([0, 3]))
        cache.reorder_cache(torch.tensor([1, 0]))
        more = torch.cat([ids.flip(0), random_ids(2, 4, seed=1)], dim=1)
        found = model(more[:, 20:], past_key_values=cache, block_ids=blocks(more)).logits
        whole = model(more, use_cache=False).logits[:, 20:]
    torch.testing.assert_close(found, whole, **CLOSE)


def test_blocks_that_are_not_contiguous_drop_nothing():
    model = localised()
    ids, block_ids = random_ids(1, 12), torch.tensor([[0] * 4 + [1] * 4 + [0] * 4])
    cache = proloc.LocalCache(model)
    with torch.no_grad():
        model(ids[:, :10], past_key_values=cache, block_ids=block_ids[:, :10])
        assert set(cache.num_held().values()) == {10}
        found = model(ids[:, 10:], past_key_values=cache, block_ids=block_ids).logits
        whole = model(ids, block_ids=block_ids, use_cache=False).logits[:, 10:]
    torch.testing.assert_close(found, whole, **CLOSE)


def filled(model, tokens=20):
    cache, ids = proloc.LocalCache(model), random_ids(1, tokens)
    with torch.no_grad():
        model(ids, past_key_values=cache, block_ids=proloc.FixedBlocks(6)(ids))
    return cache


def step(model, cache, block_ids=None, **kwargs):
    total = cache.get_seq_length() + 1
    if block_ids is None:
        block_ids = proloc.FixedBlocks(6)(random_ids(1, total))
    with torch.no_grad():
        return model(random_ids(1, 1), past_key_values=cache, block_ids=block_ids, **kwargs)


def test_a_turned_dial_is_refused_once_keys_are_dropped():
    model = localised(blocks=proloc.FixedBlocks(6))
    cache = filled(model)
    with proloc.dial(model, 0.5), pytest.raises(proloc.ProlocError, match=r"17 of 20 keys were dropped.*dial has been"):
        step(model, cache)
    step(model, cache)
    with proloc.dial(model, 0.5):
        assert not proloc.LocalCache(model).local, "no layer is hard there"


def test_a_dial_turned_before_anything_was_dropped_is_harmless():
    model = localised(blocks=proloc.FixedBlocks(6))
    cache = proloc.LocalCache(model)
    ids, blocks = random_ids(1, 20), proloc.FixedBlocks(6)
    with proloc.dial(model, 0.5), torch.no_grad():
        model(ids[:, :15], past_key_values=cache, block_ids=blocks(ids[:, :15]))
        found = model(ids[:, 15:], past_key_values=cache, block_ids=blocks(ids)).logits
        torch.testing.assert_close(found, model(ids, use_cache=False).logits[:, 15:], **CLOSE)


def test_blocks_or_sinks_that_reach_back_are_refused():
    model = localised(blocks=proloc.FixedBlocks(6))
    one_block = torch.zeros(1, 21, dtype=torch.long)
    returning = torch.tensor([[0] * 18 + [1] * 2 + [0]])
    for block_ids in (one_block, returning):
        with pytest.raises(proloc.ProlocError, match="reach back to tokens whose keys were dropped"):
            step(model, filled(model), block_ids)
    cache = filled(model)
    proloc.localize(model, proloc.Step(layers=2), proloc.FixedBlocks(6), sinks=3)
    with pytest.raises(proloc.ProlocError, match="reach back"):
        step(model, cache)


def test_a_cache_rolls_back_only_what_it_has():
    model = localised(blocks=proloc.FixedBlocks(6))
    short = filled(model, 5)
    short.crop(-2)
    assert short.get_seq_length() == 3
    ids = random_ids(1, 9)
    with torch.no_grad():
        ids[:, :3] = random_ids(1, 5)[:, :3]
        found = model(ids[:, 3:], past_key_values=short, block_ids=proloc.FixedBlocks(6)(ids)).logits
        torch.testing.assert_close(found, model(ids, use_cache=False).logits[:, 3:], **CLOSE)
    long = filled(model)
    with pytest.raises(proloc.ProlocError, match="dropped 17 of 20 keys cannot be rolled back"):
        long.crop(-1)
    long.reset()
    assert long.get_seq_length() == 0
    assert torch.equal(step(model, long).logits, step(model, proloc.LocalCache(model)).logits)


def test_what_needs_dropped_keys_is_refused():
    model = localised(blocks=proloc.FixedBlocks(6))
    with proloc.recording(model), pytest.raises(proloc.ProlocError, match="layer 1 dropped keys"):
        step(model, filled(model))
    with pytest.raises(proloc.ProlocError, match="layer 1 dropped keys"):
        step(model, filled(model), output_attentions=True)
    with pytest.raises(proloc.ProlocError, match="assisted_generation rolls its cache back"):
        generate(model, {"input_ids": random_ids(1, 24)}, proloc.LocalCache(model), prompt_lookup_num_tokens=2)
    with pytest.raises(proloc.ProlocError, match="a model that is not localised"):
        tiny_model()(random_ids(1, 3), past_key_values=proloc.LocalCache(model))


def test_a_model_that_cuts_its_mask_is_refused():
    relation = torch.ones(1, 1, 1, 9, dtype=torch.uint8)
    keys = Keys(None, lambda: relation, held=torch.tensor([0, 7, 8]))
    assert torch.equal(keys[:, :, :, :9], relation)
    with pytest.raises(proloc.ProlocError, match="cuts its attention mask"):
        keys[:, :, :, :3]


def test_a_pass_that_was_interrupted_is_noticed():
    model = localised(blocks=proloc.FixedBlocks(6))
    cache = filled(model)
    cache.local[1].seen += 1
    with pytest.raises(proloc.ProlocError, match="did not come to its end"):
        step(model, cache)


@pytest.mark.parametrize(
    "how", [{"cache_implementation": "static", "disable_compile": True}, {"prompt_lookup_num_tokens": 2},
            {"output_attentions": True}, {"use_cache": False}],
    ids=lambda how: next(iter(how)),
)  # fmt: skip
def test_generate_keeps_the_usual_cache_where_keys_are_still_needed(how):
    model = localised()
    inputs = {"input_ids": random_ids(1, 24)}
    found = generate(model, inputs, do_sample=False, **how)
    assert not isinstance(found.past_key_values, proloc.LocalCache)
    assert torch.equal(found.sequences, generate(model, inputs, do_sample=False).sequences)


def test_generate_keeps_the_usual_cache_without_hard_layers_and_while_recording():
    model = localised()
    inputs = {"input_ids": random_ids(1, 24)}
    with proloc.dial(model, 0.5):
        assert type(generate(model, inputs, do_sample=False).past_key_values) is DynamicCache
    with proloc.recording(model):
        assert type(generate(model, inputs, do_sample=False).past_key_values) is DynamicCache
    model.compile(backend="eager")
    assert type(generate(model, inputs, tokens=1, do_sample=False).past_key_values) is DynamicCache


def test_a_transformers_without_the_private_hook_keeps_its_cache(monkeypatch):
    model = localised()

    def renamed(generation, kwargs, generation_mode, batch_size, max_cache_length):
        kwargs["past_key_values"] = DynamicCache(config=model.config)

    parent = type(model).__mro__[2]
    monkeypatch.setattr(parent, "_prepare_cache_for_generation", staticmethod(renamed), raising=False)
    found = generate(model, {"input_ids": random_ids(1, 24)}, do_sample=False)
    assert type(found.past_key_values) is DynamicCache


def test_a_cache_of_another_kind_is_refused(monkeypatch):
    from proloc.hf import cache

    model = localised()
    monkeypatch.setattr(cache, "_known", lambda layers, state: False)
    with pytest.raises(proloc.ProlocError, match="of a kind that LocalCache does not know"):
        proloc.LocalCache(model)
    assert type(generate(model, {"input_ids": random_ids(1, 24)}).past_key_values) is DynamicCache
