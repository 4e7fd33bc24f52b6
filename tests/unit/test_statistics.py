"""Statistics over seeds: numbers worked out by hand, and properties that hold for any study."""

import math
import subprocess
import sys
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from result_files import (
    FIDELITY_UNIFORM,
    make_failed_run,
    make_localities,
    make_metrics,
    make_run,
    make_runs,
    make_study,
)

from proloc.study.results import RunResult
from proloc.study.statistics import (
    REFERENCE,
    ConditionSummary,
    head_means,
    hedges_g_z,
    holm,
    is_control,
    late_mean,
    layer_means,
    log_t_interval,
    paired_p,
    summarise,
    t_interval,
    usable_metrics,
)

PERPLEXITIES = st.floats(1.5, 1e4)
PAIRS = st.lists(st.tuples(PERPLEXITIES, PERPLEXITIES), min_size=2, max_size=6)


@cache
def template(condition: str) -> RunResult:
    """A run to copy, made once because its sample takes long to make."""
    return make_run(condition, 0)


def runs_with(perplexities: dict[str, list[float]]) -> list[RunResult]:
    """Finished runs with these perplexities, seeds counted from 0."""
    return [
        template(condition).model_copy(
            update={"seed": seed, "metrics": make_metrics(value, make_localities(condition))}
        )
        for condition, values in perplexities.items()
        for seed, value in enumerate(values)
    ]


def summarise_these(perplexities: dict[str, list[float]]) -> dict[str, ConditionSummary]:
    num_seeds = max(len(values) for values in perplexities.values())
    study = make_study(list(perplexities), list(range(num_seeds)))
    return {row.condition: row for row in summarise(study, runs_with(perplexities)).conditions}


def test_t_interval_by_hand() -> None:
    # s = 1, t(0.975, 2) = 4.302653, half width = 4.302653 / sqrt(3) = 2.484138
    estimate = t_interval([1.0, 2.0, 3.0])
    assert estimate.mean == 2.0
    assert estimate.low == pytest.approx(2 - 2.484138, abs=1e-6)
    assert estimate.high == pytest.approx(2 + 2.484138, abs=1e-6)


def test_log_interval_is_the_t_interval_of_logarithms_exponentiated() -> None:
    # the logarithms are 1, 2, 3
    estimate = log_t_interval([math.e, math.e**2, math.e**3])
    assert estimate.mean == pytest.approx(math.e**2)
    assert estimate.low == pytest.approx(math.exp(2 - 2.484138), rel=1e-6)
    assert estimate.high == pytest.approx(math.exp(2 + 2.484138), rel=1e-6)


@pytest.mark.parametrize("values", [[7.5], [7.5, 7.5], [0.1 + 0.2, 0.3]], ids=["one", "equal", "equal to rounding"])
def test_no_interval_without_spread(values: list[float]) -> None:
    estimate = t_interval(values)
    assert (estimate.low, estimate.high) == (None, None)
    assert estimate.num == len(values)


def test_one_perplexity_is_reported_unchanged() -> None:
    assert log_t_interval([41.7]).mean == 41.7


def test_paired_p_by_hand() -> None:
    # mean 2, s = 1, t = 2 sqrt(3) = 3.464102; with 2 degrees of freedom p = 1 - t / sqrt(2 + t^2)
    t = 2 * math.sqrt(3)
    assert paired_p([1.0, 2.0, 3.0]) == pytest.approx(1 - t / math.sqrt(2 + t * t))


def test_hedges_g_z_by_hand() -> None:
    # d_z = 2; J(2) = Γ(1) / (1 · Γ(1/2)) = 1 / sqrt(π)
    assert hedges_g_z([1.0, 2.0, 3.0]) == pytest.approx(2 / math.sqrt(math.pi))
    # s = sqrt(5/3) for 1..4; J(3) = Γ(3/2) / (sqrt(3/2) · Γ(1)) = sqrt(π) / (2 sqrt(3/2))
    expected = 2.5 / math.sqrt(5 / 3) * math.sqrt(math.pi) / (2 * math.sqrt(1.5))
    assert hedges_g_z([1.0, 2.0, 3.0, 4.0]) == pytest.approx(expected)


@pytest.mark.parametrize("differences", [[1.0], [1.0, 2.0], [1.0, 1.0, 1.0]], ids=["one", "two", "no spread"])
def test_no_effect_size_where_it_has_no_meaning(differences: list[float]) -> None:
    assert hedges_g_z(differences) is None


