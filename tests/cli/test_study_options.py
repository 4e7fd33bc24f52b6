"""What a condition can do otherwise than its study, and that it compares with the others all the same."""

import json

import pytest
import torch

import proloc
from proloc.cli import main
from proloc.hf.models import load_model, load_tokenizer
from proloc.study import config as study_config
from proloc.study import plan, prepare, run, runner
from proloc.study.results import load_study, save_record
from proloc.study.windows import make_windows, sink_token_of


def edited(study, old, new):
    text = study.read_text()
    assert old in text
    study.write_text(text.replace(old, new))
    return study


def with_condition(study, table):
    return study_config.load_config(edited(study, '"quintic"]', f'"quintic", {table}]'))


QUINTIC = 'schedule = {kind = "polynomial", beta = 5}'


def prepared(config, folder):
    folder.mkdir()
    prepare.save_prepared(prepare.prepare(config), folder)
    return folder


def run_one(folder, config, name, seed=0):
    condition = next(each for each in config.conditions if each.name == name)
    return run.run(folder, config, condition, seed, lambda *_: None)


def test_an_override_changes_its_condition_and_no_other(study):
    table = f'{{name = "own", {QUINTIC}, override = {{penalty.phi = 0.25, sinks = 3, training.distil = 0.5}}}}'
    config = with_condition(study, table)
    seen = [config.of(each) for each in config.conditions]
    assert [each.penalty.phi for each in seen] == [0.5, 0.5, 0.25]
    assert [each.penalty.weight for each in seen] == [0.1, 0.1, 0.1]
    assert [each.sinks for each in seen] == [1, 1, 3]
    assert [each.training.distil for each in seen] == [0.0, 0.0, 0.5]


def test_the_reference_is_tuned_on_the_cross_entropy_alone(study):
    config = study_config.load_config(edited(study, "steps = 4", 'steps = 4\ndistil = 0.5\ndial = "sampled"'))
    reference, quintic = (config.of(each).training for each in config.conditions)
    assert (reference.distil, reference.dial) == (0.0, 1.0)
    assert (quintic.distil, quintic.dial) == (0.5, "sampled")


BAD = [
    (
        '"quintic"]',
        f'{{name = "own", {QUINTIC}, override = {{training.steps = 9}}}}]',
        "cannot override 'training.steps'",
    ),
    ('"quintic"]', f'{{name = "own", {QUINTIC}, override = {{seeds = [1]}}}}]', "cannot override 'seeds'"),
    ('"quintic"]', f'{{name = "own", {QUINTIC}, override = {{penalty.phi = 2}}}}]', "phi is 2.0"),
    ('"quintic"]', f'{{name = "own", {QUINTIC}, override = {{penalty.fi = 1}}}}]', 'unknown key "penalty.fi"'),
    (
        '"quintic"]',
        f'{{name = "own", {QUINTIC}, mode = "soft", override = {{training.dial = 0.5}}}}]',
        'has mode "soft"',
    ),
    (
        '"quintic"]',
        '{name = "own", schedule = {kind = "step", layers = 1}, override = {training.block_dropout = 0.1}}]',
        "condition 'own' has block_dropout, which none of its layers would notice",
    ),
    ("steps = 4", "steps = 4\ndial = 1.5", '"training.dial'),
    ("steps = 4", 'steps = 4\ndial = "often"', '"training.dial'),
    ("steps = 4", "steps = 4\ndistil = 2", '"training.distil"'),
    ("steps = 4", 'steps = 4\nteacher = "me"', '"training.teacher"'),
    ("[text]", "dials = [0.5, 2]\n[text]", '"dials.1"'),
    ("context = 48", "context = 64", None),
]


