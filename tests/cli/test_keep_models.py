"""A study keeps its tuned models when it is told to: whole, loadable, with what was measured on their cards."""

import json
import queue
import shutil

import pytest
from test_study import edited, prepared, silent
from transformers import AutoTokenizer

import proloc
from proloc.cli import main
from proloc.hf.card import figures
from proloc.study import config as study_config
from proloc.study import plan, prepare, run, runner
from proloc.study.results import load_study


@pytest.fixture
def keeping(study):
    return edited(study, "[text]", "keep_models = true\n[text]")


def test_every_run_keeps_its_model_with_tokenizer_card_and_figures(keeping, tmp_path):
    out = tmp_path / "out"
    assert main(["study", str(keeping), "--out", str(out), "--workers", "1"]) == 0
    record, runs = load_study(out)
    assert record.config["keep_models"] is True
    held_out = prepare.load_prepared(out).held_out
    for each in runs:
        assert each.config["keep_models"] is True
        folder = plan.model_folder(out, each.condition, each.seed)
        model = proloc.from_pretrained(folder)
        assert proloc.describe(model)["localities"] == each.localities
        assert proloc.evaluate(model, held_out).perplexity == pytest.approx(each.metrics.perplexity, rel=1e-5)
        found = {figure.what: figure for figure in figures(model)}
        assert found["perplexity"].value == each.metrics.perplexity
        assert found["mean block length, tokens"].value == each.metrics.mean_block_length
        assert found["perplexity"].text == "text.txt, held-out part"
        assert f"study small, {each.condition}, seed 0" in found["perplexity"].how
        card = (folder / "README.md").read_text()
        assert f"| perplexity | {each.metrics.perplexity:.4g} | 1 |" in card
        assert str(tmp_path) not in card
        assert "not of exactly these weights" not in card
        assert AutoTokenizer.from_pretrained(folder)("The module")["input_ids"]
        assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_nothing_is_kept_unless_it_is_asked_for(study, tmp_path):
    config, quintic = prepared(study, tmp_path / "out")
    run.run(tmp_path / "out", config, quintic, 0, silent)
    assert not (tmp_path / "out" / "runs").exists()


def test_a_soft_model_is_kept_with_the_dial_it_was_measured_at(keeping, tmp_path):
    config, quintic = prepared(keeping, tmp_path / "out")
    run.run(tmp_path / "out", config, quintic.model_copy(update={"mode": "soft"}), 0, silent)
    model = proloc.from_pretrained(plan.model_folder(tmp_path / "out", "quintic", 0))
    assert proloc.describe(model)["dial"] == 0.0
    assert {figure.dial for figure in figures(model)} == {0.0}


def test_a_model_is_whole_or_not_there(keeping, tmp_path, monkeypatch):
    config, quintic = prepared(keeping, tmp_path / "out")
    monkeypatch.setattr(runner, "_messages", queue.Queue())
    folder = plan.model_folder(tmp_path / "out", "quintic", 0)
    with monkeypatch.context() as patch:
        patch.setattr(run, "_sample", lambda *_: None)
        patch.setattr(run, "load_tokenizer", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        assert runner._work(tmp_path / "out", config, quintic, 0).error == "OSError: disk full"
    assert not folder.exists()
    assert runner._work(tmp_path / "out", config, quintic, 0).status == "finished"
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_second_start_leaves_kept_models_alone(keeping, tmp_path):
    out = tmp_path / "out"
    config = study_config.load_config(keeping)
    runner.run_study(config, out, workers=1)
    files = [path for path in (out / "runs").rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    assert runner.run_study(config, out, workers=1).ran == 0
    assert {path: path.stat().st_mtime_ns for path in files} == before


def test_models_of_runs_that_finished_without_the_key_cannot_be_had_and_that_is_said(
    study, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "out"
    monkeypatch.setattr(runner, "_messages", queue.Queue())
    config, quintic = prepared(study, out)
    runner._work(out, config, quintic, 0)
    edited(study, "[text]", "keep_models = true\n[text]")
    assert main(["study", str(study), "--out", str(out)]) == 2
    assert "keep_models: quintic-seed0 finished without their models being kept" in capsys.readouterr().err


def test_keeping_may_be_turned_off_and_older_folders_go_on(study, tmp_path):
    out = tmp_path / "out"
    config = study_config.load_config(study)
    out.mkdir()
    runner._prepare(config, out, plan.check(config, out), runner._progress(runner.Console(quiet=True)))
    record = json.loads((out / "study.json").read_text())
    del record["config"]["keep_models"]
    record["config"]["training.save_models"] = True
    (out / "study.json").write_text(json.dumps(record))
    plan.check(config, out)
    plan.check(config.model_copy(update={"keep_models": True}), out)


def test_a_disk_that_cannot_hold_all_models_is_refused_before_any_work(keeping, tmp_path, capsys, monkeypatch):
    config = study_config.load_config(keeping)
    parameters = plan.check(config, tmp_path / "out").num_parameters
    enough_for_one = plan.SPARE_BYTES + 24 * parameters + plan.KEPT_BYTES + 4 * parameters
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda _: usage._replace(free=enough_for_one))
    assert main(["study", str(keeping), "--out", str(tmp_path / "out")]) == 2
    assert "and the 2 models to keep need 0.3 GB" in capsys.readouterr().err
    assert not (tmp_path / "out" / "study.json").exists()
    plan.model_folder(tmp_path / "out", "distributed", 0).mkdir(parents=True)
    plan.check(config, tmp_path / "out")


def test_a_run_that_is_made_again_replaces_its_model(keeping, tmp_path):
    config, quintic = prepared(keeping, tmp_path / "out")
    folder = plan.model_folder(tmp_path / "out", "quintic", 0)
    folder.mkdir(parents=True)
    (folder / "stale").touch()
    run.run(tmp_path / "out", config, quintic, 0, silent)
    assert not (folder / "stale").exists()
    assert proloc.from_pretrained(folder) is not None
