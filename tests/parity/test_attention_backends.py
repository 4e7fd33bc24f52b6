"""The fast attention backends compute what the reference computes, and what they cannot do they refuse."""

import functools
import math
from dataclasses import replace

import pytest
import torch
import torch._dynamo
from attention_problems import answers, assert_same, fast_backend, make, problems, rounded
from hypothesis import given, settings
from torch import library
from torch.utils.checkpoint import checkpoint

from proloc.attention import compile as kernel_compiler
from proloc.attention import flash_plan, plain, proof, reference, sdpa
from proloc.attention.choose import Needs, choose
from proloc.attention.layout import KeyRanges
from proloc.attention.operator import Operator
from proloc.errors import ProlocError
from proloc.locality import HIDDEN, HOME

FAST = ("flash", "fused")
CASES = settings(max_examples=60, deadline=None)
HALF = torch.tensor(0.5, dtype=torch.float64)


@CASES
@given(problems())
def test_fused_equals_the_float64_reference_with_its_gradients(problem):
    oracle = answers(reference.attend_ranges, problem, torch.float64)
    assert_same(answers(fast_backend("fused"), problem), oracle, 1e-5)


@CASES
@given(problems(plain=True))
def test_flash_equals_the_float64_reference_with_its_gradients(problem):
    oracle = answers(reference.attend_ranges, problem, torch.float64)
    assert_same(answers(fast_backend("flash"), problem), oracle, 2e-5)


@CASES
@given(problems())
def test_attention_is_plain_exactly_where_no_key_up_to_the_query_is_hidden_or_away(problem):
    ranges, queries = problem.ranges, problem.qkv[0].shape[2]
    relation, keys = ranges.relation(), ranges.sinks.shape[1]
    earlier = torch.arange(keys) <= torch.arange(queries)[:, None] + ranges.query_offset
    read = {0.0: relation >= HOME, 1.0: relation != HIDDEN}.get(problem.retain, torch.zeros_like(relation).bool())
    alike = ranges.query_offset + queries == keys and (queries in (1, keys)) and bool((read == earlier).all())
    assert ranges.unmasked(problem.retain) == alike
    if alike:
        plainly = replace(problem, wanted="nothing")
        assert_same(
            answers(plain.attend_ranges, plainly), answers(reference.attend_ranges, plainly, torch.float64), 1e-5
        )


@pytest.mark.parametrize("retain", [0.0, 0.5])
def test_flash_over_sinks_piece_by_piece_is_the_same(monkeypatch, retain):
    problem, flash = make(queries=70, sinks=2, padding=3, retain=retain), fast_backend("flash")
    expected = answers(flash, problem)
    monkeypatch.setattr(flash_plan, "MOST_QUERIES", 8)
    assert_same(answers(flash, problem), expected, 1e-5)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("wanted", ["nothing", "fidelity", "all"])
def test_without_gradients_the_answers_are_the_same_bit_for_bit(name, wanted):
    problem, backend = make(wanted=wanted), fast_backend(name)
    retain = torch.tensor(problem.retain, dtype=torch.float64)
    inputs = [part.requires_grad_() for part in problem.qkv]
    registered = backend(*inputs, problem.ranges, retain, scaling=0.3, wanted=wanted)
    with torch.no_grad():
        direct = backend(*inputs, problem.ranges, retain, scaling=0.3, wanted=wanted)
    for answer in ("output", "fidelity_undialled", "sink_mass", "entropy_bits"):
        one, other = getattr(direct, answer), getattr(registered, answer)
        assert (one is None and other is None) or torch.equal(one, other)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("retain", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("dtype", "limit", "fidelity_limit"), [(torch.float32, 2e-6, 5e-6), (torch.bfloat16, 1e-2, 1e-2)]
)
def test_errors_are_those_of_rounding_alone(name, retain, dtype, limit, fidelity_limit):
    """Largest difference to the float64 reference over the largest entry of what is compared; fidelity as it is."""
    problem = rounded(make(1, queries=600, groups=2, head_dim=64, opens=1 / 64, padding=20, retain=retain), dtype)
    oracle = answers(reference.attend_ranges, problem, torch.float64, scaling=64**-0.5)
    found = answers(fast_backend(name, dtype), problem, dtype, scaling=64**-0.5)
    for measure in ("output", *(f"gradient of {part}" for part in ("query", "key", "value"))):
        assert (found[measure] - oracle[measure]).abs().max() <= limit * oracle[measure].abs().max(), measure
    for measure in ("fidelity", "fidelity_undialled", "sink_mass"):
        assert (found[measure] - oracle[measure]).abs().max() <= fidelity_limit, measure


