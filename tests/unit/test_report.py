"""The report: what stands in the page and the files is what the statistics say, and the page needs nothing else."""

import base64
import csv
import io
import json
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import pytest
from matplotlib.image import imread
from result_files import make_failed_run, make_run, make_runs, make_study, write_study
from rich.console import Console

from proloc.errors import ProlocError
from proloc.report import build_report, print_table
from proloc.report.answer import answer
from proloc.report.canvas import look_of
from proloc.report.data import ReportData
from proloc.report.figures import PLANS
from proloc.report.figures_sample import block_spans
from proloc.report.rows import HEADERS, make_rows
from proloc.report.rows_contrasts import CONTRAST_HEADERS
from proloc.study.results import RunResult, StudyRecord, load_study
from proloc.study.statistics import StudySummary, summarise

OPTIONAL = {"dial", "hard_layers", "budget", "faithfulness"}  # drawn only where a study asks its question
FIGURES = [plan.name for plan in PLANS if plan.name not in OPTIONAL]
HOSTILE = '<script>alert(1)</script>"&'


class Loads(HTMLParser):
    """Collects what a page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.cells: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "data", "srcset", "action")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag in ("td", "th"):
            self.cells.append("")
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open:
            self.cells[-1] += data


def parse(page: Path) -> Loads:
    loads = Loads()
    loads.feed(page.read_text(encoding="utf-8"))
    return loads


def visible_text(page: Path) -> str:
    """The page without its tags and style, entities resolved, spaces collapsed."""
    text = re.sub(r"<style>.*?</style>|<[^>]+>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(unescape(text).split())


def full_study() -> tuple[StudyRecord, list[RunResult]]:
    """Eight conditions and three seeds, one of the runs failed."""
    study = make_study()
    runs = [run for run in make_runs(study) if (run.condition, run.seed) != ("localist", 1)]
    return study, [*runs, make_failed_run("localist", 1, error="out of memory <b>here</b>")]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_study(tmp_path_factory.mktemp("full"), *full_study())
    return build_report(folder)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One seed, and hostile text wherever a record can carry it."""
    conditions = ["distributed", "quintic", "localist $x_{<i>"]
    study = make_study(conditions, [0], name=HOSTILE)
    study = study.model_copy(update={"config": {HOSTILE: HOSTILE}, "model": {"name": HOSTILE}})
    tokens = ["<script>", "alert(1)", "</script>", " $x$", "\n", " .", ' "b"']
    runs = [make_run(condition, 0, HOSTILE, tokens) for condition in conditions]
    return build_report(write_study(tmp_path_factory.mktemp("single"), study, runs))


def test_every_file_is_written(full: Path) -> None:
    names = {path.name for path in full.parent.iterdir()}
    assert {"report.html", "summary.json", "summary.csv", "summary.md", "figures"} <= names
    assert {path.name for path in (full.parent / "figures").iterdir()} == {
        f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")
    }


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_shows_something(full: Path, name: str) -> None:
    pixels = imread(full.parent / "figures" / f"{name}.png")
    assert pixels.shape[1] == pytest.approx(9.6 * 150, abs=2)
    assert pixels.shape[0] > 300
    assert pixels[..., :3].std() > 0.05, "an empty figure is one colour"
    assert pixels[:2, :, :3].min() > 0.9, "nothing is cut off at the top"
    assert pixels[:, -2:, :3].min() > 0.9, "nothing is cut off at the right"


def test_page_loads_and_runs_nothing(full: Path) -> None:
    loads = parse(full)
    assert len(loads.sources) == len(FIGURES)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in loads.sources)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(loads.tags)
    assert loads.handlers == []
    assert "url(" not in full.read_text(encoding="utf-8")
    assert "http" not in full.read_text(encoding="utf-8").replace("http-equiv", "")


def test_inlined_figures_are_the_files(full: Path) -> None:
    inlined = [base64.b64decode(source.split(",")[1]).decode() for source in parse(full).sources]
    assert inlined == [(full.parent / "figures" / f"{name}.svg").read_text(encoding="utf-8") for name in FIGURES]
    assert all(re.search(r'href="(?!#|data:)', figure) is None for figure in inlined)


