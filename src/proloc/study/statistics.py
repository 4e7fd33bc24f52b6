"""What the runs of a study say together: means, intervals and paired tests over seeds (ours).

Every comparison is *paired*: a condition and the reference are compared on the seeds that finished in both, so that
what a seed does to both cancels. Perplexities are averaged as logarithms, because a perplexity is the exponential of a
mean and a ratio of perplexities is a difference of logarithms: the mean shown is the geometric mean, and intervals are
t-intervals on the log scale, exponentiated. A number that the runs cannot support is ``None``, never a guess.

Imports neither torch nor transformers, so that a report can be made anywhere.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats
from statsmodels.stats.multitest import multipletests

from proloc.study.results import Metrics, PerHead, Record, RunResult, StudyRecord, run_name

REFERENCE = "distributed"
BEFORE_TUNING = "before tuning"
CONFIDENCE = 0.95
CONTROL_PREFIXES = ("reversed", "fixed", "random")
# Differences this small, relative to the values, are rounding and not variation between seeds.
_ROUNDING = 1e-12

Statistic = Literal["fidelity", "fidelity_undialled", "fidelity_without_sinks", "fidelity_lift", "entropy_bits"]


class Estimate(Record):
    """A mean over ``num`` seeds (or held-out windows, where that is said) and its 95% t-interval.

    ``low`` and ``high`` are None where there is no spread to estimate from: one seed, or seeds that agree to rounding.
    """

    mean: float
    low: float | None
    high: float | None
    num: int


class SeedValues(Record):
    """What one finished seed contributes to the figures; ``ratio`` is None where the reference lacks that seed."""

    seed: int
    perplexity: float
    ratio: float | None
    late_fidelity: float
    late_fidelity_undialled: float


class Comparison(Record):
    """A condition against the reference on the seeds that both finished.

    Attributes:
        ratio: geometric mean of the per-seed perplexity ratios; interval on the log-ratio, exponentiated.
        p: paired two-sided t-test on log-perplexity; None with fewer than 2 pairs or without spread.
        p_holm: ``p`` corrected by Holm over every condition of the study that has a ``p``.
        hedges_g_z: paired Cohen's d_z (mean over standard deviation of the log-ratios) times Hedges' correction;
            positive means a higher perplexity. None with fewer than 3 pairs, where the correction is 0 or undefined,
            or without spread.
        fidelity_gain: undialled fidelity minus the reference's: what training under the schedule added. None where the
            two were measured on different blocks (a control with blocks of its own), whose fidelities do not compare.
    """

    ratio: Estimate
    p: float | None
    p_holm: float | None
    hedges_g_z: float | None
    fidelity_gain: Estimate | None


class Measures(Record):
    """Means over the finished seeds of one condition.

    ``late_fidelity`` and ``late_fidelity_undialled`` average the last third of the layers (rounded up).
    ``entropy_bits`` is in bits, ``mean_block_length`` in tokens.
    """

    perplexity: Estimate
    fidelity: Estimate
    fidelity_undialled: Estimate
    fidelity_without_sinks: Estimate
    fidelity_uniform: Estimate
    fidelity_lift: Estimate
    late_fidelity: Estimate
    late_fidelity_undialled: Estimate
    entropy_bits: Estimate
    mean_block_length: Estimate


class ConditionSummary(Record):
    """One row of the results.

    Attributes:
        control: whether the condition is a control, told by its name (``CONTROL_PREFIXES``).
        num_finished, num_failed, num_missing: runs; they add up to the seeds of the plan.
        measures: None when no run finished.
        comparison: None when no seed finished in both this condition and the reference.
        untuned_ratio: perplexity before tuning, under this condition's dial and blocks, over the unmodified model's;
            interval over windows. None in results of older versions.
    """

    condition: str
    control: bool
    num_finished: int
    num_failed: int
    num_missing: int
    measures: Measures | None
    comparison: Comparison | None
    untuned_ratio: Estimate | None = None
    seeds: list[SeedValues]


class FailedRun(Record):
    """A run that left no usable measurement, and why."""

    condition: str
    seed: int
    error: str


class StudySummary(Record):
    """A whole study: one row per condition in the order of the plan, and the model before tuning.

    Attributes:
        baseline_ratio: perplexity before tuning over the reference's geometric mean: one measurement, no interval.
    """

    schema_version: Literal[1] = 1
    study: str
    reference: str = REFERENCE
    confidence: float = CONFIDENCE
    baseline: Measures
    baseline_ratio: float | None
    conditions: list[ConditionSummary]
    failed: list[FailedRun]
    missing: list[str]


def summarise(study: StudyRecord, runs: Sequence[RunResult]) -> StudySummary:
    """Summarise every condition of the plan; runs that failed are counted and named but enter no number."""
    done = {
        condition: {run.seed: usable for run in runs if run.condition == condition and (usable := usable_metrics(run))}
        for condition in study.conditions
    }
    reference = done.get(REFERENCE, {})
    compared = {condition: _compare(metrics, reference) for condition, metrics in done.items()}
    corrected = holm({name: c.p for name, c in compared.items() if c is not None and c.p is not None})
    rows = [
        _summarise_condition(
            name, runs, done[name], reference, len(study.seeds), _with_holm(compared[name], corrected.get(name))
        ).model_copy(update={"untuned_ratio": _untuned_ratio(name, runs, study.baseline)})
        for name in study.conditions
    ]
    known = {run_name(run.condition, run.seed) for run in runs}
    planned = [run_name(condition, seed) for condition in study.conditions for seed in study.seeds]
    return StudySummary(
        study=study.name,
        baseline=_measure([study.baseline]),
        baseline_ratio=_baseline_ratio(study.baseline, reference),
        conditions=rows,
        failed=[_failure(run) for run in runs if usable_metrics(run) is None],
        missing=[name for name in planned if name not in known],
    )


def usable_metrics(run: RunResult) -> Metrics | None:
    """The metrics of a finished run; None for a failed run or one whose perplexity is not a positive finite number."""
    if run.status != "finished" or run.metrics is None:
        return None
    perplexity = run.metrics.perplexity
    return run.metrics if math.isfinite(perplexity) and perplexity > 0 else None


def t_interval(values: Sequence[float]) -> Estimate:
    """Mean and two-sided 95% Student t-interval: ``mean ± t(0.975, n-1) * s / sqrt(n)``."""
    num, mean = len(values), float(np.mean(values))
    if num < 2 or not _has_spread(values):
        return Estimate(mean=mean, low=None, high=None, num=num)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, num - 1)) * float(np.std(values, ddof=1)) / math.sqrt(num)
    return Estimate(mean=mean, low=mean - half, high=mean + half, num=num)


def log_t_interval(values: Sequence[float]) -> Estimate:
    """Geometric mean of positive values and the t-interval of their logarithms, exponentiated."""
    if len(values) == 1:
        return t_interval(values)
    return log_ratio_interval([math.log(value) for value in values])


def log_ratio_interval(logs: Sequence[float]) -> Estimate:
    """``log_t_interval``, given the logarithms: differences of losses are those of ratios of perplexities."""
    estimate = t_interval(logs)
    low, high = (None if bound is None else math.exp(bound) for bound in (estimate.low, estimate.high))
    return Estimate(mean=math.exp(estimate.mean), low=low, high=high, num=estimate.num)


def paired_ratio(ours: Mapping[int, Metrics], theirs: Mapping[int, Metrics]) -> Estimate | None:
    """Perplexity of one condition over another on the seeds that both have, with ``log_t_interval``; None = no seed."""
    ratios = [_ratio(metrics, theirs[seed]) for seed, metrics in ours.items() if seed in theirs]
    return log_t_interval(ratios) if ratios else None


def paired_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of the paired t-test, given the differences; None with fewer than 2 pairs or without spread."""
    if len(differences) < 2 or not _has_spread(differences):
        return None
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def hedges_g_z(differences: Sequence[float]) -> float | None:
    """Paired effect size: ``J(n-1) * mean / s`` with ``J(m) = Γ(m/2) / (sqrt(m/2) Γ((m-1)/2))``.

    None with fewer than 3 pairs, because J(1) = 0 would report any effect of two seeds as none, and None without
    spread, where the ratio has no meaning.

    Source: Hedges 1981 for J; d_z is Cohen's.
    """
    num = len(differences)
    if num < 3 or not _has_spread(differences):
        return None
    freedom = num - 1
    correction = math.exp(special.gammaln(freedom / 2) - special.gammaln((freedom - 1) / 2)) / math.sqrt(freedom / 2)
    return correction * float(np.mean(differences)) / float(np.std(differences, ddof=1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction over all the given tests, by name."""
    if not p_values:
        return {}
    corrected = multipletests(list(p_values.values()), method="holm")[1]
    return {name: float(p) for name, p in zip(p_values, corrected, strict=True)}


def late_mean(per_layer: Sequence[float]) -> float:
    """Mean over the last third of the layers, rounded up to whole layers."""
    return float(np.mean(per_layer[-math.ceil(len(per_layer) / 3) :]))


def layer_means(metrics: Sequence[Metrics], statistic: Statistic) -> NDArray[np.float64]:
    """``[layer]``: one attention statistic per layer, mean over runs."""
    return _mean_over_runs([_per_head(one, statistic).per_layer for one in metrics])


def head_means(metrics: Sequence[Metrics], statistic: Statistic) -> NDArray[np.float64]:
    """``[layer, head]``: one attention statistic per head, mean over runs."""
    return _mean_over_runs([_per_head(one, statistic).per_head for one in metrics])


def is_control(condition: str) -> bool:
    """Whether a condition is a control, by the prefix of its name."""
    return condition.startswith(CONTROL_PREFIXES)


def _has_spread(values: Sequence[float]) -> bool:
    return float(np.ptp(values)) > _ROUNDING * max(1.0, float(np.max(np.abs(values))))


def _mean_over_runs(tables: Sequence[Sequence[float]] | Sequence[Sequence[Sequence[float]]]) -> NDArray[np.float64]:
    means: NDArray[np.float64] = np.array(tables, dtype=np.float64).mean(axis=0)
    return means


def _per_head(metrics: Metrics, statistic: Statistic) -> PerHead:
    value = getattr(metrics, statistic)
    assert isinstance(value, PerHead)
    return value


def _compare(metrics: Mapping[int, Metrics], reference: Mapping[int, Metrics]) -> Comparison | None:
    shared = [seed for seed in metrics if seed in reference]
    if not shared:
        return None
    ratios = [_ratio(metrics[seed], reference[seed]) for seed in shared]
    logs = [math.log(ratio) for ratio in ratios]
    return Comparison(
        ratio=log_t_interval(ratios),
        p=paired_p(logs),
        p_holm=None,
        hedges_g_z=hedges_g_z(logs),
        fidelity_gain=_fidelity_gain([(metrics[seed], reference[seed]) for seed in shared]),
    )


def _fidelity_gain(pairs: Sequence[tuple[Metrics, Metrics]]) -> Estimate | None:
    # Uniform attention's fidelity depends on text and blocks alone, so that it tells whether the blocks are the same.
    if not all(math.isclose(one.fidelity_uniform, other.fidelity_uniform, rel_tol=1e-6) for one, other in pairs):
        return None
    return t_interval([one.fidelity_undialled.mean - other.fidelity_undialled.mean for one, other in pairs])


def _with_holm(comparison: Comparison | None, p_holm: float | None) -> Comparison | None:
    return None if comparison is None else comparison.model_copy(update={"p_holm": p_holm})


def _ratio(metrics: Metrics, reference: Metrics) -> float:
    return metrics.perplexity / reference.perplexity


def _baseline_ratio(baseline: Metrics, reference: Mapping[int, Metrics]) -> float | None:
    if not reference:
        return None
    return log_t_interval([_ratio(baseline, one) for one in reference.values()]).mean


def _untuned_ratio(condition: str, runs: Sequence[RunResult], baseline: Metrics) -> Estimate | None:
    untuned = [run.untuned for run in runs if run.condition == condition and run.untuned is not None]
    losses = [one.window_losses for one in untuned if one.window_losses is not None]
    if not losses or baseline.window_losses is None:
        return None
    return log_ratio_interval((np.mean(losses, axis=0) - np.array(baseline.window_losses)).tolist())


def _measure(metrics: Sequence[Metrics]) -> Measures:
    def over_seeds(read: Callable[[Metrics], float]) -> Estimate:
        return t_interval([read(one) for one in metrics])

    return Measures(
        perplexity=log_t_interval([one.perplexity for one in metrics]),
        fidelity=over_seeds(lambda one: one.fidelity.mean),
        fidelity_undialled=over_seeds(lambda one: one.fidelity_undialled.mean),
        fidelity_without_sinks=over_seeds(lambda one: one.fidelity_without_sinks.mean),
        fidelity_uniform=over_seeds(lambda one: one.fidelity_uniform),
        fidelity_lift=over_seeds(lambda one: one.fidelity_lift.mean),
        late_fidelity=over_seeds(lambda one: late_mean(one.fidelity.per_layer)),
        late_fidelity_undialled=over_seeds(lambda one: late_mean(one.fidelity_undialled.per_layer)),
        entropy_bits=over_seeds(lambda one: one.entropy_bits.mean),
        mean_block_length=over_seeds(lambda one: one.mean_block_length),
    )


def _summarise_condition(
    condition: str,
    runs: Sequence[RunResult],
    metrics: Mapping[int, Metrics],
    reference: Mapping[int, Metrics],
    num_planned: int,
    comparison: Comparison | None,
) -> ConditionSummary:
    num_runs = sum(run.condition == condition for run in runs)
    return ConditionSummary(
        condition=condition,
        control=is_control(condition),
        num_finished=len(metrics),
        num_failed=num_runs - len(metrics),
        num_missing=num_planned - num_runs,
        measures=_measure(list(metrics.values())) if metrics else None,
        comparison=comparison,
        seeds=[_seed_values(seed, one, reference.get(seed)) for seed, one in metrics.items()],
    )


def _seed_values(seed: int, metrics: Metrics, reference: Metrics | None) -> SeedValues:
    return SeedValues(
        seed=seed,
        perplexity=metrics.perplexity,
        ratio=None if reference is None else _ratio(metrics, reference),
        late_fidelity=late_mean(metrics.fidelity.per_layer),
        late_fidelity_undialled=late_mean(metrics.fidelity_undialled.per_layer),
    )


def _failure(run: RunResult) -> FailedRun:
    error = run.error or "the run left no usable perplexity"
    return FailedRun(condition=run.condition, seed=run.seed, error=error)
