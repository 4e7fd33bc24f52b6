"""The attention of a few conditions on the sample passage, with the blocks outlined (ours)."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from proloc.report.canvas import OUTLINE, new_figure
from proloc.report.data import ReportData
from proloc.study.results import Sample

SHOWN = ("distributed", "quintic", "localist", "reversed")
# Attention falls off steeply; the square root keeps weights of 1% visible beside weights of 50%.
_POWER = 0.5


def shown_samples(data: ReportData) -> dict[str, Sample]:
    """The sample of the first seed that has one, for each condition shown."""
    samples: dict[str, Sample] = {}
    for condition in SHOWN:
        found = [run.sample for run in data.finished(condition) if run.sample and run.sample.layers]
        if found:
            samples[condition] = found[0]
    return samples


def attention_figure(data: ReportData) -> Figure | None:
    """Attention of an early layer (top) and a late layer (bottom), one column per condition; None without samples."""
    samples = shown_samples(data)
    if not samples:
        return None
    figure = new_figure(5.3)
    panels = figure.subplots(2, len(samples), squeeze=False)
    tops = [np.max(layer.weights) for sample in samples.values() for layer in (sample.layers[0], sample.layers[-1])]
    norm = PowerNorm(_POWER, vmin=0, vmax=float(max(tops)))
    for column, (condition, sample) in enumerate(samples.items()):
        for axes, layer in zip(panels[:, column], (sample.layers[0], sample.layers[-1]), strict=True):
            image = axes.imshow(_visible(layer.weights), norm=norm, cmap="YlGnBu", interpolation="nearest")
            _outline_blocks(axes, sample.block_ids)
            axes.set_title(f"{condition}, layer {layer.layer}")
            axes.tick_params(labelsize=7)
    for axes in panels[:, 0]:
        axes.set_ylabel("query token")
    for axes in panels[1]:
        axes.set_xlabel("key token")
    figure.colorbar(image, ax=panels, label="attention weight (square-root scale)", shrink=0.6, pad=0.01)
    return figure


def block_spans(block_ids: Sequence[int]) -> list[tuple[int, int]]:
    """Start and end (exclusive) of each run of equal block ids."""
    starts = [0, *(i for i in range(1, len(block_ids)) if block_ids[i] != block_ids[i - 1])]
    return list(zip(starts, [*starts[1:], len(block_ids)], strict=True))


def _visible(weights: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """The weights with the future left blank."""
    table = np.array(weights, dtype=np.float64)
    table[np.triu_indices_from(table, k=1)] = np.nan
    return table


def _outline_blocks(axes: Axes, block_ids: Sequence[int]) -> None:
    for start, end in block_spans(block_ids):
        corner, size = (start - 0.5, start - 0.5), end - start
        axes.add_patch(Rectangle(corner, size, size, fill=False, edgecolor=OUTLINE, linewidth=0.9))