def test_table_of_the_page_holds_the_numbers_of_the_statistics(full: Path) -> None:
    summary = summarise(*load_study(full.parent))
    width = len(HEADERS)
    cells = parse(full).cells
    cells = cells[: cells.index(CONTRAST_HEADERS[0])]
    lines = {cells[i].split(" (")[0]: cells[i : i + width] for i in range(width, len(cells), width)}
    assert list(lines) == [*(row.condition for row in summary.conditions), "before tuning"]
    for row in summary.conditions:
        measures, compared, line = row.measures, row.comparison, dict(zip(HEADERS, lines[row.condition], strict=True))
        assert measures is not None
        assert compared is not None
        perplexity = measures.perplexity
        assert line["perplexity [95%]"] == f"{perplexity.mean:.2f} [{perplexity.low:.2f}, {perplexity.high:.2f}]"
        assert line["fidelity"] == f"{measures.fidelity.mean:.3f}"
        assert line["without sinks"] == f"{measures.fidelity_without_sinks.mean:.3f}"
        assert line["late layers"] == f"{measures.late_fidelity.mean:.3f}"
        assert line["entropy (bits)"] == f"{measures.entropy_bits.mean:.2f}"
        if row.condition == "distributed":
            assert line["ratio [95%]"] == "1 (reference)"
            continue
        ratio = compared.ratio
        assert line["ratio [95%]"] == f"{ratio.mean:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
        assert compared.p_holm is not None
        assert line["p Holm"] == f"{compared.p_holm:.3f}"
    assert lines["localist"][1] == "2 (1 failed)"
    assert lines["before tuning"][2] == "41.70"


def test_answer_and_failures_stand_in_the_page(full: Path) -> None:
    data = ReportData(*load_study(full.parent))
    text = visible_text(full)
    assert answer(data) in text
    assert "localist, seed 1, failed: out of memory <b>here</b>" in text


def test_every_figure_says_how_to_read_it(full: Path) -> None:
    text = visible_text(full)
    for plan in (each for each in PLANS if each.name in FIGURES):
        assert plan.title in text
        assert plan.reading in text
    assert "attention mass is not causal contribution" in text
    assert "by construction" in text


def test_settings_stand_in_the_page(full: Path) -> None:
    text = visible_text(full)
    for value in ('"steps": 200', '"num_layers": 8', '"source": "pydoc topics"', '"torch": "2.8.0"', '"device": "cpu"'):
        assert value in text


def test_passage_is_coloured_by_block(full: Path) -> None:
    page = full.read_text(encoding="utf-8")
    assert '<span class="b0 sink" title="block 0">Memory</span>' in page
    assert '<span class="b1" title="block 1"> It</span>' in page


def test_machine_readable_files_agree_with_the_statistics(full: Path) -> None:
    summary = summarise(*load_study(full.parent))
    folder = full.parent
    assert StudySummary.model_validate_json((folder / "summary.json").read_text(encoding="utf-8")) == summary
    lines = list(csv.DictReader(io.StringIO((folder / "summary.csv").read_text(encoding="utf-8"))))
    assert [line["condition"] for line in lines] == [*(row.condition for row in summary.conditions), "before tuning"]
    for line, row in zip(lines, summary.conditions, strict=False):
        assert row.measures is not None
        assert row.comparison is not None
        assert float(line["perplexity"]) == row.measures.perplexity.mean
        assert float(line["ratio"]) == row.comparison.ratio.mean
        assert (line["p_holm"] == "") == (row.comparison.p_holm is None)
    markdown = (folder / "summary.md").read_text(encoding="utf-8").splitlines()
    assert len(markdown[0].split("|")) == len(HEADERS) + 2
    assert markdown[2:11] == [f"| {' | '.join(row.cells)} |" for row in make_rows(summary)]


def test_same_study_gives_the_same_files(full: Path, tmp_path: Path) -> None:
    again = build_report(write_study(tmp_path, *full_study()))
    assert again.read_bytes() == full.read_bytes()
    assert (tmp_path / "figures/front.svg").read_bytes() == (full.parent / "figures/front.svg").read_bytes()


def test_no_partial_files_and_no_settings_are_left_behind(full: Path) -> None:
    assert not [path for path in full.parent.rglob("*") if path.name.startswith(".")]
    assert matplotlib.rcParams["text.parse_math"] is True


def test_hostile_text_is_escaped(single: Path) -> None:
    loads = parse(single)
    assert "script" not in loads.tags
    assert "i" not in loads.tags
    text = single.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&amp;: localisation study" in text
    assert ">&lt;script&gt;</span>" in text


