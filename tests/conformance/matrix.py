"""The conformance matrix: every family in every way, computed once, compared with what the documentation says.

``python tests/conformance/matrix.py`` writes ``docs/exact.json``, from which the page "What is exact" is made.
"""

import json
from pathlib import Path

import torch
from families import LOCALISED, REFUSED, VOCAB, build

import proloc
from proloc.check import WAYS, Finding, Subject, run_way

FILE = Path(__file__).parents[2] / "docs" / "exact.json"
ENDS = list(range(5, 15))


def subject(family: str, halo: int = 0) -> Subject:
    """A tiny model of a family with ragged sentence blocks over random ids."""
    ids = torch.randint(1, VOCAB, (2, 24), generator=torch.Generator().manual_seed(0))
    return Subject(build(*LOCALISED[family]), proloc.SentenceBlocks(ENDS, min_length=2), ids, halo=halo)


def cell(finding: Finding) -> dict[str, str]:
    return {"verdict": finding.verdict, "note": finding.note if finding.verdict == "not applicable" else ""}


def refusal(family: str) -> str:
    """Why a family is refused, or nothing."""
    model_type, settings, _ = REFUSED[family]
    try:
        proloc.localize(build(model_type, settings), proloc.Uniform(value=1.0), proloc.FixedBlocks(5))
    except proloc.ProlocError as error:
        return str(error)
    return ""


def compute() -> dict[str, object]:
    localised: dict[str, dict[str, dict[str, str]]] = {}
    errors: dict[str, float] = {}
    for family in LOCALISED:
        examined = subject(family)
        findings = [run_way(examined, way) for way in WAYS]
        localised[family] = {finding.way: cell(finding) for finding in findings}
        for finding in findings:
            errors[finding.way] = max(errors.get(finding.way, 0.0), finding.error or 0.0)
    return {
        "ways": {way.name: way.claim for way in WAYS},
        "localised": localised,
        "largest_error": {way: float(f"{error:.0e}") for way, error in errors.items()},
        "refused": {family: refusal(family) for family in REFUSED},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    FILE.write_text(json.dumps(compute(), indent=1) + "\n")
