"""An explanation as one HTML page that opens anywhere, offline; everything from model and text is escaped (ours)."""

import json
from html import escape

from proloc.explaining.record import Explanation, Source
from proloc.report.css import STYLE
from proloc.report.explanation import (
    BLIND,
    cost_sentence,
    excerpt,
    flow_sentence,
    headline,
    layers_text,
    methods,
    strength,
)
from proloc.report.numbers import count, fixed

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_PAGE_STYLE = """
.passage { line-height: 2.1; } .passage .open { font: 600 0.68rem/1 ui-monospace, Menlo, Consolas, monospace;
  color: var(--accent); padding: 0 3px 0 5px; border-left: 2px solid var(--accent); vertical-align: 0.25em;
  user-select: none; } .passage .rest { color: var(--muted); } .passage .target { font-weight: 700;
  border-bottom: 3px solid var(--accent); } td.bar { min-width: 74px; } .flow { display: inline-flex; gap: 1px;
  vertical-align: middle; } .flow i { display: block; width: 3px; height: 14px; background: var(--accent); }
.flow i.shut { background: none; outline: 1px solid var(--line); outline-offset: -1px; }
th.text, td.text { text-align: left; white-space: normal; min-width: 180px; }
tr.blind th, tr.blind td { color: var(--muted); font-style: italic; }
"""
_SHOWN = ("attention", "attention-late", "attention-open", "value-weighted", "rollout", "lasso")
_HELPS, _HINDERS = "70, 150, 215", "232, 130, 45"


def explanation_page(found: Explanation) -> str:
    """The whole page."""
    title = f"Where {found.target.text.strip() or 'the target'!r} came from"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="meta">{escape(_meta(found))}</p>',
        f'<p class="answer">{escape(headline(found))}</p>',
        "<h2>The text</h2>",
        '<p class="reading">Blue: cutting the edges to this block lowers the log-probability of the target, the deeper '
        "the more. Orange: it raises it. Grey: sinks, and the block that asks, which are never knocked out.</p>",
        f'<p class="passage">{_passage(found)}</p>',
        "<h2>What every block gave</h2>",
        _sources(found),
        f'<p class="reading">Edges cut and removed: nats of log-probability lost. Methods have scales of their own; '
        f"compare them down a column. {escape(flow_sentence(found))}</p>",
        "<h2>How far each method can be believed</h2>",
        _methods(found),
        '<p class="reading">LDS: rank correlation of what a method foretells with what ablations do, 1 is best. Top-1 '
        "drop: nats lost without the method's first block. Comprehensiveness: higher is better; sufficiency: lower is "
        f"better, both in probability per token. {escape(cost_sentence(found))}</p>",
        "<h2>Settings</h2>",
        f"<details><summary>Model and blocks</summary><pre>{_settings(found)}</pre></details>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{_PAGE_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _meta(found: Explanation) -> str:
    blocks = "blocks that read the whole text" if not found.causal else "blocks"
    return (
        f"{found.model} · dial {found.dial:g} · {count(len(found.tokens), 'token')} in "
        f"{count(found.block_ids[-1] + 1, 'block')} ({found.blocks} {blocks}) · {count(found.num_sinks, 'sink')}"
    )


def _tint(value: float) -> str:
    colour = _HELPS if value >= 0 else _HINDERS
    return f"background: rgba({colour}, {min(abs(value), 1.0) * 0.75:.3f})"


def _passage(found: Explanation) -> str:
    by_block = {source.block: source for source in found.sources}
    spans, last = [], -1
    for place, (token, block) in enumerate(zip(found.tokens, found.block_ids, strict=True)):
        if block != last:
            spans.append(f'<span class="open">{block}</span>')
            last = block
        text = escape(token).replace("\n", "↵\n")
        if found.target.start <= place < found.target.end:
            loss = found.target.token_log_probs[place - found.target.start]
            spans.append(f'<span class="target" title="log-probability {loss:.2f}">{text}</span>')
        elif place < found.num_sinks or block not in by_block:
            spans.append(f'<span class="rest" title="block {block}, token {place}">{text}</span>')
        else:
            source = by_block[block]
            title = f"block {block}: {source.cut:.2f} nats with edges cut, {source.removed:.2f} removed"
            spans.append(f'<span style="{_tint(strength(found, source))}" title="{title}">{text}</span>')
    return "".join(spans)


def _sources(found: Explanation) -> str:
    shown = [name for name in _SHOWN if name in found.faithfulness]
    names = ["block", "begins", "edges cut", "removed", *shown, "can enter in layers"]
    kinds = {"begins": ' class="text"'}
    head = "".join(f'<th scope="col"{kinds.get(name, "")}>{escape(name)}</th>' for name in names)
    largest = {name: max(abs(each.scores[name]) for each in found.sources) for name in shown}
    body = "\n".join(_source(found, source, largest) for source in found.sources)
    return _table(head, body)


def _source(found: Explanation, source: Source, largest: dict[str, float]) -> str:
    scores = "".join(
        f'<td class="bar" style="{_bar(source.scores[name] / (most or 1.0))}">{source.scores[name]:.3g}</td>'
        for name, most in largest.items()
    )
    cells = "".join(f'<i class="{"" if layer in source.enters else "shut"}"></i>' for layer in range(len(found.retain)))
    title = escape(layers_text(source.enters))
    return (
        f'<tr><th scope="row">{source.block}</th><td class="text">{escape(excerpt(found, source))}</td>'
        f'<td style="{_tint(strength(found, source))}">{source.cut:.2f}</td><td>{source.removed:.2f}</td>'
        f'{scores}<td><span class="flow" title="layers {title}">{cells}</span></td></tr>'
    )


def _bar(share: float) -> str:
    colour = _HELPS if share >= 0 else _HINDERS
    width = 100 * min(abs(share), 1.0)
    return f"background: linear-gradient(to right, rgba({colour}, 0.35) {width:.1f}%, transparent {width:.1f}%)"


def _methods(found: Explanation) -> str:
    names = ["method", "LDS", "top-1 drop", "comprehensiveness", "sufficiency"]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    rows = []
    for name in methods(found):
        row = found.faithfulness[name]
        numbers = [
            fixed(row.lds, 2),
            fixed(row.top_drop, 2),
            fixed(row.comprehensiveness, 3),
            fixed(row.sufficiency, 3),
        ]
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in numbers)
        kind = ' class="blind"' if name in BLIND else ""
        rows.append(f'<tr{kind}><th scope="row">{escape(name)}</th>{cells}</tr>')
    return _table(head, "\n".join(rows))


def _table(head: str, body: str) -> str:
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _settings(found: Explanation) -> str:
    chosen = found.model_dump(
        mode="json", include={"versions", "localities", "retain", "layers", "sampled", "cost", "blocks_read"}
    )
    return escape(json.dumps(chosen, indent=1))
