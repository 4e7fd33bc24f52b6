"""Attribution and its measures on a model whose answers come from one known block (``planted``)."""

import numpy as np
import pytest
import torch
from planted import DECOY, induction_model, induction_passage
from scipy import stats
from tiny import random_ids, tiny_model

import proloc
from proloc.explaining.ablate import Ablator, draw_kept
from proloc.explaining.measures import BINS, bins, comprehensiveness, lds, precision_at_1, sufficiency, top_drop
from proloc.explaining.passage import Passage, count_units
from proloc.explaining.readout import read_out
from proloc.explaining.surrogate import Example, baselines, headed, lasso, learn_heads, logit
from proloc.hf import find_state
from proloc.hf.prefix import can_leave_out
from proloc.locality import with_leads
from proloc.schedule import Explicit, Uniform

SEEDS = range(6)


def localised(schedule=None, decoy=False, sinks=1):
    model = induction_model(decoy)
    return proloc.localize(model, schedule or Uniform(value=0.0), proloc.FixedBlocks(8), sinks=sinks)


def a_passage(length: int = 40, block: int = 8, target: int = 1, sinks: int = 1, seed: int = 0) -> Passage:
    ids, blocks = random_ids(1, length, seed)[0], torch.arange(length) // block
    return Passage(
        ids=ids, block_ids=blocks, units=count_units(blocks), start=length - target, end=length, num_sinks=sinks
    )


@pytest.mark.parametrize("how", ["cut", "removed"])
@pytest.mark.parametrize("seed", SEEDS)
def test_knocking_out_the_block_with_the_answer_costs_the_answer_and_no_other_block_matters(how, seed):
    passage, asked = induction_passage(seed)
    ablator = Ablator(localised(), passage, how)
    effects = ablator.leave_one_out()
    assert ablator.intact > -0.1
    assert effects[asked] > 3
    assert np.abs(np.delete(effects, asked)).max() < 1e-3


@pytest.mark.parametrize("method", ["attention", "attention-late", "value-weighted", "rollout"])
def test_every_readout_finds_the_planted_source_where_nothing_distracts(method):
    model = localised()
    for seed in SEEDS:
        passage, asked = induction_passage(seed)
        assert precision_at_1(read_out(model, passage).scores()[method], asked)


def with_decoys() -> list[tuple[Passage, int]]:
    """Passages with decoy tokens in a source, and more often outside of the true one."""
    found = []
    for seed in range(40):
        passage, asked = induction_passage(seed)
        ids = passage.ids.clone()
        ids[(ids == DECOY)] = 17
        wrong = (asked + 1) % len(passage.sources)
        ids[wrong * 5 + 3 : wrong * 5 + 6] = DECOY
        found.append((Passage(**{**vars_of(passage), "ids": ids}), asked))
    return found[:12]


def vars_of(passage: Passage) -> dict:
    return {name: getattr(passage, name) for name in ("ids", "block_ids", "units", "start", "end", "num_sinks")}


def test_heads_that_move_nothing_mislead_the_mean_of_attention_but_not_its_values_nor_learned_heads():
    model = localised(decoy=True)
    examples, readouts = [], []
    for number, (passage, _) in enumerate(with_decoys()):
        ablator, readout = Ablator(model, passage), read_out(model, passage)
        kept = draw_kept(32, len(passage.sources), number)
        examples.append(Example(attention=readout.attention, kept=kept, log_probs=ablator.log_probs(kept)))
        readouts.append(readout)
    weights = learn_heads(examples[:6])
    for (_, asked), readout in list(zip(with_decoys(), readouts, strict=True))[6:]:
        scores = readout.scores()
        assert not precision_at_1(scores["attention"], asked), "two heads of four look at the decoy, one at the source"
        assert precision_at_1(scores["value-weighted"], asked)
        assert precision_at_1(headed(readout.attention, weights), asked)


def test_the_true_attribution_has_the_best_measures_and_blind_ones_do_not():
    model = localised()
    won = []
    for seed in SEEDS:
        passage, asked = induction_passage(seed)
        ablator = Ablator(model, passage)
        kept = draw_kept(64, len(passage.sources), seed)
        truth = ablator.log_probs(kept)
        true = np.eye(len(passage.sources))[asked]
        against = baselines(passage, seed)
        assert lds(true, kept, truth) > 0.75  # a score for one block ties all ablations that keep it
        assert top_drop(true, 1, ablator.intact, ablator.log_probs) > 3
        assert comprehensiveness(true, ablator.intact, ablator.log_probs) > 0.85
        assert abs(sufficiency(true, ablator.intact, ablator.log_probs)) < 1e-3
        won += [lds(true, kept, truth) > lds(each, kept, truth) for each in against.values()]
    assert all(won)