@pytest.mark.parametrize("differences", [[1.0], [1.0, 1.0, 1.0]], ids=["one", "no spread"])
def test_no_p_where_it_has_no_meaning(differences: list[float]) -> None:
    assert paired_p(differences) is None


def test_holm_by_hand() -> None:
    # sorted 0.01, 0.02, 0.04 times 3, 2, 1, made monotone
    assert holm({"a": 0.04, "b": 0.01, "c": 0.02}) == pytest.approx({"a": 0.04, "b": 0.03, "c": 0.04})
    assert holm({}) == {}


def test_late_mean_takes_the_last_third_rounded_up() -> None:
    assert late_mean([0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0]) == 2.0
    assert late_mean([0.0, 0.0, 0.0, 0.0, 1.0, 3.0]) == 2.0
    assert late_mean([5.0]) == 5.0


def test_ratio_is_the_geometric_mean_of_the_ratios_of_the_same_seeds() -> None:
    rows = summarise_these({"distributed": [10.0, 20.0, 40.0], "quintic": [11.0, 24.0, 52.0]})
    compared = rows["quintic"].comparison
    assert compared is not None
    assert compared.ratio.mean == pytest.approx((1.1 * 1.2 * 1.3) ** (1 / 3))
    assert [seed.ratio for seed in rows["quintic"].seeds] == pytest.approx([1.1, 1.2, 1.3])
    assert compared.p == pytest.approx(paired_p([math.log(1.1), math.log(1.2), math.log(1.3)]))
    assert compared.p_holm == compared.p, "the only test of the study needs no correction"


def test_only_seeds_finished_in_both_are_paired() -> None:
    rows = summarise_these({"distributed": [10.0, 20.0], "quintic": [11.0, 24.0, 500.0]})
    compared, measures = rows["quintic"].comparison, rows["quintic"].measures
    assert compared is not None
    assert measures is not None
    assert compared.ratio.num == 2
    assert compared.ratio.mean == pytest.approx(math.sqrt(1.1 * 1.2))
    assert measures.perplexity.num == 3
    assert rows["quintic"].seeds[2].ratio is None
    assert rows["distributed"].num_missing == 1


def test_means_over_seeds_and_what_the_schedule_adds() -> None:
    rows = summarise_these({"distributed": [10.0, 12.0], "localist": [11.0, 13.0]})
    measures, compared = rows["localist"].measures, rows["localist"].comparison
    assert measures is not None
    assert compared is not None
    assert measures.fidelity.mean == pytest.approx(1.0), "a hard mask in every layer"
    assert measures.late_fidelity_undialled.mean == pytest.approx(0.45 + 0.01 * 6 + 0.1)
    assert measures.fidelity_lift.mean == pytest.approx(1 / FIDELITY_UNIFORM)
    assert measures.fidelity_without_sinks.mean == pytest.approx(0.8)
    assert measures.entropy_bits.mean == pytest.approx(3.0)
    assert compared.fidelity_gain is not None
    assert compared.fidelity_gain.mean == pytest.approx(0.1), "make_metrics adds 0.1 per unit of locality"


def test_no_fidelity_gain_between_different_blocks() -> None:
    runs = runs_with({"distributed": [10.0], "random": [11.0]})
    assert runs[1].metrics is not None
    other_blocks = runs[1].metrics.model_copy(update={"fidelity_uniform": 0.25})
    runs[1] = runs[1].model_copy(update={"metrics": other_blocks})
    compared = summarise(make_study(["distributed", "random"], [0]), runs).conditions[1].comparison
    assert compared is not None
    assert compared.fidelity_gain is None
    assert compared.ratio.mean == pytest.approx(1.1), "perplexities compare all the same"


def test_failed_and_missing_runs_are_counted_and_named_and_enter_no_number() -> None:
    study = make_study(["distributed", "quintic"])
    runs = [
        *(make_run("distributed", seed) for seed in study.seeds),
        make_run("quintic", 0),
        make_failed_run("quintic", 1),
    ]
    summary = summarise(study, runs)
    quintic = summary.conditions[1]
    assert (quintic.num_finished, quintic.num_failed, quintic.num_missing) == (1, 1, 1)
    assert summary.failed[0].error == "loss became NaN at step 17"
    assert summary.missing == ["quintic-seed2"]
    assert quintic.measures is not None
    assert quintic.measures.perplexity.num == 1
    assert quintic.measures.perplexity.low is None
    assert quintic.comparison is not None
    assert (quintic.comparison.p, quintic.comparison.p_holm, quintic.comparison.hedges_g_z) == (None, None, None)


