"""What dialled attention costs beside plain attention, on one CPU thread.

    python benchmarks/attention.py --out benchmarks/results          # about 15 minutes
    python benchmarks/attention.py --out /tmp/quick --quick          # under a minute

Every number is a ratio to ``scaled_dot_product_attention(is_causal=True)`` on the same tensors. All ways of computing
run in turn in one process, so that a slow minute of the machine hits all of them; times are CPU time, medians with
quartiles. Blocks have 64 tokens on average (8 to 120, ragged, different in every row); the first token is a sink.
``--only`` measures one part again and leaves the results of the others. Nothing here is tested for being fast.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from errors import errors

from proloc.attention import flex, reference, sdpa
from proloc.attention.layout import KeyRanges
from proloc.attention.proof import BACKENDS, DEVICE

HEADS, HEAD_DIM = 12, 64
LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
QUICK = (128, 512)
LONGEST_MATRIX, LONGEST_REFERENCE = 4096, 1024  # ways that write T x T down stop here
FLEX = (512, 4096)  # it is compiled anew for every length, which takes 20 seconds
LONGEST_IN_FULL = 4096  # beyond, only the ways that a user would choose
DIALS = (0.0, 0.5, 1.0)
SECONDS = 0.5  # wanted for every way and length
PARTS = ("attention", "flex", "decode", "memory", "errors")
REMEMBERED = ("plain", "flash, dial 0.5, fidelity", "fused, dial 0.5, fidelity", "sdpa with a mask, dial 0.5")
Way = Callable[[bool], object]


def key_ranges(batch: int, length: int) -> KeyRanges:
    """Ragged blocks and one sink a row."""
    generator = torch.Generator().manual_seed(length)
    sizes = torch.randint(8, 121, (batch, length), generator=generator)
    block_ids = torch.stack([torch.repeat_interleave(torch.arange(length), row)[:length] for row in sizes])
    sinks = (torch.arange(length) == 0).expand(batch, length)
    return KeyRanges.from_blocks(block_ids, sinks, torch.zeros(batch, length).long())


def ways(batch: int, length: int, dtype: torch.dtype) -> dict[str, Way]:
    """Everything that is compared at one length; each takes whether the backward pass runs too."""
    ranges = key_ranges(batch, length)
    inputs = [torch.randn(batch, HEADS, length, HEAD_DIM, dtype=dtype).requires_grad_() for _ in range(3)]
    grad, grad_fidelity = torch.randn(batch, length, HEADS, HEAD_DIM, dtype=dtype), torch.randn(batch, HEADS, length)

    def plain(backward: bool) -> None:
        output = torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=True)
        if backward:
            torch.autograd.grad(output, inputs, grad.transpose(1, 2))

    def dialled(backend: Callable[..., object], dial: float, wanted: str) -> Way:
        retain = torch.tensor(1.0 - dial, dtype=torch.float64)

        def run(backward: bool) -> None:
            result = backend(*inputs, ranges, retain, scaling=HEAD_DIM**-0.5, wanted=wanted)
            if backward:
                outputs = [part for part in (result.output, result.fidelity_undialled) if part is not None]
                torch.autograd.grad(outputs, inputs, [grad, grad_fidelity][: len(outputs)])

        return run

    found: dict[str, Way] = {"plain": plain}
    for name, backend in ((name, backend) for name, backend in BACKENDS.items() if DEVICE[name] == "cpu"):
        for dial in DIALS if length <= LONGEST_IN_FULL else DIALS[1:2]:
            found[f"{name}, dial {dial:g}, fidelity"] = dialled(backend, dial, "fidelity")
        found[f"{name}, dial 1"] = dialled(backend, 1.0, "nothing")
        if length <= LONGEST_IN_FULL:
            found[f"{name}, dial 0.5, all statistics"] = dialled(backend, 0.5, "all")
    if length <= LONGEST_MATRIX:
        found["sdpa with a mask, dial 0.5"] = dialled(sdpa.attend_ranges, 0.5, "nothing")
    if length <= LONGEST_REFERENCE:
        found["written out, dial 0.5, fidelity"] = dialled(reference.attend_ranges, 0.5, "fidelity")
    return found


def decoding(keys: int) -> dict[str, Way]:
    """One query at the end of a cache; the current block holds 40 keys."""
    query = torch.randn(1, HEADS, 1, HEAD_DIM)
    key, value = (torch.randn(1, HEADS, keys, HEAD_DIM) for _ in range(2))
    start, block = (torch.tensor([[first]], dtype=torch.int32) for first in (0, keys - 40))
    ranges = KeyRanges(start, block, (torch.arange(keys) == 0)[None], keys - 1)

    def dialled(dial: float, wanted: str) -> Way:
        retain = torch.tensor(1.0 - dial, dtype=torch.float64)
        return lambda _: BACKENDS["fused"](query, key, value, ranges, retain, scaling=HEAD_DIM**-0.5, wanted=wanted)

    return {
        "plain": lambda _: torch.nn.functional.scaled_dot_product_attention(query, key, value),
        "fused, dial 0.5, fidelity": dialled(0.5, "fidelity"),
        "fused, dial 1": dialled(1.0, "nothing"),
    }


def flexing(length: int) -> dict[str, Way]:
    """FlexAttention, compiled; on a CPU there is no backward pass and no log-sum, so only what one pass says."""
    batch = max(1, 2048 // length)
    ranges, inputs = key_ranges(batch, length), [torch.randn(batch, HEADS, length, HEAD_DIM) for _ in range(3)]

    def dialled(dial: float) -> Way:
        retain = torch.tensor(1.0 - dial, dtype=torch.float64)
        return lambda _: flex.attend_ranges(*inputs, ranges, retain, scaling=HEAD_DIM**-0.5)

    plain = torch.nn.functional.scaled_dot_product_attention
    torch._dynamo.reset()  # of a second length it would compile code for all lengths, which is broken C++ in torch 2.13
    compiled = {"flex, dial 0": dialled(0.0), "flex, dial 1": dialled(1.0)}
    for way in compiled.values():
        way(False)
    return {"plain": lambda _: plain(*inputs, is_causal=True), **compiled}


def alternate(found: dict[str, Way], backward: bool, seconds: float) -> dict[str, list[float]]:
    """CPU seconds of every way, run in turn; fewer turns where one takes long."""
    times: dict[str, list[float]] = {name: [] for name in found}
    turns, spent = 0, 0.0
    while turns < 2 or (spent < seconds * len(found) and turns < 30):
        for name, way in found.items():
            began = time.process_time()
            way(backward)
            times[name].append(time.process_time() - began)
            spent += times[name][-1]
        turns += 1
    return {name: values[1:] if len(values) > 2 else values for name, values in times.items()}  # the first one warms up


def rows(kind: str, length: int, times: dict[str, list[float]], limit: float | None) -> list[dict[str, object]]:
    """Result rows of one length."""
    base = statistics.median(times["plain"])
    result = []
    for name, values in times.items():
        quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
        row = {"kind": kind, "length": length, "way": name, "seconds": quartiles[1], "runs": len(values)}
        row |= {"ratio": quartiles[1] / base, "quartiles": [quartiles[0] / base, quartiles[2] / base]}
        result.append(row | ({"times_limit": quartiles[1] / limit} if limit else {}))
    return result


def flops_per_second() -> float:
    """Of a large matrix product: the most this thread can do."""
    matrix = torch.randn(1536, 1536)
    times = []
    for _ in range(7):
        began = time.process_time()
        matrix @ matrix
        times.append(time.process_time() - began)
    return 2 * 1536**3 / min(times)


def peak_megabytes(name: str, length: int) -> float:
    """How far forward and backward of one way raise the peak memory of a fresh process; Linux only."""
    ways(1, 64, torch.float32)[name](True)  # loads and compiles what is loaded once
    way = ways(1, length, torch.float32)[name]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _status("VmRSS")
    way(True)
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    """A memory size of this process in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def processor() -> str:
    """The class of machine, without its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    wide = [flag for flag in ("avx2", "avx512f", "avx512_bf16") if flag in fields.get("flags", "").split()]
    return f"{fields.get('model name', platform.machine())}, {' '.join(wide)}"


def measure(quick: bool, parts: list[str]) -> dict[str, Any]:
    """The results of some parts."""
    torch.set_num_threads(1)
    seconds, speed = 0.1 if quick else SECONDS, flops_per_second()
    result: list[dict[str, object]] = []
    if "attention" in parts:
        for dtype in (torch.float32, torch.bfloat16):
            for length in QUICK if quick else LENGTHS if dtype is torch.float32 else LENGTHS[:6]:
                result += attending(length, dtype, seconds, speed)
                print(f"length {length}, {dtype} done", file=sys.stderr)
    with torch.no_grad():
        for length in (QUICK[1:] if quick else FLEX) if "flex" in parts else ():
            result += rows("FlexAttention, forward", length, alternate(flexing(length), False, seconds), None)
        for length in (QUICK if quick else LENGTHS[3:]) if "decode" in parts else ():
            result += rows("decode", length, alternate(decoding(length), False, seconds), None)
    machine = {"processor": processor(), "torch": torch.__version__, "threads": 1, "gflops": speed / 1e9}
    found: dict[str, Any] = {"schema": 2, "machine": machine, "heads": HEADS, "head_dim": HEAD_DIM, "rows": result}
    if "memory" in parts:
        found["megabytes"] = {name: _measured_apart(name, 512 if quick else 4096) for name in REMEMBERED}
    if "errors" in parts:
        length = 512 if quick else 4096
        found["errors"] = {"length": length, "rows": errors(key_ranges(1, length))}
    return found


def attending(length: int, dtype: torch.dtype, seconds: float, speed: float) -> list[dict[str, object]]:
    """Forward, and forward and backward, of all ways at one length."""
    batch, result = max(1, 2048 // length), list[dict[str, object]]()
    found = ways(batch, length, dtype)
    pairs = batch * HEADS * length * (length + 1) / 2
    for backward, kind, products in ((False, "forward", 4), (True, "forward + backward", 14)):
        limit = products * HEAD_DIM * pairs / speed if dtype is torch.float32 else None
        suffix = "" if dtype is torch.float32 else ", bfloat16"
        result += rows(kind + suffix, length, alternate(found, backward, seconds), limit)
    return result


def _measured_apart(name: str, length: int) -> float:
    command = [sys.executable, __file__, "--memory", name, "--length", str(length)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def merged(new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """New results, and old ones of what was not measured again."""
    known = {row["kind"] for row in new["rows"]}
    kept = [row for row in old["rows"] if row["kind"] not in known]
    order = ("forward", "Flex", "decode")
    both = sorted(
        [*kept, *new["rows"]], key=lambda row: next(i for i, k in enumerate(order) if row["kind"].startswith(k))
    )
    return {**old, **new, "rows": both}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for attention.json, attention.md and attention.svg")
    parser.add_argument("--quick", action="store_true", help="two lengths and few runs")
    parser.add_argument("--only", choices=PARTS, help="measure this part again and keep the results of the others")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print(peak_megabytes(arguments.memory, arguments.length))
        return
    if not arguments.out:
        parser.error("--out is needed")
    from attention_report import figure, table

    arguments.out.mkdir(parents=True, exist_ok=True)
    results = measure(arguments.quick, [arguments.only] if arguments.only else list(PARTS))
    if arguments.only:
        results = merged(results, json.loads((arguments.out / "attention.json").read_text()))
    (arguments.out / "attention.json").write_text(json.dumps(results, indent=1) + "\n")
    (arguments.out / "attention.md").write_text(table(results))
    figure(results, arguments.out / "attention.svg")
    print(table(results))


if __name__ == "__main__":
    main()
