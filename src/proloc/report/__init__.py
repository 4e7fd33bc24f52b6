"""Reports: a study folder in, tables, figures and one self-contained HTML page out; never imports torch (ours)."""

import json
from pathlib import Path

from rich.console import Console

from proloc.errors import ProlocError
from proloc.files import write_atomically
from proloc.report.data import ReportData
from proloc.report.export import to_csv, to_markdown
from proloc.report.faithfulness import faithfulness_markdown, print_faithfulness
from proloc.report.figures import draw_all
from proloc.report.page import to_page
from proloc.report.table import print_table

__all__ = ["build_report", "print_table"]


def build_report(folder: Path, console: Console | None = None) -> Path:
    """Write the report of a study into its folder and return the path of the page; with a console, print its tables.

    Writes ``report.html``, ``figures/*.png`` and ``*.svg``, ``summary.json``, ``.csv`` and ``.md``, and
    ``contrasts.json``; for a study that measured its explanations also ``faithfulness.json`` and ``.md``. Each file is
    complete or absent, and an unfinished study gives a report of what there is.

    Raises:
        ProlocError: no study there, a file that is not of the schema, or a folder that cannot be written to.
    """
    data = ReportData.read(folder)
    explained = data.faithfulness
    if console is not None:
        print_table(data.study, data.runs, console)
        if explained is not None:
            print_faithfulness(explained, console)
    figures = draw_all(data)
    page = folder / "report.html"
    try:
        if explained is not None:
            write_atomically(folder / "faithfulness.json", explained.model_dump_json(indent=1) + "\n")
            write_atomically(folder / "faithfulness.md", faithfulness_markdown(explained))
        for figure in figures:
            write_atomically(folder / "figures" / f"{figure.name}.png", figure.png)
            write_atomically(folder / "figures" / f"{figure.name}.svg", figure.svg)
        write_atomically(folder / "summary.json", data.summary.model_dump_json(indent=1) + "\n")
        rows = [row.model_dump(mode="json") for row in data.contrasts]
        write_atomically(folder / "contrasts.json", json.dumps(rows, indent=1) + "\n")
        write_atomically(folder / "summary.csv", to_csv(data.summary))
        write_atomically(folder / "summary.md", to_markdown(data))
        write_atomically(page, to_page(data, figures))
    except OSError as error:
        raise ProlocError(f"The report cannot be written into {folder}: {error}.") from error
    return page