@pytest.mark.parametrize("perplexity", [math.nan, math.inf, 0.0])
def test_a_finished_run_without_a_usable_perplexity_counts_as_failed(perplexity: float) -> None:
    run = make_run("quintic", 0)
    assert run.metrics is not None
    broken = run.model_copy(update={"metrics": run.metrics.model_copy(update={"perplexity": perplexity})})
    assert usable_metrics(broken) is None
    summary = summarise(make_study(["distributed", "quintic"], [0]), [broken])
    assert summary.failed[0].error == "the run left no usable perplexity"
    assert summary.conditions[1].measures is None


def test_without_the_reference_there_is_no_ratio() -> None:
    study = make_study(["quintic", "localist"], [0, 1])
    summary = summarise(study, make_runs(study))
    assert all(row.comparison is None and row.measures is not None for row in summary.conditions)
    assert summary.baseline_ratio is None


def test_baseline_is_one_measurement_over_the_geometric_mean_of_the_reference() -> None:
    study = make_study([REFERENCE], [0, 1])
    summary = summarise(study, runs_with({REFERENCE: [10.0, 40.0]}))
    assert summary.baseline_ratio == pytest.approx(41.7 / 20)
    assert summary.baseline.perplexity.mean == 41.7
    assert summary.baseline.perplexity.low is None


def test_controls_are_told_by_name() -> None:
    assert [is_control(name) for name in ("reversed", "fixed-blocks", "random", "quintic", "distributed")] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_layer_and_head_means_over_runs() -> None:
    metrics = [make_metrics(20.0, [0.0, 0.0], learned=0.0), make_metrics(20.0, [1.0, 1.0], learned=0.2)]
    assert layer_means(metrics, "fidelity_undialled") == pytest.approx([0.55, 0.56])
    assert head_means(metrics, "fidelity_undialled").shape == (2, 4)


@settings(deadline=None, max_examples=50)
@given(values=st.lists(PERPLEXITIES, min_size=1, max_size=8))
def test_interval_contains_the_mean(values: list[float]) -> None:
    for estimate in (t_interval(values), log_t_interval(values)):
        if estimate.low is not None and estimate.high is not None:
            assert estimate.low <= estimate.mean <= estimate.high


@settings(deadline=None, max_examples=30)
@given(values=st.lists(PERPLEXITIES, min_size=1, max_size=5))
def test_reference_over_itself_is_exactly_one(values: list[float]) -> None:
    compared = summarise_these({REFERENCE: values})[REFERENCE].comparison
    assert compared is not None
    assert compared.ratio.mean == 1.0
    assert compared.fidelity_gain is not None
    assert compared.fidelity_gain.mean == 0.0
    assert (compared.ratio.low, compared.p, compared.hedges_g_z) == (None, None, None)


@settings(deadline=None, max_examples=30)
@given(pairs=PAIRS, scale=st.floats(0.1, 10))
def test_scaling_every_perplexity_leaves_the_ratios(pairs: list[tuple[float, float]], scale: float) -> None:
    plain = {REFERENCE: [a for a, _ in pairs], "quintic": [b for _, b in pairs]}
    scaled = {name: [scale * value for value in values] for name, values in plain.items()}
    before, after = summarise_these(plain)["quintic"].comparison, summarise_these(scaled)["quintic"].comparison
    assert before is not None
    assert after is not None
    assert after.ratio.mean == pytest.approx(before.ratio.mean, rel=1e-9)


@settings(deadline=None, max_examples=30)
@given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_holm_never_lowers_a_p_and_keeps_their_order(p_values: list[float]) -> None:
    named = {str(index): p for index, p in enumerate(p_values)}
    corrected = holm(named)
    assert all(p <= corrected[name] <= 1 for name, p in named.items())
    by_p = sorted(named, key=named.__getitem__)
    assert all(corrected[a] <= corrected[b] for a, b in pairwise(by_p))


@settings(deadline=None, max_examples=50)
@given(differences=st.lists(st.floats(-1, 1), min_size=2, max_size=6))
def test_exchanging_the_conditions_turns_the_sign_of_the_effect_only(differences: list[float]) -> None:
    turned = [-value for value in differences]
    assert paired_p(turned) == paired_p(differences)
    effect = hedges_g_z(differences)
    assert hedges_g_z(turned) == (None if effect is None else pytest.approx(-effect))


def test_statistics_need_no_torch() -> None:
    code = "import sys, proloc.study.statistics; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
