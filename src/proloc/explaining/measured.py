"""Every attribution of one passage, and how faithful each is."""

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from proloc.explaining.ablate import Ablator, Flags, draw_kept
from proloc.explaining.measures import comprehensiveness, lds, precision_at_1, sufficiency, top_drop
from proloc.explaining.passage import Passage
from proloc.explaining.readout import Readout, read_out
from proloc.explaining.record import Faithfulness
from proloc.explaining.surrogate import Values, baselines, lasso


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured of one passage.

    Attributes:
        readout: what attention says.
        scores: attributions ``[source]`` by method.
        kept, log_probs: the ablations that faithfulness is measured on, ``[ablation, source]`` and ``[ablation]``.
        others, others_log_probs: those that the surrogate was fitted to.
    """

    readout: Readout
    scores: dict[str, Values]
    kept: Flags
    log_probs: Values
    others: Flags
    others_log_probs: Values


def measure(
    model: PreTrainedModel, passage: Passage, ablator: Ablator, *, ablations: int, fitted: int, seed: int
) -> Measured:
    """Read attention out, knock sources out alone and at random, and fit the surrogate.

    Args:
        model: localised, in evaluation mode.
        passage: what is explained.
        ablator: of this model and passage.
        ablations: how many random ablations faithfulness is measured on.
        fitted: how many others the surrogate is fitted to.
        seed: of both.
    """
    readout = read_out(model, passage)
    kept, others = (draw_kept(num, len(passage.sources), [seed, part]) for part, num in enumerate((ablations, fitted)))
    others_log_probs = ablator.log_probs(others)
    return Measured(
        readout=readout,
        scores={
            **{name: _values(values) for name, values in readout.scores().items()},
            "lasso": lasso(others, others_log_probs),
            "leave-one-out": ablator.leave_one_out(),
            **baselines(passage, seed),
        },
        kept=kept,
        log_probs=ablator.log_probs(kept),
        others=others,
        others_log_probs=others_log_probs,
    )


def judge(
    scores: Values,
    measured: Measured,
    ablator: Ablator,
    *,
    num_targets: int,
    erasure: bool = True,
    true_source: int | None = None,
) -> Faithfulness:
    """How faithful one attribution is.

    Args:
        scores: ``[source]``.
        measured: of the same passage.
        ablator: knocks out what the measures of erasure ask for.
        num_targets: tokens of the target.
        erasure: take top drop, comprehensiveness and sufficiency too, for up to ten more ablations.
        true_source: the number of the source that is known to hold the answer; None = not known.
    """
    hit = None if true_source is None else precision_at_1(scores, true_source)
    found = lds(scores, measured.kept, measured.log_probs)
    if not erasure:
        return Faithfulness(lds=found, hit=hit)
    intact, log_probs = ablator.intact, ablator.log_probs
    return Faithfulness(
        lds=found,
        top_drop=top_drop(scores, 1, intact, log_probs),
        comprehensiveness=comprehensiveness(scores, intact, log_probs, num_targets),
        sufficiency=sufficiency(scores, intact, log_probs, num_targets),
        hit=hit,
    )


def _values(tensor: Tensor) -> Values:
    found: Values = tensor.double().numpy()
    return found
