"""The results table in the terminal (ours)."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from proloc.report.rows import HEADERS, make_rows
from proloc.study.results import RunResult, StudyRecord
from proloc.study.statistics import summarise

# What fits 80 columns; the page and the files have the rest.
_COLUMNS = (
    "condition",
    "seeds",
    "perplexity [95%]",
    "ratio [95%]",
    "p Holm",
    "late layers",
    "late undialled",
)


def print_table(study: StudyRecord, runs: Sequence[RunResult], console: Console) -> None:
    """Print the results of a study, one line per condition and its intervals beneath."""
    caption = Text("late: fidelity, last third of the layers; ratio: to distributed; *: control")
    table = Table(title=Text(study.name), caption=caption, box=SIMPLE_HEAD, show_edge=False, padding=0)
    table.title_justify = table.caption_justify = "left"
    shown = [HEADERS.index(name) for name in _COLUMNS]
    for index in shown:
        table.add_column(
            Text(HEADERS[index].replace(" ", "\n", 1)), justify="left" if index == 0 else "right", no_wrap=index == 0
        )
    for row in make_rows(summarise(study, runs)):
        name = Text(row.cells[0].replace(" (control)", "*"))
        numbers = [Text(row.cells[index].replace(" [", "\n[").replace(" (", "\n(")) for index in shown[1:]]
        table.add_row(name, *numbers, style="dim" if row.control or row.baseline else "")
    console.print(table)