def test_sdpa_equals_the_reference_behind_the_same_interface():
    problem = make(padding=5, window=9, wanted="nothing")
    assert_same(answers(sdpa.attend_ranges, problem), answers(reference.attend_ranges, problem, torch.float64), 1e-5)


@pytest.mark.parametrize("name", FAST)
def test_heads_that_hardly_look_home_keep_an_exact_output(name):
    """Away scores 100 nats above home ones: home weights underflow next to them, but not next to each other."""
    problem = make(1, 1, queries=66, opens=0.1, sinks=0, retain=0.0, wanted="fidelity")
    query, key, _ = problem.qkv
    query[..., 0], key[..., 0] = 1.0, 0.0
    key[:, :, :20, 0] = 400.0
    found, oracle = answers(fast_backend(name), problem), answers(reference.attend_ranges, problem, torch.float64)
    for measure in ("output", "fidelity_undialled", "gradient of value"):
        torch.testing.assert_close(found[measure], oracle[measure], rtol=2e-5, atol=2e-5)
    assert found["fidelity_undialled"].min() == 0.0


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("retain", [0.0, 0.5])
def test_rows_without_gradient_still_get_that_of_fidelity(name, retain):
    """Ignored labels leave rows of zeros in the output's gradient; the penalty reads fidelity there all the same."""
    problem = make(retain=retain)
    grads = []
    for backend, dtype in ((fast_backend(name), torch.float32), (reference.attend_ranges, torch.float64)):
        inputs = [part.to(dtype).requires_grad_() for part in problem.qkv]
        result = backend(*inputs, problem.ranges, HALF * 2 * retain, scaling=0.3, wanted="fidelity")
        loss = result.output[:, ::2].square().sum() + result.fidelity_undialled.square().sum()
        grads.append(torch.autograd.grad(loss, inputs))
    for ours, oracle in zip(*grads, strict=True):
        torch.testing.assert_close(ours.double(), oracle, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("retain", [0.0, 0.5])
@pytest.mark.parametrize("halo", [0, 2])
def test_the_future_never_leaks(name, retain, halo):
    problem = make(queries=130, retain=retain, halo=halo)
    before = answers(fast_backend(name), problem)
    for part in problem.qkv[1:]:
        part[:, :, 75:] = 100.0
    after = answers(fast_backend(name), problem)
    assert torch.equal(before["output"][:, :75], after["output"][:, :75])
    for measure in ("fidelity", "sink_mass", "entropy_bits"):
        assert torch.equal(before[measure][:, :, :75], after[measure][:, :, :75])


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("wanted", ["nothing", "fidelity"])
@pytest.mark.parametrize("halo", [0, 1])
def test_away_keys_at_locality_one_leak_exactly_nothing(name, wanted, halo):
    problem = make(1, queries=130, opens=0.05, retain=0.0, wanted=wanted, seed=1, halo=halo)
    before = answers(fast_backend(name), problem)["output"]
    start = int(problem.ranges.home_start[0, -1])
    for part in problem.qkv[1:]:
        part[:, :, 1:start] = 37.0
    assert 1 < start < 129
    own = problem.ranges.home_start[0] >= start
    assert torch.equal(answers(fast_backend(name), problem)["output"][:, own], before[:, own])


@pytest.mark.parametrize("name", FAST)
def test_padding_queries_are_finite_and_touch_only_themselves(name):
    problem = make(1, queries=40, padding=0)
    problem.ranges.visible_start[:, :9] = torch.arange(9)
    problem.ranges.visible_start[:, 9:] = 9
    problem.ranges.home_start.clamp_(min=problem.ranges.visible_start)
    found = answers(fast_backend(name), problem)
    assert all(value.isfinite().all() for value in found.values())
    assert (found["fidelity"][..., :9] == 1.0).all()
    assert (found["gradient of query"][:, :, :9].abs() < 1e-5).all()
    assert (found["gradient of key"][:, :, :9].abs() < 1e-5).all()


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("shape", [{"batch": 0}, {"queries": 0}])
def test_empty_inputs_give_empty_outputs(name, shape):
    found = answers(fast_backend(name), make(**shape))
    assert found["output"].numel() == 0
    assert (found["gradient of key"] == 0).all()


@pytest.mark.parametrize("name", FAST)
def test_not_a_number_is_passed_on(name):
    problem = make()
    problem.qkv[0][0, 0, 5] = math.nan
    assert answers(fast_backend(name), problem)["output"][0, 5, 0].isnan().all()


@pytest.mark.parametrize("name", FAST)
def test_a_halo_over_the_whole_text_is_the_unmodified_attention(name):
    whole, unmodified = make(retain=0.0, halo=24, padding=3), make(retain=1.0, padding=3)
    found, expected = answers(fast_backend(name), whole), answers(fast_backend(name), unmodified)
    assert (found["fidelity_undialled"] == 1.0).all()
    torch.testing.assert_close(found["output"], expected["output"], rtol=0, atol=1e-6)
    torch.testing.assert_close(found["entropy_bits"], expected["entropy_bits"], rtol=0, atol=1e-5)


def test_fused_takes_the_strides_that_models_make():
    problem = make(head_dim=16)
    mixed = torch.cat([part.transpose(1, 2) for part in problem.qkv], dim=-1)
    strided = replace(problem, qkv=[part.transpose(1, 2) for part in mixed.split(16, dim=-1)])
    assert_same(answers(fast_backend("fused"), strided), answers(fast_backend("fused"), problem), 0)


def test_threads_do_not_change_the_result():
    problem = make(queries=400, groups=2, head_dim=16)
    alone = answers(fast_backend("fused"), problem)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert_same(answers(fast_backend("fused"), problem), alone, 0)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_one_graph_serves_every_dial(name, compiler):
    backend, problem = fast_backend(name), make()
    inputs = [part.requires_grad_() for part in problem.qkv]

    def layer(retain):
        result = backend(*inputs, problem.ranges, retain, scaling=0.3, wanted="all")
        return result.output.square().sum() + result.fidelity.sum(), result.entropy_bits

    torch._dynamo.reset()
    compiled = torch.compile(layer, backend=compiler, fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for retain in torch.linspace(0, 1, 10, dtype=torch.float64):
            expected, found = layer(retain), compiled(retain)
            torch.testing.assert_close(found, expected)
            grads = [torch.autograd.grad(loss, inputs) for loss, _ in (expected, found)]
            torch.testing.assert_close(*grads)


def test_choosing_does_not_break_a_graph(without_proofs):
    problem = make()

    def layer(query, key, value):
        choice = choose("auto", Needs(device="cpu", dtype=query.dtype, queries=24, keys=24, wanted="fidelity"))
        return choice.attend(query, key, value, problem.ranges, HALF, scaling=0.3, wanted="fidelity").output

    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*problem.qkv), layer(*problem.qkv))


