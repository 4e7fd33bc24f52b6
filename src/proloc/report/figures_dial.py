"""The figure of one model for the whole dial (ours)."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from proloc.report.canvas import INK, MUTED, grid_behind, look_of, new_figure
from proloc.report.data import ReportData
from proloc.study.dials import AtDial
from proloc.study.statistics import Estimate


def dial_figure(data: ReportData) -> Figure | None:
    """Perplexity ratio against the dial's position: each model tuned at many as a line, its specialists as points."""
    models = {row.condition: [each for each in data.dials if each.condition == row.condition] for row in data.dials}
    if not models:
        return None
    figure = new_figure(3.6)
    axes = figure.subplots()
    axes.axhline(1.0, color=MUTED, linewidth=1, linestyle=":")
    handles = []
    for index, (condition, rows) in enumerate(models.items()):
        look = look_of(data, condition)
        _draw(axes, [(row.dial, row.ratio) for row in rows], look.colour, "-", look.marker)
        _draw(axes, _specialists(rows, 0.008 * (index + 1)), look.colour, "", "x")
        handles.append(Line2D([], [], color=look.colour, marker=look.marker, label=condition))
    handles.append(Line2D([], [], color=INK, marker="x", linestyle="", label="specialist for\nthat position"))
    axes.set_xlabel("position of the dial")
    axes.set_ylabel(f"perplexity ÷ {data.summary.reference}, same seed")
    grid_behind(axes, "y")
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def _specialists(rows: list[AtDial], beside: float) -> list[tuple[float, Estimate | None]]:
    """The specialists' points, a little to the right so that intervals can be told apart."""
    return [(row.dial + beside, row.specialist_ratio) for row in rows]


def _draw(axes: Axes, points: list[tuple[float, Estimate | None]], colour: str, line: str, marker: str) -> None:
    known = [(place, estimate) for place, estimate in points if estimate is not None]
    axes.plot(
        [place for place, _ in known],
        [estimate.mean for _, estimate in known],
        color=colour,
        linestyle=line,
        marker=marker,
        markersize=6,
    )
    for place, estimate in known:
        if estimate.low is not None and estimate.high is not None:
            axes.plot([place, place], [estimate.low, estimate.high], color=colour, linewidth=4, alpha=0.3)
