"""One model for the whole dial against specialists: what each costs at each position (ours).

A model that was tuned at many positions is compared, at every position where the study measured it, with the condition
of the same schedule, blocks and mode that was tuned at that position alone. Every run has the same budget, so the one
model has a fraction of the steps at each position that its specialist has. At position 0 the reference is a specialist
for every schedule. Comparisons are paired over seeds, on the log scale, as in ``statistics``.
"""

from collections.abc import Mapping, Sequence

from proloc.study.results import Metrics, Record, RunResult, StudyRecord
from proloc.study.statistics import REFERENCE, Estimate, paired_ratio, usable_metrics


class AtDial(Record):
    """A model tuned at many positions, measured at one.

    Attributes:
        condition: how it was tuned.
        dial: where it is measured.
        ratio: its perplexity over that of the reference, same seeds.
        specialist: the condition that was tuned at this position; None = the study has none.
        specialist_ratio: the specialist's perplexity over that of the reference.
        over_specialist: its perplexity over that of the specialist, on the seeds that both finished.
    """

    condition: str
    dial: float
    ratio: Estimate | None
    specialist: str | None
    specialist_ratio: Estimate | None
    over_specialist: Estimate | None


def compare_dials(study: StudyRecord, runs: Sequence[RunResult]) -> list[AtDial]:
    """Every model tuned at many positions at every position it was measured at, in the order of plan and dial."""
    done = {name: [run for run in runs if run.condition == name and usable_metrics(run)] for name in study.conditions}
    done = {name: found for name, found in done.items() if found}
    reference = _metrics(done.get(REFERENCE, []))
    rows = []
    for name, found in done.items():
        if isinstance(_tuned_at(found[0]), float):
            continue
        for dial in sorted({each.dial for run in found for each in run.dials or []}):
            ours, special = _metrics(found, dial), _specialist(found[0], dial, done)
            theirs = _metrics(done[special], dial) if special else {}
            rows.append(
                AtDial(
                    condition=name,
                    dial=dial,
                    ratio=paired_ratio(ours, reference),
                    specialist=special,
                    specialist_ratio=paired_ratio(theirs, reference),
                    over_specialist=paired_ratio(ours, theirs),
                )
            )
    return rows


def _tuned_at(run: RunResult) -> object:
    """A position, or how positions were drawn; files of older versions say nothing and were tuned at 1."""
    if run.config.get("mode") == "soft":
        return 0.0
    dial = run.config.get("training", {}).get("dial", 1.0)
    return float(dial) if isinstance(dial, int | float) else dial


def _specialist(run: RunResult, dial: float, done: Mapping[str, Sequence[RunResult]]) -> str | None:
    matching = (name for name, found in done.items() if _tuned_at(found[0]) == dial and _kind(found[0]) == _kind(run))
    return next(matching, REFERENCE if dial == 0.0 and REFERENCE in done else None)


def _kind(run: RunResult) -> tuple[object, ...]:
    condition = run.config["condition"]
    return condition["schedule"], condition["blocks"], run.config["mode"]


def _metrics(runs: Sequence[RunResult], dial: float | None = None) -> dict[int, Metrics]:
    """Metrics by seed: those of the run itself, or those at a position, which need not be the same."""
    found = {}
    for run in runs:
        metrics = usable_metrics(run)
        if dial is not None and run.condition != REFERENCE and _tuned_at(run) != dial:
            metrics = next((each.metrics for each in run.dials or [] if each.dial == dial), None)
        if metrics is not None:
            found[run.seed] = metrics
    return found