@pytest.mark.parametrize("name", FAST)
def test_checkpointing_changes_nothing(name):
    backend, problem = fast_backend(name), make()
    grads = []
    for wrap in (lambda f, *a: f(*a), lambda f, *a: checkpoint(f, *a, use_reentrant=False)):
        inputs = [part.clone().requires_grad_() for part in problem.qkv]

        def layer(*qkv):
            result = backend(*qkv, problem.ranges, HALF, scaling=0.3, wanted="fidelity")
            return result.output, result.fidelity_undialled

        output, fidelity = wrap(layer, *inputs)
        grads.append(torch.autograd.grad(output.square().sum() + fidelity.sum(), inputs))
    for kept, checkpointed in zip(*grads, strict=True):
        assert torch.equal(kept, checkpointed)


@pytest.mark.parametrize("name", FAST)
def test_turning_the_dial_before_backward_changes_no_gradient(name):
    backend, problem = fast_backend(name), make()
    inputs = [part.requires_grad_() for part in problem.qkv]
    grads = []
    for turned in (False, True):
        retain = HALF.clone()
        output = backend(*inputs, problem.ranges, retain, scaling=0.3).output
        if turned:
            retain.fill_(0.9)
        grads.append(torch.autograd.grad(output.square().sum(), inputs))
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


