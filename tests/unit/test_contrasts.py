"""Conditions against controls of the same schedule: numbers worked out by hand, and what is never compared."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from result_files import make_run, make_study

from proloc.study.contrasts import contrasts
from proloc.study.results import RunResult
from proloc.study.statistics import log_ratio_interval, summarise

CONDITIONS = ["distributed", "quintic", "linear", "fixed", "reversed"]
LOSSES = st.floats(0.1, 8.0)


def run_with(condition: str, seed: int, tuned: list[float] | None, untuned: list[float] | None) -> RunResult:
    """A finished run whose windows have these losses."""
    run = make_run(condition, seed)
    assert run.metrics is not None
    assert run.untuned is not None
    return run.model_copy(
        update={
            "metrics": run.metrics.model_copy(
                update={"window_losses": tuned, "loss": sum(tuned or [1.0]) / len(tuned or [1.0])}
            ),
            "untuned": run.untuned.model_copy(update={"window_losses": untuned}),
        }
    )


def test_a_contrast_by_hand() -> None:
    runs = [
        run_with("quintic", 0, [1.0, 2.0, 3.0], [2.0, 2.0, 2.0]),
        run_with("quintic", 1, [1.2, 2.2, 3.2], [2.0, 2.0, 2.0]),
        run_with("fixed", 0, [1.1, 2.2, 3.3], [2.1, 2.2, 2.3]),
        run_with("fixed", 1, [1.3, 2.4, 3.5], [2.1, 2.2, 2.3]),
    ]
    (found,) = contrasts(CONDITIONS, runs)
    assert (found.condition, found.control) == ("quintic", "fixed")
    # Each window is 0.1, 0.2 and 0.3 better, with s = 0.1, t(0.975, 2) = 4.302653; each seed is 0.2 better.
    half = 4.302653 * 0.1 / math.sqrt(3)
    for estimate in (found.untuned, found.tuned):
        assert estimate is not None
        assert estimate.mean == pytest.approx(math.exp(-0.2))
        assert estimate.low == pytest.approx(math.exp(-0.2 - half), rel=1e-6)
        assert estimate.high == pytest.approx(math.exp(-0.2 + half), rel=1e-6)
        assert estimate.num == 3
    assert found.tuned_over_seeds is not None
    assert found.tuned_over_seeds.mean == pytest.approx(math.exp(-0.2))
    assert found.tuned_over_seeds.num == 2


def test_only_seeds_that_finished_in_both_are_compared() -> None:
    runs = [
        run_with("quintic", 0, [1.0, 2.0], [1.0, 2.0]),
        run_with("quintic", 1, [9.0, 9.0], [9.0, 9.0]),
        run_with("fixed", 0, [1.5, 2.5], [1.0, 2.0]),
    ]
    (found,) = contrasts(CONDITIONS, runs)
    assert found.tuned is not None
    assert found.tuned.mean == pytest.approx(math.exp(-0.5))


def test_other_schedules_and_modes_are_never_contrasted() -> None:
    runs = [make_run(name, 0) for name in CONDITIONS]
    assert [(each.condition, each.control) for each in contrasts(CONDITIONS, runs)] == [("quintic", "fixed")]
    haloed = {"condition": {"override": {"halo": 1}}}
    halo = [run.model_copy(update={"config": haloed}) if run.condition == "fixed" else run for run in runs]
    assert contrasts(CONDITIONS, halo) == []
    soft = [run.model_copy(update={"config": {"mode": "soft"}}) if run.condition == "fixed" else run for run in runs]
    assert contrasts(CONDITIONS, soft) == []


def test_results_without_losses_of_windows_still_give_the_interval_over_seeds() -> None:
    runs = [run_with(name, seed, None, None) for name in ("quintic", "fixed") for seed in (0, 1)]
    (found,) = contrasts(CONDITIONS, runs)
    assert found.tuned is None
    assert found.untuned is None
    assert found.tuned_over_seeds is not None


@given(st.lists(st.tuples(LOSSES, LOSSES), min_size=2, max_size=8))
def test_turning_a_contrast_round_inverts_it(pairs: list[tuple[float, float]]) -> None:
    forth = log_ratio_interval([one - other for one, other in pairs])
    back = log_ratio_interval([other - one for one, other in pairs])
    assert forth.mean * back.mean == pytest.approx(1.0)
    if forth.low is not None:
        assert back.high is not None
        assert forth.low * back.high == pytest.approx(1.0)


def test_the_untuned_ratio_is_taken_window_by_window_against_the_unmodified_model() -> None:
    study = make_study(["quintic"], [0, 1])
    study = study.model_copy(update={"baseline": study.baseline.model_copy(update={"window_losses": [1.0, 2.0, 3.0]})})
    runs = [run_with("quintic", seed, [1.0] * 3, [1.1, 2.2, 3.3]) for seed in (0, 1)]
    (row,) = summarise(study, runs).conditions
    assert row.untuned_ratio is not None
    assert row.untuned_ratio.mean == pytest.approx(math.exp(0.2))
    assert row.untuned_ratio.high == pytest.approx(math.exp(0.2 + 4.302653 * 0.1 / math.sqrt(3)), rel=1e-6)