def test_lasso_finds_the_source_from_other_ablations_and_leaves_the_rest_at_nearly_nothing():
    passage, asked = induction_passage(0)
    ablator = Ablator(localised(), passage)
    kept, other = (draw_kept(64, len(passage.sources), seed) for seed in (0, 1))
    weights = lasso(other, ablator.log_probs(other))
    assert precision_at_1(weights, asked)
    assert np.abs(np.delete(weights, asked)).max() < 0.01 * weights[asked]
    assert lds(weights, kept, ablator.log_probs(kept)) > 0.75


def test_lasso_solves_the_problem_it_states():
    """The conditions for a minimum: the gradient is +-alpha where a weight is not 0, and within alpha where it is."""
    rng = np.random.default_rng(0)
    kept = rng.random((50, 8)) < 0.5
    log_probs = -1.0 - kept @ np.array([2.0, 0, 0.5, 0, 0, 1.0, 0, 0]) / 5 - 0.1 * rng.random(50)
    weights = lasso(kept, log_probs, alpha=0.05)
    features, answers = kept.astype(float), logit(log_probs)
    standard = (features - features.mean(0)) / features.std(0)
    residual = (answers - answers.mean()) / answers.std() - standard @ (weights * features.std(0) / answers.std())
    gradient = standard.T @ residual / len(answers)
    active = weights != 0
    assert 0 < active.sum() < 8
    assert np.allclose(gradient[active], 0.05 * np.sign(weights[active]), atol=1e-4)
    assert (np.abs(gradient[~active]) <= 0.05 + 1e-4).all()


def test_lds_is_the_rank_correlation_of_summed_scores_and_is_none_where_nothing_varies():
    kept = draw_kept(64, 5, 0)
    scores, noise = np.array([3.0, 1.0, 0.0, -1.0, 0.5]), np.random.default_rng(1).normal(size=64)
    truth = kept @ scores
    assert lds(scores, kept, np.exp(truth)) == pytest.approx(1.0)
    assert lds(-scores, kept, truth) == pytest.approx(-1.0)
    expected = stats.spearmanr(truth, truth + noise).statistic
    assert lds(scores, kept, truth + noise) == pytest.approx(expected, abs=1e-3)
    assert lds(np.zeros(5), kept, truth) == 0.0
    assert lds(scores, kept, np.zeros(64)) is None
    for level in (-17.3, -17.30005):  # between two ten-thousandths as well as near one
        assert lds(scores, kept, level + 1e-6 * noise) is None, "rounding is no outcome"


