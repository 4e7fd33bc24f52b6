"""The main job as a user meets it: a study runs, continues, refuses what is wrong, and loses nothing."""

import json
import queue
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from proloc.cli import main
from proloc.errors import ProlocError
from proloc.study import config as study_config
from proloc.study import plan, prepare, run, runner
from proloc.study.results import load_run, load_study, run_path

CONDITIONS = ["distributed", "quintic"]


def edited(study: Path, old: str, new: str) -> Path:
    text = study.read_text()
    assert old in text
    study.write_text(text.replace(old, new))
    return study


def silent(*_state):
    """A progress callback that shows nothing."""


def test_a_study_runs_to_a_report_and_a_second_start_keeps_every_run(study, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["study", str(study), "--out", str(out), "--workers", "2"]) == 0
    record, runs = load_study(out)
    assert [r.condition for r in runs] == record.conditions == CONDITIONS
    for each in runs:
        assert each.status == "finished"
        assert each.training.log[-1].step == 4
        assert each.metrics.tokens == 3 * 47
        assert len(each.metrics.fidelity.per_head) == 3
        assert {"torch", "transformers", "python", "proloc"} <= each.versions.keys()
        assert len(each.sample.layers[0].weights) == len(each.sample.tokens) == 48
    assert not (out / "checkpoints").exists()
    assert "<html" in (out / "report.html").read_text()
    shown = capsys.readouterr().out
    assert "quintic" in shown
    assert str(out / "report.html") in shown
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").iterdir()}
    outcome = runner.run_study(study_config.load_config(study), out)
    assert (outcome.ran, outcome.kept, outcome.failed) == (0, 2, [])
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").iterdir()} == before


def prepared(study: Path, folder: Path):
    """A study folder ready for single runs in this process."""
    config = study_config.load_config(study)
    folder.mkdir()
    prepare.save_prepared(prepare.prepare(config), folder)
    return config, config.conditions[1]


def test_an_interrupted_run_resumes_from_its_checkpoint_to_the_same_numbers(study, tmp_path):
    config, quintic = prepared(study, tmp_path / "straight")
    shutil.copytree(tmp_path / "straight", tmp_path / "broken")
    straight = run.run(tmp_path / "straight", config, quintic, 0, silent)

    def interrupt(phase, done, _total):
        if phase == "tuning" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.run(tmp_path / "broken", config, quintic, 0, interrupt)
    steps = []
    resumed = run.run(tmp_path / "broken", config, quintic, 0, lambda phase, done, _: steps.append((phase, done)))
    tuned = [done for phase, done in steps if phase == "tuning"]
    assert tuned == [3, 4], "two steps were in the checkpoint"
    assert resumed.metrics == straight.metrics
    assert resumed.training == straight.training


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(study, tmp_path):
    config, quintic = prepared(study, tmp_path / "out")
    first, again, other = (run.run(tmp_path / "out", config, quintic, seed, silent) for seed in (0, 0, 1))
    assert first.metrics == again.metrics
    assert first.metrics.perplexity != other.metrics.perplexity


def test_soft_runs_are_undialled_and_hard_ones_hide_away_keys(study, tmp_path):
    config, _ = prepared(study, tmp_path / "out")
    localist = study_config.STANDARD_CONDITIONS["localist"]
    found = {}
    for mode in ("soft", "hard", "both"):
        condition = localist.model_copy(update={"mode": mode})
        found[mode] = run.run(tmp_path / "out", config, condition, 0, silent)
    assert found["soft"].metrics.fidelity == found["soft"].metrics.fidelity_undialled
    for mode in ("hard", "both"):
        assert found[mode].metrics.fidelity.mean == pytest.approx(1.0)
        assert found[mode].metrics.fidelity_undialled.mean < 0.99
    assert all(point.penalty == 0 for point in found["hard"].training.log)
    assert any(point.penalty > 0 for point in found["both"].training.log)


def test_all_conditions_read_the_same_tokens_and_the_controls_are_matched(study, tmp_path):
    config = study_config.load_config(study)
    made = prepare.prepare(config)
    folder = tmp_path / "out"
    folder.mkdir()
    prepare.save_prepared(made, folder)
    again = prepare.load_prepared(folder)
    assert (again.train == made.train).all()
    assert (again.held_out == made.held_out).all()
    lengths = {}
    for role, partitioner in again.partitioners.items():
        blocks = partitioner(made.train)
        assert (blocks == made.partitioners[role](made.train)).all()
        lengths[role] = made.train.numel() / (blocks.max(dim=1).values + 1).sum().item()
    assert lengths["fixed"] == pytest.approx(lengths["semantic"], rel=0.1)
    assert lengths["random"] == pytest.approx(lengths["semantic"], rel=0.1)


