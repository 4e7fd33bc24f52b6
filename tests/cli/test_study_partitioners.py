"""One study compares partitioners: at equal lengths where it measures, with blocks that are decided once."""

import json
from pathlib import Path

import pytest
import torch

import proloc
from proloc.blocks import RandomBlocks, lead_distribution, mean_block_length
from proloc.cli import main
from proloc.evaluation import evaluate
from proloc.hf import frozen
from proloc.hf.models import load_model
from proloc.locality import leads_of
from proloc.study import prepare, results, run, runner
from proloc.study.config import load_config

PARTITIONERS = """
[partitioners.sentences]
kind = "sentence"
[partitioners.topics]
kind = "drift"
max_length = 160
[partitioners.words]
kind = "recruitment"
min_length = 16
[partitioners.paragraphs]
kind = "paragraph"
[partitioners.lines]
kind = "delimiter"
delimiters = [".", ";"]
[partitioners.events]
kind = "surprise"
[partitioners.led]
kind = "recruitment"
hindsight = true
[partitioners.online]
kind = "online"
[partitioners.chance]
kind = "random"
like = "events"
[partitioners.led-by-chance]
kind = "random"
like = "online"
"""
BUILTIN = """
name = "matched"
model = "builtin"
seeds = [0]
match = "held_out"
conditions = ["distributed"]
[text]
builtin = "pydoc"
max_held_out_windows = 24
max_train_windows = 6
[blocks]
kind = "recruitment"
mean_length = 72
[training]
steps = 1
context = 256
"""


def silent(*_state):
    """A progress callback that shows nothing."""


@pytest.fixture(scope="module")
def matched(tmp_path_factory: pytest.TempPathFactory) -> prepare.Prepared:
    file = tmp_path_factory.mktemp("matched") / "matched.toml"
    file.write_text(BUILTIN + PARTITIONERS)
    return prepare.prepare(load_config(file))


@pytest.fixture
def small(study: Path) -> Path:
    """The small study with surprise blocks, read by the condition "quintic"."""
    text = study.read_text().replace('"quintic"]', '{name = "quintic", blocks = "events", schedule = SCHEDULE}]')
    text = text.replace("SCHEDULE", '{kind = "polynomial", beta = 5}')
    extra = '\n[partitioners.events]\nkind = "surprise"\nmean_length = 12\nmin_length = 2\n'
    chance = '\n[partitioners.chance]\nkind = "random"\nlike = "events"\n'
    study.write_text(text + extra + chance)
    return study


def saved(file: Path, folder: Path):
    config = load_config(file)
    folder.mkdir()
    prepare.save_prepared(prepare.prepare(config), folder)
    return config


def test_every_partitioner_has_the_same_mean_length_where_it_is_measured(matched: prepare.Prepared) -> None:
    windows = matched.held_out.numpy()
    lengths = {name: mean_block_length(found, windows) for name, found in matched.partitioners.items()}
    assert len(lengths) == 13
    for name in ("chance", "random", "led-by-chance"):  # one draw has other lengths than it draws from
        del lengths[name]
        draws = [RandomBlocks(matched.partitioners[name].lengths, seed=seed) for seed in range(30)]
        mean = sum(mean_block_length(draw, windows) for draw in draws) / len(draws)
        assert mean == pytest.approx(72, rel=0.1)
    assert lengths == pytest.approx(dict.fromkeys(lengths, 72), rel=0.05)
    assert matched.train.shape == (6, 256)


def test_hindsight_gives_leads_which_random_blocks_like_it_have_too(matched: prepare.Prepared) -> None:
    windows = matched.held_out.numpy()
    leads = {name: lead_distribution(found, windows) for name, found in matched.partitioners.items()}
    led = {name for name, found in leads.items() if any(lead for _, lead in found)}
    assert led == {"led", "online", "led-by-chance"}
    drawn = matched.partitioners["led-by-chance"].leads
    assert {(length, lead): share for length, lead, share in drawn} == leads["online"]
    for name in ("led", "online", "led-by-chance"):
        assert leads_of(matched.decide().blocks(name, 3).held_out).any()