@pytest.mark.parametrize(("old", "new", "message"), BAD)
def test_a_bad_option_gets_one_sentence_before_any_work(study, tmp_path, capsys, old, new, message):
    edited(study, old, new)
    if message is None:
        edited(study, "[text]", "sink_token = true\n[text]")
        message = "the context is 65 tokens"
    assert main(["study", str(study), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "out" / "study.json").exists()


@pytest.mark.parametrize(
    "more",
    [
        'mode = "soft", override = {training.block_dropout = 0.1}',
        "override = {training.block_dropout = 0.1, training.dial = 0.5}",
        'override = {training.block_dropout = 0.1, training.dial = "sampled"}',
    ],
)
def test_block_dropout_is_for_layers_that_are_not_hard(study, tmp_path, more):
    table = f'{{name = "own", schedule = {{kind = "step", layers = 1}}, {more}}}'
    assert plan.check(with_condition(study, table), tmp_path).num_layers > 1


def test_a_sink_token_leaves_text_targets_and_blocks_as_they_are(study, tmp_path):
    config = study_config.load_config(study)
    made = prepare.prepare(config)
    token = sink_token_of(load_tokenizer(config.model))
    plain, with_sink = (make_windows(made.train, made.blocks("semantic", 0).train, each) for each in (None, token))
    for row in (0, 5):
        ours, theirs = with_sink[row], plain[row]
        assert ours["input_ids"][0] == token
        for name in ours:
            assert torch.equal(ours[name][1:], theirs[name])
        assert (ours["labels"][:2] == -100).all()
        assert theirs["labels"][0] == -100
        assert (theirs["labels"][1:] == theirs["input_ids"][1:]).all()


def test_the_embedding_of_the_sink_token_is_tuned_and_the_measures_compare(study, tmp_path):
    table = f'{{name = "sink", {QUINTIC}, override = {{sink_token = true, sinks = 0}}}}'
    config = with_condition(edited(study, "[text]", "keep_models = true\n[text]"), table)
    folder = prepared(config, tmp_path / "out")
    plain, with_sink = (run_one(folder, config, name) for name in ("quintic", "sink"))
    assert with_sink.metrics.tokens == plain.metrics.tokens
    assert with_sink.metrics.mean_block_length == plain.metrics.mean_block_length
    assert with_sink.sample.sinks == [True] + [False] * (len(with_sink.sample.sinks) - 1)
    token = sink_token_of(load_tokenizer(config.model))
    before = load_model(config.model).get_input_embeddings().weight
    model = proloc.from_pretrained(folder / "runs" / "sink-seed0" / "model")
    assert not torch.equal(model.get_input_embeddings().weight[token], before[token])
    text = prepare.load_prepared(folder).held_out
    windows = make_windows(text, proloc.hf.find_state(model).blocks(text), token)
    measured = proloc.evaluate(model, windows.ids, windows.block_ids, leading=1)
    assert measured.perplexity == pytest.approx(with_sink.metrics.perplexity, rel=1e-4)


def test_lora_tunes_the_sink_token_too(study, tmp_path):
    edited(study, "steps = 4", "steps = 4\nlora_rank = 2")
    edited(study, "[text]", "sink_token = true\nkeep_models = true\n[text]")
    config = study_config.load_config(study)
    folder = prepared(config, tmp_path / "out")
    run_one(folder, config, "quintic")
    tuned = load_model(str(folder / "runs" / "quintic-seed0" / "model")).get_input_embeddings().weight
    changed = (tuned != load_model(config.model).get_input_embeddings().weight).any(dim=1).nonzero().flatten()
    assert changed.tolist() == [sink_token_of(load_tokenizer(config.model))]


def test_a_model_is_measured_at_every_position_and_position_one_is_its_own_measure(study, tmp_path):
    edited(study, "[text]", "dials = [0, 0.5, 1]\n[text]")
    table = f'{{name = "half", {QUINTIC}, mode = "hard", override = {{training.dial = 0.5}}}}'
    config = with_condition(study, table)
    folder = prepared(config, tmp_path / "out")
    quintic, half = (run_one(folder, config, name) for name in ("quintic", "half"))
    for result, position in ((quintic, 1.0), (half, 0.5)):
        assert [each.dial for each in result.dials] == [0.0, 0.5, 1.0]
        at = {each.dial: each.metrics for each in result.dials}
        assert at[position] == result.metrics
        assert at[0.0].fidelity == at[0.0].fidelity_undialled
        assert at[0.0].fidelity.mean < at[0.5].fidelity.mean < at[1.0].fidelity.mean


@pytest.mark.slow
def test_the_tuned_reference_teaches_and_is_gone_when_the_study_is_done(study, tmp_path, monkeypatch):
    table = f'{{name = "taught", {QUINTIC}, override = {{training.distil = 0.5, training.teacher = "distributed"}}}}'
    config = with_condition(study, table)
    out = tmp_path / "out"
    order = []
    saved = runner._result
    monkeypatch.setattr(runner, "_result", lambda future: order.append(saved(future)) or order[-1])
    assert runner.run_study(config, out, workers=1).failed == []
    assert order[0].condition == "distributed"
    assert not (out / "teachers").exists()
    taught = next(each for each in load_study(out)[1] if each.condition == "taught")
    assert all(point.distillation > 0 for point in taught.training.log)
    (out / "runs" / "taught-seed0.json").unlink()
    pending = [(config.conditions[2], 0)]
    assert plan.in_stages(config, out, pending) == [[(config.conditions[0], 0)], pending]
    before = load_study(out)[1][0]
    assert runner.run_study(config, out, workers=1).failed == []
    again = load_study(out)[1]
    assert again[0].metrics == before.metrics, "the reference was made again to teach"
    assert again[2].metrics == taught.metrics


def test_without_its_teacher_a_run_fails_with_the_reason(study, tmp_path):
    table = f'{{name = "taught", {QUINTIC}, override = {{training.distil = 0.5, training.teacher = "distributed"}}}}'
    config = with_condition(study, table)
    with pytest.raises(proloc.ProlocError, match="its teacher distributed-seed0 is not there"):
        run_one(prepared(config, tmp_path / "out"), config, "taught")


def test_a_folder_of_an_older_version_is_continued_and_one_of_another_value_is_not(study, tmp_path):
    config, out = study_config.load_config(study), tmp_path / "out"
    out.mkdir()
    runner._prepare(config, out, plan.check(config, out), runner._progress(runner.Console(quiet=True)))
    record = load_study(out)[0]
    old = {key: value for key, value in record.config.items() if key not in ("dials", "sink_token", "training.dial")}
    for key in old:
        if key.startswith("conditions."):
            old[key] = {name: value for name, value in old[key].items() if name != "override"}
    save_record(out / "study.json", record.model_copy(update={"config": old}))
    plan.check(config, out)
    edited(study, "[text]", "dials = [0.5]\n[text]")
    with pytest.raises(proloc.ProlocError, match="different: dials"):
        plan.check(study_config.load_config(study), out)
    assert json.loads((out / "study.json").read_text())["config"] == old
