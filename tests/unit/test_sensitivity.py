"""What one setting changes: pairs are found by their configurations, and the figures show the trade."""

import math

import pytest
from result_files import make_metrics, make_run, make_study, write_study

from proloc.report import build_report
from proloc.study.results import Training, TrainingPoint
from proloc.study.sensitivity import find_changes

STEP = {"kind": "step", "layers": 3, "lambda_max": 1.0}
HARD = [0.0] * 5 + [1.0] * 3


def run_of(condition, seed, ratio, *, schedule=STEP, blocks="semantic", mode="both", localities=HARD, **settings):
    config = {
        "mode": mode, "sinks": 1, "sink_token": False, "halo": 0, "penalty": {"phi": 0.5, "weight": 0.1},
        "training": {"steps": 9, "dial": 1.0, "distil": 0.0}, "budget": {"cost": None, "push": "hard-layers"},
        "condition": {"name": condition, "schedule": schedule, "blocks": blocks, "override": {}},
    }  # fmt: skip
    for key, value in settings.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    metrics = make_metrics(20 * (1 + 0.01 * seed) * ratio * math.exp(0.001 * seed * (ratio != 1)), localities)
    return make_run(condition, seed).model_copy(update={"config": config, "metrics": metrics, "localities": localities})


def study_and_runs():
    table = {
        "distributed": {"ratio": 1.0, "schedule": {"kind": "uniform", "value": 0.0}, "localities": [0.0] * 8},
        "last3": {"ratio": 1.02},
        "low": {"ratio": 1.01, "penalty": {"phi": 0.2}},
        "last4": {"ratio": 1.05, "schedule": {**STEP, "layers": 4}, "localities": [0.0] * 4 + [1.0] * 4},
        "own": {"ratio": 1.03, "sinks": 0, "sink_token": True},
        "long": {"ratio": 1.04, "blocks": "long"},
        "both": {"ratio": 1.2, "penalty": {"phi": 0.9}, "sinks": 4},
        "spent": {"ratio": 1.01, "budget": {"cost": 0.01}, "mode": "hard"},
    }
    runs = [run_of(name, seed, **settings) for name, settings in table.items() for seed in (0, 1, 2)]
    log = [
        TrainingPoint(step=step, loss=3.0, penalty=0.0, share=step / 40, log_multiplier=5 - step / 4, gap=0.0002 * step)
        for step in range(1, 41)
    ]
    spent = Training(steps=40, tokens=1, log=log)
    runs = [run.model_copy(update={"training": spent}) if run.condition == "spent" else run for run in runs]
    return make_study(list(table)), runs


def test_conditions_that_differ_in_one_setting_are_paired_and_no_others():
    found = [(row.base, row.condition, row.setting, row.before, row.after) for row in find_changes(*study_and_runs())]
    assert found == [
        ("last3", "low", "penalty.phi", "0.5", "0.2"),
        ("last3", "last4", "condition.schedule.layers", "3", "4"),
        ("last3", "own", "sinks", "1", "0 and a token of its own"),
        ("last3", "long", "condition.blocks", "semantic (22 tokens)", "long (22 tokens)"),
    ]


def test_a_pair_is_compared_seed_by_seed():
    row = find_changes(*study_and_runs())[0]
    assert row.ratio_before.mean == pytest.approx(1.02 * math.exp(0.001))
    assert row.over.mean == pytest.approx(1.01 / 1.02)
    assert row.over.low is None, "the seeds agree"
    study, runs = study_and_runs()
    assert find_changes(study, [run for run in runs if run.condition != "low"])[0].condition == "last4"


def test_a_phi_that_no_penalty_reads_is_no_setting():
    study, runs = study_and_runs()
    hard = [
        run.model_copy(update={"config": run.config | {"mode": "hard"}}) if run.condition in ("low", "last4") else run
        for run in runs
    ]
    assert ("low", "last4", "condition.schedule.layers") in [
        (row.base, row.condition, row.setting) for row in find_changes(study, hard)
    ]


def test_the_report_shows_the_trade_the_budget_and_what_one_setting_changes(tmp_path):
    page = build_report(write_study(tmp_path, *study_and_runs())).read_text()
    for title in ("Cost against how much is local", "How the budget was spent", "What one setting changes"):
        assert title in page
    for name in ("hard_layers", "budget"):
        assert (tmp_path / "figures" / f"{name}.svg").is_file()
    assert "| low | last3 | penalty.phi | 0.5 | 0.2 |" in (tmp_path / "summary.md").read_text()
