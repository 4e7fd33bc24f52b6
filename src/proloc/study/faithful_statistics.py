"""Faithfulness of a study's explanations: means over passages, and paired differences to the reference condition."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from scipy import stats

from proloc.explaining.record import Faithfulness
from proloc.study.results import FaithfulnessResult, Record
from proloc.study.statistics import CONFIDENCE, REFERENCE

SURROGATE = "lasso"
RESAMPLES = 10_000


class Interval(Record):
    """A mean over ``num`` passages and its 95% bootstrap interval (BCa); None where there is no spread to resample."""

    mean: float
    low: float | None
    high: float | None
    num: int


class MethodSummary(Record):
    """One method under one condition, over passages of one kind; each passage is first averaged over seeds.

    Attributes:
        lds, top_drop, comprehensiveness, sufficiency: means over the passages that have them; None where none has.
        hit: share of passages whose strongest source is the true one.
        gap: LDS of the surrogate minus that of this method.
        lds_gain, gap_change: the same minus those of the reference condition, paired by passage and seed.
    """

    condition: str
    kind: str
    method: str
    num_seeds: int
    lds: Interval | None
    top_drop: Interval | None
    comprehensiveness: Interval | None
    sufficiency: Interval | None
    hit: Interval | None
    gap: Interval | None
    lds_gain: Interval | None
    gap_change: Interval | None


class FaithfulnessSummary(Record):
    """All methods under all conditions."""

    schema_version: Literal[1] = 1
    study: str
    reference: str = REFERENCE
    confidence: float = CONFIDENCE
    methods: list[MethodSummary]


def summarise_faithfulness(study: str, results: Sequence[FaithfulnessResult]) -> FaithfulnessSummary:
    """Summarise what every run measured; results of one study, in the order of its plan."""
    runs = {(result.condition, result.seed): result for result in results}
    reference = {seed: result for (condition, seed), result in runs.items() if condition == REFERENCE}
    rows = []
    for condition in dict.fromkeys(result.condition for result in results):
        mine = {seed: result for (name, seed), result in runs.items() if name == condition}
        shown = next(iter(mine.values())).passages
        for kind in dict.fromkeys(passage.kind for passage in shown):
            names = [passage.methods for passage in shown if passage.kind == kind]
            for method in dict.fromkeys(name for methods in names for name in methods):
                rows.append(_summarise(condition, kind, method, mine, {} if condition == REFERENCE else reference))
    return FaithfulnessSummary(study=study, methods=rows)


def bootstrap(values: Sequence[float]) -> Interval | None:
    """Mean and bias-corrected and accelerated bootstrap interval, resampling passages; None for no values.

    Source: Efron (1987), as ``scipy.stats.bootstrap`` does it.
    """
    if not values:
        return None
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if array.size < 3 or np.ptp(array) < 1e-12:
        return Interval(mean=mean, low=None, high=None, num=array.size)
    random = np.random.default_rng(0)
    found = stats.bootstrap(
        (array,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="BCa", rng=random
    ).confidence_interval
    low, high = (float(bound) if np.isfinite(bound) else None for bound in found)
    return Interval(mean=mean, low=low, high=high, num=array.size)


Read = Callable[[Mapping[str, Faithfulness]], float | None]


def _summarise(
    condition: str,
    kind: str,
    method: str,
    mine: Mapping[int, FaithfulnessResult],
    reference: Mapping[int, FaithfulnessResult],
) -> MethodSummary:
    def of(name: str) -> Read:
        return lambda methods: _number(methods, method, name)

    def gap(methods: Mapping[str, Faithfulness]) -> float | None:
        best, own = _number(methods, SURROGATE, "lds"), _number(methods, method, "lds")
        return None if best is None or own is None else best - own

    def mean(read: Read) -> Interval | None:
        return bootstrap(list(_over_seeds(mine, kind, read).values()))

    def difference(read: Read) -> Interval | None:
        shared = [seed for seed in mine if seed in reference]
        ours = _by_run({seed: mine[seed] for seed in shared}, kind, read)
        theirs = _by_run({seed: reference[seed] for seed in shared}, kind, read)
        pairs: dict[str, list[float]] = {}
        for key in ours.keys() & theirs.keys():
            pairs.setdefault(key[0], []).append(ours[key] - theirs[key])
        return bootstrap([float(np.mean(pairs[passage])) for passage in sorted(pairs)])

    return MethodSummary(
        condition=condition,
        kind=kind,
        method=method,
        num_seeds=len(mine),
        lds=mean(of("lds")),
        top_drop=mean(of("top_drop")),
        comprehensiveness=mean(of("comprehensiveness")),
        sufficiency=mean(of("sufficiency")),
        hit=mean(of("hit")),
        gap=mean(gap),
        lds_gain=difference(of("lds")),
        gap_change=difference(gap),
    )


def _number(methods: Mapping[str, Faithfulness], method: str, name: str) -> float | None:
    value = getattr(methods[method], name) if method in methods else None
    return None if value is None else float(value)


def _by_run(runs: Mapping[int, FaithfulnessResult], kind: str, read: Read) -> dict[tuple[str, int], float]:
    """Values by passage and seed, where there are any."""
    return {
        (passage.passage, seed): value
        for seed, run in runs.items()
        for passage in run.passages
        if passage.kind == kind and (value := read(passage.methods)) is not None
    }


def _over_seeds(runs: Mapping[int, FaithfulnessResult], kind: str, read: Read) -> dict[str, float]:
    """Values by passage, mean over seeds."""
    values: dict[str, list[float]] = {}
    for (passage, _), value in _by_run(runs, kind, read).items():
        values.setdefault(passage, []).append(value)
    return {passage: float(np.mean(each)) for passage, each in values.items()}
