"""Figures of the trade itself: cost against how much is local, and how a budget got there (ours)."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from proloc.report.canvas import INK, MUTED, grid_behind, label_points, look_of, new_figure
from proloc.report.data import ReportData
from proloc.study.results import RunResult, TrainingPoint
from proloc.study.statistics import ConditionSummary, Estimate

PAPER = ("distributed", "linear", "cubic", "quintic", "localist")
# What a marker stands for: colour and shape.
_GROUPS = {
    "the paper's five": ("#0072b2", "o"),
    "last layers hard": ("#d55e00", "s"),
    "a budget": ("#009e73", "*"),
    "control": (INK, "D"),
    "other": (MUTED, "."),
}


def hard_layers_figure(data: ReportData) -> Figure | None:
    """Cost against late undialled fidelity and against the layers' worth of locality; None without hard last layers."""
    rows = [row for row in data.measured if row.comparison is not None]
    groups = {row.condition: _group(data, row) for row in rows}
    if not {"last layers hard", "a budget"} & set(groups.values()):
        return None
    figure = new_figure(4.6)
    fidelity, layers = figure.subplots(1, 2, sharey=True)
    names: dict[Axes, list[tuple[str, float, float]]] = {fidelity: [], layers: []}
    for row in rows:
        assert row.comparison is not None
        assert row.measures is not None  # it was compared
        colour, marker = _GROUPS[groups[row.condition]]
        late, worth = row.measures.late_fidelity_undialled.mean, _layers_worth(data, row.condition)
        for axes, place in ((fidelity, late), (layers, worth)):
            _point(axes, place, row.comparison.ratio, colour, marker)
            if groups[row.condition] != "other":
                names[axes].append((row.condition, place, row.comparison.ratio.mean))
    fidelity.set_xlabel("undialled fidelity, last third of the layers")
    layers.set_xlabel("locality summed over layers (hard layers, where they are)")
    fidelity.set_ylabel(f"perplexity ÷ {data.summary.reference}, same seed")
    for axes in (fidelity, layers):
        axes.axhline(1.0, color=MUTED, linewidth=1, linestyle=":")
        axes.axhline(1.01, color="#009e73", linewidth=1, linestyle=":")
        grid_behind(axes, "both")
    seen = [name for name in _GROUPS if name in groups.values()]
    handles = [Line2D([], [], color=_GROUPS[n][0], marker=_GROUPS[n][1], linestyle="", label=n) for n in seen]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    figure.draw_without_rendering()  # settles the layout, and with it how far apart points are
    for axes, labels in names.items():
        label_points(axes, labels)
    return figure


def budget_figure(data: ReportData) -> Figure | None:
    """What a budget pushed, its multiplier and what was used of it, against steps; None without a budget."""
    spending = {
        row.condition: [run for run in data.finished(row.condition) if any(_points(run))] for row in data.measured
    }
    if not any(spending.values()):
        return None
    figure = new_figure(3.2)
    panels = figure.subplots(1, 3)
    handles = []
    for condition, runs in spending.items():
        colour = look_of(data, condition).colour
        for run in runs:
            points = _points(run)
            steps = [point.step for point in points]
            panels[0].plot(steps, [point.share for point in points], color=colour, linewidth=1.2)
            panels[1].plot(steps, [point.log_multiplier for point in points], color=colour, linewidth=1.2)
            panels[2].plot(steps, [100 * math.expm1(point.gap or 0.0) for point in points], color=colour, linewidth=1.2)
            panels[2].axhline(100 * run.config["budget"]["cost"], color=colour, linewidth=1, linestyle=":")
        if runs:
            handles.append(Line2D([], [], color=colour, label=condition))
    titles = ("share of what is pushed", "log of the multiplier", "cost on training batches (%)")
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title)
        axes.set_xlabel("optimiser step")
        grid_behind(axes, "y")
    ends = [100 * math.expm1(p.gap or 0.0) for runs in spending.values() for run in runs for p in _points(run)[10:]]
    if ends:
        low, high = np.percentile(ends, [1, 99])
        panels[2].set_ylim(min(low, -1.0), max(high, 2.0))
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def _points(run: RunResult) -> list[TrainingPoint]:
    return [point for point in run.training.log if point.share is not None] if run.training else []


def _point(axes: Axes, place: float, ratio: Estimate, colour: str, marker: str) -> None:
    axes.plot([place], [ratio.mean], color=colour, marker=marker, markersize=10 if marker == "*" else 6, linestyle="")
    if ratio.low is not None and ratio.high is not None:
        axes.plot([place, place], [ratio.low, ratio.high], color=colour, linewidth=1.2, alpha=0.6)


def _group(data: ReportData, row: ConditionSummary) -> str:
    run = data.finished(row.condition)[0]
    if row.condition in PAPER:
        return "the paper's five"
    if row.control:
        return "control"
    if run.config.get("budget", {}).get("cost"):
        return "a budget"
    plain = not run.config.get("condition", {}).get("override") and run.config.get("halo", 0) == 0
    hard = sorted(run.localities) == run.localities and set(run.localities) == {0.0, 1.0}
    return "last layers hard" if hard and plain and _of_the_study(run) else "other"


def _of_the_study(run: RunResult) -> bool:
    """Whether a run reads the study's own semantic blocks."""
    return bool(run.config.get("condition", {}).get("blocks", "semantic") == "semantic")


def _layers_worth(data: ReportData, condition: str) -> float:
    """Sum of dial * lambda_l, mean over seeds; 0 after mode "soft", which dials nothing."""
    runs: Sequence[RunResult] = data.finished(condition)

    def worth(run: RunResult) -> float:
        dial = run.config.get("training", {}).get("dial", 1.0)
        if run.config.get("mode") == "soft":
            return 0.0
        return (dial if isinstance(dial, int | float) else 1.0) * sum(run.localities)

    return float(np.mean([worth(run) for run in runs]))
