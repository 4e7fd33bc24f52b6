"""The findings for people."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

STYLES = {"exact": "green", "equal": "green", "refused": "yellow", "not applicable": "dim", "FAILED": "bold red"}


def print_report(report: dict[str, Any], console: Console) -> None:
    """A row for every finding: what was checked, the largest error and what is allowed, the verdict; then a sentence.

    Args:
        report: from ``report_dict``.
        console: where to.
    """
    table = Table(box=None, pad_edge=False)
    table.add_column("what was checked", ratio=3)
    table.add_column("error", justify="right", no_wrap=True)
    table.add_column("allowed", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("note", ratio=3)
    for finding in report["findings"]:
        table.add_row(
            Text(finding["claim"]),
            _number(finding["error"]),
            _number(finding["limit"]),
            Text(finding["verdict"], style=STYLES[finding["verdict"]]),
            Text(finding["note"], style="dim"),
        )
    console.print(table)
    console.print()
    for chosen in report["attention"]:
        console.print(Text(f"attention, when nobody names one: {chosen}"))
    console.print(Text(conclusion(report)))


def conclusion(report: dict[str, Any]) -> str:
    """What the findings come to."""
    verdicts = [finding["verdict"] for finding in report["findings"]]
    failed = [finding["way"] for finding in report["findings"] if finding["verdict"] == "FAILED"]
    what = f"{report['model']} ({report['architecture']}, {report['parameters'] / 1e6:.1f}M parameters)"
    if failed:
        return (
            f"{what} FAILED: {', '.join(failed)}. Do not trust it localised in these ways; please report this with the "
            "output of --json."
        )
    held = sum(verdict in ("exact", "equal") for verdict in verdicts)
    rest = [f"{verdicts.count(verdict)} {verdict}" for verdict in ("refused", "not applicable") if verdict in verdicts]
    return f"{what}: {held} of {len(verdicts)} claims hold{', ' if rest else ''}{', '.join(rest)}; none failed."


def _number(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.0e}"
