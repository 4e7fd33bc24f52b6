"""Every penalty is its formula, written out over float64 weights, with the gradient that autograd gives to that."""

import math
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
import torch
from attention_problems import fast_backend, make, problems
from hypothesis import given, settings

import proloc
from proloc.attention import reference, undialled_entropy
from proloc.errors import ProlocError
from proloc.locality import AWAY, HOME, Layout, entropy_bits, relate

CASES = settings(max_examples=40, deadline=None)
ONE = torch.ones((), dtype=torch.float64)


@dataclass
class Record:
    """What layers recorded."""

    fidelity: dict = field(default_factory=dict)
    entropy_undialled: dict = field(default_factory=dict)
    weights_undialled: dict = field(default_factory=dict)
    relations: dict = field(default_factory=dict)
    layout: Layout | None = None


@st.composite
def texts(draw):
    """Scores of two layers over a batch with ragged blocks, a halo, sinks and ignored targets, in float64."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch, heads, length = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(2, 14))
    opens = torch.rand(batch, length, generator=generator) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    sinks = torch.arange(length).expand(batch, -1) < draw(st.integers(0, 2))
    layout = Layout(opens.long().cumsum(1), sinks, draw(st.integers(0, 2)))
    visible = torch.ones(length, length).tril().bool().expand(batch, 1, -1, -1)
    relation = relate(layout, torch.arange(length), visible)
    queries = torch.rand(batch, length, generator=generator) < 0.8
    scale = draw(st.sampled_from([0.1, 3.0, 10.0]))
    scores = [
        (scale * torch.randn(batch, heads, length, length, generator=generator, dtype=torch.float64)).requires_grad_()
        for _ in range(2)
    ]
    return scores, relation, layout, queries, draw(st.sampled_from([(0.3, 1.0), (1.0, 0.5)]))


def weights_of(scores, relation):
    return torch.softmax(scores.masked_fill(relation == 0, -math.inf), -1)


def record(scores, relation, layout, dtype=torch.float64):
    made = Record(layout=layout)
    for layer, each in enumerate(scores):
        weights = weights_of(each, relation)
        made.fidelity[layer] = (weights * (relation >= HOME)).sum(-1).to(dtype)
        made.entropy_undialled[layer] = entropy_bits(weights).to(dtype)
        made.weights_undialled[layer], made.relations[layer] = weights.to(dtype), relation
    return made


def plain(penalty, scores, relation, layout, queries, localities):
    """The formulas of the docstrings by loops over layers, heads, rows and blocks."""
    total = torch.zeros((), dtype=torch.float64)
    for layer, locality in enumerate(localities):
        weights = weights_of(scores[layer], relation)
        batch, heads, length, _ = weights.shape
        for row in range(batch):
            for head in range(heads):
                mean = penalty.weight / heads
                if isinstance(penalty, proloc.GroupSparsity):
                    total = total + mean * locality * groups(weights[row, head], relation[row, 0], layout, row, queries)
                    continue
                for query in range(length):
                    if queries[row, query]:
                        p = weights[row, head, query]
                        total = total + mean * of_query(penalty, p, relation[row, 0, query], locality, layer, head)
    return total


def of_query(penalty, p, relation, locality, layer, head):
    home = p[relation >= HOME].sum()
    if isinstance(penalty, proloc.LowFidelity):
        return locality * (wanted(penalty.phi, layer, head) - home).clamp_min(0)
    if isinstance(penalty, proloc.Entropy):
        bits = -(p[p > 0] * p[p > 0].log2()).sum()
        return locality * (bits - wanted(penalty.target_bits, layer, head)).clamp_min(0)
    dialled = torch.where(relation == AWAY, (1.0 - locality) * p, p)
    q = dialled / dialled.sum()
    return (q[q > 0] * (q[q > 0] / p[q > 0]).log()).sum()


def wanted(target, layer, head):
    if isinstance(target, float):
        return target
    return target[layer] if isinstance(target[layer], float) else target[layer][head]


def groups(weights, relation, layout, row, queries):
    ids, total = layout.block_ids[row], torch.zeros((), dtype=torch.float64)
    for b in ids.unique():
        for c in ids.unique():
            members = [
                (query, key)
                for query in range(len(ids))
                for key in range(query + 1)
                if ids[query] == b and ids[key] == c and relation[query, key] == AWAY and queries[row, query]
            ]
            if members:
                norm = torch.stack([weights[place] for place in members]).square().sum().sqrt()
                total = total + math.sqrt(len(members)) * norm
    return total


PENALTIES = [
    proloc.LowFidelity(phi=0.9, weight=2.0),
    proloc.LowFidelity(phi=[0.3, 0.95], weight=1.0),
    proloc.Entropy(target_bits=0.7, weight=0.5),
    proloc.Entropy(target_bits=[0.0, 1.5], weight=1.0),
    proloc.DialledKL(weight=3.0, floor=1e-300),
    proloc.GroupSparsity(weight=0.25),
]


@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda p: type(p).__name__)
@CASES
@given(texts())
def test_a_penalty_and_its_gradient_are_the_formula_written_out(penalty, text):
    scores, relation, layout, queries, localities = text
    ours = penalty.summed(record(scores, relation, layout), localities, queries)
    expected = plain(penalty, scores, relation, layout, queries, localities)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-9, atol=1e-9)
    if not expected.requires_grad:  # no query has a target, or nothing is away
        return
    for found, wanted_gradient in zip(
        torch.autograd.grad(ours, scores, allow_unused=True),
        torch.autograd.grad(expected, scores, allow_unused=True),
        strict=True,
    ):
        zero = torch.zeros_like(scores[0])
        wanted_gradient = zero if wanted_gradient is None else wanted_gradient.nan_to_num()
        torch.testing.assert_close(zero if found is None else found, wanted_gradient, rtol=1e-6, atol=1e-8)


@CASES
@given(texts())
def test_a_head_of_a_layer_can_have_a_target_of_its_own(text):
    scores, relation, layout, queries, localities = text
    heads = scores[0].shape[1]
    for penalty in (
        proloc.LowFidelity(phi=[[0.2 + 0.2 * head for head in range(heads)], [0.9] * heads], weight=1.0),
        proloc.Entropy(target_bits=[[float(head) for head in range(heads)], [0.3] * heads], weight=1.0),
    ):
        ours = penalty.summed(record(scores, relation, layout), localities, queries)
        torch.testing.assert_close(ours, plain(penalty, scores, relation, layout, queries, localities))


@CASES
@given(texts())
def test_group_sparsity_is_at_least_the_away_mass_and_equal_to_it_where_that_is_even(text):
    scores, relation, layout, queries, _ = text
    even = [torch.zeros_like(each) for each in scores]
    for given_scores, equal in ((scores, False), (even, True)):
        made = record(given_scores, relation, layout)
        mass = sum(((1 - fidelity).mean(1) * queries).sum() for fidelity in made.fidelity.values())
        value = proloc.GroupSparsity(weight=1.0).summed(made, (1.0, 1.0), queries)
        assert value >= mass - 1e-9
        if equal and relation.shape[-1] == 2:
            torch.testing.assert_close(value, mass)


@pytest.mark.parametrize("penalty", [*PENALTIES, proloc.DialledKL(weight=1.0)], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("scale", [0.0, 1e3, 1e5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_penalty_and_its_gradient_stay_finite_where_heads_look_home_only_or_never(penalty, scale, dtype):
    ids = torch.tensor([[0, 0, 1, 1, 2, 2, 2]])
    layout = Layout(ids, torch.zeros_like(ids).bool())
    relation = relate(layout, torch.arange(7), torch.ones(1, 1, 7, 7).tril().bool())
    near = (relation == HOME).float().expand(1, 2, -1, -1)
    signs = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)  # one head looks home only, the other never
    scores = [(scale * signs * near).requires_grad_() for _ in range(2)]
    value = penalty.summed(record(scores, relation, layout, dtype), (1.0, 0.5), torch.ones_like(ids).bool())
    gradients = torch.autograd.grad(value, scores)
    if isinstance(penalty, proloc.DialledKL) and penalty.floor < 1e-10 and scale:
        return  # so low a floor is for comparing formulas
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("retain", [0.0, 0.1, 0.5])
def test_the_divergence_has_its_maximum_where_its_docstring_says(retain):
    fidelity = torch.linspace(0, 1, 20001, dtype=torch.float64)[1:-1].view(1, 1, -1)
    queries, penalty = torch.ones(1, 1).bool(), proloc.DialledKL(weight=1.0, floor=1e-300)
    values = torch.stack(
        [penalty.summed(Record({0: fidelity[..., i : i + 1]}), [1.0 - retain], queries) for i in range(0, 19999, 50)]
    )
    assert (values >= 0).all()
    top = fidelity[0, 0, 50 * int(values.argmax())].item()
    stated = {0.0: 0.0, 0.1: 0.17, 0.5: 0.39}[retain]
    assert top == pytest.approx(stated, abs=0.01)


@CASES
@given(problems())
def test_the_entropy_of_fused_attention_has_the_gradient_of_the_reference(problem):
    assert_entropies_agree("fused", problem)


@CASES
@given(problems(plain=True))
def test_the_entropy_of_flash_attention_has_the_gradient_of_the_reference(problem):
    assert_entropies_agree("flash", problem)


def assert_entropies_agree(name, problem):
    retain, results = torch.tensor(problem.retain, dtype=torch.float64), []
    for backend, dtype in ((fast_backend(name), torch.float32), (reference.attend_ranges, torch.float64)):
        query, key, value = (part.to(dtype).requires_grad_() for part in problem.qkv)
        attention = backend(query, key, value, problem.ranges, retain, scaling=0.3)
        entropy = undialled_entropy(backend, attention, query, key, problem.ranges, 0.3)
        weights = torch.randn(entropy.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        grads = torch.autograd.grad((entropy * weights).sum(), (query, key))
        results.append([entropy.detach(), *grads])
    for ours, oracle in zip(*results, strict=True):
        scale = max(1.0, float(oracle.abs().max()))
        torch.testing.assert_close(ours.double(), oracle, rtol=0, atol=5e-5 * scale)


def test_the_entropy_of_a_backend_without_statistics_is_refused():
    problem = make()

    def silent(*arguments, **keywords):
        return reference.Attention(torch.zeros(2, 24, 2, 8), ONE)

    with pytest.raises(ProlocError, match="measures no entropy"):
        undialled_entropy(silent, silent(), *problem.qkv[:2], problem.ranges, 0.3)


@pytest.mark.parametrize(
    ("make_penalty", "message"),
    [
        (lambda: proloc.LowFidelity(phi=1.5, weight=1.0), "phi is 1.5; it must lie in"),
        (lambda: proloc.LowFidelity(phi=[0.5, -0.1], weight=1.0), "phi is -0.1"),
        (lambda: proloc.LowFidelity(phi=[0.5, [0.1]], weight=1.0), "one for each head of each layer"),
        (lambda: proloc.LowFidelity(phi=[], weight=1.0), "give a number"),
        (lambda: proloc.LowFidelity(phi=0.5, weight=-1.0), "weight is -1.0"),
        (lambda: proloc.Entropy(target_bits=-1.0, weight=1.0), "target_bits is -1.0"),
        (lambda: proloc.Entropy(target_bits=float("nan"), weight=1.0), "target_bits is nan"),
        (lambda: proloc.DialledKL(weight=float("nan")), "weight is nan"),
        (lambda: proloc.DialledKL(weight=1.0, floor=0.0), "floor is 0.0"),
        (lambda: proloc.GroupSparsity(weight=float("inf")), "weight is inf"),
        (lambda: proloc.LowFidelity(phi=[0.5, 0.5], weight=1.0).check(3, 2), "for 2 layers; the model has 3"),
        (lambda: proloc.Entropy(target_bits=[[1.0]] * 3, weight=1.0).check(3, 2), "1 values for the heads of layer 0"),
    ],
)
def test_a_penalty_that_cannot_be_is_refused(make_penalty, message):
    with pytest.raises(ProlocError, match=message):
        make_penalty()


def test_group_sparsity_without_the_blocks_of_the_whole_text_is_refused():
    weights = torch.full((1, 1, 2, 5), 0.2)
    ids = torch.zeros(1, 5).long()
    made = Record(weights_undialled={0: weights}, layout=Layout(ids, ids.bool()))
    with pytest.raises(ProlocError, match="without a cache"):
        proloc.GroupSparsity(weight=1.0).summed(made, (1.0,), torch.ones(1, 2).bool())
