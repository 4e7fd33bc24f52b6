"""``proloc explain`` and ``proloc heads`` as a user meets them, and the study's section about explanations."""

import json
import re
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from result_files import make_study
from test_blocks_command import Page
from texts import ending_tokenizer
from tiny import tiny_model

from proloc.blocks import FixedBlocks
from proloc.cli import main
from proloc.errors import ProlocError
from proloc.explaining.explain import explain
from proloc.explaining.questions import make_question
from proloc.explaining.record import Explanation
from proloc.explaining.subject import _written_pieces
from proloc.hf import localize
from proloc.hf.models import load_tokenizer
from proloc.report.explanation_page import explanation_page
from proloc.schedule import Polynomial
from proloc.study.config import load_config
from proloc.study.plan import check, comparable
from proloc.study.results import save_record
from proloc.study.text import digest, read_text

TEXT = (
    "The will is a relation between the mind and its ideas. The old man walked slowly to the house. "
    "She said that it was cold in the garden. The will is a relation"
)


@pytest.fixture(scope="module")
def explained() -> Explanation:
    return explain("builtin", TEXT, target="relation", schedule="last-third", blocks="sentence", ablations=8)


def test_the_command_shows_the_blocks_and_writes_json_and_a_page_that_hold_the_same(tmp_path, capsys) -> None:
    data, page = tmp_path / "deep" / "e.json", tmp_path / "e.html"
    arguments = ["explain", "builtin", TEXT, "--target", "relation", "--schedule", "quintic", "--dial", "0.5"]
    assert main([*arguments, "--json", str(data), "--html", str(page)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    found = Explanation.model_validate_json(data.read_text())
    assert found.schema_version == 1
    assert found.dial == 0.5
    assert "".join(found.tokens) == TEXT
    assert found.target.text.strip() == "relation"
    assert found.target.start > found.sources[-1].end, "the last occurrence is meant"
    assert f"log-probability of {found.target.log_prob:.2f}" in shown
    assert set(found.sources[0].scores) == set(found.faithfulness)
    assert found.cost.passes < found.cost.ablations
    text = Page(page.read_text()).text
    for source in found.sources:
        assert f"{source.cut:.2f}" in text


def test_hard_layers_are_shown_as_shut_for_every_block_before(explained) -> None:
    assert [source.enters for source in explained.sources] == [[0, 1, 2, 3, 4]] * len(explained.sources)
    page = explanation_page(explained)
    assert page.count('class="shut"') == 3 * len(explained.sources)
    assert "layers 5–7, which are hard" in page


def test_an_explanation_of_another_schema_is_refused(explained) -> None:
    for change in ({"schema_version": 2}, {"more": 1}):
        with pytest.raises(ValidationError):
            Explanation.model_validate({**explained.to_json(), **change})
    assert Explanation.model_validate(explained.to_json()) == explained


def test_markup_in_text_and_target_is_shown_not_run() -> None:
    text = "One <script>alert(1)</script> thing was said. And <b>another</b> thing was said. So <i>what"
    page = explanation_page(explain("builtin", text, target="<i>what", ablations=8))
    assert not re.search("<script|<i>what|<b>another", page)
    assert "default-src 'none'" in page


def test_a_continuation_is_explained_as_the_model_writes_it(capsys) -> None:
    found = explain("builtin", TEXT + " between", generate=3, ablations=8)
    assert found.target.generated
    assert found.target.end - found.target.start == 3 == len(found.target.token_log_probs)
    assert found.target.log_prob == pytest.approx(sum(found.target.token_log_probs))
    assert main(["generate", "builtin", TEXT + " between", "--tokens", "3", "--dial", "0"]) == 0
    assert capsys.readouterr().out.strip() == ("".join(found.tokens)).strip()


@pytest.mark.parametrize("target", ["😀", "漢字", "é̂", "שלום"])
def test_a_target_is_explained_to_the_last_token_of_its_last_character(target) -> None:
    text = f"Start it now and go. It rained all day long here. Then came {target}"
    found = explain("builtin", text, target=target, ablations=8)
    assert found.target.end == len(found.tokens)
    assert found.target.text.strip() == target


def test_characters_of_many_tokens_are_whole_in_what_the_model_wrote() -> None:
    tokenizer = load_tokenizer("builtin")
    written = torch.tensor(tokenizer(" 😀 é漢 x")["input_ids"])
    assert "".join(_written_pieces(tokenizer, written)) == tokenizer.decode(written)


def test_an_unmodified_model_is_explained_at_dial_0() -> None:
    assert explain("builtin", TEXT, ablations=8).dial == 0.0
    assert explain("builtin", TEXT, schedule="quintic", ablations=8).dial == 1.0


def test_no_text_gives_orders_to_the_terminal(capsys) -> None:
    title, red = "\x1b]0;PWNED\x1b\\", "\x1b[31m"
    hostile = f"Start it now then. {title}{red}The number is seven two. It rained long. The number is {red}"
    assert main(["explain", "builtin", hostile, "--target", red]) == 0
    assert "\x1b]0;" not in capsys.readouterr().out


def test_layers_are_those_that_were_asked_for_whatever_holds_them() -> None:
    assert explain("builtin", TEXT, layers=iter([4, 3]), ablations=8).layers == [3, 4]


@pytest.mark.parametrize(
    ("setting", "message"), [({"how": "burnt"}, "cannot be 'burnt'"), ({"seed": -1}, "seed is -1")]
)
def test_settings_that_cannot_be_are_refused_before_work_starts(setting, message) -> None:
    with pytest.raises(ProlocError, match=message):
        explain("builtin", TEXT, **setting)


def test_heads_wants_a_window(capsys) -> None:
    assert main(["heads", "builtin", "--layer", "0", "--head", "0", "--windows", "0"]) == 2
    assert "windows is 0; look at 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize("blocks", ["re:The |She ", [56, 95, 137], "tiling", "fixed"])
def test_blocks_may_be_given_or_read_the_whole_text(blocks) -> None:
    found = explain("builtin", TEXT * 3, blocks=blocks, ablations=8)
    assert found.sources
    assert found.causal == (blocks != "tiling")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([TEXT, "--target", "nowhere"], "'nowhere' is not in the text"),
        ([TEXT, "--target", "The will is a relation between"], "begins the text"),
        (["One block only", "--target", "only"], "no earlier block can have had a part"),
        ([TEXT, "--blocks", "topic"], "no 'topic' blocks; choose one of fixed"),
        ([TEXT, "--blocks", "re:("], "no regular expression"),
        ([TEXT, "--schedule", "steep"], "no schedule 'steep'; choose one of distributed"),
        ([TEXT, "--dial", "1.5"], "dial is 1.5"),
        ([TEXT, "--layers", "6-9"], "no layer 8; the model has layers 0 to 7"),
        ([TEXT, "--generate", "4000"], "made for"),
        (["", "--blocks", "fixed"], "the text is empty"),
        (["The sky is \udcff blue. It was", "--blocks", "fixed"], "not valid UTF-8"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(arguments, message, capsys) -> None:
    assert main(["explain", "builtin", *arguments]) == 2
    error = capsys.readouterr().err
    assert "proloc: " in error
    assert message in error


def test_heads_prints_edges_and_writes_them(tmp_path, capsys) -> None:
    data = tmp_path / "head.json"
    assert main(["heads", "builtin", "--layer", "2", "--head", "0", "--windows", "1", "--json", str(data)]) == 0
    found = json.loads(data.read_text())
    assert len(found["edges"]) == 8
    assert found["edges"][0]["mass"] >= found["edges"][-1]["mass"] > 0
    assert len(found["blocks_read"]) == 8
    assert f"Loss {found['loss']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(20))
def test_the_answer_of_a_built_in_question_stands_in_its_block_and_in_no_other(seed) -> None:
    question = make_question(seed)
    blocks = [question.text[a:b] for a, b in zip(question.starts, [*question.starts[1:], None], strict=True)]
    answer = question.text[question.target :]
    assert [number for number, block in enumerate(blocks[:-1]) if answer in block] == [question.true_block]
    assert blocks[-1].endswith(answer)
    assert blocks[question.true_block].startswith(blocks[-1])
    assert sum(block.split()[:3] == blocks[-1].split()[:3] for block in blocks[:-1]) >= 1
    assert make_question(seed) == question


EXPLAIN = """
[explain]
passages = 3
questions = 3
target_tokens = 8
ablations = 16
fitted = 8
"""


@pytest.mark.slow
def test_a_study_measures_faithfulness_resumes_it_and_reports_it(study: Path, tmp_path, capsys) -> None:
    text = study.read_text().replace("context = 48", "context = 64")
    text = text.replace('kind = "sentence"', 'kind = "fixed"\nmean_length = 12') + EXPLAIN
    (study.parent / "other.txt").write_text(" ".join(f"{word} stands beside {word}." for word in TEXT.split()) * 20)
    text = text.replace("questions = 3", 'questions = 0\ntext_passages = 2\ntexts = { other = "other.txt" }')
    study.write_text(text)
    out, folder = tmp_path / "out", tmp_path / "out" / "faithfulness"
    assert main(["study", str(study), "--out", str(out), "--workers", "1"]) == 0
    shown = capsys.readouterr().out
    assert "Faithfulness on held-out passages" in shown
    runs = {
        name: json.loads((out / "faithfulness" / f"{name}-seed0.json").read_text())
        for name in ("distributed", "quintic")
    }
    for run in runs.values():
        names = [passage["passage"] for passage in run["passages"]]
        assert names[:3] == ["held-out-0", "held-out-1", "held-out-2"]
        assert [passage["kind"] for passage in run["passages"][3:]] == ["other", "other"]
        assert {"attention", "rollout", "learned-heads", "lasso"} <= set(run["passages"][0]["methods"])
    summary = json.loads((out / "faithfulness.json").read_text())
    gains = {
        (row["condition"], row["method"]): row["lds_gain"] for row in summary["methods"] if row["kind"] == "held-out"
    }
    assert gains["distributed", "attention"] is None
    expected = [
        ours["methods"]["attention"]["lds"] - theirs["methods"]["attention"]["lds"]
        for ours, theirs in zip(runs["quintic"]["passages"][:3], runs["distributed"]["passages"][:3], strict=True)
    ]
    assert gains["quintic", "attention"]["mean"] == pytest.approx(sum(expected) / 3)
    # A run made again takes its measured passages from the disk.
    kept = folder / "quintic-seed0"
    times = {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}
    (out / "runs" / "quintic-seed0.json").unlink()
    (kept / "held-out-1.safetensors").unlink()
    before = (folder / "quintic-seed0.json").read_text()
    assert main(["study", str(study), "--out", str(out), "--workers", "1"]) == 0
    after = {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}
    assert [name for name in times if after[name] != times[name]] == ["held-out-1.safetensors"]
    assert (folder / "quintic-seed0.json").read_text() == before


def test_a_study_that_cannot_be_explained_is_refused_before_it_starts(study: Path, tmp_path, capsys) -> None:
    study.write_text(study.read_text() + EXPLAIN)
    assert main(["study", str(study), "--out", str(tmp_path / "out"), "--workers", "1"]) == 2
    error = capsys.readouterr().err
    assert "held-out windows have 4 blocks before their last 8 tokens, and 3 passages are asked for" in error
    assert not (tmp_path / "out" / "study.json").exists()


def test_a_study_does_not_mix_explained_texts(study: Path, tmp_path, capsys) -> None:
    text = study.read_text().replace("context = 48", "context = 64")
    text = text.replace('kind = "sentence"', 'kind = "fixed"\nmean_length = 12') + EXPLAIN
    study.write_text(text.replace("questions = 3", 'questions = 0\ntext_passages = 2\ntexts = { other = "other.txt" }'))
    other, out = study.parent / "other.txt", ["--out", str(tmp_path / "out"), "--workers", "1"]

    def refused() -> str:
        assert main(["study", str(study), *out]) == 2
        return capsys.readouterr().err

    assert "other.txt" in refused()
    other.write_text(" ")
    assert "explain.texts.other is empty" in refused()
    assert not (tmp_path / "out").exists(), "nothing was begun"
    other.write_bytes((study.parent / "text.txt").read_bytes())
    assert "explain.texts.other is the study's own text" in refused()
    other.write_text("Some words stand here. " * 200)
    config = load_config(study)
    known = {"sha256": digest(read_text(config.text)), "explained": {"other": digest(other.read_text())}}
    record = make_study().model_copy(update={"config": comparable(config), "text": known})
    save_record(tmp_path / "out" / "study.json", record)
    check(config, tmp_path / "out")
    other.write_text("Other words stand here. " * 200)
    assert "different: the content of a text" in refused()


def test_the_last_word_is_the_target_where_a_tokenizer_appends_an_end_of_sequence():
    text = "one two three. two one three. three two one"
    model = localize(tiny_model(), Polynomial(beta=5), FixedBlocks(4))
    found = explain(model, text, tokenizer=ending_tokenizer(text), blocks=[14, 29], ablations=8)
    assert found.target.text.strip() == "one"
    assert len(found.sources) == 2