def test_erasure_shares_are_rounded_up_to_whole_blocks():
    assert bins(10) == [1, 1, 1, 2, 5]
    assert bins(100) == [1, 5, 10, 20, 50]
    assert len(BINS) == 5


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("how", ["cut", "removed"])
@pytest.mark.parametrize(("target", "halo", "sinks"), [(1, 0, 2), (3, 0, 2), (2, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("lead", [0, 3])
def test_ablations_with_a_shared_prefix_equal_whole_passes(family, how, target, halo, sinks, lead):
    """The oracle runs every ablation alone from the first token: written out, without cache, on the reference path."""
    model = proloc.localize(tiny_model(family), Explicit([0.0, 0.4, 1.0]), proloc.FixedBlocks(8), sinks=2, halo=halo)
    passage = a_passage(target=target, sinks=sinks)
    led = with_leads(passage.units, torch.where(passage.units > 0, lead, 0))
    passage = Passage(**{**vars_of(passage), "block_ids": led})
    kept = draw_kept(20, len(passage.sources), 0)
    found = Ablator(model, passage, how).log_probs(kept)
    reference = {"sinks": 2, "halo": halo, "attention": "reference"}
    proloc.localize(model, Explicit([0.0, 0.4, 1.0]), proloc.FixedBlocks(8), **reference)
    for row, value in zip(kept, found, strict=True):
        gone = passage.marked(torch.from_numpy(~row)[None])[0]
        stays = ~gone if how == "removed" else torch.ones_like(gone)
        edges = passage.edges(torch.from_numpy(~row)[None])[:, :, stays][..., stays]
        ids, blocks = passage.ids[:-1][stays], passage.units[:-1][stays]
        first = torch.searchsorted(passage.units, blocks)  # of what leads a block, only what is left does
        leads = [int(stays[max(int(at) - lead, 0) : int(at)].sum()) for at in first]
        blocks = with_leads(blocks, torch.tensor(leads))
        with torch.no_grad(), proloc.cutting(model, edges & (how == "cut")):
            logits = model(input_ids=ids[None], block_ids=blocks[None], use_cache=False).logits[0, -target:]
        truth = torch.log_softmax(logits.double(), -1).gather(1, passage.ids[-target:, None]).sum()
        assert value == pytest.approx(float(truth), abs=2e-4)


def test_ablations_compute_two_thirds_of_the_tokens_of_a_pass_each_at_most():
    model = proloc.localize(tiny_model(), Uniform(value=0.0), proloc.FixedBlocks(8))
    for how in ("cut", "removed"):
        ablator = Ablator(model, a_passage(80), how)
        ablator.log_probs(draw_kept(64, 9, 0))
        assert ablator.tokens_computed < 0.65 * 64 * 79
        before = ablator.tokens_computed
        ablator.log_probs(draw_kept(64, 9, 0))
        assert ablator.tokens_computed == before, "what is known is not computed again"


@pytest.mark.parametrize("attention", ["reference", "auto"])
def test_edges_that_the_flow_graph_rules_out_change_nothing_when_they_are_cut(attention):
    """Bit for bit: hard layers 1 and 3 under soft ones; blocks enter through layers 0 and 2 only."""
    model = proloc.localize(
        tiny_model(layers=4), Explicit([0.3, 1.0, 0.0, 1.0]), proloc.FixedBlocks(8), attention=attention
    )
    passage = a_passage()
    enters = read_out(model, passage).enters
    assert enters.tolist() == [[True] * 4, [False] * 4, [True] * 4, [False] * 4]
    inputs = {"input_ids": passage.ids[None, :-1], "block_ids": passage.block_ids[None, :-1], "use_cache": False}
    everything = passage.edges(torch.ones(1, 4, dtype=torch.bool))
    nothing = torch.zeros_like(everything)

    def logits(edges, layers):
        with torch.no_grad(), proloc.cutting(model, edges, layers):
            return model(**inputs).logits[0, -1]

    assert torch.equal(logits(everything, [1, 3]), logits(nothing, [1, 3]))
    for layer in (0, 2):
        assert not torch.equal(logits(everything, [layer]), logits(nothing, [layer]))


def test_what_a_block_says_cannot_move_a_prediction_that_the_flow_graph_says_it_cannot_reach():
    """All layers hard: only the asking block and the sinks reach the target, whatever stands elsewhere."""
    model = proloc.localize(tiny_model(), Uniform(value=1.0), proloc.FixedBlocks(8), attention="reference")
    passage = a_passage()
    readout = read_out(model, passage)
    assert not readout.reaches.any()
    blocks = passage.block_ids[None, :-1]
    other = passage.ids[None, :-1].clone()
    other[:, 1:32] = random_ids(1, 31, seed=9)
    with torch.no_grad():
        before, after = (
            model(input_ids=ids, block_ids=blocks, use_cache=False).logits[0, -1]
            for ids in (passage.ids[None, :-1], other)
        )
    assert torch.equal(before, after)
    assert np.abs(Ablator(model, passage).leave_one_out()).max() < 1e-6
    assert float(readout.attention.sum()) == 0.0


@pytest.mark.parametrize("attention", ["auto", "reference"])
def test_through_leads_text_comes_one_block_further_with_every_hard_layer(attention):
    """Bit for bit: three layers carry the tail of one block to the next, so the first of four sources never arrives."""
    model = proloc.localize(
        tiny_model(layers=3), Uniform(value=1.0), proloc.FixedBlocks(8, lead=3), attention=attention
    )
    passage = a_passage()
    blocks = find_state(model).blocks(passage.ids[None])[0]
    passage = Passage(**{**vars_of(passage), "block_ids": blocks, "units": count_units(blocks)})
    assert read_out(model, passage).enters.tolist() == [
        [False, True, True, True],
        [False, False, True, True],
        [False, False, False, True],
    ]
    other = passage.ids.clone()
    other[1:8] = random_ids(1, 7, seed=9)
    with torch.no_grad():
        before, after = (
            model(input_ids=ids[None, :-1], block_ids=blocks[None, :-1], use_cache=False).logits[0, -1]
            for ids in (passage.ids, other)
        )
    assert torch.equal(before, after)


def test_a_hard_last_layer_takes_the_planted_answer_away_because_the_answer_enters_there():
    model, (passage, asked) = localised(Explicit([0.0, 1.0])), induction_passage(0)
    enters = read_out(model, passage).enters
    assert enters[0].all()
    assert not enters[1].any()
    assert Ablator(model, passage).intact < -2
    assert abs(Ablator(model, passage).leave_one_out()[asked]) < 1e-6


def test_cutting_one_layer_cuts_that_layer_only():
    passage, asked = induction_passage(0)
    model = localised()
    assert abs(Ablator(model, passage, layers=[0]).leave_one_out()[asked]) < 1e-3, "V reads K in its own block"
    assert Ablator(model, passage, layers=[1]).leave_one_out()[asked] > 3


def test_sinks_belong_to_no_source():
    passage = a_passage(sinks=8)
    assert passage.sources == [1, 2, 3]
    assert not passage.edges(torch.ones(1, 3, dtype=torch.bool))[..., :8].any()


def test_sources_need_not_be_the_blocks_of_the_model():
    """Conditions with other blocks are compared on the same sources."""
    passage, asked = induction_passage(0)
    other = Passage(**{**vars_of(passage), "block_ids": torch.arange(len(passage.ids)) // 4})
    assert Ablator(localised(), other).leave_one_out()[asked] > 3


@pytest.mark.parametrize(
    ("setting", "value"),
    [("attention_chunk_size", 16), ("attn_temperature_tuning", True), ("layer_types", ["chunked_attention"] * 3)],
)
def test_tokens_are_left_out_only_where_no_layer_counts_them(setting, value):
    model = proloc.localize(tiny_model(), Uniform(value=1.0), proloc.FixedBlocks(8), sinks=1)
    assert can_leave_out(model, 1)
    assert not can_leave_out(model, 0), "another token would become a sink"
    setattr(model.config, setting, value)
    assert not can_leave_out(model, 1)


def test_what_cannot_be_is_refused():
    model, passage = localised(), induction_passage(0)[0]
    with pytest.raises(proloc.ProlocError, match="cannot be 'burnt'; choose one of cut, removed"):
        Ablator(model, passage, "burnt")
    with pytest.raises(proloc.ProlocError, match="no layer 2; the model has layers 0 to 1"):
        Ablator(model, passage, layers=[1, 2])
    with pytest.raises(proloc.ProlocError, match="no layers to cut edges in"):
        Ablator(model, passage, layers=[])
    with pytest.raises(proloc.ProlocError, match="removed from the text and so from all layers"):
        Ablator(model, passage, "removed", layers=[1])
    with pytest.raises(proloc.ProlocError, match="the target is tokens 0 to 3"):
        Passage(**{**vars_of(passage), "start": 0, "end": 4})
    with (
        pytest.raises(proloc.ProlocError, match="a token cannot lose itself"),
        proloc.cutting(model, torch.ones(1, 1, 4, 4, dtype=torch.bool)),
    ):
        pass
    with (
        pytest.raises(proloc.ProlocError, match="edges are cut in a text of 4 tokens"),
        proloc.cutting(model, torch.zeros(1, 1, 4, 4, dtype=torch.bool)),
    ):
        model(input_ids=passage.ids[None])


def test_with_a_halo_a_block_comes_one_layer_nearer_for_every_block_of_distance():
    """Home keys are what the flow graph goes by, not equal block ids."""
    model = proloc.localize(tiny_model(), Uniform(value=1.0), proloc.FixedBlocks(8), halo=1)
    passage = a_passage()
    readout = read_out(model, passage)
    reached = len(readout.enters)
    assert readout.reaches.tolist() == [distance <= reached for distance in (4, 3, 2, 1)]
    effects = Ablator(model, passage).leave_one_out()
    assert np.abs(effects[~readout.reaches.numpy()]).max() < 1e-5
    assert np.abs(effects[readout.reaches.numpy()]).min() > 1e-5
