"""A budget in a study and as a command: the reference goes first, the model is kept, and bad values are refused."""

import pytest

import proloc
from proloc.cli import main
from proloc.study import config as study_config
from proloc.study import plan, prepare, run, runner
from proloc.study.results import load_study

LOCAL = '{name = "local", schedule = {kind = "uniform", value = 1.0}, mode = "hard", override = {budget.cost = 0.5}}'


def budgeted(study):
    study.write_text(study.read_text().replace('"quintic"]', f"{LOCAL}]"))
    return study_config.load_config(study)


def test_the_reference_of_a_budget_runs_first_with_every_step_logged(study, tmp_path):
    config, out = budgeted(study), tmp_path / "out"
    pending = [(config.conditions[1], 0), (config.conditions[0], 0)]
    assert plan.in_stages(config, out, pending) == [[(config.conditions[0], 0)], [(config.conditions[1], 0)]]
    assert runner.run_study(config, out, workers=1).failed == []
    reference, local = load_study(out)[1]
    assert [point.step for point in reference.training.log] == [1, 2, 3, 4]
    assert [point.share for point in reference.training.log] == [None] * 4
    assert [point.share for point in local.training.log][:2] == [0.0, 1.0]
    assert local.localities == [1.0, 1.0, 1.0]
    assert local.metrics.fidelity.mean == pytest.approx(1.0)


@pytest.mark.slow
def test_a_budget_added_to_a_finished_study_makes_a_reference_without_a_full_log_again(study, tmp_path):
    study.write_text(study.read_text().replace("steps = 4", "steps = 45"))
    out = tmp_path / "out"
    assert runner.run_study(study_config.load_config(study), out, workers=1).failed == []
    before = load_study(out)[1][0]
    assert len(before.training.log) < 45
    config = budgeted(study)
    assert runner.run_study(config, out, workers=1).failed == []
    record, runs = load_study(out)
    reference, local = (next(each for each in runs if each.condition == name) for name in ("distributed", "local"))
    assert len(reference.training.log) == len(local.training.log) == 45
    assert reference.metrics == before.metrics
    assert record.conditions == ["distributed", "quintic", "local"]


def test_an_interrupted_budget_run_resumes_to_the_same_numbers(study, tmp_path):
    study.write_text(study.read_text().replace("steps = 4", "steps = 8\ncheckpoint_every = 3"))
    config, out = budgeted(study), tmp_path / "out"
    out.mkdir()
    prepare.save_prepared(prepare.prepare(config), out)
    folders = [plan.run_path(out, name, 0) for name in ("distributed", "local")]
    reference = run.run(out, config, config.conditions[0], 0, lambda *_: None)
    plan.save_record(folders[0], reference)
    straight = run.run(out, config, config.conditions[1], 0, lambda *_: None)

    def interrupt(phase, done, _total):
        if phase == "tuning" and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.run(out, config, config.conditions[1], 0, interrupt)
    steps = []
    resumed = run.run(out, config, config.conditions[1], 0, lambda phase, done, _: steps.append((phase, done)))
    assert ("tuning", 4) in steps
    assert ("tuning", 3) not in steps
    assert resumed.metrics == straight.metrics
    assert resumed.training == straight.training


def test_without_its_reference_a_budget_run_fails_with_the_reason(study, tmp_path):
    config, out = budgeted(study), tmp_path / "out"
    out.mkdir()
    prepare.save_prepared(prepare.prepare(config), out)
    with pytest.raises(proloc.ProlocError, match="its reference distributed-seed0 is not there"):
        run.run(out, config, config.conditions[1], 0, lambda *_: None)


def test_a_study_takes_a_budget_from_the_command_line(study, tmp_path, capsys):
    study.write_text(study.read_text().replace("[text]", 'mode = "hard"\n[text]', 1))
    out = tmp_path / "out"
    assert main(["study", str(study), "--out", str(out), "--workers", "1", "--budget", "50%"]) == 0
    reference, quintic = load_study(out)[1]
    assert quintic.config["budget"] == {"cost": 0.5, "push": "hard-layers"}
    assert reference.config["budget"]["cost"] is None
    assert main(["study", str(study), "--out", str(out), "--workers", "1"]) == 2
    assert "different: budget.cost" in capsys.readouterr().err


@pytest.mark.slow
def test_localize_leaves_a_local_model_with_its_card_and_says_what_it_costs(tmp_path, model_folder, words, capsys):
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text(words)
    arguments = ["localize", str(model_folder), str(text), "--out", str(out), "--budget", "50%", "--steps", "6"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    reference, local = load_study(out / "study")[1]
    assert f"{local.metrics.perplexity / reference.metrics.perplexity:.4f} times" in said
    assert "(budget 1.5)" in said
    model = proloc.from_pretrained(out / "model")
    assert list(proloc.describe(model)["localities"]) == local.localities
    assert "study local, local, seed 0" in (out / "model" / "README.md").read_text()
    held_out = prepare.load_prepared(out / "study").held_out
    assert proloc.evaluate(model, held_out).perplexity == pytest.approx(local.metrics.perplexity, rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "none"], "the budget is 'none'"),
        (["--budget", "0%"], "the budget is '0%'"),
        (["--budget=-1%"], "the budget is '-1%'"),
        (["--budget", "nan"], "the budget is 'nan'"),
        (["--steps", "0"], '"training.steps"'),
    ],
)
def test_localize_refuses_in_one_sentence(tmp_path, model_folder, words, capsys, arguments, message):
    text = tmp_path / "text.txt"
    text.write_text(words)
    assert main(["localize", str(model_folder), str(text), "--out", str(tmp_path / "out"), *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert not (tmp_path / "out").exists()


BAD = [
    (LOCAL.replace("0.5", "0"), "budget.cost"),
    (LOCAL.replace("0.5", '0.5, budget.push = "luck"'), "budget.push"),
    (LOCAL.replace("0.5", '0.5, budget.push = "phi"'), 'mode "hard" has no penalty'),
    (LOCAL.replace('"hard"', '"soft"'), 'can push "phi" only'),
    (LOCAL.replace("0.5", "0.5, training.dial = 0.5"), "leave dial out"),
]


@pytest.mark.parametrize(("table", "message"), BAD)
def test_a_budget_that_cannot_be_is_refused(study, tmp_path, capsys, table, message):
    study.write_text(study.read_text().replace('"quintic"]', f"{table}]"))
    assert main(["study", str(study), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
