"""The tables of the page "What is exact", made from what the tests and ``proloc check`` wrote."""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MARKS = {"exact": "=", "equal": "≈", "refused": "refused", "not applicable": "–", "FAILED": "**FAILED**"}


def write_tables(folder: Path = HERE / "_generated") -> None:
    """Write one Markdown file per table, to be included by ``exact.md``."""
    matrix = json.loads((HERE / "exact.json").read_text())
    real = json.loads((HERE / "exact-smollm2.json").read_text())
    folder.mkdir(exist_ok=True)
    (folder / "matrix.md").write_text(_matrix(matrix))
    (folder / "notes.md").write_text(_notes(matrix))
    (folder / "refused.md").write_text(_table(["family", "proloc says"], list(matrix["refused"].items())))
    (folder / "smollm2.md").write_text(_real(real))


def _matrix(matrix: dict[str, Any]) -> str:
    families = list(matrix["localised"])
    rows = []
    for way, claim in matrix["ways"].items():
        cells = [MARKS[matrix["localised"][family][way]["verdict"]] for family in families]
        rows.append([claim, *cells, _number(matrix["largest_error"][way])])
    return _table(["", *families, "largest error"], rows)


def _notes(matrix: dict[str, Any]) -> str:
    found = {
        (way, cell["note"]): None
        for ways in matrix["localised"].values()
        for way, cell in ways.items()
        if cell["verdict"] == "not applicable"
    }
    return "\n".join(f"- {way}: {note}." for way, note in found) + "\n"


def _real(report: dict[str, Any]) -> str:
    rows = [
        [each["claim"], _number(each["error"]), _number(each["limit"]), each["verdict"], each["note"]]
        for each in report["findings"]
    ]
    return _table(["", "error", "allowed", "verdict", "note"], rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}" if value else "0"


def _table(head: list[str], rows: list[Any]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"
