"""The summary as CSV for machines and as Markdown for papers and issues (ours)."""

import csv
import io
from collections.abc import Sequence

from proloc.report.answer import how_to_read_table
from proloc.report.data import ReportData
from proloc.report.rows import HEADERS, make_rows
from proloc.report.rows_contrasts import CONTRAST_HEADERS, HOW_TO_READ_CONTRASTS, contrast_rows
from proloc.report.tables import side_tables
from proloc.study.statistics import (
    BEFORE_TUNING,
    Comparison,
    ConditionSummary,
    Estimate,
    Measures,
    StudySummary,
)


def to_csv(summary: StudySummary) -> str:
    """One line per condition and one for the model before tuning, numbers in full precision, empty where unknown."""
    records = [_flat_condition(row) for row in summary.conditions]
    records.append(_flat_baseline(summary))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def to_markdown(data: ReportData) -> str:
    """The tables of the page as Markdown, with the sentences on how to read them."""
    parts = [*_markdown_table(HEADERS, [row.cells for row in make_rows(data.summary)]), how_to_read_table(data), ""]
    if data.contrasts:
        parts += [*_markdown_table(CONTRAST_HEADERS, contrast_rows(data.contrasts)), HOW_TO_READ_CONTRASTS, ""]
    for table in side_tables(data):
        parts += [f"## {table.title}", "", *_markdown_table(table.headers, table.rows), table.reading, ""]
    return "\n".join(parts)


def _markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [*map(_markdown_line, (headers, ["---"] * len(headers), *rows)), ""]


def _markdown_line(cells: Sequence[str]) -> str:
    escaped = (cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _flat_condition(row: ConditionSummary) -> dict[str, object]:
    return {
        "condition": row.condition,
        "control": row.control,
        "finished": row.num_finished,
        "failed": row.num_failed,
        "missing": row.num_missing,
        **_flat_comparison(row.comparison),
        **_flat_estimate("untuned_ratio", row.untuned_ratio),
        **_flat_measures(row.measures),
    }


def _flat_baseline(summary: StudySummary) -> dict[str, object]:
    return {"condition": BEFORE_TUNING, "ratio": summary.baseline_ratio, **_flat_measures(summary.baseline)}


def _flat_comparison(comparison: Comparison | None) -> dict[str, object]:
    return {
        **_flat_estimate("ratio", comparison.ratio if comparison else None),
        "pairs": comparison.ratio.num if comparison else None,
        "p": comparison.p if comparison else None,
        "p_holm": comparison.p_holm if comparison else None,
        "hedges_g_z": comparison.hedges_g_z if comparison else None,
        **_flat_estimate("fidelity_gain", comparison.fidelity_gain if comparison else None),
    }


def _flat_measures(measures: Measures | None) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name in Measures.model_fields:
        flat |= _flat_estimate(name, getattr(measures, name) if measures else None)
    return flat


def _flat_estimate(name: str, estimate: Estimate | None) -> dict[str, object]:
    mean, low, high = (estimate.mean, estimate.low, estimate.high) if estimate else (None, None, None)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}
