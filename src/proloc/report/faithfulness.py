"""How faithful a study's explanations are, as one table: a line for every method under every condition (ours)."""

from rich.console import Console
from rich.table import Table

from proloc.report.numbers import NONE
from proloc.study.faithful_statistics import FaithfulnessSummary, Interval, MethodSummary

HEADERS = (
    "condition",
    "method",
    "LDS",
    "gain over the reference",
    "gap to the surrogate",
    "change of the gap",
    "found",
)
MAIN = ("attention", "value-weighted", "learned-heads", "lasso", "length")
"""What page, figure and terminal show: plain and value-weighted attention, what attention and what ablations can say at
best, and what the blocks' lengths alone say."""


def faithfulness_rows(summary: FaithfulnessSummary, kind: str) -> list[tuple[str, ...]]:
    """The cells under ``HEADERS``, for passages of one kind."""
    return [_cells(row) for row in summary.methods if row.kind == kind]


def kinds(summary: FaithfulnessSummary) -> list[str]:
    """The kinds of passages that were measured."""
    return list(dict.fromkeys(row.kind for row in summary.methods))


def faithfulness_markdown(summary: FaithfulnessSummary) -> str:
    """The tables of all kinds."""
    parts = [f"# {summary.study}: faithfulness of explanations\n\n{reading(summary)}\n"]
    for kind in kinds(summary):
        lines = [HEADERS, ("---",) * len(HEADERS), *faithfulness_rows(summary, kind)]
        parts.append(f"## {kind}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    return "\n".join(parts)


def print_faithfulness(summary: FaithfulnessSummary, console: Console) -> None:
    """The tables of the main methods; the files have all of them."""
    for kind in kinds(summary):
        table = Table(title=f"Faithfulness on {kind} passages", title_justify="left", box=None, pad_edge=False)
        for name in HEADERS:
            table.add_column(name)
        for cells in faithfulness_rows(summary, kind):
            if cells[1] in MAIN:
                table.add_row(*cells)
        console.print(table)
    console.print(reading(summary), style="dim")


def reading(summary: FaithfulnessSummary) -> str:
    """How to read the table."""
    return (
        "LDS: rank correlation, over random ablations, of the log-probability a method foretells and the true one. "
        f"Means over passages with {summary.confidence:.0%} bootstrap intervals; gains and changes are paired with the "
        f"same passages under {summary.reference}. Found: share of passages whose strongest block holds "
        "the answer."
    )


def _cells(row: MethodSummary) -> tuple[str, ...]:
    numbers = (row.lds, row.lds_gain, row.gap, row.gap_change, row.hit)
    return row.condition, row.method, *(_interval(number) for number in numbers)


def _interval(found: Interval | None) -> str:
    if found is None:
        return NONE
    if found.low is None or found.high is None:
        return f"{found.mean:.2f}"
    return f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"
