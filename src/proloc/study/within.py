"""One question as a study: how local can this model be on this text, at no more than this cost?"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from proloc.errors import ProlocError
from proloc.objective.budget import Push
from proloc.schedule import Polynomial, Uniform, schedule_to_dict
from proloc.study.config import REFERENCE, StudyConfig, first_problem
from proloc.study.plan import model_folder
from proloc.study.results import load_study
from proloc.study.runner import run_study

CONDITION = "local"
CONTEXT = 512
# What is pushed, the mode it needs, and the schedule it works on.
_WAYS: dict[Push, tuple[str, Any]] = {
    "hard-layers": ("hard", Uniform(value=1.0)),
    "lambda": ("hard", Polynomial(beta=1)),
    "schedule": ("hard", Uniform(value=1.0)),
    "phi": ("both", Polynomial(beta=5)),
}


@dataclass(frozen=True)
class Answer:
    """A localised model and what it costs.

    Attributes:
        model: folder with the model, its tokenizer and its card.
        localities: lambda of every layer.
        share: how much of what was pushed is in force, in [0, 1].
        ratio: held-out perplexity over that of the same model tuned undialled.
    """

    model: Path
    localities: list[float]
    share: float
    ratio: float


def localise_within(
    model: str, text: Path, *, cost: float, push: Push, steps: int, folder: Path, console: Console | None = None
) -> Answer:
    """Tune a model undialled and as local as the cost allows, and keep the local one; resumes where it was stopped.

    Args:
        model: as for a study.
        text: a UTF-8 file; its last tenth is held out.
        cost: allowed rise of the perplexity as a share.
        push: see ``objective.Budget``.
        steps: of each of the two tunings.
        folder: gets ``model`` and ``study``, the study with its report.

    Raises:
        ProlocError: something is not right with model, text or folder, or a run failed.
    """
    from proloc.hf.models import model_facts

    most = model_facts(model).max_context or CONTEXT
    mode, schedule = _WAYS[push]
    try:
        config = StudyConfig.model_validate(
            {
                "name": "local",
                "model": model,
                "text": {"file": str(text.expanduser().resolve())},
                "blocks": {"kind": "sentence", "min_length": 32, "max_length": 128},
                "training": {"steps": steps, "context": min(CONTEXT, most), "batch_size": 2, "accumulation": 2},
                "mode": mode,
                "seeds": [0],
                "keep_models": True,
                "conditions": [
                    REFERENCE,
                    {
                        "name": CONDITION,
                        "schedule": schedule_to_dict(schedule),
                        "override": {"budget": {"cost": cost, "push": push}},
                    },
                ],
            }
        )
    except ValidationError as error:
        raise ProlocError(first_problem(error)) from error
    study = folder / "study"
    failed = run_study(config, study, workers=1, console=console).failed
    if failed:
        raise ProlocError(
            f"{' and '.join(failed)} failed; {study / 'runs'} says why, and the same command tries again."
        )
    reference, local = (
        next(run for run in load_study(study)[1] if run.condition == name) for name in (REFERENCE, CONDITION)
    )
    assert local.metrics is not None
    assert reference.metrics is not None
    assert local.training is not None  # both finished
    partial = folder / ".model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(model_folder(study, CONDITION, 0), partial)
    shutil.rmtree(folder / "model", ignore_errors=True)
    partial.rename(folder / "model")
    return Answer(
        model=folder / "model",
        localities=local.localities,
        share=local.training.log[-1].share or 0.0,
        ratio=local.metrics.perplexity / reference.metrics.perplexity,
    )
