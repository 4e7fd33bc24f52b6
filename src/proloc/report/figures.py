"""The figures of a report, in the order of the page, each with how to read it (ours)."""

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from proloc.report.canvas import drawing, to_png, to_svg
from proloc.report.data import ReportData
from proloc.report.figures_contrasts import contrasts_figure
from proloc.report.figures_cost import front_figure, perplexity_figure, training_figure
from proloc.report.figures_dial import dial_figure
from proloc.report.figures_faithfulness import faithfulness_figure
from proloc.report.figures_front import budget_figure, hard_layers_figure
from proloc.report.figures_layers import entropy_figure, fidelity_figure, heads_figure, schedule_figure
from proloc.report.figures_sample import attention_figure


@dataclass(frozen=True)
class Plan:
    """A figure to draw.

    Attributes:
        name: of its files.
        draw: returns None when the runs do not hold what it needs.
        reading: one sentence on how to read it.
    """

    name: str
    title: str
    draw: Callable[[ReportData], Figure | None]
    reading: str


@dataclass(frozen=True)
class Drawn:
    """A figure as it goes into files and page."""

    name: str
    title: str
    reading: str
    png: bytes
    svg: str


PLANS = (
    Plan(
        "perplexity",
        "Perplexity by condition",
        perplexity_figure,
        "Every dot is one seed, the tick their geometric mean, the bar its 95% interval (wide with few seeds, "
        "absent with one, and running out of the panel where it is far wider than the dots); further left is "
        "better, and an interval that spans the dotted line at 1 does not tell the condition from the reference.",
    ),
    Plan(
        "contrasts",
        "What the blocks buy",
        contrasts_figure,
        "Every mark is a condition's perplexity over that of a control with the same schedule and other blocks, the "
        "bar its paired 95% interval over held-out windows, seeds averaged; left of the dotted line the condition's "
        "blocks are better, and a bar across it does not tell them from the control's.",
    ),
    Plan(
        "fidelity_by_layer",
        "Fidelity by layer",
        fidelity_figure,
        "Solid is the attention mass on the own block and the sinks as the model used it, dashed the same scores "
        "before the dial, dotted what uniform attention would give; where solid nears 1 under a hard mask that is "
        "by construction, so what the model itself prefers is the dashed line above the dotted one, and no line "
        "shows causal contribution.",
    ),
    Plan(
        "entropy_by_layer",
        "Entropy by layer",
        entropy_figure,
        "Lower means attention spread over fewer tokens; hiding tokens lowers entropy by itself, so a fall is not "
        "yet a sign that a layer reads more sharply.",
    ),
    Plan(
        "schedule",
        "Locality schedule",
        schedule_figure,
        "Each cell is the locality of one layer at dial 1: 0 leaves the layer unchanged, 1 hides every token "
        "outside the own block and the sinks.",
    ),
    Plan(
        "front",
        "Cost against late-layer fidelity",
        front_figure,
        "Lower right is better: more attention on the own block in late layers at a lower perplexity; every marker "
        "is one seed, round ones are schedules and the others controls, and because the left panel rewards a hard "
        "mask for what it does by construction, the right panel is the fairer one; a control with other blocks is "
        "measured on those.",
    ),
    Plan(
        "hard_layers",
        "Cost against how much is local",
        hard_layers_figure,
        "Markers are means over seeds, bars 95% intervals, the dotted lines a cost of nothing and of one per cent; "
        "on the right, lambda summed over layers is the number of hard layers where every layer is hard or untouched, "
        "and makes schedules of equal sums comparable; small grey points change something else than the schedule.",
    ),
    Plan(
        "budget",
        "How the budget was spent",
        budget_figure,
        "Every line is one seed: the share of what is pushed, the logarithm of the multiplier that holds the budget, "
        "and the moving average of what the same training batches cost more than in the reference, beside the budget "
        "(dotted); the share is held for the last fifth of the steps.",
    ),
    Plan(
        "dial",
        "One model for the whole dial",
        dial_figure,
        "Lines are models tuned at many positions of the dial, crosses the conditions tuned at one position alone with "
        "the same budget, slightly to the right; bars are 95% intervals over seeds.",
    ),
    Plan(
        "faithfulness",
        "How faithful explanations are",
        faithfulness_figure,
        "Marks are means over passages of the rank correlation between what a method foretells of random ablations "
        "and what they do, bars 95% bootstrap intervals over passages; further right is more faithful, the surrogate "
        "(lasso) is what ablations themselves can say, learned heads what attention can say at best, and length what "
        "the blocks' lengths alone say; passages are the same under every condition.",
    ),
    Plan(
        "training",
        "Training",
        training_figure,
        "Curves are means over seeds of the training batches, smoothed by a running mean; they show whether training "
        "settled, and the comparison of conditions is the one on held-out text above.",
    ),
    Plan(
        "attention",
        "Attention on the sample passage",
        attention_figure,
        "Rows are the reading token, columns the token read, outlines the blocks; mass inside an outline or on a sink "
        "(the dark first column) is fidelity; one passage of one seed illustrates but proves nothing; "
        "attention mass is not causal contribution.",
    ),
    Plan(
        "heads",
        "Fidelity by head",
        heads_figure,
        "Each cell is one head, mean over seeds: a head bright on the left and dark on the right is local only "
        "because the dial makes it so.",
    ),
)


def draw_all(data: ReportData) -> list[Drawn]:
    """Draw every figure that the runs support; none when no run has finished."""
    if not data.measured:
        return []
    with drawing():
        figures = [(plan, plan.draw(data)) for plan in PLANS]
        return [
            Drawn(plan.name, plan.title, plan.reading, to_png(figure), to_svg(figure))
            for plan, figure in figures
            if figure
        ]
