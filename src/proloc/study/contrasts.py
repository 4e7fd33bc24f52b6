"""What a condition's blocks buy: its perplexity over that of controls with the same schedule and other blocks (ours).

Two kinds of chance are kept apart. Over *windows*: the difference in loss on each held-out window, averaged over the
seeds that finished in both conditions; its interval says what another stretch of the same text would give. Over
*seeds*: the difference averaged over windows; its interval says what tuning again would give. Neither covers the other.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np

from proloc.study.results import Metrics, Record, RunResult
from proloc.study.statistics import REFERENCE, Estimate, is_control, log_ratio_interval, usable_metrics


class Contrast(Record):
    """One condition against one control.

    Attributes:
        untuned: perplexity ratio before tuning, each under its own dial and blocks; interval over windows.
        tuned: the same after tuning, on the seeds that both finished; interval over windows.
        tuned_over_seeds: as ``tuned``, with the interval over those seeds.
    """

    condition: str
    control: str
    untuned: Estimate | None
    tuned: Estimate | None
    tuned_over_seeds: Estimate | None


def contrasts(conditions: Sequence[str], runs: Sequence[RunResult]) -> list[Contrast]:
    """Every condition against every control that has its schedule, mode and overrides, in the order of the plan.

    Files of older versions hold no losses of windows; what needs them is None then.
    """
    done = {
        name: {run.seed: run for run in runs if run.condition == name and usable_metrics(run)} for name in conditions
    }
    measured = [name for name in conditions if done[name]]
    adaptive = [name for name in measured if name != REFERENCE and not is_control(name)]
    controls = [name for name in measured if is_control(name)]
    return [
        _contrast(name, control, done[name], done[control])
        for name, control in product(adaptive, controls)
        if _acts(done[name]) == _acts(done[control])
    ]


def _acts(runs: dict[int, RunResult]) -> tuple[list[float], object, object]:
    """What a condition does, whatever its blocks: schedule, mode and overrides."""
    first = next(iter(runs.values()))
    return first.localities, first.config.get("mode"), first.config.get("condition", {}).get("override") or {}


def _contrast(name: str, control: str, ours: dict[int, RunResult], theirs: dict[int, RunResult]) -> Contrast:
    shared = [seed for seed in ours if seed in theirs]
    tuned = [(ours[seed].metrics, theirs[seed].metrics) for seed in shared]
    untuned = [(ours[seed].untuned, theirs[seed].untuned) for seed in shared]
    by_seed = [one.loss - other.loss for one, other in tuned if one and other]
    return Contrast(
        condition=name,
        control=control,
        untuned=_over_windows(untuned),
        tuned=_over_windows(tuned),
        tuned_over_seeds=log_ratio_interval(by_seed) if by_seed else None,
    )


def _over_windows(pairs: Sequence[tuple[Metrics | None, Metrics | None]]) -> Estimate | None:
    """The perplexity ratio and its interval over windows, seeds averaged."""
    losses = [(one.window_losses, other.window_losses) for one, other in pairs if one and other]
    differences = [np.subtract(one, other) for one, other in losses if one and other]
    if not differences or len(differences) < len(pairs):
        return None
    return log_ratio_interval(np.mean(differences, axis=0).tolist())