@pytest.mark.parametrize("name", FAST)
def test_operators_pass_torchs_own_checks(name):
    operator = fast_backend(name)
    assert isinstance(operator, Operator)
    problem = make(1, 1, queries=5, head_dim=4)
    ranges = problem.ranges
    inputs = [part.requires_grad_() for part in problem.qkv]
    arguments = (*inputs, ranges.visible_start, ranges.home_start, ranges.sinks, HALF, 0, 0.3, True, True)
    library.opcheck(operator.registered, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dropout": 0.1}, "no dropout"),
        ({"softcap": 30.0}, "no softcap"),
        ({"retain": HALF.clone().requires_grad_()}, "no gradient for retain"),
        ({"dtype": torch.float16}, "float32 or bfloat16"),
    ],
)
def test_what_a_fast_backend_cannot_do_it_refuses(name, change, message):
    problem = make()
    qkv = [part.to(change.get("dtype", torch.float32)) for part in problem.qkv]
    keywords = {"retain": HALF, "scaling": 0.3} | {key: value for key, value in change.items() if key != "dtype"}
    with pytest.raises(ProlocError, match=message):
        fast_backend(name)(*qkv, problem.ranges, **keywords)


@pytest.mark.parametrize("name", FAST)
def test_shapes_that_do_not_fit_are_refused_before_memory_is_read(name):
    problem = make(groups=2)
    query, key, value = problem.qkv
    short = replace(problem.ranges, sinks=problem.ranges.sinks[:, 1:])
    wrong_type = replace(problem.ranges, home_start=problem.ranges.home_start.long())
    for case in (
        (query, key[:, :, 1:], value, problem.ranges),
        (query[:, :3], key, value, problem.ranges),
        (query, key, value.bfloat16(), problem.ranges),
        (query, key, value, short),
        (query, key, value, wrong_type),
        (query, key, value, replace(problem.ranges, query_offset=1)),
    ):
        with pytest.raises(ProlocError, match="do not fit each other"):
            fast_backend(name)(*case, HALF, scaling=0.3)


def test_starts_outside_the_keys_read_nothing_outside_the_keys():
    problem = make()
    problem.ranges.visible_start.fill_(-1000)
    problem.ranges.home_start.fill_(10**6)
    assert answers(fast_backend("fused"), problem)["output"].isfinite().all()


@pytest.mark.parametrize("layout", [{"window": 5}, {"cached": 9}])
def test_flash_refuses_layouts_it_would_get_wrong(layout):
    with pytest.raises(ProlocError, match="neither sliding windows nor several queries"):
        answers(fast_backend("flash"), make(**layout))


def test_softcap_in_the_reference_is_that_of_gemma():
    problem = make(1, 1, queries=6, retain=1.0)
    query, key, value = problem.qkv
    found = reference.attend_ranges(*problem.qkv, problem.ranges, HALF * 2, scaling=0.3, softcap=2.0).output
    scores = torch.tanh(torch.matmul(query, key.transpose(2, 3)) * 0.3 / 2.0) * 2.0
    hidden = torch.ones(6, 6).triu(1).bool()
    expected = scores.masked_fill(hidden, -math.inf).softmax(-1) @ value
    torch.testing.assert_close(found, expected.transpose(1, 2))


def needs(**changes):
    return Needs(**{"device": "cpu", "dtype": torch.float32, "queries": 200, "keys": 200} | changes)


@pytest.mark.parametrize(
    ("changes", "name", "reason"),
    [
        ({}, "fused", "the fastest"),
        ({"weights": True}, "reference", "wants the weights"),
        ({"dropout": True}, "sdpa", "dropout is on"),
        ({"dropout": True, "wanted": "fidelity"}, "reference", "dropout is on"),
        ({"softcap": True, "wanted": "fidelity"}, "reference", "capped"),
        ({"contiguous": False}, "sdpa", "not contiguous"),
        ({"queries": 1, "unmasked": True}, "plain", "every key is read at full weight"),
        ({"queries": 1, "unmasked": True, "wanted": "fidelity"}, "fused", "no weights to measure"),
        ({"dropout": True, "unmasked": True}, "plain", "dropout is on"),
        ({"device": "cuda", "unmasked": True}, "plain", "every key is read at full weight"),
        ({"device": "mps", "wanted": "all"}, "reference", "not on mps"),
        ({"dtype": torch.float16, "wanted": "all"}, "reference", "float16"),
    ],
)
def test_the_choice_says_why(changes, name, reason):
    fast_backend("fused")
    choice = choose("auto", needs(**changes))
    assert (choice.name, reason in choice.reason) == (name, True), choice


