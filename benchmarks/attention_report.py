"""The table and the figure of ``attention.py``."""

from pathlib import Path
from typing import Any


def table(results: dict[str, Any]) -> str:
    """Markdown: one section for every kind of run, one row a way, one column a length."""
    machine = results["machine"]
    lines = [
        "# What dialled attention costs",
        "",
        "Ratio of CPU time to plain causal attention (PyTorch's flash kernel) on the same tensors. Measured on one "
        f"thread of {machine['processor']}; torch {machine['torch']}; {machine['gflops']:.0f} GFLOP/s in a large "
        f"matrix product; {results['heads']} heads of {results['head_dim']}. In brackets the quartiles, where they "
        "differ from the median by more than 5%. The limit by operation count is the multiplications of the visible "
        "half of the score matrix alone (4 per pair and dimension forward, 14 with the backward pass) at the speed of "
        "that matrix product.",
    ]
    for kind in dict.fromkeys(row["kind"] for row in results["rows"]):
        of_kind = [row for row in results["rows"] if row["kind"] == kind]
        lengths = sorted({row["length"] for row in of_kind})
        lines += ["", f"## {kind}", "", f"| | {' | '.join(map(str, lengths))} |", f"|---|{'---|' * len(lengths)}"]
        for way in dict.fromkeys(row["way"] for row in of_kind):
            cells = {row["length"]: _cell(row) for row in of_kind if row["way"] == way}
            lines.append(f"| {way} | {' | '.join(cells.get(length, '') for length in lengths)} |")
        limits = {
            row["length"]: row["times_limit"] for row in of_kind if row["way"] == "plain" and "times_limit" in row
        }
        if limits:
            shown = " | ".join(f"{limits[length]:.2f}" for length in lengths)
            ours = {row["length"]: row for row in of_kind if row["way"] == "fused, dial 0.5, fidelity"}
            lines.append(f"| *plain, times the limit by operation count* | {shown} |")
            shown = " | ".join(f"{ours[length]['times_limit']:.2f}" for length in lengths)
            lines.append(f"| *fused, dial 0.5, fidelity, times that limit* | {shown} |")
    lines += ["", "## Peak memory of forward + backward above the inputs", "", "| | MB | ratio |", "|---|---|---|"]
    plain = results["megabytes"]["plain"]
    lines += [f"| {name} | {size:.0f} | {size / plain:.2f} |" for name, size in results["megabytes"].items()]
    return "\n".join(lines + _errors(results["errors"])) + "\n"


def _errors(measured: dict[str, Any]) -> list[str]:
    """The worst over the dials, relative to the largest entry of each answer, and as it is."""
    whats = list(dict.fromkeys(row["what"] for row in measured["rows"]))
    lines = [
        "",
        f"## Largest error against a float64 oracle, {measured['length']} tokens",
        "",
        "Relative to the largest entry of what is compared, in brackets as it is; the worst of dials 0, 0.5 and 1. "
        "PyTorch's own is plain causal attention against its own oracle.",
        "",
        f"| | {' | '.join(whats)} |",
        f"|---|{'---|' * len(whats)}",
    ]
    for dtype, way in dict.fromkeys((row["dtype"], row["way"]) for row in measured["rows"]):
        worst = {}
        for row in measured["rows"]:
            if (row["dtype"], row["way"]) == (dtype, way):
                old = worst.get(row["what"], (0.0, 0.0))
                worst[row["what"]] = (max(old[0], row["relative"]), max(old[1], row["absolute"]))
        cells = ("{:.0e} ({:.0e})".format(*worst[what]) if what in worst else "" for what in whats)
        lines.append(f"| {way}, {dtype} | {' | '.join(cells)} |")
    for dtype in dict.fromkeys(row["dtype"] for row in measured["rows"]):
        limits = {row["what"]: row["limit"] for row in measured["rows"] if row["dtype"] == dtype}
        lines.append(f"| *wanted, {dtype}* | {' | '.join(f'{limits[what]:.0e}' for what in whats)} |")
    return lines


def _cell(row: dict[str, Any]) -> str:
    if row["way"] == "plain":
        return f"{1000 * row['seconds']:.3g} ms"
    low, high = row["quartiles"]
    wide = row["runs"] > 2 and max(high - row["ratio"], row["ratio"] - low) > 0.05 * row["ratio"]
    return f"{row['ratio']:.2f}" + (f" ({low:.2f}-{high:.2f})" if wide else "")


def figure(results: dict[str, Any], path: Path) -> None:
    """Ratios over length, forward + backward in float32."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    chart = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasSVG(chart)
    axes = chart.subplots()
    of_kind = [row for row in results["rows"] if row["kind"] == "forward + backward" and row["way"] != "plain"]
    for way in dict.fromkeys(row["way"] for row in of_kind):
        if "all statistics" in way or "dial 0," in way:
            continue
        points = [row for row in of_kind if row["way"] == way]
        lengths, ratios = [row["length"] for row in points], [row["ratio"] for row in points]
        style = "-" if way.startswith("fused") else "--" if way.startswith("flash") else ":"
        axes.plot(lengths, ratios, style, marker="o", markersize=3, label=way)
        quartiles = zip(*(row["quartiles"] for row in points), strict=True)
        axes.fill_between(lengths, *quartiles, alpha=0.15)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="CPU time / plain causal attention")
    axes.set_xticks(sorted({row["length"] for row in of_kind}), minor=False)
    axes.set_xticklabels([str(length) for length in sorted({row["length"] for row in of_kind})])
    axes.set_title("Forward + backward, float32, one thread", loc="left", fontsize=10)
    axes.legend(fontsize=7)
    chart.savefig(path, metadata={"Date": None})