def test_a_failed_run_is_recorded_with_its_reason_and_tried_again(study, tmp_path, monkeypatch):
    config, quintic = prepared(study, tmp_path / "out")
    monkeypatch.setattr(runner, "_messages", queue.Queue())
    with monkeypatch.context() as patch:
        patch.setattr(run, "run", lambda *_: (_ for _ in ()).throw(RuntimeError("out of luck")))
        runner._work(tmp_path / "out", config, quintic, 0)
    path = run_path(tmp_path / "out", "quintic", 0)
    assert load_run(path).status == "failed"
    assert load_run(path).error == "RuntimeError: out of luck"
    digest = prepare.load_prepared(tmp_path / "out").text_sha256
    assert not runner._is_finished(path, digest)
    runner._work(tmp_path / "out", config, quintic, 0)
    assert runner._is_finished(path, digest)


def test_lora_tunes_a_study(study, tmp_path):
    edited(study, "steps = 4", "steps = 4\nlora_rank = 2")
    edited(study, "[text]", "keep_models = true\n[text]")
    config, quintic = prepared(study, tmp_path / "out")
    result = run.run(tmp_path / "out", config, quintic, 0, silent)
    assert result.status == "finished"
    import proloc

    model = proloc.from_pretrained(tmp_path / "out" / "runs" / "quintic-seed0" / "model")
    measured = proloc.evaluate(model, prepare.load_prepared(tmp_path / "out").held_out)
    assert measured.perplexity == pytest.approx(result.metrics.perplexity, rel=1e-4)


