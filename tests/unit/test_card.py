"""The model card says what was made and measured, escapes what it is given, and leaves a person's own text alone."""

import re

import pytest
import torch
import yaml
from tiny import random_ids, tiny_model

import proloc
from proloc.hf.card import MARKER, add_figures, escape, figures, fingerprint

IDS = random_ids(4, 20)


def localised(schedule=None, name=""):
    model = tiny_model("gpt2")
    model.config.name_or_path = name
    return proloc.localize(model, schedule or proloc.Polynomial(beta=1), proloc.FixedBlocks(5), sinks=2)


def saved_card(model, folder):
    model.save_pretrained(folder)
    return (folder / "README.md").read_text()


def metadata(card):
    return yaml.safe_load(re.fullmatch(r"---\n(.*?)\n---\n.*", card, re.DOTALL)[1])


def rows(card):
    """The cells of the table of figures."""
    lines = [line for line in card.split("## Measured")[1].splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_the_card_says_how_the_model_was_made_and_how_to_load_it(tmp_path):
    model = localised(proloc.Polynomial(beta=3, lambda_max=0.8))
    proloc.set_dial(model, 0.5)
    card = saved_card(model, tmp_path)
    assert MARKER in card
    for said in (
        "# GPT2LMHeadModel with a locality dial",
        "Schedule: kind polynomial, beta 3, lambda\\_max 0.8",
        "Dial as saved: 0.5",
        "Blocks: kind fixed, length 5",
        "Sinks: 2 ",
        f"proloc {proloc.__version__}",
        "| 0 | 0 | 0 |\n| 1 | 0.1 | 0.05 |\n| 2 | 0.8 | 0.4 |",
        'proloc.from_pretrained("',
        'attn_implementation="sdpa"',
        "Locality below 1 is a soft restriction",
    ):
        assert said in card


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("openai-community/gpt2", "openai-community/gpt2"),
        ("gpt2", "gpt2"),
        ("", None),
        ("/home/someone/model", None),
        ("./model", None),
        ("C:\\models\\gpt2", None),
        ("tests", None),
    ],
)
def test_the_base_model_is_named_where_it_is_a_hub_id_and_never_a_path(tmp_path, monkeypatch, name, base):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").mkdir()
    card = saved_card(localised(name=name), tmp_path / "model")
    assert metadata(card).get("base_model") == base
    assert metadata(card)["library_name"] == "transformers"
    assert {"proloc", "locality", "interpretability"} <= set(metadata(card)["tags"])
    if name and base is None:
        assert name not in card


def test_the_base_model_is_still_named_after_a_reload_and_another_localisation(tmp_path):
    localised(name="gpt2").save_pretrained(tmp_path / "first")
    model = proloc.from_pretrained(tmp_path / "first")
    proloc.localize(model, proloc.Uniform(value=1.0), proloc.FixedBlocks(3))
    assert metadata(saved_card(model, tmp_path / "second"))["base_model"] == "gpt2"


def test_where_nothing_was_measured_the_card_says_so(tmp_path):
    assert "No figures were measured." in saved_card(localised(), tmp_path)


def test_an_evaluation_stands_on_the_card_and_survives_a_reload(tmp_path):
    model = localised()
    with proloc.dial(model, 0.5):
        result = proloc.evaluate(model, IDS)
        add_figures(model, result, text="some text", how="seed 3")
    card = saved_card(model, tmp_path)
    late = torch.tensor(result.statistics["fidelity"])[-1].mean()
    assert [row[:4] for row in rows(card)] == [
        ["perplexity", f"{result.perplexity:.4g}", "0.5", "some text"],
        ["fidelity, late layers", f"{late:.4g}", "0.5", "some text"],
        ["fidelity before the dial, late layers", rows(card)[2][1], "0.5", "some text"],
        ["fidelity of uniform attention", f"{result.fidelity_uniform:.4g}", "0.5", "some text"],
        ["mean block length, tokens", f"{result.mean_block_length:.4g}", "0.5", "some text"],
    ]
    assert rows(card)[0][4] == "76 predicted tokens; late: the last 1 of 3 layers; seed 3"
    assert "Mean block length: 5 tokens on some text" in card
    again = proloc.from_pretrained(tmp_path)
    assert figures(again) == figures(model)
    assert saved_card(again, tmp_path / "again") == card


