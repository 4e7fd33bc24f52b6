"""The table and the figure of ``model.py``."""

from pathlib import Path
from typing import Any

FACTORS = {"s": (1e3, "ms"), "bytes": (1e-6, "MB"), "MB": (1.0, "MB")}


def table(results: dict[str, Any]) -> str:
    """Markdown: one section for every kind of run and length, one row a way."""
    machine, shape = results["machine"], results["model"]
    lines = [
        "# What a dialled model costs",
        "",
        "Ratios to the plain model with PyTorch's `scaled_dot_product_attention`. Measured on one thread of "
        f"{machine['processor']}; torch {machine['torch']}; {machine['gflops']:.0f} GFLOP/s in a large matrix product. "
        f"GPT-2 with {shape['n_layer']} layers, {shape['n_head']} heads, width {shape['n_embd']}, float32, no dropout "
        f"(GPT-2's default attn_pdrop = 0.1 rules the fast paths out), a vocabulary of {shape['vocab_size']} (smaller "
        "than GPT-2's, so attention weighs more here); ragged blocks of 64 tokens on average, given, so no partitioner "
        "runs. Training and measuring: quintic schedule at dial 1; decoding: all layers hard. Times are CPU time; a "
        "ratio is the median over turns of the ratio to the plain model in the same turn, quartiles in brackets.",
    ]
    for kind, length in dict.fromkeys((row["kind"], row["length"]) for row in results["rows"]):
        lines += ["", f"## {kind}, {length} tokens", "", "| | each | ratio | wanted | |", "|---|---|---|---|---|"]
        for row in results["rows"]:
            if (row["kind"], row["length"]) == (kind, length):
                lines.append(_line(row))
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any]) -> str:
    factor, unit = FACTORS[row["unit"]]
    spread = " ({:.3f}-{:.3f})".format(*row["quartiles"]) if "quartiles" in row and row["way"] != "plain" else ""
    target = row["target"]
    verdict = "" if target is None else "reached" if row["ratio"] <= target else "falls short"
    wanted = "" if target is None else f"{target:.2f}"
    return f"| {row['way']} | {factor * row['median']:.4g} {unit} | {row['ratio']:.3f}{spread} | {wanted} | {verdict} |"


def figure(results: dict[str, Any], path: Path) -> None:
    """Every ratio as a bar, what was wanted as a line across it."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    shown = [row for row in results["rows"] if row["way"] != "plain"][::-1]
    chart = Figure(figsize=(7.5, 0.28 * len(shown) + 1), layout="constrained")
    FigureCanvasSVG(chart)
    axes = chart.subplots()
    for place, row in enumerate(shown):
        axes.barh(place, row["ratio"], color="#4477aa" if "reference" not in row["way"] else "#bbbbbb")
        if "quartiles" in row:
            axes.plot(row["quartiles"], [place, place], color="black", linewidth=1)
        if row["target"] is not None:
            axes.plot([row["target"]] * 2, [place - 0.4, place + 0.4], color="#cc3311", linewidth=2)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(shown)))
    axes.set_yticklabels([f"{row['kind']}, {row['length']}: {row['way']}" for row in shown], fontsize=7)
    axes.set(xscale="log", xlabel="ratio to the plain model (red: wanted)")
    chart.savefig(path, metadata={"Date": None})
