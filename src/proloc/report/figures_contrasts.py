"""The figure of what a condition's blocks buy over controls with the same schedule (ours)."""

from matplotlib.figure import Figure

from proloc.report.canvas import INK, MUTED, grid_behind, look_of, new_figure
from proloc.report.data import ReportData
from proloc.report.rows_contrasts import contrast_rows


def contrasts_figure(data: ReportData) -> Figure | None:
    """Perplexity ratio to each control, before and after tuning; None without losses of windows."""
    rows = [row for row in data.contrasts if row.tuned]
    if not rows:
        return None
    figure = new_figure(1.7 + 0.3 * len(rows))
    panels = figure.subplots(1, 2, sharey=True, sharex=True)
    for axes, name, title in zip(panels, ("untuned", "tuned"), ("before tuning", "tuned"), strict=True):
        for place, row in enumerate(rows):
            estimate = getattr(row, name)
            if estimate is None:
                continue
            look = look_of(data, row.condition)
            if estimate.low is not None and estimate.high is not None:
                axes.plot([estimate.low, estimate.high], [place, place], color=look.colour, linewidth=5, alpha=0.35)
            axes.plot([estimate.mean], [place], color=INK, marker=look.marker, linestyle="", markersize=5)
        axes.axvline(1.0, color=MUTED, linewidth=1, linestyle=":")
        axes.set_title(title)
        axes.set_xlabel("perplexity ÷ control's")
        grid_behind(axes, "x")
    panels[0].set_yticks(range(len(rows)), [cells[0] for cells in contrast_rows(rows)])
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure
