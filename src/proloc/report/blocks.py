"""A marked text in the terminal and as one HTML page that opens anywhere, offline (ours)."""

import json
from html import escape

from rich.console import Console
from rich.text import Text

from proloc.marked import MarkedText
from proloc.report.blocks_chart import chart
from proloc.report.css import STYLE

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_NUM_TINTS = 5
_LED = "⟨"
# Dark text on pale colours, the page's own, reads on light and dark terminals.
_TERMINAL = ("#d6e8f7", "#fbe3cf", "#d5efe3", "#f3dcea", "#ece5c4")
_PAGE_STYLE = """
.passage { line-height: 2.1; } .passage .open { font: 600 0.68rem/1 ui-monospace, Menlo, Consolas, monospace;
  color: var(--accent); background: none; padding: 0 3px 0 5px; border-left: 2px solid var(--accent);
  vertical-align: 0.25em; user-select: none; } .passage .asked { color: var(--muted); background: none;
  user-select: none; cursor: help; } .chart { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; padding: 10px; } .chart svg { display: block; width: 100%; min-width: 620px; height: auto; }
.chart .line { stroke: var(--line); } .chart .cut { stroke: var(--accent); stroke-width: 1.5; }
.chart .level { stroke: #d55e00; stroke-dasharray: 5 4; } .chart .dot { fill: var(--muted); }
.chart .over { fill: var(--accent); } .chart text { fill: var(--muted); font: 11px system-ui, sans-serif; }
"""


def print_blocks(marked: MarkedText, console: Console) -> None:
    """Print the text with its blocks in colour, each opened by the score that opened it."""
    shown = Text()
    first, homes = set(marked.starts), marked.homes
    for place, (token, block, score) in enumerate(zip(marked.tokens, marked.block_ids, marked.scores, strict=True)):
        if place in homes:
            shown.append(_LED, style="bold")
        if place in first:
            shown.append(f"▏{_label(score)} ", style="bold")
        shown.append(_safe(token), style=f"#1d2125 on {_TERMINAL[block % _NUM_TINTS]}")
    console.print(shown)
    console.print(Text(f"\n{marked.summary()}{_warning(marked)}", style="bold"))


def blocks_page(marked: MarkedText) -> str:
    """The whole page."""
    title = f"{marked.kind} blocks"
    drawing = chart(marked)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="meta">{escape(f"{len(marked.tokens):,} tokens of the tokenizer of {marked.model}")}</p>',
        f'<p class="answer">{escape(marked.summary() + _warning(marked))}</p>',
        f'<h2>Scores along the text</h2><div class="chart" tabindex="0">{drawing}</div>' if drawing else "",
        "<h2>The text</h2>",
        f'<p class="reading">{escape(_how_to_read(marked))}</p>',
        f'<p class="passage">{_passage(marked)}</p>',
        "<h2>Settings</h2>",
        f"<details><summary>Partitioner</summary><pre>{escape(json.dumps(marked.settings, indent=2))}</pre></details>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{_PAGE_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, parts))
        + "\n</main>\n</body>\n</html>\n"
    )


def _passage(marked: MarkedText) -> str:
    first, homes, spans, dots = set(marked.starts), marked.homes, [], _few_scores(marked)
    for place, (token, block, score) in enumerate(zip(marked.tokens, marked.block_ids, marked.scores, strict=True)):
        reason = "" if score is None else f"{marked.meaning}: {score:.3f}{_level(marked)}"
        if place in homes:
            title = f"home to block {homes[place]} from here on, once that has opened"
            spans.append(f'<span class="asked" title="{title}">{_LED}</span>')
        if place in first:
            title = escape(reason or _unscored(marked, place))
            spans.append(f'<span class="open" title="{title}">{escape(_label(score))}</span>')
        elif reason and dots:
            spans.append(f'<span class="asked" title="{escape(reason)}">·</span>')
        title = escape(f"block {block}, token {place}" + (f"; {reason}" if reason and not dots else ""))
        spans.append(f'<span class="b{block % _NUM_TINTS}" title="{title}">{_visible(token)}</span>')
    return "".join(spans)


def _few_scores(marked: MarkedText) -> bool:
    """Whether a dot at every score leaves the text readable; a rule asked at every token has its scores on them."""
    return 4 * sum(score is not None for score in marked.scores) <= len(marked.scores)


def _level(marked: MarkedText) -> str:
    return "" if marked.threshold is None else f" (threshold {marked.threshold:.3g})"


def _how_to_read(marked: MarkedText) -> str:
    tints = "Colours change with the block and mean nothing else."
    if any(marked.leads):
        tints += f" What is read from {_LED} on is home to the next block as well."
    if not marked.meaning:
        return f"{tints} This rule has no scores."
    if _few_scores(marked):
        asked = "a dot is where the rule was asked and kept the block open. Point at either."
    else:
        asked = "every token has one: point at it."
    return f"{tints} A number is the score that opened the block; {asked}"


def _label(score: float | None) -> str:
    return "" if score is None else f"{score:.2f}".removesuffix(".00")


def _unscored(marked: MarkedText, place: int) -> str:
    if place == 0:
        return "the text starts"
    return "the block reached max_length" if marked.meaning else "the rule says so"


def _warning(marked: MarkedText) -> str:
    return "" if marked.causal else " It reads the whole text, so it may explain a text but not run inside a model."


def _visible(token: str) -> str:
    return escape(token).replace("\n", "↵\n")


def _safe(token: str) -> str:
    """A token without control characters that a terminal would obey."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in token)
