"""The record of ``segmentation.py`` as a Markdown table and one figure."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Published Pk in per cent; C99 finds the number of segments itself, as we do.
PUBLISHED = {
    "C99 (Choi 2000)": {"3-11": 13, "3-5": 18, "6-8": 10, "9-11": 10},
    "Embed-KCPD": {"3-5": 3.6, "6-8": 2.5, "9-11": 3.1},
}
_COLOURS = {"control": "#8a8a8a", "causal": "#d55e00", "reads the whole text": "#0072b2"}
_MARKERS = {"3-11": "o", "3-5": "^", "6-8": "s", "9-11": "D", "topics": "o"}


def write_table(record: dict[str, Any], path: Path) -> None:
    """One table for each corpus; Pk / WindowDiff in per cent."""
    parts = ["Pk / WindowDiff in per cent on documents that were not tuned on; lower is better.\n"]
    for corpus in ("choi", "topics"):
        if corpus not in record:
            continue
        ranges = list(record[corpus][0]["results"])
        parts += [f"\n## {corpus}\n", "| partitioner | sort | " + " | ".join(ranges) + " |"]
        parts.append("|---|---|" + "---|" * len(ranges))
        for row in _sorted(record[corpus]):
            cells = [f"{row['results'][name]['pk']:.1f} / {row['results'][name]['window_diff']:.1f}" for name in ranges]
            few = row["results"][ranges[0]]["documents"] < max(
                other["results"][ranges[0]]["documents"] for other in record[corpus]
            )
            remark = f" ({row['results'][ranges[0]]['documents']} documents each)" if few else ""
            parts.append(f"| {row['method']}{remark} | {row['sort']} | " + " | ".join(cells) + " |")
        if corpus == "choi":
            for name, values in PUBLISHED.items():
                cells = [f"{values[key]} /" if key in values else "" for key in ranges]
                parts.append(f"| *{name}, published* | reads the whole text | " + " | ".join(cells) + " |")
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def write_figure(record: dict[str, Any], path: Path) -> None:
    """Pk of every method, one panel for each corpus."""
    corpora = [corpus for corpus in ("choi", "topics") if corpus in record]
    # The first corpus has every method; the panels share their rows.
    names = [row["method"] for row in _sorted(record[corpora[0]])][::-1]
    settings = {"svg.hashsalt": "proloc", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(9.6, 0.6 + 0.24 * len(names)), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(corpora), sharey=True, squeeze=False)[0]
        for axes, corpus in zip(panels, corpora, strict=True):
            for row in record[corpus]:
                place = names.index(row["method"])
                for name, result in row["results"].items():
                    axes.plot(
                        result["pk"], place, _MARKERS[name], color=_COLOURS[row["sort"]], markersize=4.5, alpha=0.8
                    )
            axes.set_yticks(range(len(names)), names)
            axes.set_xlim(left=0)
            axes.grid(axis="x", color="#e6e6e6")
            axes.set_axisbelow(True)
            axes.set_xlabel("Pk, per cent (lower is better)")
            axes.set_title({"choi": "Choi (2000), by range", "topics": "Python's topics, by token"}[corpus], loc="left")
        marks = [
            matplotlib.lines.Line2D([], [], linestyle="", marker=marker, color="#333333", label=name, markersize=4.5)
            for name, marker in _MARKERS.items()
            if name != "topics"
        ]
        marks += [
            matplotlib.lines.Line2D([], [], linestyle="", marker="s", color=colour, label=sort)
            for sort, colour in _COLOURS.items()
        ]
        figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False)
        figure.savefig(path, metadata={"Date": None})


def _sorted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: list(_COLOURS).index(row["sort"]))
