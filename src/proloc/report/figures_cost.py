"""Figures of what a schedule costs: perplexity, cost against fidelity, training curves (ours)."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from proloc.report.canvas import INK, MUTED, grid_behind, label_of, legend_right, look_of, new_figure
from proloc.report.data import ReportData
from proloc.study.results import RunResult
from proloc.study.statistics import ConditionSummary, Estimate

# Beyond this factor between the extremes, a linear axis would press the small differences together.
_LOG_FACTOR = 3.0
_SMOOTHING_SHARE = 25


def perplexity_figure(data: ReportData) -> Figure:
    """Perplexity and its ratio to the reference: every seed a dot, mean and interval a bar."""
    rows = data.measured
    figure = new_figure(1.3 + 0.42 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    for place, row in enumerate(rows):
        look = look_of(data, row.condition)
        perplexities = [seed.perplexity for seed in row.seeds]
        _dots(left, place, perplexities, row.measures.perplexity if row.measures else None, look.colour, look.marker)
        ratios = [seed.ratio for seed in row.seeds if seed.ratio is not None]
        interval = row.comparison.ratio if row.comparison else None
        _dots(right, place, ratios, interval, look.colour, look.marker)
    left.set_yticks(range(len(rows)), [label_of(row) for row in rows])
    left.set_ylim(len(rows) - 0.5, -0.5)
    left.set_xlabel("perplexity on held-out text")
    right.set_xlabel(f"perplexity ÷ {data.summary.reference}, same seed")
    right.axvline(1.0, color=MUTED, linewidth=1, linestyle=":")
    _scale(left, [seed.perplexity for row in rows for seed in row.seeds], "x")
    _scale(right, _ratios(rows), "x")
    for axes in (left, right):
        grid_behind(axes, "x")
    return figure


def front_figure(data: ReportData) -> Figure | None:
    """Perplexity ratio against late-layer fidelity, as used and before the dial; None without any ratio."""
    ratios = _ratios(data.measured)
    if not ratios:
        return None
    figure = new_figure(3.9)
    used, undialled = figure.subplots(1, 2, sharey=True, sharex=True)
    for row in data.measured:
        look, seeds = look_of(data, row.condition), [seed for seed in row.seeds if seed.ratio is not None]
        costs = [seed.ratio for seed in seeds]
        style = {"color": look.colour, "marker": look.marker, "linestyle": "", "markersize": 7, "alpha": 0.85}
        used.plot([seed.late_fidelity for seed in seeds], costs, **style)
        undialled.plot([seed.late_fidelity_undialled for seed in seeds], costs, **style)
    used.set_title("as used (a hard mask reaches 1 by construction)")
    undialled.set_title("undialled (what the model learned)")
    used.set_ylabel(f"perplexity ÷ {data.summary.reference}, same seed")
    _scale(used, ratios, "y")
    for axes in (used, undialled):
        axes.axhline(1.0, color=MUTED, linewidth=1, linestyle=":")
        axes.set_xlabel("fidelity, last third of the layers")
        grid_behind(axes, "both")
    legend_right(figure, data, line=False, marker=True)
    return figure


def training_figure(data: ReportData) -> Figure | None:
    """Cross-entropy and penalty against step, mean over seeds; None when no run logged its training."""
    logged = {
        row.condition: [r for r in data.finished(row.condition) if r.training and r.training.log]
        for row in data.measured
    }
    if not any(logged.values()):
        return None
    penalised = any(
        point.penalty for runs in logged.values() for run in runs if run.training for point in run.training.log
    )
    figure = new_figure(3.4)
    panels = figure.subplots(1, 2 if penalised else 1, squeeze=False)[0]
    names = ("loss", "penalty")[: len(panels)]
    for axes, name in zip(panels, names, strict=True):
        for condition, runs in logged.items():
            if runs:
                steps, values = _curve(runs, name)
                axes.plot(steps, values, color=look_of(data, condition).colour, linewidth=1.5)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("nats per token")
        grid_behind(axes, "y")
    panels[0].set_title("cross-entropy")
    if penalised:
        panels[1].set_title("weighted penalty")
    legend_right(figure, data, line=True, marker=False)
    return figure


def _ratios(rows: Sequence[ConditionSummary]) -> list[float]:
    return [seed.ratio for row in rows for seed in row.seeds if seed.ratio is not None]


def _dots(axes: Axes, place: int, values: Sequence[float], estimate: Estimate | None, colour: str, marker: str) -> None:
    if estimate is None:
        return
    if estimate.low is not None and estimate.high is not None:
        axes.plot([estimate.low, estimate.high], [place, place], color=colour, linewidth=5, alpha=0.3, zorder=1)
    axes.plot([estimate.mean] * 2, [place - 0.24, place + 0.24], color=INK, linewidth=1.3, zorder=2)
    axes.plot(
        values, [place] * len(values), color=colour, marker=marker, linestyle="", markersize=6, alpha=0.85, zorder=3
    )


def _scale(axes: Axes, values: Sequence[float], axis: str) -> None:
    """Fit an axis to the dots with room for intervals; one that is far wider (2 seeds) runs out of the panel."""
    if not values:
        return
    low, high = min(values), max(values)
    ticks, set_scale = (axes.xaxis, axes.set_xscale) if axis == "x" else (axes.yaxis, axes.set_yscale)
    set_limits = axes.set_xlim if axis == "x" else axes.set_ylim
    if high / low > _LOG_FACTOR:
        set_scale("log")
        room = (high / low) ** 0.12
        set_limits(low / room, high * room)
        ticks.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ticks.set_minor_locator(NullLocator())
        ticks.set_major_formatter(FormatStrFormatter("%g"))
        return
    room = 0.12 * (high - low) or 0.02 * high
    set_limits(low - room, high + room)


def _curve(runs: Sequence[RunResult], name: str) -> tuple[list[int], NDArray[np.float64]]:
    by_step: defaultdict[int, list[float]] = defaultdict(list)
    for run in runs:
        for point in run.training.log if run.training else []:
            by_step[point.step].append(point.loss if name == "loss" else point.penalty)
    steps = sorted(by_step)
    return steps, _running_mean(np.array([np.mean(by_step[step]) for step in steps]))


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred running mean over a 25th of the points, its window shortened at both ends."""
    width = max(1, len(values) // _SMOOTHING_SHARE)
    weights = np.ones(2 * (width // 2) + 1)
    return np.asarray(np.convolve(values, weights, "same") / np.convolve(np.ones_like(values), weights, "same"))
