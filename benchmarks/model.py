"""What a dialled model costs beside the plain one, on one CPU thread: training, measuring, decoding and memory.

    python benchmarks/model.py --out benchmarks/results              # about 10 minutes
    python benchmarks/model.py --out /tmp/quick --quick              # under a minute

A model of GPT-2 small's shape (12 layers, 12 heads, width 768, float32) with random weights. Two things differ from
GPT-2: the vocabulary has 8192 entries, which makes attention's share of the time larger than it is there, and all
dropout is 0, since GPT-2's default attn_pdrop = 0.1 would rule the fast paths out. Blocks have 64 tokens on average (8
to 120, ragged) and are given, so no partitioner runs; the first token is a sink. Every ratio is to the plain model with
PyTorch's scaled_dot_product_attention; all ways run in turn in one process, and a ratio is the median over the turns of
CPU time over the plain model's CPU time in the same turn, with quartiles.
"""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from attention import _status, flops_per_second, processor
from transformers import AttentionInterface, DynamicCache, GPT2Config, GPT2LMHeadModel

import proloc
from proloc.attention.layout import KeyRanges
from proloc.attention.plain import attend_ranges as attend_plainly
from proloc.attention.proof import BACKENDS
from proloc.schedule import Schedule

SHAPE = {"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 8192}
SMALL = {"n_layer": 3, "n_head": 4, "n_embd": 128, "vocab_size": 512}  # for --quick
LONGEST = 8192
TURNS = 5
PENALTY = proloc.LowFidelity(phi=0.5, weight=1.0)
TRAINED = ("fused", "flash", "reference")
# Wanted ratios, by kind and way; what falls short is marked in the table.
TARGETS = {
    "training step": {"fused": 0.97, "flash": 1.08},
    "fidelity and entropy": {"fused": 1.05, "flash": 1.35},
    "decode, attention call after a dense one": {"auto, local cache": 0.03},
    "decode, attention call, ten in a row": {"auto, local cache": 0.03},
    "cache bytes": {"last third hard, local cache": 0.68},
}
PARTS = {  # and how the kinds of their results begin
    "training": ("training",),
    "measuring": ("fidelity",),
    "decoding": ("decode",),
    "memory": ("cache", "peak"),
}
Way = Callable[[], object]


class Bench:
    """The plain model and dialled twins that share its weights."""

    def __init__(self, quick: bool) -> None:
        torch.manual_seed(0)
        dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        config = GPT2Config(**(SMALL if quick else SHAPE), n_positions=LONGEST + 64, **dropout)
        self.plain = GPT2LMHeadModel._from_config(config, attn_implementation="sdpa")
        self.quick = quick

    def twin(self, schedule: Schedule, attention: str) -> GPT2LMHeadModel:
        shared = {id(tensor): tensor for tensor in [*self.plain.parameters(), *self.plain.buffers()]}
        copied = copy.deepcopy(self.plain, shared)
        return proloc.localize(copied, schedule, proloc.FixedBlocks(64), attention=attention)

    def text(self, length: int) -> dict[str, torch.Tensor]:
        """Random tokens and ragged blocks of one row."""
        generator = torch.Generator().manual_seed(length)
        ids = torch.randint(0, self.plain.config.vocab_size, (1, length), generator=generator)
        sizes = torch.randint(8, 121, (length,), generator=generator)
        return {"input_ids": ids, "block_ids": torch.repeat_interleave(torch.arange(length), sizes)[None, :length]}


def training(bench: Bench, length: int) -> dict[str, Way]:
    """Forward, penalty, backward and AdamW; hard and penalised along a quintic schedule."""
    text = bench.text(length)
    optimizer = torch.optim.AdamW(bench.plain.parameters(), lr=1e-5)

    def step(loss: torch.Tensor) -> None:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def plain() -> None:
        step(bench.plain(text["input_ids"], labels=text["input_ids"], use_cache=False).loss)

    def dialled(attention: str) -> Way:
        model = bench.twin(proloc.Polynomial(beta=5), attention).train()
        localities = proloc.Polynomial(beta=5).localities(bench.plain.config.n_layer)
        queries = torch.ones(1, length, dtype=torch.bool)

        def run() -> None:
            with proloc.recording(model, "fidelity") as recorder:
                loss = model(**text, labels=text["input_ids"], use_cache=False).loss
                step(loss + PENALTY.summed(recorder, localities, queries) / length)

        return run

    bench.plain.train()
    return {"plain": plain} | {attention: dialled(attention) for attention in TRAINED}


def measuring(bench: Bench, length: int) -> dict[str, Way]:
    """Fidelity and entropy of all layers during a forward pass; eager attention is what people take them from."""
    text = bench.text(length)
    eager = copy.deepcopy(bench.plain, {id(tensor): tensor for tensor in bench.plain.parameters()})
    eager.set_attn_implementation("eager")

    def plain(model: GPT2LMHeadModel, **wanted: bool) -> Way:
        model.eval()
        return torch.no_grad()(lambda: model(text["input_ids"], use_cache=False, **wanted))

    def dialled(attention: str) -> Way:
        model = bench.twin(proloc.Polynomial(beta=5), attention).eval()

        @torch.no_grad()
        def run() -> None:
            with proloc.recording(model, "all"):
                model(**text, use_cache=False)

        return run

    ours = {attention: dialled(attention) for attention in TRAINED}
    return {"plain": plain(bench.plain), **ours, "eager with output_attentions": plain(eager, output_attentions=True)}


def alternate(ways: dict[str, Way], turns: int, repeat: int = 1, before: Way = lambda: None) -> dict[str, list[float]]:
    """CPU seconds of every way, run in turn, ``repeat`` times in a row after ``before``; the first turn warms up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns + 1):
        for name, way in ways.items():
            before()
            began = time.process_time()
            for _ in range(repeat):
                way()
            times[name].append((time.process_time() - began) / repeat)
    return {name: values[1:] for name, values in times.items()}


class Clock:
    """CPU time spent inside some functions."""

    def __init__(self) -> None:
        self.spent = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            result = function(*args, **kwargs)
            self.spent += time.process_time() - began
            return result

        return timed


@torch.no_grad()
def decoding(bench: Bench, length: int, steps: int) -> dict[str, dict[str, list[float]]]:
    """CPU seconds a token after a text, by part (attention, with its cache, whole step) and way; all layers hard."""
    text = bench.text(length + steps + 1)
    text["block_ids"][:, length - 40 :] = text["block_ids"].max() + 1  # the current block has 40 tokens, and grows
    dialled = bench.twin(proloc.Uniform(value=1.0), "auto").eval()
    bench.plain.eval()
    models = {
        "plain": (bench.plain, DynamicCache(config=bench.plain.config)),
        "auto, full cache": (dialled, DynamicCache(config=bench.plain.config)),
        "auto, local cache": (dialled, proloc.LocalCache(dialled)),
    }
    attention, caching = Clock(), Clock()
    registry = AttentionInterface()
    originals = {name: registry[name] for name in ("sdpa", "proloc")}

    def forward(way: str, first: int, last: int) -> None:
        model, cache = models[way]
        blocks = {} if model is bench.plain else {"block_ids": text["block_ids"][:, :last]}
        model(text["input_ids"][:, first:last], past_key_values=cache, logits_to_keep=1, **blocks)

    for way, (_, cache) in models.items():
        forward(way, 0, length)
        cache.update = caching.around(cache.update)
    parts = ("decode, attention", "decode, attention and cache", "decode, whole step")
    times: dict[str, dict[str, list[float]]] = {part: {way: [] for way in models} for part in parts}
    for name, function in originals.items():
        AttentionInterface.register(name, attention.around(function))
    try:
        for number in range(length, length + steps):
            for way in models:
                attention.spent = caching.spent = 0.0
                began = time.process_time()
                forward(way, number, number + 1)
                whole = time.process_time() - began
                for part, spent in zip(parts, (attention.spent, attention.spent + caching.spent, whole), strict=True):
                    times[part][way].append(spent)
    finally:
        for name, function in originals.items():
            AttentionInterface.register(name, function)
    return {part: {way: values[3:] for way, values in ways.items()} for part, ways in times.items()}


def attending(bench: Bench, length: int) -> dict[str, Way]:
    """One query at the end of a text, over all keys or over what a local cache holds: a sink and 40 keys."""
    heads, width = bench.plain.config.n_head, bench.plain.config.n_embd // bench.plain.config.n_head
    query = torch.randn(1, heads, 1, width)
    key, value = (torch.randn(1, heads, length, width) for _ in range(2))
    held = torch.cat([torch.tensor([0]), torch.arange(length - 40, length)])
    start, block = (torch.tensor([[first]], dtype=torch.int32) for first in (0, length - 40))
    ranges = KeyRanges(start, block, (torch.arange(length) == 0)[None], length - 1)
    local = (key[:, :, held], value[:, :, held], ranges.at(held), torch.zeros((), dtype=torch.float64))
    bare = torch.nn.functional.scaled_dot_product_attention
    return {
        "plain": torch.no_grad()(lambda: bare(query, key, value)),
        "auto, local cache": torch.no_grad()(lambda: attend_plainly(query, *local, scaling=width**-0.5)),
        "fused, local cache": torch.no_grad()(lambda: BACKENDS["fused"](query, *local, scaling=width**-0.5)),
        "PyTorch's bare call over the 41 keys held": torch.no_grad()(lambda: bare(query, *local[:2])),
    }


@torch.no_grad()
def cache_bytes(bench: Bench, length: int) -> dict[str, int]:
    """What caches hold after a text, with the last third of the layers hard."""
    layers = bench.plain.config.n_layer
    model = bench.twin(proloc.Step(layers=layers // 3), "fused").eval()
    cache, text = proloc.LocalCache(model), bench.text(length)
    for first in range(0, length, 1024):
        last = min(first + 1024, length)
        blocks = text["block_ids"][:, :last]
        model(text["input_ids"][:, first:last], past_key_values=cache, block_ids=blocks, logits_to_keep=1)
    held = sum(part.untyped_storage().nbytes() for layer in cache.layers for part in (layer.keys, layer.values))
    return {"plain": 2 * layers * length * bench.plain.config.n_embd * 4, "last third hard, local cache": held}


def peak_megabytes(way: str, length: int, quick: bool) -> float:
    """How far one training step raises the peak memory above weights, gradients and AdamW's state; Linux only."""
    bench = Bench(quick)
    training(bench, 64)[way]()
    step = training(bench, length)[way]
    step()  # AdamW's state is there now
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _status("VmRSS")
    step()
    return (_status("VmHWM") - before) / 1024


def rows(kind: str, length: int, times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Result rows of one kind and length."""
    result = []
    for way, values in times.items():
        ratios = [mine / plain for mine, plain in zip(values, times["plain"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        row = {"kind": kind, "length": length, "way": way, "unit": "s", "median": statistics.median(values)}
        row |= {
            "ratio": middle,
            "quartiles": [low, high],
            "runs": len(values),
            "target": TARGETS.get(kind, {}).get(way),
        }
        result.append(row)
    return result


def sizes(kind: str, length: int, found: dict[str, float], unit: str) -> list[dict[str, Any]]:
    """Result rows of memory."""
    base, targets = found["plain"], TARGETS.get(kind, {})
    return [
        {"kind": kind, "length": length, "way": way, "unit": unit, "median": size, "ratio": size / base}
        | {"target": targets.get(way)}
        for way, size in found.items()
    ]


def measure(quick: bool, parts: list[str]) -> dict[str, Any]:
    """The results of some parts."""
    torch.set_num_threads(1)
    bench, turns = Bench(quick), 2 if quick else TURNS
    trained = (128,) if quick else (512, 1024)
    result: list[dict[str, Any]] = []
    if "training" in parts:
        for length in trained:
            result += rows("training step", length, alternate(training(bench, length), turns))
            print(f"training, {length} tokens, done", file=sys.stderr)
        bench.plain.zero_grad()
    if "measuring" in parts:
        length = 128 if quick else 1024
        result += rows("fidelity and entropy", length, alternate(measuring(bench, length), turns))
    if "decoding" in parts:
        context = 256 if quick else 4096
        calls = attending(bench, context)
        cold = alternate(calls, 300, before=calls["plain"])  # which drives all else out of the processor's caches
        result += rows("decode, attention call after a dense one", context, cold)
        result += rows("decode, attention call, ten in a row", context, alternate(calls, 60, repeat=10))
        for part, times in decoding(bench, context, 10 if quick else 60).items():
            result += rows(part, context, times)
        print("decoding done", file=sys.stderr)
    if "memory" in parts:
        context, memory = 512 if quick else LONGEST, {}
        result += sizes("cache bytes", context, cache_bytes(bench, context), "bytes")
        for way in ("plain", *TRAINED):
            command = [sys.executable, __file__, "--memory", way, "--length", str(trained[-1]), *["--quick"] * quick]
            memory[way] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        result += sizes("peak memory of a training step", trained[-1], memory, "MB")
    machine = {"processor": processor(), "torch": torch.__version__, "threads": 1, "gflops": flops_per_second() / 1e9}
    return {"schema": 1, "machine": machine, "model": SMALL if quick else SHAPE, "rows": result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for model.json, model.md and model.svg")
    parser.add_argument("--quick", action="store_true", help="a small model, short texts and few runs")
    parser.add_argument("--only", choices=PARTS, help="measure this part again and keep the results of the others")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        torch.set_num_threads(1)
        print(peak_megabytes(arguments.memory, arguments.length, arguments.quick))
        return
    if not arguments.out:
        parser.error("--out is needed")
    from model_report import figure, table

    arguments.out.mkdir(parents=True, exist_ok=True)
    results = measure(arguments.quick, [arguments.only] if arguments.only else list(PARTS))
    if arguments.only:
        old = json.loads((arguments.out / "model.json").read_text())["rows"]
        belongs = PARTS[arguments.only]
        kept = [row for row in old if not row["kind"].startswith(belongs)]
        order = [*PARTS.values()]
        results["rows"] = sorted(
            kept + results["rows"],
            key=lambda row: next(i for i, part in enumerate(order) if row["kind"].startswith(part)),
        )
    (arguments.out / "model.json").write_text(json.dumps(results, indent=1) + "\n")
    (arguments.out / "model.md").write_text(table(results))
    figure(results, arguments.out / "model.svg")
    print(table(results))


if __name__ == "__main__":
    main()
