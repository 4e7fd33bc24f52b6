"""The table of conditions against controls of the same schedule, as text (ours)."""

from collections.abc import Sequence

from proloc.report.numbers import with_interval
from proloc.study.contrasts import Contrast

CONTRAST_HEADERS = ("blocks ÷ control", "untuned [95%, windows]", "tuned [95%, windows]", "tuned [95%, seeds]")

HOW_TO_READ_CONTRASTS = (
    "Each row divides a condition's perplexity by that of a control with the same schedule and other blocks; below 1 "
    "the condition's blocks are better. Intervals are paired: over windows they say what another stretch of the text "
    "would give, over seeds what tuning again would give, and neither covers the other; they are not corrected for the "
    "number of rows, so about one row in twenty leaves 1 by chance. Blocks of equal mean length can still show a query "
    "unequal amounts of text: where lengths vary, most tokens lie in the long ones."
)


def contrast_rows(contrasts: Sequence[Contrast]) -> list[tuple[str, ...]]:
    """One row of cells per contrast, in the order of ``CONTRAST_HEADERS``."""
    return [
        (
            f"{row.condition} ÷ {row.control}",
            *(with_interval(estimate, 3) for estimate in (row.untuned, row.tuned, row.tuned_over_seeds)),
        )
        for row in contrasts
    ]
