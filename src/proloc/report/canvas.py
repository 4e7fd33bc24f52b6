"""Figures without global state: settings, colours, and PNG and SVG out of one figure (ours).

Colours are Okabe and Ito's, safe for colour-blind readers, with a dark grey for black and a brown for the yellow that
white paper swallows. A condition keeps its colour, by its place in the plan, in every figure.

Source: Okabe & Ito 2008, Color Universal Design.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from proloc.report.data import ReportData
from proloc.study.statistics import ConditionSummary, is_control

WIDTH = 9.6
_LABEL_SIZE = 7.0
_MOST_STEPS = 12
PNG_DPI = 150
INK = "#222222"
MUTED = "#8a8a8a"
OUTLINE = "#d55e00"
_COLOURS = ("#333333", "#56b4e9", "#0072b2", "#d55e00", "#cc79a7", "#e69f00", "#009e73", "#8c6d31")
_MARKERS = ("o", "^", "v")
_CONTROL_MARKERS = ("D", "X", "s", "P")
_SETTINGS: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": False,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "text.parse_math": False,
    "svg.hashsalt": "proloc",
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class Look:
    """How a condition is drawn in every figure."""

    colour: str
    marker: str


@contextmanager
def drawing() -> Iterator[None]:
    """Draw with the report's settings; the caller's matplotlib settings come back afterwards."""
    with matplotlib.rc_context(_SETTINGS):
        yield


def new_figure(height: float) -> Figure:
    """An empty figure of the page's width, ``height`` in inches, on white in light and dark pages alike."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def look_of(data: ReportData, condition: str) -> Look:
    """The colour and marker of a condition; controls have markers of their own."""
    index = data.study.conditions.index(condition)
    colour, lap = _COLOURS[index % len(_COLOURS)], index // len(_COLOURS)
    if not is_control(condition):
        return Look(colour, _MARKERS[lap % len(_MARKERS)])
    controls = [name for name in data.study.conditions if is_control(name)]
    return Look(colour, _CONTROL_MARKERS[controls.index(condition) % len(_CONTROL_MARKERS)])


def label_of(row: ConditionSummary) -> str:
    """The name of a condition, with a remark on controls."""
    return f"{row.condition} (control)" if row.control else row.condition


def legend_right(figure: Figure, data: ReportData, *, line: bool, marker: bool) -> None:
    """List the measured conditions outside of the axes, by what the axes show of them."""
    handles = []
    for row in data.measured:
        look = look_of(data, row.condition)
        handle = Line2D([], [], color=look.colour, marker=look.marker if marker else "", label=label_of(row))
        handle.set_linestyle("-" if line else "")
        handle.set_markersize(4 if line else 7)
        handles.append(handle)
    figure.legend(handles=handles, loc="outside right upper")


def grid_behind(axes: Axes, axis: Literal["x", "y", "both"]) -> None:
    """Faint grid lines behind the data."""
    axes.set_axisbelow(True)
    axes.grid(visible=True, axis=axis)


def label_points(axes: Axes, labels: Sequence[tuple[str, float, float]]) -> None:
    """Name points ``(name, x, y)`` so that no name lies on another: each moves up, or down, until it has room.

    Call it when the limits of the axes are final.
    """
    height, taken = 1.25 * _LABEL_SIZE, list[tuple[float, float, float]]()
    to_points = 72.0 / axes.figure.dpi
    right = axes.transAxes.transform((1.0, 0.0))[0] * to_points
    places = [(name, x, y, axes.transData.transform((x, y)) * to_points) for name, x, y in labels]
    for name, x, y, (at_x, at_y) in sorted(places, key=lambda place: float(place[3][1])):
        width = 0.6 * _LABEL_SIZE * len(name)
        left = -4 - width if at_x + 4 + width > right else 4
        for step in sorted(range(-_MOST_STEPS, _MOST_STEPS), key=abs):
            start, level = at_x + left, at_y + 3 + height * step
            if all(start >= b or start + width <= a or abs(level - other) >= height for a, b, other in taken):
                break
        taken.append((start, start + width, level))
        far = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.5} if abs(step) > 1 else None
        axes.annotate(
            name, (x, y), (left, 3 + height * step), textcoords="offset points", size=_LABEL_SIZE, arrowprops=far
        )


def to_png(figure: Figure) -> bytes:
    """The figure as PNG, 150 dots per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PNG_DPI)
    return buffer.getvalue()


def to_svg(figure: Figure) -> str:
    """The figure as SVG, without a date so that the same study gives the same file."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
