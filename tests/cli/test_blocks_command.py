"""``proloc blocks`` as a user meets it: any partitioner, in the terminal, as a page and as JSON."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proloc.cli import main
from proloc.marking import KINDS, mark_blocks
from proloc.report.blocks import blocks_page

SAMPLE = Path(__file__).parents[2] / "docs" / "blocks" / "sample.txt"


class Page(HTMLParser):
    """The text of a page, and the tags in it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags, self._skip = "", [], False
        self.feed(html)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data) -> None:
        self.text += data


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_shows_the_whole_text_in_blocks(kind: str) -> None:
    text = SAMPLE.read_text()
    marked = mark_blocks(text, kind=kind)
    assert "".join(marked.tokens) == text
    assert len(marked.tokens) == len(marked.block_ids) == len(marked.scores)
    assert marked.starts[0] == 0
    assert sum(marked.lengths) == len(marked.tokens)
    page = Page(blocks_page(marked))
    assert "yeast breathes" in page.text
    assert marked.causal == (kind not in {"changepoint", "tiling"})
    assert ("not run inside a model" in page.text) != marked.causal


@pytest.mark.parametrize("kind", ["fixed", "sentence", "drift", "recruitment", "surprise", "online", "changepoint"])
def test_a_mean_length_can_be_asked_for(kind: str) -> None:
    marked = mark_blocks(SAMPLE.read_text(), kind=kind, mean_length=70)
    assert 45 < sum(marked.lengths) / len(marked.lengths) < 100


def test_the_page_and_the_terminal_say_from_where_on_a_block_is_led(capsys) -> None:
    marked = mark_blocks(SAMPLE.read_text(), kind="online", mean_length=50)
    page = Page(blocks_page(marked))
    assert marked.homes
    assert page.text.count("⟨") == len(marked.homes) + 1  # and where it says how to read it
    assert "is home to the next block as well" in page.text
    assert main(["blocks", str(SAMPLE), "--kind", "online", "--mean-length", "50"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("⟨") == len(marked.homes)
    assert "led by" in shown
    assert not mark_blocks(SAMPLE.read_text()).homes


@settings(deadline=None, max_examples=40)
@given(st.text(min_size=1, max_size=60))
def test_no_character_of_any_text_is_lost_or_taken_for_markup(text: str) -> None:
    marked = mark_blocks(text)
    assert "".join(marked.tokens) == text
    tags = {tag for tag, _ in Page(blocks_page(marked)).tags}
    assert tags <= {tag for tag, _ in Page(blocks_page(mark_blocks(SAMPLE.read_text()))).tags}


@pytest.mark.parametrize("text", ["Done.", "notes.txt ", "A walk and/or a swim.", "3.14", "U.S.A."])
def test_what_does_not_look_like_a_file_is_a_text(text: str, capsys) -> None:
    assert main(["blocks", text, "--json"]) == 0
    assert "".join(json.loads(capsys.readouterr().out)["tokens"]) == text


def test_markup_in_the_text_is_shown_not_run() -> None:
    html = blocks_page(mark_blocks("<script>alert(1)</script> & <img src=x onerror=alert(2)>"))
    assert "<script" not in html
    assert "<img" not in html
    assert "default-src 'none'" in html


def test_the_command_prints_blocks_writes_the_page_and_tells_where(tmp_path, capsys) -> None:
    page = tmp_path / "deep" / "blocks.html"
    assert main(["blocks", str(SAMPLE), "--kind", "drift", "--html", str(page)]) == 0
    shown = capsys.readouterr()
    assert "steam engine" in shown.out
    assert "cosine distance" in " ".join(shown.out.split())
    assert str(page) in shown.err
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_json_holds_the_score_of_every_boundary(capsys) -> None:
    assert main(["blocks", "One sentence that is long enough. Another one that is long enough too. End", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["schema_version"] == 1
    assert [record["scores"][start] is not None for start in record["starts"]] == [False, True, True]
    assert all(record["scores"][start] > record["threshold"] for start in record["starts"][1:])


def test_control_characters_do_not_reach_the_terminal(capsys) -> None:
    assert main(["blocks", "a \x1b[31m red \x07 bell"]) == 0
    assert "\x1b[31m" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--kind", "topic"], "no 'topic' blocks to show; choose one of fixed, random, sentence"),
        ([""], "text is empty"),
        (
            ["Some text that has an end. " * 2, "--kind", "random", "--mean-length", "9"],
            "a mean length can be had of fixed, sentence",
        ),
        (["Some text.", "--kind", "drift", "--mean-length", "900"], "No threshold gives blocks of 900.0 tokens"),
        (["notes.tx"], r"no file notes\.tx; .* put a space behind"),
        (["folder/notes"], "no file folder/notes"),
        (["x", "--kind", "fixed", "--mean-length", "0"], "mean length .* not 0"),
        (["x", "--model", "nowhere/none"], "nowhere/none"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(arguments, message, capsys) -> None:
    assert main(["blocks", *arguments]) == 2
    error = capsys.readouterr().err
    assert "proloc: " in error
    assert re.search(message, error)
