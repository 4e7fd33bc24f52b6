"""The FlexAttention backend computes what the reference computes; here without compiling it, which needs a GPU."""

import warnings
from contextlib import contextmanager

import pytest
import torch
from attention_problems import answers, assert_same, make, problems
from hypothesis import given, settings

from proloc.attention import flex, reference
from proloc.attention.choose import Needs, choose
from proloc.errors import ProlocError


@contextmanager
def eager():
    """FlexAttention as plain operators, whose gradients exist on the CPU too once its check of devices is passed by."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this is slow
        patch.setattr(flex, "_kernel", lambda: flex.flex_attention.flex_attention)
        patch.setattr(flex.flex_attention, "_validate_device", lambda *_: None)
        yield


@settings(max_examples=40, deadline=None)
@given(problems())
def test_flex_equals_the_float64_reference_with_its_gradients(problem):
    oracle = answers(reference.attend_ranges, problem, torch.float64)
    with eager():
        assert_same(answers(flex.attend_ranges, problem), oracle, 1e-5)


@settings(max_examples=40, deadline=None)
@given(problems())
def test_every_key_that_a_pass_reads_lies_in_a_tile_that_it_lists(problem):
    ranges = problem.ranges
    queries, keys = ranges.visible_start.shape[1], ranges.sinks.shape[1]
    query, key = torch.arange(queries)[:, None], torch.arange(keys)
    for kind in ("visible", "near", "sinks"):
        mask = flex._mask(ranges, kind)
        listed = mask.to_dense()[:, 0].bool()
        for row in range(len(ranges.sinks)):
            read = mask.mask_mod(torch.tensor(row), torch.tensor(0), query, key)
            places = read.nonzero() // flex.TILE
            assert listed[row, places[:, 0], places[:, 1]].all()


def test_a_pass_over_home_keys_lists_few_tiles():
    length, tile = 32 * flex.TILE, flex.TILE
    problem = make(1, 1, queries=length, head_dim=1, opens=0.0)
    blocks = torch.arange(length)[None] // (tile // 2)
    ranges = type(problem.ranges).from_blocks(blocks, torch.arange(length)[None] == 0, torch.zeros(1, length).long())
    listed = flex._mask(ranges, "near").to_dense()[0, 0].bool()
    assert torch.equal(listed, torch.eye(32).bool() | (torch.arange(32) == 0))


def test_the_future_never_leaks():
    problem = make(queries=130)
    with eager():
        before = answers(flex.attend_ranges, problem)
        for part in problem.qkv[1:]:
            part[:, :, 75:] = 100.0
        after = answers(flex.attend_ranges, problem)
    assert torch.equal(before["output"][:, :75], after["output"][:, :75])
    assert torch.equal(before["fidelity"][:, :, :75], after["fidelity"][:, :, :75])


@pytest.mark.slow
def test_the_compiled_forward_pass_is_the_same_and_a_new_batch_compiles_nothing():
    """On a CPU it has no log-sum, so it answers where one pass says all."""
    problems = [make(queries=200, head_dim=16, retain=0.0, wanted="nothing", seed=seed) for seed in (0, 1)]
    hard = torch.tensor(0.0, dtype=torch.float64)
    for number, problem in enumerate(problems):
        arguments = (*problem.qkv, problem.ranges, hard)
        with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=number > 0):
            found = flex.attend_ranges(*arguments, scaling=0.25).output
        torch.testing.assert_close(found, reference.attend_ranges(*arguments, scaling=0.25).output)


def test_flex_is_refused_on_a_cpu_and_never_chosen_unasked():
    needs = {"dtype": torch.float32, "queries": 200, "keys": 200, "wanted": "fidelity"}
    with pytest.raises(ProlocError, match="'flex' cannot be used here: it runs on cuda, not on cpu"):
        choose("flex", Needs(device="cpu", **needs))
    assert choose("auto", Needs(device="cpu", **needs)).name != "flex"


@pytest.mark.parametrize("change", [{"dropout": 0.1}, {"softcap": 30.0}])
def test_what_flex_cannot_do_it_refuses(change):
    problem = make()
    with pytest.raises(ProlocError, match="no dropout, no softcap"):
        flex.attend_ranges(*problem.qkv, problem.ranges, torch.tensor(0.5), scaling=0.3, **change)
