"""The result in plain words, computed from the summary, and the sentences under the table (ours)."""

from proloc.report.data import ReportData
from proloc.report.numbers import count, fixed, listed, p_value, percent
from proloc.study.statistics import Comparison, Measures, StudySummary

ALPHA = 0.05
FEW_SEEDS = 5


def answer(data: ReportData) -> str:
    """One paragraph: what each schedule costs in perplexity, what it buys in late layers, and how sure that is."""
    summary = data.summary
    if not data.measured:
        return f"No run has finished yet, so there is no result. {_unfinished(summary)}".strip()
    sentences = [_reference_sentence(data), _cost_sentence(data), _fidelity_sentence(data), _control_sentence(data)]
    return " ".join(filter(None, [*sentences, _certainty(summary), _unfinished(summary)]))


def how_to_read_table(data: ReportData) -> str:
    """How to read the table, with what its numbers cannot say."""
    text = (
        "Perplexity is on held-out text, as the geometric mean over seeds; ratio compares it with "
        f"{data.summary.reference} on the same seeds; brackets are 95% t-intervals on the log scale, exponentiated, "
        "and are missing where one seed gives no spread. p Holm is a paired t-test corrected over all conditions; "
        "g_z is the paired effect size with Hedges' correction, shown from three pairs on (positive: worse "
        "perplexity). Fidelity is the attention mass on a token's own block, and attention mass is not causal "
        "contribution; a hard mask makes it 1 by construction, so judge a schedule by perplexity and by the "
        "undialled columns, which show what the model learned (gain: undialled fidelity over all layers, minus that "
        "of the reference). Lift divides by uniform attention, so compare lift where block lengths differ."
    )
    lengths = {round(row.measures.mean_block_length.mean, 1) for row in data.measured if row.measures}
    if len(lengths) > 1:
        text += f" Here they differ: {min(lengths):g} to {max(lengths):g} tokens per block."
    return text


def _reference_sentence(data: ReportData) -> str:
    reference = next((row for row in data.measured if row.condition == data.summary.reference), None)
    if reference is None or reference.measures is None:
        return f"No run of {data.summary.reference} has finished, so no cost relative to it is known."
    tuned, before = reference.measures.perplexity, data.summary.baseline.perplexity.mean
    return (
        f"With every layer left free, {reference.condition} reaches perplexity {tuned.mean:.2f} on held-out text "
        f"({count(tuned.num, 'seed')}; {before:.2f} before tuning)."
    )


def _cost_sentence(data: ReportData) -> str:
    rows = [row for row in data.measured if not row.control and row.condition != data.summary.reference]
    costs = [_cost(row.condition, row.comparison) for row in rows if row.comparison]
    return f"Perplexity relative to {data.summary.reference}: {listed(costs)}." if costs else ""


def _control_sentence(data: ReportData) -> str:
    costs = [_cost(row.condition, row.comparison) for row in data.measured if row.control and row.comparison]
    return f"Controls: {listed(costs)}." if costs else ""


def _cost(condition: str, compared: Comparison) -> str:
    text = f"{condition} {fixed(compared.ratio.mean, 3)}×"
    if compared.p_holm is None:
        return text
    p = p_value(compared.p_holm)
    return f"{text} (p {p})" if p.startswith("<") else f"{text} (p = {p})"


def _fidelity_sentence(data: ReportData) -> str:
    focus = next((row for row in data.measured if row.condition == data.focus), None)
    if focus is None or focus.measures is None:
        return ""
    reference = next((row for row in data.measured if row.condition == data.summary.reference), None)
    text = f"In the last third of its layers {focus.condition} puts {_late(focus.measures)}"
    if reference is None or reference.measures is None:
        return f"{text}."
    return f"{text}; {reference.condition} puts {percent(reference.measures.late_fidelity.mean)} there."


def _late(measures: Measures) -> str:
    used, learned = measures.late_fidelity.mean, measures.late_fidelity_undialled.mean
    return f"{percent(used)} of its attention on a token's own block ({percent(learned)} before the dial acts)"


def _certainty(summary: StudySummary) -> str:
    compared = [row.comparison for row in summary.conditions if row.comparison and row.condition != summary.reference]
    if not compared:
        return ""
    fewest = min(comparison.ratio.num for comparison in compared)
    if fewest == 1:
        return "Some of these ratios rest on a single seed, which allows neither an interval nor a test."
    significant = sum(c.p_holm is not None and c.p_holm < ALPHA for c in compared)
    of_all = f"{significant} of {count(len(compared), 'difference')}"
    text = f"After Holm's correction {of_all} from {summary.reference} remain significant at {percent(ALPHA)}"
    few = f"; {count(fewest, 'seed')} are few, so a difference that is not significant is not shown to be absent"
    return f"{text}{few if fewest < FEW_SEEDS else ''}."


def _unfinished(summary: StudySummary) -> str:
    failed, missing = len(summary.failed), len(summary.missing)
    parts = [f"{count(num, 'run')} {what}" for num, what in ((failed, "failed"), (missing, "not done yet")) if num]
    return f"Left out: {listed(parts)}." if parts else ""
