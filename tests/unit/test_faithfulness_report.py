"""What a study measured of its explanations stands on the page, in a figure, in the files and in the terminal."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from result_files import make_runs, make_study, write_study
from rich.console import Console

from proloc.explaining.record import Faithfulness, PassageFaithfulness
from proloc.report import build_report
from proloc.report.data import ReportData
from proloc.study.results import FaithfulnessResult, faithfulness_path, save_record

CONDITIONS = ["distributed", "quintic"]
HOSTILE = "<b>other</b>"


def passage(condition: str, seed: int, kind: str, number: int) -> PassageFaithfulness:
    """Attention gains 0.2 under the quintic on every passage, the surrogate is always at 0.9."""
    noise = np.random.default_rng([seed, number]).normal() / 10
    lds = 0.4 + noise + (0.2 if condition == "quintic" else 0.0)
    return PassageFaithfulness(
        passage=f"{kind}-{number}",
        kind=kind,
        num_sources=6,
        num_reaching=6,
        log_prob=-3.0,
        true_source=None,
        methods={"attention": Faithfulness(lds=lds), "lasso": Faithfulness(lds=0.9), "length": Faithfulness(lds=0.1)},
        blocks_read=[3.0],
        passes=60.0,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    study = make_study(CONDITIONS, [0, 1])
    write_study(tmp_path, study, make_runs(study))
    for condition in CONDITIONS:
        for seed in (0, 1):
            passages = [passage(condition, seed, kind, number) for kind in ("held-out", HOSTILE) for number in range(5)]
            result = FaithfulnessResult(study=study.name, condition=condition, seed=seed, passages=passages)
            save_record(faithfulness_path(tmp_path, condition, seed), result)
    return tmp_path


def test_gains_are_paired_by_passage_and_seed(folder: Path) -> None:
    found = ReportData.read(folder).faithfulness
    assert found is not None
    rows = {(row.condition, row.kind, row.method): row for row in found.methods}
    gain = rows["quintic", "held-out", "attention"].lds_gain
    assert gain is not None
    assert gain.mean == pytest.approx(0.2)
    assert (gain.low, gain.high) == (None, None), "every pair differs by the same: nothing to resample"
    change = rows["quintic", HOSTILE, "attention"].gap_change
    assert change is not None
    assert change.mean == pytest.approx(-0.2)
    assert rows["distributed", "held-out", "attention"].lds_gain is None


def test_the_page_has_a_table_for_every_kind_and_escapes_its_name(folder: Path) -> None:
    page = build_report(folder).read_text(encoding="utf-8")
    assert page.count("<h2>How faithful explanations are: ") == 2
    assert "How faithful explanations are: held-out passages" in page
    assert HOSTILE not in page
    assert "&lt;b&gt;other&lt;/b&gt; passages" in page
    assert '<figure id="faithfulness">' in page
    pixels = imread(folder / "figures" / "faithfulness.png")
    assert pixels[..., :3].std() > 0.05, "an empty figure is one colour"


def test_files_and_terminal_say_the_same(folder: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    build_report(folder, console)
    shown = console.file.getvalue()
    row = next(
        row
        for row in json.loads((folder / "faithfulness.json").read_text())["methods"]
        if (row["condition"], row["kind"], row["method"]) == ("quintic", "held-out", "attention")
    )
    text = f"{row['lds']['mean']:.2f} [{row['lds']['low']:.2f}, {row['lds']['high']:.2f}]"
    assert text in shown
    assert text in (folder / "faithfulness.md").read_text()


def test_a_study_without_explanations_has_none_of_it(tmp_path: Path) -> None:
    study = make_study(CONDITIONS, [0])
    page = build_report(write_study(tmp_path, study, make_runs(study))).read_text(encoding="utf-8")
    assert "How faithful" not in page
    assert not (tmp_path / "faithfulness.json").exists()