def test_the_same_measurement_replaces_and_another_dial_adds():
    model = localised()
    add_figures(model, {"accuracy": 0.5}, text="a text")
    add_figures(model, {"accuracy": 0.7}, text="a text")
    add_figures(model, {"accuracy": 0.6}, text="a text", dial=0.0)
    assert [(figure.value, figure.dial) for figure in figures(model)] == [(0.7, 1.0), (0.6, 0.0)]


def test_figures_of_other_weights_are_marked(tmp_path):
    model = localised()
    add_figures(model, {"accuracy": 0.5}, text="a text")
    assert "not of exactly these weights" not in saved_card(model, tmp_path)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight.mul_(1.01)
    add_figures(model, {"accuracy": 0.6}, text="another text")
    old, new = rows(saved_card(model, tmp_path))
    assert "not of exactly these weights" in old[4]
    assert "not of exactly these weights" not in new[4]


def test_localising_again_removes_the_figures_of_the_setting_before(tmp_path):
    model = localised()
    add_figures(model, {"accuracy": 0.5}, text="a text")
    proloc.localize(model, proloc.Uniform(value=1.0), proloc.FixedBlocks(3))
    assert figures(model) == []


def test_a_fingerprint_is_that_of_the_weights():
    model, other = tiny_model("gpt2"), tiny_model("gpt2")
    assert fingerprint(model) == fingerprint(other)
    assert fingerprint(model) != fingerprint(tiny_model("gpt2", seed=1))
    assert fingerprint(model) != fingerprint(other.half())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"measured": {"accuracy": float("nan")}, "text": "a"}, "'accuracy' is nan; it must be a finite number"),
        ({"measured": {"accuracy": "high"}, "text": "a"}, "'accuracy' is 'high'"),
        ({"measured": {"accuracy": 1.0}, "text": " "}, "the text is ' '; name what was read"),
        ({"measured": {"accuracy": 1.0}, "text": "a", "dial": 2}, r"the dial is 2; it must be a number in \[0, 1\]"),
    ],
)
def test_figures_that_say_nothing_are_refused(given, message):
    with pytest.raises(proloc.ProlocError, match=message):
        add_figures(localised(), **given)


def test_figures_need_a_localised_model():
    with pytest.raises(proloc.ProlocError, match="is not localised"):
        add_figures(tiny_model(), {"accuracy": 1.0}, text="a text")


HOSTILE = [
    "a | b",
    "two\nlines",
    "<script>x</script>",
    "[link](http://x)",
    "`code`",
    "# head",
    "\\",
    "**bold**",
    "\u202eltr",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_names_and_texts_cannot_break_the_card(tmp_path, text):
    model = localised()
    add_figures(model, {f"figure {text}": 1.0}, text=f"x {text}", how=text)
    card = saved_card(model, tmp_path)
    (row,) = rows(card)
    assert len(row) == 5
    assert not re.search(r"(?<!\\)[<`*\[]|\u202e", "".join(row))
    assert metadata(card)["library_name"] == "transformers"


def test_escaped_text_is_one_line():
    assert escape(" a\tb\nc_d|e ") == "a b c\\_d\\|e"


def test_a_persons_own_readme_is_never_overwritten(tmp_path):
    (tmp_path / "README.md").write_text("# Mine\n")
    assert saved_card(localised(), tmp_path) == "# Mine\n"


def test_our_own_card_is_written_again(tmp_path):
    model = localised()
    saved_card(model, tmp_path)
    proloc.set_dial(model, 0.25)
    assert "Dial as saved: 0.25" in saved_card(model, tmp_path)


def test_a_process_that_is_not_the_main_one_writes_no_card(tmp_path):
    localised().save_pretrained(tmp_path, is_main_process=False)
    assert not (tmp_path / "README.md").exists()
