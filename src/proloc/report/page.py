"""One HTML file that opens anywhere, offline: no script, and nothing loaded from another host (ours).

Figures are inlined as images, so that neither their ids nor their styles can touch the page. Everything that comes from
a record is escaped, and a content security policy refuses whatever else might be asked for.
"""

import base64
import json
import platform
import re
from collections.abc import Iterable, Sequence
from html import escape

import matplotlib

from proloc.report.answer import answer, how_to_read_table
from proloc.report.css import STYLE
from proloc.report.data import ReportData
from proloc.report.figures import Drawn
from proloc.report.figures_sample import shown_samples
from proloc.report.numbers import count
from proloc.report.rows import HEADERS, Row, make_rows
from proloc.report.rows_contrasts import CONTRAST_HEADERS, HOW_TO_READ_CONTRASTS, contrast_rows
from proloc.report.tables import SideTable, side_tables
from proloc.study.results import Sample
from proloc.study.statistics import StudySummary

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_NUM_TINTS = 5


def to_page(data: ReportData, figures: Sequence[Drawn]) -> str:
    """The whole report as one HTML document."""
    title = escape(f"{data.study.name}: localisation study")
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="meta">{escape(_meta(data))}</p>',
        f'<p class="answer">{escape(answer(data))}</p>',
        "<h2>Results</h2>",
        _table(data),
        _contrasts(data),
        _unfinished(data.summary),
        *map(_side_table, side_tables(data)),
        *(_figure(figure, _passages(data) if figure.name == "attention" else "") for figure in figures),
        "" if figures else '<p class="reading">No run has finished, so there is nothing to draw.</p>',
        "<h2>Settings</h2>",
        *_settings(data),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, parts))
        + "\n</main>\n</body>\n</html>\n"
    )


def _meta(data: ReportData) -> str:
    model, text = data.study.model, data.study.text
    tokens = data.study.baseline.tokens
    planned = f"{count(len(data.study.conditions), 'condition')} × {count(len(data.study.seeds), 'seed')}"
    return f"{model.get('name', 'model')} · {text.get('source', 'text')} · {planned} · {tokens:,} held-out tokens"


def _table(data: ReportData) -> str:
    hint = '<p class="reading hint">Tables and figures scroll sideways.</p>\n'
    return _html_table(HEADERS, make_rows(data.summary), hint, how_to_read_table(data))


def _contrasts(data: ReportData) -> str:
    rows = [Row(cells) for cells in contrast_rows(data.contrasts)]
    return _html_table(CONTRAST_HEADERS, rows, "", HOW_TO_READ_CONTRASTS) if rows else ""


def _html_table(headers: Sequence[str], rows: Sequence[Row], hint: str, reading: str) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in headers)
    body = "\n".join(_table_row(row) for row in rows)
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>\n"
        f'{hint}<p class="reading">{escape(reading)}</p>'
    )


def _side_table(table: SideTable) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.headers)
    body = "\n".join(_table_row(Row(cells)) for cells in table.rows)
    return (
        f"<h2>{escape(table.title)}</h2>\n"
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>\n"
        f'<p class="reading">{escape(table.reading)}</p>'
    )


def _table_row(row: Row) -> str:
    kind = "control" if row.control else "baseline" if row.baseline else "condition"
    cells = "".join(f"<td>{_cell(cell)}</td>" for cell in row.cells[1:])
    return f'<tr class="{kind}"><th scope="row">{_cell(row.cells[0])}</th>{cells}</tr>'


def _cell(text: str) -> str:
    """A cell with its interval or remark on a line of its own."""
    return re.sub(r" (\[.*\]|\(.*\))$", r' <span class="interval">\1</span>', escape(text))


def _unfinished(summary: StudySummary) -> str:
    items = [f"{run.condition}, seed {run.seed}, failed: {run.error}" for run in summary.failed]
    if summary.missing:
        items.append(f"Not done yet: {', '.join(summary.missing)}")
    if not items:
        return ""
    return f'<ul class="failures">{"".join(f"<li>{escape(item)}</li>" for item in items)}</ul>'


def _figure(figure: Drawn, after: str) -> str:
    image = base64.b64encode(figure.svg.encode()).decode()
    return (
        f"<h2>{escape(figure.title)}</h2>\n"
        f'<figure id="{escape(figure.name)}"><div class="plot" tabindex="0">'
        f'<img alt="{escape(figure.title)}" src="data:image/svg+xml;base64,{image}"></div>{after}\n'
        f'<figcaption class="reading">{escape(figure.reading)}</figcaption></figure>'
    )


def _passages(data: ReportData) -> str:
    """The passage once for every way in which the conditions shown cut it into blocks."""
    cuts: dict[str, tuple[Sample, list[str]]] = {}
    for condition, sample in shown_samples(data).items():
        key = json.dumps([sample.tokens, sample.block_ids])
        cuts.setdefault(key, (sample, []))[1].append(condition)
    return "".join(_passage(sample, conditions) for sample, conditions in cuts.values())


def _passage(sample: Sample, conditions: Iterable[str]) -> str:
    tints = {block: index % _NUM_TINTS for index, block in enumerate(dict.fromkeys(sample.block_ids))}
    spans = [
        f'<span class="b{tints[block]}{" sink" * sink}" title="block {block}">{escape(_printable(token))}</span>'
        for token, block, sink in zip(sample.tokens, sample.block_ids, sample.sinks, strict=True)
    ]
    label = escape(f"The passage with its blocks coloured and its sinks underlined ({', '.join(conditions)}):")
    return f'<p class="reading">{label}</p><p class="passage">{"".join(spans)}</p>'


def _printable(token: str) -> str:
    """A token with its line breaks shown."""
    return token.replace("\n", "↵\n")


def _settings(data: ReportData) -> list[str]:
    study = data.study
    report = {"python": platform.python_version(), "matplotlib": matplotlib.__version__}
    blocks = {
        "Configuration": study.config,
        "Model": study.model,
        "Text": study.text,
        "Versions": {"study": study.versions, "report": report},
        "Machines": _machines(data),
    }
    return [
        f"<details><summary>{name}</summary><pre>{_pretty(value)}</pre></details>" for name, value in blocks.items()
    ]


def _machines(data: ReportData) -> list[dict[str, object]]:
    """Every distinct machine and set of versions, with the number of runs made there."""
    counts: dict[str, int] = {}
    for run in data.runs:
        key = json.dumps({"machine": run.machine, "versions": run.versions})
        counts[key] = counts.get(key, 0) + 1
    return [{"runs": num, **json.loads(key)} for key, num in counts.items()]


def _pretty(value: object) -> str:
    return escape(json.dumps(value, indent=2, ensure_ascii=False, default=str))