def test_more_seeds_and_conditions_are_welcome_and_reported(study, tmp_path):
    out = tmp_path / "out"
    runner.run_study(study_config.load_config(study), out, workers=1)
    edited(study, "seeds = [0]", "seeds = [1]")
    edited(study, '"quintic"]', '"cubic"]')
    assert runner.run_study(study_config.load_config(study), out, workers=1).ran == 2
    record, runs = load_study(out)
    assert record.conditions == ["distributed", "quintic", "cubic"]
    assert record.seeds == [0, 1]
    assert [(each.condition, each.seed) for each in runs] == [
        ("distributed", 0), ("distributed", 1), ("quintic", 0), ("cubic", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps = 4", "steps = 5", "different: training.steps"),
        ("[text]", "sinks = 3\n[text]", "different: sinks"),
        ("[text]", "halo = 1\n[text]", "different: halo"),
        ('"quintic"]', '{name = "quintic", schedule = {kind = "polynomial", beta = 4}}]', "conditions.quintic"),
        (None, None, "the content of a text"),
    ],
)
def test_results_of_another_configuration_or_text_are_never_mixed(study, tmp_path, words, capsys, old, new, message):
    out = tmp_path / "out"
    config = study_config.load_config(study)
    out.mkdir()
    runner._prepare(config, out, plan.check(config, out), runner._progress(runner.Console(quiet=True)))
    if old is None:
        (tmp_path / "text.txt").write_text(words + " And more.")
    else:
        edited(study, old, new)
    assert main(["study", str(study), "--out", str(out)]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_from_before_there_were_halos_and_kinds_of_penalties_is_continued_without_them(study, tmp_path):
    out = tmp_path / "out"
    config = study_config.load_config(study)
    out.mkdir()
    runner._prepare(config, out, plan.check(config, out), runner._progress(runner.Console(quiet=True)))
    record = json.loads((out / "study.json").read_text())
    for key in ("halo", "penalty.kind", "penalty.target_bits"):
        del record["config"][key]
    for name in CONDITIONS:
        del record["config"][f"conditions.{name}"]["override"]
    (out / "study.json").write_text(json.dumps(record))
    plan.check(config, out)
    with pytest.raises(ProlocError, match="different: halo"):
        plan.check(config.model_copy(update={"halo": 1}), out)


@pytest.mark.parametrize("penalty", ['kind = "group"', 'kind = "entropy"\ntarget_bits = [1, 1, 1]', 'kind = "kl"'])
def test_a_study_trains_with_any_penalty(study, tmp_path, penalty):
    edited(study, "[training]", f"[penalty]\n{penalty}\nweight = 1.0\n[training]")
    config, quintic = prepared(study, tmp_path / "out")
    plan.check(config, tmp_path / "elsewhere")
    log = run.run(tmp_path / "out", config, quintic, 0, silent).training.log
    assert any(point.penalty > 0.01 for point in log), "some windows have more than one block"


def test_a_condition_has_the_halo_of_the_study_or_its_own(study, tmp_path):
    edited(study, "[text]", "halo = 1\n[text]")
    own = '{name = "none", schedule = {kind = "polynomial", beta = 5}, override = {halo = 0}}'
    edited(study, '"quintic"]', f'"quintic", {own}]')
    config, quintic = prepared(study, tmp_path / "out")
    with_halo, without = (
        run.run(tmp_path / "out", config, condition, 0, silent) for condition in (quintic, config.conditions[2])
    )
    assert with_halo.metrics.fidelity_uniform > without.metrics.fidelity_uniform
    assert with_halo.metrics.perplexity != without.metrics.perplexity


BAD = [
    ("[training]", "[penalty]\nphi = 1.5\n[training]", "phi is 1.5"),
    ("[training]", "[penalty]\nphi = [0.5, 0.5]\n[training]", "values for 2 layers; the model has 3"),
    ("[training]", '[penalty]\nkind = "group"\nphi = 0.5\n[training]', 'phi belongs to a penalty of kind "fidelity"'),
    ("[training]", '[penalty]\nkind = "groups"\n[training]', '"penalty.kind"'),
    ("[text]", "halo = -1\n[text]", '"halo"'),
    (
        '["distributed",',
        '[{name = "distributed", schedule = {kind = "uniform", value = 0.0}, override = {halo = 2}},',
        "is the reference",
    ),
    ('model = "{model}"', 'model = "./no-such-model"', "no-such-model"),
    ('file = "text.txt"', 'file = "missing.txt"', "cannot read the text"),
    ('file = "text.txt"', 'file = "empty.txt"', "is empty"),
    ('file = "text.txt"', 'file = "tiny.txt"', "take a longer text"),
    ('file = "text.txt"', 'file = "latin.txt"', "not UTF-8"),
    ("context = 48", "context = 480", "made for at most 64"),
    ("context = 48", "context = 48\ncontekst = 3", 'unknown key "training.contekst"'),
    ("steps = 4", "steps = 0", '"training.steps"'),
    ("seeds = [0]", "seeds = [0, 0]", "not all different"),
    ("[text]", "[text", "not valid TOML"),
    ('"quintic"]', '"septic"]', "no condition 'septic'; choose from distributed"),
    ('["distributed", "quintic"]', '["quintic"]', 'conditions need "distributed"'),
    ('"quintic"]', '{name = "odd", schedule = {kind = "polynomial", beta = -1}}]', "beta is -1"),
    ('"quintic"]', '{name = "deep", schedule = {kind = "explicit", values = [0, 1]}}]', "the model has 3 layers"),
    ('kind = "sentence"', 'kind = "drift"', "need mean_length"),
    ("seeds = [0]", "seeds = [-1]", '"seeds.0"'),
    ("learning_rate = 1e-3", "learning_rate = inf", '"training.learning_rate"'),
    ('"quintic"]', '{name = "odd", schedule = {kind = [1]}}]', "no schedule [1]"),
    ('"quintic"]', '{name = "odd", schedule = {kind = "reversed", schedule = "quintic"}}]', "must be a schedule"),
    ('["distributed",', '[{name = "distributed", schedule = {kind = "uniform", value = 1.0}},', "is the reference"),
    ('file = "text.txt"', 'file = "text\\u0000.txt"', "no path"),
    ('file = "text.txt"', 'dataset = "no/such-dataset-anywhere"', "cannot load the dataset"),
]


@pytest.mark.parametrize(("old", "new", "message"), BAD)
def test_bad_input_gets_one_sentence_and_exit_code_2_before_any_work(
    study, tmp_path, model_folder, capsys, monkeypatch, old, new, message
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, content in (("empty.txt", b" \n"), ("tiny.txt", b"Too short."), ("latin.txt", b"caf\xe9")):
        (tmp_path / name).write_bytes(content)
    edited(study, old.format(model=model_folder), new)
    assert main(["study", str(study), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "out" / "study.json").exists()


def test_an_unsupported_architecture_is_refused_before_any_work(study, tmp_path, model_folder, capsys):
    folder = tmp_path / "bloom"
    shutil.copytree(model_folder, folder)
    bloom = {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 2}
    (folder / "config.json").write_text(json.dumps(bloom))
    edited(study, str(model_folder), str(folder))
    assert main(["study", str(study), "--out", str(tmp_path / "out")]) == 2
    assert "BloomForCausalLM does not route its attention" in capsys.readouterr().err


def test_no_room_on_the_disk_is_said_before_any_work(study, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    assert main(["study", str(study), "--out", str(tmp_path / "out")]) == 2
    assert "0.0 GB free" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study", "nowhere.toml"], 'cannot read the study "nowhere.toml"'),
        (["study", "--workers", "0"], "--workers is 0"),
        (["report", "nowhere"], "holds no study.json"),
        (["models", "install", "gpt-7"], "cannot install 'gpt-7'"),
        (["generate", "./nowhere", "Hello"], "nowhere"),
    ],
)
def test_other_commands_refuse_in_one_sentence(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_dataset_can_be_the_text(study, tmp_path, words):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [json.dumps({"text": part}) for part in words.split("\n\n")]
    (folder / "train.jsonl").write_text("\n".join(rows))
    edited(study, 'file = "text.txt"', f'dataset = "{folder}"')
    config = study_config.load_config(study)
    from proloc.study.text import read_text

    assert read_text(config.text) == words
    edited(study, "max_held_out_windows", 'column = "body"\nmax_held_out_windows')
    with pytest.raises(Exception, match="no column 'body'; choose one of text"):
        read_text(study_config.load_config(study).text)


def test_generate_continues_a_prompt_and_dial_zero_is_the_plain_model(model_folder, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    arguments = ["generate", str(model_folder), "The module", "--tokens", "8"]
    assert main([*arguments, "--dial", "0"]) == 0
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    inputs = tokenizer("The module", return_tensors="pt")
    plain = AutoModelForCausalLM.from_pretrained(model_folder).generate(**inputs, max_new_tokens=8, do_sample=False)
    assert capsys.readouterr().out.rstrip("\n") == tokenizer.decode(plain[0], skip_special_tokens=True).rstrip("\n")
    assert main([*arguments, "--dial", "1.5"]) == 2
    assert main(["generate", str(model_folder), ""]) == 2
    assert main([*arguments[:-1], "80"]) == 2
    said = capsys.readouterr().err
    assert "the dial is 1.5" in said
    assert "the prompt is empty" in said
    assert "made for at most 64" in said


def test_the_examples_and_the_demo_are_valid_studies():
    for path in ["demo", *sorted((Path(__file__).parents[2] / "examples").glob("*.toml"))]:
        assert len(study_config.load_config(path).conditions) >= 5


def test_every_key_of_a_study_is_explained(capsys):
    assert main(["study", "--keys"]) == 0
    shown = capsys.readouterr().out
    for section in study_config.SECTIONS.values():
        assert all(key in shown for key in section.model_fields)


def test_help_and_reading_results_need_no_torch():
    code = (
        "import sys, proloc, proloc.cli, proloc.report, proloc.study.config, proloc.study.runner;"
        "proloc.cli.build_parser(); assert not {'torch', 'transformers'} & sys.modules.keys(), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_version_is_that_of_the_project():
    import proloc

    data = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert data["project"]["version"] == proloc.__version__


def test_a_run_whose_loss_is_no_number_fails_and_spoils_nothing(study, tmp_path, monkeypatch):
    config, quintic = prepared(study, tmp_path / "out")
    monkeypatch.setattr(runner, "_messages", queue.Queue())
    hot = config.model_copy(update={"training": config.training.model_copy(update={"learning_rate": 1e30})})
    result = runner._work(tmp_path / "out", hot, quintic, 0)
    assert result.status == "failed"
    assert "not a finite number" in result.error
    assert load_run(run_path(tmp_path / "out", "quintic", 0)).status == "failed"


def test_a_checkpoint_that_a_kill_cut_short_is_passed_over(study, tmp_path):
    config, quintic = prepared(study, tmp_path / "out")
    (tmp_path / "out" / "checkpoints" / "quintic-seed0" / "checkpoint-3").mkdir(parents=True)
    assert run.run(tmp_path / "out", config, quintic, 0, silent).status == "finished"


def test_a_run_of_another_text_is_never_taken_for_ours(study, tmp_path, words, monkeypatch):
    config, quintic = prepared(study, tmp_path / "out")
    monkeypatch.setattr(runner, "_messages", queue.Queue())
    runner._work(tmp_path / "out", config, quintic, 0)
    (tmp_path / "text.txt").write_text(words + " And more.")
    with pytest.raises(ProlocError, match="made from another text"):
        runner.run_study(config, tmp_path / "out")


def test_two_studies_in_one_folder_are_refused(tmp_path):
    with (
        runner._only_one(tmp_path),
        pytest.raises(ProlocError, match="another study is running"),
        runner._only_one(tmp_path),
    ):
        raise AssertionError("both were let in")


def test_a_garbage_result_file_is_named(tmp_path, capsys):
    (tmp_path / "study.json").write_bytes(bytes([255, 254]))
    assert main(["report", str(tmp_path)]) == 2
    assert "study.json is not a result file" in capsys.readouterr().err
