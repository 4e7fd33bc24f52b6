"""The result in plain words, computed from the summary, and the sentences under the table (ours)."""

from collections.abc import Sequence

from proloc.report.data import ReportData
from proloc.report.numbers import capitalised, count, fixed, listed, percent
from proloc.study.statistics import ConditionSummary, StudySummary

ALPHA = 0.05
# Below this many pairs, a missing effect says more about the number of seeds than about the schedule.
FEW_SEEDS = 5


def answer(data: ReportData) -> str:
    """One paragraph: what each schedule costs in perplexity, what it buys in late layers, and how sure that is."""
    summary = data.summary
    if not data.measured:
        return f"No run has finished yet, so there is no result. {_unfinished(summary)}".strip()
    compared = [row for row in data.measured if row.comparison and row.condition != summary.reference]
    sentences = [
        _cost_sentence(compared, data.focus, summary.reference),
        _fidelity_sentence(data),
        _control_sentence(compared),
        _significance_sentence(compared, summary.reference),
        _reference_sentence(data),
        _unfinished(summary),
    ]
    return " ".join(filter(None, sentences))


def how_to_read_table(data: ReportData) -> str:
    """How to read the table, with what its numbers cannot say."""
    text = (
        "Perplexity is on held-out text, as the geometric mean over seeds; ratio compares it with "
        f"{data.summary.reference} on the same seeds; brackets are 95% t-intervals on the log scale, exponentiated, "
        "and are missing where one seed gives no spread. Untuned is the perplexity before tuning, under the "
        "condition's own dial and blocks, over the unmodified model's, with an interval over held-out windows. p Holm "
        "is a paired t-test corrected over all conditions; "
        "g_z is the paired effect size with Hedges' correction, shown from three pairs on (positive: worse "
        "perplexity). Fidelity is the attention mass on a token's own block and the sinks, and attention mass is not "
        "causal contribution; a hard mask makes it 1 by construction, so judge a schedule by perplexity and by the "
        "undialled columns, which show what the model learned (late: the last third of the layers; gain: undialled "
        "fidelity over all layers, minus that of the reference, where both have the same blocks). Lift divides by "
        "uniform attention, so compare lift where blocks differ."
    )
    lengths = {round(row.measures.mean_block_length.mean, 1) for row in data.measured if row.measures}
    if len(lengths) > 1:
        text += f" Block lengths here: {min(lengths):g} to {max(lengths):g} tokens."
    return text


def _cost_sentence(compared: Sequence[ConditionSummary], focus: str | None, reference: str) -> str:
    """The focus condition first and with its interval, then the other schedules."""
    schedules = sorted((row for row in compared if not row.control), key=lambda row: row.condition != focus)
    if not schedules:
        return ""
    first = schedules[0]
    return (
        f"{capitalised(first.condition)} costs {listed([_first_cost(first, reference), *map(_cost, schedules[1:])])}."
    )


def _first_cost(row: ConditionSummary, reference: str) -> str:
    assert row.comparison is not None
    ratio = row.comparison.ratio
    text = f"{fixed(ratio.mean, 3)}× the perplexity of {reference}"
    if ratio.low is None or ratio.high is None:
        return text
    return f"{text} (95% interval {fixed(ratio.low, 3)} to {fixed(ratio.high, 3)})"


def _cost(row: ConditionSummary) -> str:
    assert row.comparison is not None
    return f"{row.condition} {fixed(row.comparison.ratio.mean, 3)}×"


def _control_sentence(compared: Sequence[ConditionSummary]) -> str:
    costs = [_cost(row) for row in compared if row.control]
    return f"Controls: {listed(costs)}." if costs else ""


def _fidelity_sentence(data: ReportData) -> str:
    focus, reference = data.measures(data.focus), data.measures(data.summary.reference)
    if focus is None:
        return ""
    used, learned = percent(focus.late_fidelity.mean), percent(focus.late_fidelity_undialled.mean)
    text = f"In the last third of its layers, {used} of {data.focus}'s attention stays on a token's own block and the "
    text += f"sinks ({learned} before the dial acts)"
    if reference is None:
        return f"{text}."
    return f"{text}, against {percent(reference.late_fidelity.mean)} for {data.summary.reference}."


def _significance_sentence(compared: Sequence[ConditionSummary], reference: str) -> str:
    pairs = [row.comparison.ratio.num for row in compared if row.comparison]
    if not pairs:
        return ""
    if max(pairs) == 1:
        return "A single seed allows neither an interval nor a test."
    p_values = {row.condition: row.comparison.p_holm for row in compared if row.comparison}
    beyond = [name for name, p in p_values.items() if p is not None and p < ALPHA]
    others = [name for name in p_values if name not in beyond]
    text = f"After Holm's correction, the difference from {reference} is significant at {percent(ALPHA)} for "
    if not beyond:
        return f"{text}no condition{_few(pairs)}."
    rest = f", not for {listed(others)}{_few(pairs)}" if others else ""
    return f"{text}{listed(beyond)}{rest}."


def _few(pairs: Sequence[int]) -> str:
    if min(pairs) >= FEW_SEEDS:
        return ""
    seeds = count(min(pairs), "seed") if min(pairs) == max(pairs) else f"{min(pairs)} to {max(pairs)} seeds"
    return f"; {seeds} cannot show that a difference is absent"


def _reference_sentence(data: ReportData) -> str:
    reference = data.measures(data.summary.reference)
    if reference is None:
        return f"No run of {data.summary.reference} has finished, so no cost relative to it is known."
    tuned, before = reference.perplexity, data.summary.baseline.perplexity.mean
    return (
        f"{capitalised(data.summary.reference)} itself, every layer left free, reaches perplexity {tuned.mean:.2f} "
        f"on held-out text ({count(tuned.num, 'seed')}; {before:.2f} before tuning)."
    )


def _unfinished(summary: StudySummary) -> str:
    numbers = ((len(summary.failed), "failed"), (len(summary.missing), "not done yet"))
    parts = [f"{count(num, 'run')} {what}" for num, what in numbers if num]
    return f"Left out: {listed(parts)}." if parts else ""
