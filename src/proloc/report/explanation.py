"""An explanation in the terminal: the text, what each block gave, and every method beside the truth (ours)."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from proloc.explaining.record import Explanation, Source
from proloc.report.numbers import NONE, count, fixed, listed

# The readouts of attention and the surrogate come first; those that know nothing of the model last.
_SHOWN = ("attention", "lasso")
BLIND = ("length", "recency", "random")
EXCERPT = 46
FEW = 20  # different ablations below which a reader is warned


def print_explanation(found: Explanation, console: Console) -> None:
    """The text, what every block gave, and how far each method can be believed."""
    console.print(_text(found))
    console.print()
    console.print(Text(_safe(headline(found)), style="bold"))
    console.print(_sources(found))
    console.print(Text(flow_sentence(found)))
    console.print()
    console.print(_methods(found))
    console.print(Text(cost_sentence(found), style="dim"))


def headline(found: Explanation) -> str:
    """What was asked and the largest effect, in one or two sentences."""
    target, best = found.target, max(found.sources, key=lambda source: source.cut)
    what = "wrote" if target.generated else "gives"
    start = f"{found.model} at dial {found.dial:g} {what} {quoted(target.text)}"
    start += f"{', at' if target.generated else ''} a log-probability of {target.log_prob:.2f}"
    if best.cut <= 0:
        return f"{start}; no single block raised it."
    where = "" if found.layers is None else f" in layers {layers_text(found.layers)}"
    return (
        f"{start}; with the edges to block {best.block} cut{where} it falls by {best.cut:.2f} nats, the most of all: "
        f"{quoted(excerpt(found, best))}"
    )


def flow_sentence(found: Explanation) -> str:
    """Where blocks can still enter, and where they provably cannot."""
    layers = len(found.retain)
    closed = [layer for layer in range(layers) if not any(layer in source.enters for source in found.sources)]
    shut = [source.block for source in found.sources if not source.enters]
    if not closed:
        return f"Every one of the {layers} layers can carry these blocks to the target."
    text = f"No block before {found.asking} can enter through layers {layers_text(closed)}, which are hard: exact."
    if shut:
        text += f" Blocks {listed([str(block) for block in shut])} cannot reach the target at all."
    return text


def cost_sentence(found: Explanation) -> str:
    """What the ablations took."""
    cost, sampled = found.cost, found.sampled
    how = "edges cut" if sampled.how == "cut" else "tokens removed"
    few = "" if sampled.num_different >= FEW else ", so few that LDS moves in large steps"
    return (
        f"Measured on {count(sampled.num, 'random ablation')} ({how}, each block kept with probability 0.5; "
        f"{sampled.num_different} different ones{few}), the "
        f"surrogate fitted to {sampled.num_fitted} others; {count(cost.ablations, 'different ablation')} took the work "
        f"of {cost.passes:.1f} passes over the text, {cost.seconds:.0f} s in all."
    )


def methods(found: Explanation) -> list[str]:
    """Names of the methods, informed ones first."""
    return [*(name for name in found.faithfulness if name not in BLIND), *BLIND]


def excerpt(found: Explanation, source: Source) -> str:
    """How a block begins."""
    text = " ".join("".join(found.tokens[source.start : source.end]).split())
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"


def layers_text(layers: list[int]) -> str:
    """``0–3, 7``; a dash for none."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs) or NONE


def quoted(text: str) -> str:
    """A piece of text on one line, in quotation marks."""
    return f"“{' '.join(text.split())}”"


def strength(found: Explanation, source: Source) -> float:
    """What a block gave relative to the block with the largest effect, in [-1, 1]."""
    largest = max(abs(each.cut) for each in found.sources)
    return source.cut / largest if largest > 0 else 0.0


def _safe(text: str) -> str:
    """Text without control characters that a terminal would obey."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)


def _text(found: Explanation) -> Text:
    by_block = {source.block: source for source in found.sources}
    shown, last = Text(), -1
    for place, (token, block) in enumerate(zip(found.tokens, found.block_ids, strict=True)):
        if block != last:
            shown.append(f"▏{block} ", style="bold")
            last = block
        if found.target.start <= place < found.target.end:
            shown.append(_safe(token), style="bold underline")
        elif place < found.num_sinks or block not in by_block:
            shown.append(_safe(token), style="dim")
        else:
            shown.append(_safe(token), style=f"#1d2125 on {_shade(strength(found, by_block[block]))}")
    return shown


def _shade(value: float) -> str:
    """White for nothing, blue for what helped, orange for what stood in the way."""
    towards = (90, 165, 226) if value >= 0 else (240, 150, 70)
    mixed = [round(255 + (part - 255) * min(abs(value), 1.0)) for part in towards]
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _sources(found: Explanation) -> Table:
    table = Table(box=None, pad_edge=False, expand=True)
    table.add_column("block", justify="right", no_wrap=True)
    table.add_column("begins", no_wrap=True, overflow="ellipsis", ratio=1)
    for name in ("cut", "removed", *_SHOWN):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("can enter in", no_wrap=True)
    for source in found.sources:
        scores = [f"{source.scores[name]:.2g}" for name in _SHOWN]
        table.add_row(
            str(source.block),
            Text(_safe(excerpt(found, source))),
            Text(fixed(source.cut, 2), style=f"#1d2125 on {_shade(strength(found, source))}"),
            fixed(source.removed, 2),
            *scores,
            layers_text(source.enters),
        )
    return table


def _methods(found: Explanation) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("method", "LDS", "top-1 drop", "comprehensiveness", "sufficiency"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for name in methods(found):
        row = found.faithfulness[name]
        cells = [fixed(row.lds, 2), fixed(row.top_drop, 2), fixed(row.comprehensiveness, 3), fixed(row.sufficiency, 3)]
        table.add_row(name, *cells, style="dim" if name in BLIND else None)
    return table
