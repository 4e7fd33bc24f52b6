"""Running every way of using a model, one finding each."""

import platform
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import transformers

from proloc import __version__
from proloc.check import decoding, forward, gradients, keeping, leaks
from proloc.check.finding import Finding, Outcome
from proloc.check.subject import Subject
from proloc.errors import ProlocError
from proloc.hf import describe

REPORT_FORMAT = 1


@dataclass(frozen=True)
class Way:
    """One way of running a model.

    Attributes:
        name: short, for tables.
        claim: what is to be shown.
        check: does it.
    """

    name: str
    claim: str
    check: Callable[[Subject], Outcome]


WAYS: tuple[Way, ...] = (
    Way("dial 0", "dial 0 is the unmodified model", forward.dial_zero),
    Way("dial", "dials 0, 0.5 and 1 equal the float64 oracle", forward.dialled),
    Way("statistics", "fidelity and entropy are those of the oracle's weights", forward.statistics),
    Way("future", "no logit depends on a later token", leaks.future),
    Way("other blocks", "at locality 1 no logit depends on another block", leaks.other_blocks),
    Way("left padding", "padding on the left changes nothing", forward.left_padding),
    Way("right padding", "padding on the right changes nothing", forward.right_padding),
    Way("packed rows", "packed texts do not see each other", forward.packed),
    Way("dynamic cache", "greedy decoding equals the full forward pass", decoding.dynamic_cache),
    Way("static cache", "decoding with a static cache equals the full forward pass", decoding.static_cache),
    Way("sliding cache", "decoding past a sliding window equals the full forward pass", decoding.sliding_cache),
    Way("local cache", "a cache of sinks and the current block equals the full cache", decoding.local_cache),
    Way("no cache", "decoding without a cache equals the full forward pass", decoding.no_cache),
    Way("sampling", "sampled decoding equals the full forward pass", decoding.sampling),
    Way("beam search", "beam scores are the oracle's log-probabilities", decoding.beam_search),
    Way("assisted", "assisted decoding and prompt lookup choose the oracle's tokens", decoding.assisted),
    Way("gradients", "gradients equal the oracle's", gradients.gradients),
    Way("checkpointing", "gradient checkpointing of both kinds changes no gradient", gradients.checkpointing),
    Way("accumulation", "accumulated gradients equal those of the batch, penalty included", gradients.accumulation),
    Way("bfloat16", "in bfloat16 dial 0 is bit for bit, dialled as close as the model itself", forward.half_precision),
    Way("compile", "torch.compile changes nothing, and the dial moves without compiling again", keeping.compiled),
    Way("saved", "saved and loaded, the model is the same bit for bit", keeping.saved),
    Way("copies", "deepcopy and pickle give the same model with a dial of its own", keeping.copies),
    Way("LoRA", "an adapter works, apart and merged", keeping.lora),
)  # fmt: skip


def check_model(subject: Subject) -> Iterator[Finding]:
    """Every finding, one after the other.

    A ProlocError is a refusal: the reason is in the note. Any other error is a failure.

    Raises:
        ProlocError: the architecture cannot be localised at all.
    """
    subject.twin()  # refuses an architecture here, not once for every way
    for way in WAYS:
        yield run_way(subject, way)


def run_way(subject: Subject, way: Way) -> Finding:
    """One finding."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations of other libraries; what matters is in the finding
            outcome = way.check(subject)
    except ProlocError as error:
        outcome = Outcome(verdict="refused", note=str(error))
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        outcome = Outcome(verdict="FAILED", note=f"{type(error).__name__}: {reason}")
    compared = outcome.error is not None
    return Finding(
        way.name, way.claim, outcome.judged(), outcome.error, outcome.limit if compared else None, outcome.note
    )


def report_dict(subject: Subject, name: str, findings: list[Finding]) -> dict[str, Any]:
    """Everything a machine needs to read a check."""
    return {
        "format": REPORT_FORMAT,
        "model": name,
        "architecture": type(subject.stock).__name__,
        "parameters": sum(parameter.numel() for parameter in subject.stock.parameters()),
        "tokens": subject.length,
        "blocks": {"kind": subject.blocks.kind, "settings": subject.blocks.settings()},
        "sinks": subject.sinks,
        "halo": subject.halo,
        "passed": all(finding.verdict != "FAILED" for finding in findings),
        "attention": describe(subject.twin())["computed_by"],
        "findings": [asdict(finding) for finding in findings],
        "versions": {
            "proloc": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
