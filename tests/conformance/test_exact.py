"""Every model family, localised, is exact in every way people run it; what is not is refused, and the docs say so."""

import functools
import json

import pytest
from families import LOCALISED, REFUSED
from matrix import FILE, cell, refusal, subject

from proloc.check import WAYS, run_way

DOCUMENTED = json.loads(FILE.read_text())
OF_A_HALO = {
    "dial", "statistics", "future", "other blocks", "left padding", "packed rows", "static cache", "sliding cache",
    "local cache", "beam search", "gradients", "saved",
}  # fmt: skip
examined = functools.cache(subject)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
@pytest.mark.parametrize("family", LOCALISED)
def test_a_family_is_exact_in_a_way_as_documented(family, way):
    finding = run_way(examined(family), way)
    assert finding.verdict in ("exact", "equal", "not applicable"), finding
    documented = DOCUMENTED["localised"][family][way.name]
    if "not applicable" in (finding.verdict, documented["verdict"]):
        assert cell(finding) == documented
    # "exact" and "equal" may trade places between machines whose matrix products round differently.


# One family for every kind of attention: learned positions, rotary with groups, sliding windows, capped scores.
@pytest.mark.parametrize("way", [way for way in WAYS if way.name in OF_A_HALO], ids=lambda way: way.name)
@pytest.mark.parametrize("family", ["GPT-2", "Llama", "Mistral", "Gemma2"])
def test_a_family_with_a_halo_is_exact_where_blocks_matter(family, way):
    finding = run_way(examined(family, halo=1), way)
    assert finding.verdict in ("exact", "equal", "not applicable"), finding


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_cannot_be_right_is_refused_with_the_reason(family):
    assert REFUSED[family][2] in refusal(family)
    assert DOCUMENTED["refused"][family] == refusal(family)


def test_the_documented_matrix_is_the_tested_one():
    assert list(DOCUMENTED["localised"]) == list(LOCALISED)
    assert DOCUMENTED["ways"] == {way.name: way.claim for way in WAYS}
