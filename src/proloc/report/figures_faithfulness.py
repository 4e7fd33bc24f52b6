"""The figure of how faithful explanations are under every condition (ours)."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from proloc.report.canvas import MUTED, grid_behind, new_figure
from proloc.report.data import ReportData
from proloc.report.faithfulness import MAIN, kinds
from proloc.study.faithful_statistics import MethodSummary

_LOOK = (("#0072b2", "o"), ("#d55e00", "s"), ("#009e73", "^"), ("#333333", "D"), ("#8a8a8a", "x"))
_LOOKS = dict(zip(MAIN, _LOOK, strict=True))
_STEP = 0.15


def faithfulness_figure(data: ReportData) -> Figure | None:
    """LDS of the main methods, a panel for every kind of passage; None where no explanations were measured."""
    found = data.faithfulness
    if found is None:
        return None
    conditions = list(dict.fromkeys(row.condition for row in found.methods))
    names = kinds(found)
    figure = new_figure(1.5 + 0.52 * len(conditions))
    panels = figure.subplots(1, len(names), sharey=True, sharex=True, squeeze=False)[0]
    for axes, kind in zip(panels, names, strict=True):
        for row in found.methods:
            if row.kind == kind and row.method in _LOOKS:
                _draw(axes, row, conditions.index(row.condition))
        axes.axvline(0.0, color=MUTED, linewidth=1, linestyle=":")
        axes.set_title(f"{kind} passages")
        axes.set_xlabel("LDS")
        grid_behind(axes, "x")
    panels[0].set_yticks(range(len(conditions)), conditions)
    panels[0].set_ylim(len(conditions) - 0.5, -0.5)
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=name)
        for name, (colour, marker) in _LOOKS.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _draw(axes: Axes, row: MethodSummary, line: int) -> None:
    if row.lds is None:
        return
    colour, marker = _LOOKS[row.method]
    place = line + _STEP * (list(_LOOKS).index(row.method) - (len(_LOOKS) - 1) / 2)
    if row.lds.low is not None and row.lds.high is not None:
        axes.plot([row.lds.low, row.lds.high], [place, place], color=colour, linewidth=3, alpha=0.35)
    axes.plot([row.lds.mean], [place], color=colour, marker=marker, markersize=4.5, linestyle="")
