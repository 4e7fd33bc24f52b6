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
_COLUMNS = ("condition", "seeds", "perplexity [95%]", "ratio [95%]", "p Holm", "late layers", "late undialled", "lift")


def print_table(study: StudyRecord, runs: Sequence[RunResult], console: Console) -> None:
    """Print the results of a study, one line per condition and its intervals beneath."""
    caption = Text("late layers, late undialled: fidelity in the last third of the layers; * a control")
    table = Table(
        title=Text(study.name), title_justify="left", caption=caption, caption_justify="left", box=SIMPLE_HEAD
    )
    table.pad_edge, table.padding = False, (0, 1, 0, 0)
    shown = [HEADERS.index(name) for name in _COLUMNS]
    for index in shown:
        table.add_column(Text(HEADERS[index]), justify="left" if index == 0 else "right", overflow="fold")
    for row in make_rows(summarise(study, runs)):
        name = Text(row.cells[0].replace(" (control)", "*"), no_wrap=True)
        numbers = [Text(row.cells[index].replace(" [", "\n[").replace(" (", "\n(")) for index in shown[1:]]
        table.add_row(name, *numbers, style="dim" if row.control or row.baseline else "")
    console.print(table)
