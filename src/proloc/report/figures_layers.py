"""Figures by layer: fidelity, entropy, the schedule, and the heads of one condition (ours)."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from proloc.report.canvas import INK, MUTED, grid_behind, label_of, legend_right, look_of, new_figure
from proloc.report.data import ReportData
from proloc.study.statistics import head_means, layer_means

_COLUMNS = 4
# Cells with more layers or heads than this are too small to hold a number.
_MAX_NUMBERED = 16
_MAX_HEIGHT = 7.0


def fidelity_figure(data: ReportData) -> Figure:
    """One panel per condition: fidelity by layer as used, undialled, and under uniform attention."""
    rows = data.measured
    columns = min(_COLUMNS, len(rows))
    lines = math.ceil(len(rows) / columns)
    figure = new_figure(0.7 + 2.0 * lines)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, row in zip(panels, rows, strict=False):
        metrics, colour = data.metrics(row.condition), look_of(data, row.condition).colour
        layers = range(len(data.localities(row.condition)))
        axes.axhline(np.mean([one.fidelity_uniform for one in metrics]), color=MUTED, linewidth=1, linestyle=":")
        axes.plot(layers, layer_means(metrics, "fidelity"), color=colour, linewidth=2)
        axes.plot(layers, layer_means(metrics, "fidelity_undialled"), color=colour, linewidth=1.6, linestyle="--")
        axes.set_title(label_of(row))
        axes.set_ylim(0, 1.04)
        _layer_axis(axes)
        grid_behind(axes, "y")
    for axes in panels[len(rows) :]:
        axes.remove()
    for axes in panels[max(0, len(rows) - columns) : len(rows)]:
        axes.set_xlabel("layer")
        axes.tick_params(labelbottom=True)
    for axes in panels[: len(rows) : columns]:
        axes.set_ylabel("fidelity")
    figure.legend(handles=_fidelity_legend(), loc="outside upper center", ncols=3)
    return figure


def entropy_figure(data: ReportData) -> Figure:
    """Entropy of the weights the model used, by layer, one line per condition."""
    figure = new_figure(3.4)
    axes = figure.subplots()
    for row in data.measured:
        look = look_of(data, row.condition)
        means = layer_means(data.metrics(row.condition), "entropy_bits")
        axes.plot(range(len(means)), means, color=look.colour, marker=look.marker, markersize=4, linewidth=1.8)
    axes.set_xlabel("layer")
    axes.set_ylabel("entropy (bits)")
    _layer_axis(axes)
    grid_behind(axes, "y")
    legend_right(figure, data, line=True, marker=True)
    return figure


def schedule_figure(data: ReportData) -> Figure:
    """The locality of every layer, one line of cells per condition."""
    names = [row.condition for row in data.measured]
    table = np.array([data.localities(name) for name in names])
    figure = new_figure(1.2 + 0.32 * len(names))
    axes = figure.subplots()
    _cells(figure, axes, table, "locality λ", "Blues")
    axes.set_yticks(range(len(names)), [label_of(row) for row in data.measured])
    axes.set_xlabel("layer")
    return figure


def heads_figure(data: ReportData) -> Figure | None:
    """Fidelity of every head of the focus condition, as used and undialled; None without such a condition."""
    if data.focus is None:
        return None
    metrics = data.metrics(data.focus)
    used, undialled = (head_means(metrics, name) for name in ("fidelity", "fidelity_undialled"))
    figure = new_figure(min(1.3 + 0.3 * len(used), _MAX_HEIGHT))
    left, right = figure.subplots(1, 2, sharey=True)
    _cells(figure, left, used, None, "viridis")
    _cells(figure, right, undialled, "fidelity", "viridis")
    left.set_title(f"{data.focus}: as used")
    right.set_title(f"{data.focus}: undialled")
    left.set_ylabel("layer")
    for axes in (left, right):
        axes.set_xlabel("head")
    return figure


def _layer_axis(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def _fidelity_legend() -> Sequence[Line2D]:
    return (
        Line2D([], [], color=INK, linewidth=2, label="as used"),
        Line2D([], [], color=INK, linewidth=1.6, linestyle="--", label="undialled"),
        Line2D([], [], color=MUTED, linewidth=1, linestyle=":", label="uniform attention"),
    )


def _cells(figure: Figure, axes: Axes, table: NDArray[np.float64], scale: str | None, colours: str) -> None:
    """A grid of values in [0, 1] with its numbers in it; ``scale`` labels the colour bar, None leaves it out."""
    image = axes.imshow(table, vmin=0, vmax=1, cmap=colours, aspect="auto", interpolation="nearest")
    for side in axes.spines.values():
        side.set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if scale is not None:
        figure.colorbar(image, ax=axes, label=scale, fraction=0.05, pad=0.02)
    if max(table.shape) > _MAX_NUMBERED:
        return
    for (row, column), value in np.ndenumerate(table):
        red, green, blue, _ = image.cmap(value)
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.55
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if dark else INK)
