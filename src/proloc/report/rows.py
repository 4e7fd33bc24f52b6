"""The results table as text, one row per condition: the terminal, the page and Markdown print the same cells (ours)."""

from dataclasses import dataclass

from proloc.report.numbers import NONE, fixed, p_value, with_interval
from proloc.study.statistics import BEFORE_TUNING, ConditionSummary, Measures, StudySummary

HEADERS = (
    "condition",
    "seeds",
    "perplexity [95%]",
    "ratio [95%]",
    "untuned [95%]",
    "p Holm",
    "effect g_z",
    "fidelity",
    "without sinks",
    "lift",
    "late layers",
    "late undialled",
    "gain",
    "entropy (bits)",
)


@dataclass(frozen=True)
class Row:
    """The cells of one condition, in the order of ``HEADERS``."""

    cells: tuple[str, ...]
    control: bool = False
    baseline: bool = False


def make_rows(summary: StudySummary) -> list[Row]:
    """One row per condition in the order of the plan, then the model before tuning."""
    rows = [
        Row((_name(row), _seeds(row), *_comparison_cells(row, summary), *_measure_cells(row)), control=row.control)
        for row in summary.conditions
    ]
    baseline = summary.baseline
    ratio = fixed(summary.baseline_ratio, 3)
    start = (BEFORE_TUNING, NONE, fixed(baseline.perplexity.mean, 2), ratio, NONE, NONE, NONE)
    return [*rows, Row((*start, *_attention_cells(baseline), NONE, _entropy(baseline)), baseline=True)]


def _name(row: ConditionSummary) -> str:
    return f"{row.condition} (control)" if row.control else row.condition


def _seeds(row: ConditionSummary) -> str:
    remarks = [f"{num} {what}" for num, what in ((row.num_failed, "failed"), (row.num_missing, "missing")) if num]
    return f"{row.num_finished} ({', '.join(remarks)})" if remarks else str(row.num_finished)


def _comparison_cells(row: ConditionSummary, summary: StudySummary) -> tuple[str, ...]:
    perplexity = with_interval(row.measures.perplexity if row.measures else None, 2)
    untuned = with_interval(row.untuned_ratio, 3)
    if row.condition == summary.reference and row.measures:
        return perplexity, "1 (reference)", untuned, NONE, NONE
    compared = row.comparison
    if compared is None:
        return perplexity, NONE, untuned, NONE, NONE
    tests = p_value(compared.p_holm), fixed(compared.hedges_g_z, 2)
    return perplexity, with_interval(compared.ratio, 3), untuned, *tests


def _measure_cells(row: ConditionSummary) -> tuple[str, ...]:
    if row.measures is None:
        return (NONE,) * 7
    gain = row.comparison.fidelity_gain if row.comparison else None
    return (*_attention_cells(row.measures), f"{gain.mean:+.3f}" if gain else NONE, _entropy(row.measures))


def _attention_cells(measures: Measures) -> tuple[str, ...]:
    return (
        fixed(measures.fidelity.mean, 3),
        fixed(measures.fidelity_without_sinks.mean, 3),
        f"{measures.fidelity_lift.mean:.2f}×",
        fixed(measures.late_fidelity.mean, 3),
        fixed(measures.late_fidelity_undialled.mean, 3),
    )


def _entropy(measures: Measures) -> str:
    return fixed(measures.entropy_bits.mean, 2)