def test_a_backend_asked_for_is_used_or_refused_but_never_replaced():
    assert choose("flash", needs(keys=5, queries=5)).name == "flash"
    with pytest.raises(ProlocError, match=r"'flash' cannot be used here: .*sliding windows"):
        choose("flash", needs(windowed=True))
    with pytest.raises(ProlocError, match="no attention 'quick'"):
        choose("quick", needs())


@pytest.fixture
def without_proofs():
    proof._objection.cache_clear()
    kernel_compiler.load_kernel.cache_clear()
    yield
    proof._objection.cache_clear()
    kernel_compiler.load_kernel.cache_clear()


def test_without_a_compiler_flash_is_chosen_and_the_reason_says_so(without_proofs, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    choice = choose("auto", needs())
    assert choice.name == "flash"
    assert "no C++ compiler was found (looked for no-such-compiler)" in choice.reason
    with pytest.raises(ProlocError, match="no C\\+\\+ compiler"):
        choose("fused", needs())


def test_a_compiler_that_fails_is_reported(without_proofs, monkeypatch, tmp_path):
    broken = tmp_path / "c++"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho bad weather >&2\nexit 1\n')
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("PROLOC_HOME", str(tmp_path / "home"))
    assert "bad weather" in choose("auto", needs()).reason
    assert not list((tmp_path / "home").rglob("*.so"))


def test_a_backend_that_answers_wrongly_is_not_used(without_proofs, monkeypatch):
    def wrong(query, *arguments, **keywords):
        return reference.attend_ranges(query * 1.01, *arguments, **keywords)

    monkeypatch.setitem(proof.BACKENDS, "fused", wrong)
    choice = choose("auto", needs())
    assert choice.name == "flash"
    assert "off by" in choice.reason


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("retain", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("liked", [5.0, -5.0])
def test_a_query_does_not_notice_that_others_rescale_their_sums(name, retain, liked):
    """Queries share vectors and tiles, and their running maxima move at different times; found by ``proloc check``."""
    length, generator = 300, torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, length, 8, generator=generator) for _ in range(3))
    key[:, :, 0] = torch.tensor([5.0, *[0.0] * 7])
    query[..., 0] = liked  # everybody looks at the sink, or nobody ...
    changed = query.clone()
    changed[:, :, 8::4, 0] = -liked  # ... but some do otherwise now
    starts = torch.zeros(1, length, dtype=torch.long)
    ranges = KeyRanges.from_blocks(torch.arange(length)[None] // 90, torch.arange(length)[None] < 1, starts)
    share = torch.tensor(retain, dtype=torch.float64)
    before, after = (fast_backend(name)(q, key, value, ranges, share, scaling=1.0).output for q in (query, changed))
    same = (query == changed).all(-1).all(1)[0]
    assert torch.equal(before[:, same], after[:, same])


@pytest.mark.parametrize("name", FAST)
def test_a_backend_may_prove_itself_inside_a_checkpointed_layer(name, monkeypatch):
    """The first forward pass saves the tensors of the proof too; checkpointing must not expect them again."""
    fast_backend(name)
    monkeypatch.setattr(proof, "_objection", functools.cache(proof._objection.__wrapped__))
    problem = make(queries=200, retain=0.5)
    query, key, value = (part.float().requires_grad_() for part in problem.qkv)

    def layer(query):
        choice = choose(name, Needs(device="cpu", dtype=query.dtype, queries=200, keys=200))
        return choice.attend(query, key, value, problem.ranges, HALF, scaling=0.3).output

    checkpoint(layer, query, use_reentrant=False).sum().backward()
    assert query.grad is not None
