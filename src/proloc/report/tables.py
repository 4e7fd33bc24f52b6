"""Tables beside the one of all conditions, each made only where the runs hold what it needs (ours)."""

from dataclasses import dataclass

from proloc.report.data import ReportData
from proloc.report.faithfulness import HEADERS, MAIN, faithfulness_rows, kinds, reading
from proloc.report.numbers import NONE, fixed, with_interval


@dataclass(frozen=True)
class SideTable:
    """A table with a title and one sentence on how to read it."""

    title: str
    headers: tuple[str, ...]
    rows: list[tuple[str, ...]]
    reading: str


def side_tables(data: ReportData) -> list[SideTable]:
    """The tables that these runs support, in the order of the page."""
    tables = (_sensitivity_table(data), _dial_table(data), *_faithfulness_tables(data))
    return [table for table in tables if table.rows]


def _sensitivity_table(data: ReportData) -> SideTable:
    return SideTable(
        "What one setting changes",
        (
            "condition",
            "instead of",
            "setting",
            "from",
            "to",
            "ratio [95%]",
            "was [95%]",
            "one over the other [95%]",
            "late undialled",
            "was",
        ),
        [
            (
                row.condition,
                row.base,
                row.setting,
                row.before,
                row.after,
                with_interval(row.ratio_after, 4),
                with_interval(row.ratio_before, 4),
                with_interval(row.over, 4),
                fixed(row.late_undialled_after.mean, 3),
                fixed(row.late_undialled_before.mean, 3),
            )
            for row in data.changes
        ],
        "Pairs of conditions that differ in one setting only; one over the other is their perplexity ratio, paired "
        "over seeds. Undialled fidelity compares only where both have the same blocks, sinks and halo.",
    )


def _dial_table(data: ReportData) -> SideTable:
    return SideTable(
        "One model for the whole dial",
        ("condition", "dial", "ratio [95%]", "specialist", "its ratio [95%]", "over specialist [95%]"),
        [
            (
                row.condition,
                f"{row.dial:g}",
                with_interval(row.ratio, 4),
                row.specialist or NONE,
                with_interval(row.specialist_ratio, 4),
                with_interval(row.over_specialist, 4),
            )
            for row in data.dials
        ],
        f"Ratios are perplexities over that of {data.summary.reference} on the same seeds; a specialist was tuned, "
        "with the budget of the one model, at that position alone; over specialist divides the one model's perplexity "
        "by the specialist's.",
    )


def _faithfulness_tables(data: ReportData) -> list[SideTable]:
    found = data.faithfulness
    if found is None:
        return []
    return [
        SideTable(
            f"How faithful explanations are: {kind} passages",
            HEADERS,
            [cells for cells in faithfulness_rows(found, kind) if cells[1] in MAIN],
            reading(found),
        )
        for kind in kinds(found)
    ]
