"""One model for the whole dial is compared with the specialist of every position, seed by seed."""

import math

import pytest
from result_files import make_localities, make_metrics, make_run, make_study, write_study

from proloc.report import build_report
from proloc.study.dials import compare_dials
from proloc.study.results import DialMetrics

QUINTIC = {"kind": "polynomial", "beta": 5, "lambda_max": 1.0}
POSITIONS = (0.0, 0.5, 1.0)


def tuned(condition, seed, dial, ratios, schedule=QUINTIC, mode="hard"):
    """A run whose perplexity is 20 times ``ratios[position]``, times the luck of its seed."""
    localities = make_localities("quintic")
    at = {position: make_metrics(20 * (1 + 0.01 * seed) * ratio, localities) for position, ratio in ratios.items()}
    config = {
        "training": {"dial": dial},
        "mode": mode,
        "condition": {"name": condition, "schedule": schedule, "blocks": "semantic"},
    }
    return make_run(condition, seed).model_copy(
        update={
            "config": config,
            "metrics": at[dial if isinstance(dial, float) else 1.0],
            "dials": [DialMetrics(dial=position, metrics=metrics) for position, metrics in at.items()],
        }
    )


def study_and_runs():
    flat = dict.fromkeys(POSITIONS, 1.0)
    runs = []
    for seed in (0, 1, 2):
        runs += [
            tuned("distributed", seed, 1.0, flat, {"kind": "uniform", "value": 0.0}),
            tuned("one", seed, "sampled", {0.0: 1.01, 0.5: 1.02, 1.0: 1.03 * math.exp(0.001 * seed)}),
            tuned("half", seed, 0.5, {0.0: 1.3, 0.5: 1.01, 1.0: 1.2}),
            tuned("quintic", seed, 1.0, {0.0: 1.5, 0.5: 1.2, 1.0: 1.03}),
            tuned("linear", seed, 1.0, flat, {"kind": "polynomial", "beta": 1, "lambda_max": 1.0}),
        ]
    return make_study(["distributed", "one", "half", "quintic", "linear"]), runs


def test_every_position_has_the_specialist_of_the_same_schedule():
    rows = compare_dials(*study_and_runs())
    assert [(row.condition, row.dial, row.specialist) for row in rows] == [
        ("one", 0.0, "distributed"), ("one", 0.5, "half"), ("one", 1.0, "quintic"),
    ]  # fmt: skip
    assert [row.ratio.mean for row in rows] == pytest.approx([1.01, 1.02, 1.03 * math.exp(0.001)])
    assert [row.specialist_ratio.mean for row in rows] == pytest.approx([1.0, 1.01, 1.03])
    assert [row.over_specialist.mean for row in rows] == pytest.approx([1.01, 1.02 / 1.01, math.exp(0.001)])


def test_the_comparison_is_paired_over_the_seeds_that_both_finished():
    study, runs = study_and_runs()
    runs = [run for run in runs if (run.condition, run.seed) != ("quintic", 0)]
    last = compare_dials(study, runs)[-1]
    assert last.over_specialist.num == 2
    assert last.over_specialist.mean == pytest.approx(math.exp(0.0015))
    assert last.over_specialist.low < last.over_specialist.mean < last.over_specialist.high


def test_without_a_specialist_the_one_model_still_has_its_ratio():
    study, runs = study_and_runs()
    half = compare_dials(study, [run for run in runs if run.condition != "half"])[1]
    assert (half.specialist, half.specialist_ratio, half.over_specialist) == (None, None, None)
    assert half.ratio.mean == pytest.approx(1.02)


def test_a_soft_run_is_no_specialist_for_a_hard_one():
    study, runs = study_and_runs()
    runs = [
        run.model_copy(update={"config": run.config | {"mode": "soft"}}) if run.condition == "quintic" else run
        for run in runs
    ]
    assert compare_dials(study, runs)[-1].specialist is None


def test_the_report_shows_the_one_model_beside_its_specialists(tmp_path):
    study, runs = study_and_runs()
    page = build_report(write_study(tmp_path, study, runs)).read_text()
    assert "One model for the whole dial" in page
    assert "<td>half</td>" in page
    assert (tmp_path / "figures" / "dial.svg").is_file()
    assert "| one | 0.5 | 1.0200 | half | 1.0100 |" in (tmp_path / "summary.md").read_text()