def test_one_seed_gets_no_interval_and_no_test(single: Path) -> None:
    data = ReportData(*load_study(single.parent))
    over_windows = HEADERS.index("untuned [95%]")
    cells = [cell for row in make_rows(data.summary) for at, cell in enumerate(row.cells) if at != over_windows]
    assert "[" not in "".join(cells)
    assert "A single seed allows neither an interval nor a test." in visible_text(single)
    document = json.loads((single.parent / "summary.json").read_text(encoding="utf-8"))
    assert document["conditions"][1]["comparison"]["ratio"]["low"] is None


def test_markdown_cells_cannot_break_the_table(tmp_path: Path) -> None:
    study = make_study(["distributed", "a|b<i>"], [0])
    build_report(write_study(tmp_path, study, make_runs(study)))
    assert "| a\\|b&lt;i> |" in (tmp_path / "summary.md").read_text(encoding="utf-8")


def test_study_without_a_finished_run_still_gets_a_page(tmp_path: Path) -> None:
    study = make_study(["distributed", "quintic"], [0, 1])
    page = build_report(write_study(tmp_path, study, [make_failed_run("quintic", 0)]))
    text = visible_text(page)
    assert "No run has finished yet, so there is no result. Left out: 1 run failed and 3 runs not done yet." in text
    assert "Not done yet: distributed-seed0, distributed-seed1, quintic-seed1" in text
    assert "nothing to draw" in text
    assert not (tmp_path / "figures").exists()


def test_study_without_the_reference_shows_no_ratio(tmp_path: Path) -> None:
    study = make_study(["quintic", "localist"], [0, 1])
    page = build_report(write_study(tmp_path, study, make_runs(study)))
    assert "No run of distributed has finished, so no cost relative to it is known." in visible_text(page)
    assert not (tmp_path / "figures/front.png").exists()
    assert (tmp_path / "figures/perplexity.png").is_file()


def test_runs_without_training_log_and_sample_leave_those_figures_out(tmp_path: Path) -> None:
    study = make_study(["distributed", "quintic"], [0])
    runs = [run.model_copy(update={"training": None, "sample": None}) for run in make_runs(study)]
    build_report(write_study(tmp_path, study, runs))
    drawn = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert drawn == set(FIGURES) - {"training", "attention", "contrasts"}


def test_answer_puts_the_quintic_first_and_names_what_is_not_significant() -> None:
    study, runs = full_study()
    data = ReportData(study, runs)
    quintic = next(row for row in data.summary.conditions if row.condition == "quintic")
    assert quintic.comparison is not None
    ratio = quintic.comparison.ratio
    text = answer(data)
    assert text.startswith(
        f"Quintic costs {ratio.mean:.3f}× the perplexity of distributed "
        f"(95% interval {ratio.low:.3f} to {ratio.high:.3f}), linear "
    )
    assert "Controls: reversed " in text
    assert "not for quintic; 2 to 3 seeds cannot show that a difference is absent." in text
    assert text.endswith("Left out: 1 run failed.")


def test_a_condition_has_its_own_look_and_controls_another_marker() -> None:
    data = ReportData(*full_study())
    looks = {name: look_of(data, name) for name in data.study.conditions}
    assert len({look.colour for look in looks.values()}) == 8
    assert {looks[name].marker for name in ("distributed", "linear", "quintic", "localist")} == {"o"}
    assert "o" not in {looks[name].marker for name in ("reversed", "fixed", "random")}


def test_block_spans_cut_where_the_id_changes() -> None:
    assert block_spans([0, 0, 1, 1, 1, 0]) == [(0, 2), (2, 5), (5, 6)]
    assert block_spans([7]) == [(0, 1)]


def test_terminal_table_fits_80_columns_and_prints_markup_as_text() -> None:
    study, runs = full_study()
    study = study.model_copy(update={"name": "[bold red]x[/]"})
    console = Console(width=80, record=True, file=io.StringIO())
    print_table(study, runs, console)
    text = console.export_text()
    assert "[bold red]x[/]" in text
    summary = summarise(study, runs)
    for row in summary.conditions:
        assert row.measures is not None
        assert f"[{row.measures.perplexity.low:.2f}, {row.measures.perplexity.high:.2f}]" in text
    assert "reversed*" in text
    assert "(1 failed)" in text


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProlocError, match=r"holds no study\.json"):
        build_report(tmp_path)


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    study = make_study(["distributed"], [0])
    write_study(tmp_path, study, make_runs(study))
    (tmp_path / "figures").write_text("in the way", encoding="utf-8")
    with pytest.raises(ProlocError, match="cannot be written into"):
        build_report(tmp_path)


def test_report_needs_no_torch() -> None:
    code = "import sys, proloc.report; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