def test_no_run_asks_the_frozen_model_again(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = saved(small, tmp_path / "out")
    made = prepare.load_prepared(tmp_path / "out").blocks("events", 0)

    def refuse(*_arguments: object) -> None:
        raise AssertionError("the frozen model was asked")

    monkeypatch.setattr(frozen.FrozenSurprisal, "__init__", refuse)
    result = run.run(tmp_path / "out", config, config.conditions[1], 0, silent)
    assert result.status == "finished"
    assert result.sample is not None
    assert result.sample.block_ids == made.held_out[0, : run.SAMPLE_TOKENS].tolist()


def test_decided_blocks_are_those_of_the_partitioner(small: Path, tmp_path: Path) -> None:
    saved(small, tmp_path / "out")
    prepared = prepare.load_prepared(tmp_path / "out")
    connected = prepared.partitioners["events"].connect(proloc.hf.provide)
    blocks = prepared.blocks("events", 0)
    assert torch.equal(blocks.train, connected(prepared.train))
    assert torch.equal(blocks.held_out, connected(prepared.held_out))
    assert blocks.held_out.max() > 1


def test_random_partitioners_of_a_study_draw_anew_for_every_seed_and_the_control_does_not(
    small: Path, tmp_path: Path
) -> None:
    saved(small, tmp_path / "out")
    prepared = prepare.load_prepared(tmp_path / "out")
    assert torch.equal(prepared.blocks("chance", 1).train, prepared.blocks("chance", 1).train)
    assert not torch.equal(prepared.blocks("chance", 0).train, prepared.blocks("chance", 1).train)
    assert torch.equal(prepared.blocks("random", 0).train, prepared.blocks("random", 1).train)


def test_a_run_says_what_the_model_was_before_tuning_under_its_own_dial_and_blocks(small: Path, tmp_path: Path) -> None:
    config = saved(small, tmp_path / "out")
    result = run.run(tmp_path / "out", config, config.conditions[1], 0, silent)
    prepared = prepare.load_prepared(tmp_path / "out")
    blocks = prepared.blocks("events", 0)
    model = proloc.localize(load_model(config.model), proloc.Polynomial(beta=5), blocks.partitioner)
    found = evaluate(model, prepared.held_out, blocks.held_out)
    assert result.untuned.loss == found.loss
    assert result.untuned.window_losses == found.window_losses
    assert result.untuned.loss == pytest.approx(sum(found.window_losses) / len(found.window_losses))
    assert result.metrics.loss != found.loss


@pytest.mark.parametrize(("blocks", "kept"), [("events", True), ("chance", False)])
def test_the_model_before_tuning_is_measured_once_unless_seeds_have_blocks_of_their_own(
    small: Path, tmp_path: Path, blocks: str, kept: bool
) -> None:
    out = tmp_path / "out"
    config = saved(small, out)
    config = config.model_copy(update={"seeds": [0, 1]})
    condition = config.conditions[1].model_copy(update={"blocks": blocks})
    first = run.run(out, config, condition, 0, silent)
    marked = first.model_copy(update={"untuned": first.untuned.model_copy(update={"loss": -1.0})})
    results.save_record(results.run_path(out, condition.name, 0), marked)
    assert (run.run(out, config, condition, 1, silent).untuned.loss == -1.0) == kept


def test_a_folder_of_an_older_version_is_continued(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    runner.run_study(load_config(study), out, workers=1)
    record = json.loads((out / "study.json").read_text())
    del record["config"]["match"], record["config"]["text.max_train_windows"], record["config"]["blocks.hindsight"]
    del record["baseline"]["window_losses"]
    (out / "study.json").write_text(json.dumps(record))
    for path in (out / "runs").glob("*.json"):
        old = json.loads(path.read_text())
        del old["untuned"], old["metrics"]["window_losses"]
        path.write_text(json.dumps(old))
    outcome = runner.run_study(load_config(study), out, workers=1)
    assert (outcome.ran, outcome.kept) == (0, 2)
    assert main(["report", str(out)]) == 0
    study.write_text(study.read_text().replace("[text]", 'match = "held_out"\n[text]'))
    assert main(["study", str(study), "--out", str(out)]) == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('blocks = "events"', 'blocks = "event"', "choose from semantic, fixed, random, events, chance"),
        ("[partitioners.events]", "[partitioners.fixed]", "'fixed' always means what [blocks] makes of it"),
        ("[partitioners.chance]", '[partitioners."a.b"]', "partitioners"),
        ('like = "events"', 'like = "chance"', "cannot be like 'chance'"),
        ('like = "events"', "", None),
        ("mean_length = 12\n", "", 'blocks of kind "surprise" (events) need mean_length'),
        ("min_length = 2", "hindsight = true", "hindsight is for blocks of kind 'drift' and 'recruitment'"),
        ('kind = "surprise"', 'kind = "online"', 'blocks of kind "online" count sentences'),
        ("min_length = 2", 'delimiters = ["x"]', 'blocks of kind "delimiter" need delimiters'),
        ("min_length = 2", 'like = "semantic"', 'only blocks of kind "random" are like others'),
        ('kind = "surprise"', 'kind = "sentence"', "min_length or mean_length, not both"),
        ('kind = "surprise"', 'kind = "changepoint"', '"partitioners.events.kind"'),
        ("mean_length = 12", "mean_length = 1200", "No threshold gives blocks of 1200.0 tokens"),
    ],
)
def test_what_a_study_cannot_mean_is_said_in_one_sentence(small: Path, tmp_path, capsys, old, new, message) -> None:
    text = small.read_text()
    assert old in text
    small.write_text(text.replace(old, new))
    code = main(["study", str(small), "--out", str(tmp_path / "out"), "--workers", "1"])
    said = capsys.readouterr().err
    if message is None:
        assert code == 0
    else:
        assert code == 2
        assert message in said
        assert not (tmp_path / "out" / "study.json").exists()


def test_a_random_partitioner_has_no_lengths_of_its_own(study: Path, tmp_path, capsys) -> None:
    study.write_text(study.read_text().replace('kind = "sentence"', 'kind = "random"'))
    assert main(["study", str(study), "--out", str(tmp_path / "out")]) == 2
    assert "[blocks] cannot be of kind" in capsys.readouterr().err
