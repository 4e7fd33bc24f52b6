"""Random attention problems over key ranges, and answers to compare."""

from dataclasses import dataclass, replace

import hypothesis.strategies as st
import pytest
import torch

from proloc.attention.layout import KeyRanges
from proloc.attention.proof import BACKENDS, objection
from proloc.locality import block_starts, with_leads

ANSWERS = ("output", "fidelity_undialled", "fidelity", "sink_mass", "home_mass", "entropy_bits")


@dataclass
class Problem:
    qkv: list[torch.Tensor]
    ranges: KeyRanges
    retain: float
    wanted: str = "all"


def fast_backend(name, dtype=torch.float32):
    """A backend that has proved itself; where there is no compiler the test says so and is skipped."""
    against = objection(name, dtype)
    if against and against.startswith("no C++ compiler"):
        pytest.skip(against)
    assert against is None, against
    return BACKENDS[name]


def random_leads(block_ids, generator):
    """The same blocks with leads, of which none moves home back: it starts anywhere since the home before."""
    starts, leads = block_starts(block_ids), torch.zeros_like(block_ids)
    for row, firsts in enumerate(starts):
        home = 0
        for first in firsts.unique().tolist():
            home += int(torch.randint(0, first - home + 1, (), generator=generator))
            leads[row, firsts == first] = first - home
    return with_leads(block_ids, leads)


def make(
    batch=2,
    kv_heads=2,
    groups=1,
    queries=24,
    head_dim=8,
    *,
    seed=0,
    opens=0.15,
    sinks=1,
    padding=0,
    window=None,
    cached=0,
    packed=False,
    retain=0.5,
    unused=0,
    halo=0,
    leads=False,
    wanted="all",
):
    """A problem: ``padding`` up to so many hidden keys on the left, ``cached`` earlier keys, ``unused`` later ones."""
    generator = torch.Generator().manual_seed(seed)
    keys = cached + queries + unused
    query = 1.5 * torch.randn(batch, kv_heads * groups, queries, head_dim, generator=generator)
    key, value = (torch.randn(batch, kv_heads, keys, head_dim, generator=generator) for _ in range(2))
    block_ids = (torch.rand(batch, keys, generator=generator) < opens).long().cumsum(1)
    positions = torch.arange(cached, cached + queries)
    first = torch.randint(0, padding + 1, (batch, 1), generator=generator)
    start = first.expand(batch, queries)
    marked = (torch.arange(keys) >= first) & (torch.arange(keys) < first + sinks)
    if packed:
        middle = cached + queries // 2
        start = torch.where(positions >= middle, middle, start)
        marked |= (torch.arange(keys) >= middle) & (torch.arange(keys) < middle + sinks)
        block_ids += torch.arange(keys) >= middle
    if window:
        start = torch.maximum(start, positions - window + 1)
    if leads:
        block_ids = random_leads(block_ids, generator)
    ranges = KeyRanges.from_blocks(block_ids, marked, start, cached, halo=halo)
    return Problem([query, key, value], ranges, retain, wanted)


@st.composite
def problems(draw, *, plain=False):
    """Anything the interface allows; ``plain`` leaves out windows and several queries after a cache."""
    queries = draw(st.sampled_from([1, 2, 7, 40, 70, 130]))
    cached = draw(st.sampled_from([0, 0, 5, 90])) if not plain or queries == 1 else 0
    return make(
        draw(st.integers(1, 3)),
        draw(st.integers(1, 2)),
        draw(st.integers(1, 3)),
        queries,
        draw(st.sampled_from([2, 8, 16, 20])),
        seed=draw(st.integers(0, 2**31)),
        opens=draw(st.sampled_from([0.0, 0.03, 0.2, 1.0])),
        sinks=draw(st.integers(0, 3)),
        padding=draw(st.sampled_from([0, 3, queries // 2])),
        window=None if plain else draw(st.sampled_from([None, None, 1, 9, 50])),
        cached=cached,
        packed=draw(st.booleans()) and queries > 1,
        retain=draw(st.sampled_from([0.0, 1e-3, 0.5, 1.0])),
        unused=draw(st.sampled_from([0, 0, 4])),
        halo=draw(st.integers(0, 3)),
        leads=draw(st.booleans()),
        wanted=draw(st.sampled_from(["nothing", "fidelity", "all"])),
    )


def answers(backend, problem, dtype=torch.float32, *, scaling=0.3):
    """Every answer and every gradient by name, in float64."""
    inputs = [part.detach().clone().to(dtype).requires_grad_() for part in problem.qkv]
    retain = torch.tensor(problem.retain, dtype=torch.float64)
    attention = backend(*inputs, problem.ranges, retain, scaling=scaling, wanted=problem.wanted)
    found = {name: getattr(attention, name) for name in ANSWERS}
    found = {name: value for name, value in found.items() if value is not None}
    generator = torch.Generator().manual_seed(1)
    loss = torch.zeros((), dtype=torch.float64)
    for name in ("output", "fidelity_undialled"):
        if name in found:
            weights = torch.randn(found[name].shape, generator=generator, dtype=torch.float64)
            loss = loss + (found[name].double() * weights).sum()
    grads = torch.autograd.grad(loss, inputs)
    found |= {f"gradient of {name}": grad for name, grad in zip(("query", "key", "value"), grads, strict=True)}
    return {name: value.detach().double() for name, value in found.items()}


def assert_same(found, expected, tolerance):
    """Equal up to ``tolerance`` times the largest value of each answer (at least 1)."""
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.shape == expected[name].shape, name
        scale = max(1.0, float(expected[name].abs().max())) if value.numel() else 1.0
        torch.testing.assert_close(value, expected[name], rtol=0, atol=tolerance * scale, msg=lambda m: f"{name}: {m}")  # noqa: B023


def rounded(problem, dtype):
    """The same problem with inputs that ``dtype`` can hold, so that only the computation differs."""
    return replace(problem, qkv=[part.to(dtype).float() for part in problem.qkv])
