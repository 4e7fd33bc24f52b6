"""What a study is about to do: checked before long work, and compared with what its folder already holds."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proloc.errors import ProlocError
from proloc.study.config import REFERENCE, SECTIONS, Condition, StudyConfig
from proloc.study.results import StudyRecord, load_run, load_study, run_name, run_path, save_record
from proloc.study.text import digest, digest_explained, read_text

if TYPE_CHECKING:  # importing it for real would import torch
    from proloc.hf.models import ModelFacts

CHECKPOINT_BYTES_PER_PARAMETER = 12
SPARE_BYTES = 200_000_000
# A kept model: fp32 weights, and room for its tokenizer and the partitioner's arrays.
KEPT_BYTES_PER_PARAMETER = 4
KEPT_BYTES = 40_000_000
# Keys that change no result: a folder may be continued with another value, and older ones have other keys.
FREE_KEYS = {"keep_models", "training.save_models"}


def check(config: StudyConfig, folder: Path) -> "ModelFacts":
    """Everything that can be known before long work; what is known of the model.

    Raises:
        ProlocError: the model, the text, a schedule, the penalty or the folder is not right; nothing was written.
    """
    from proloc.hf.models import load_tokenizer, model_facts
    from proloc.study.penalty import build_penalty
    from proloc.study.windows import sink_token_of

    text_sha256 = digest(read_text(config.text))
    explained = digest_explained(config.explain)
    if same := [name for name, sha256 in explained.items() if sha256 == text_sha256]:
        raise ProlocError(f"explain.texts.{same[0]} is the study's own text, which it is tuned on; give another one.")
    if (folder / "study.json").is_file():
        _check_same_study(config, load_study(folder)[0], {"sha256": text_sha256, "explained": explained}, folder)
    facts = model_facts(config.model)
    longest = config.training.context + int(any(config.of(each).sink_token for each in config.conditions))
    if facts.max_context is not None and longest > facts.max_context:
        raise ProlocError(f"the context is {longest} tokens; {config.model} was made for at most {facts.max_context}.")
    for condition in config.conditions:
        _check_dropout(config, condition, condition.build().localities(facts.num_layers))
        build_penalty(config.of(condition).penalty).check(facts.num_layers, facts.num_heads)
        if config.of(condition).sink_token:
            sink_token_of(load_tokenizer(config.model))
    teachers = len(config.seeds) if config.taught_by_reference() else 0
    _check_room(folder, facts.num_parameters, _models_to_keep(config, folder) + teachers)
    return facts


def _check_dropout(config: StudyConfig, condition: Condition, localities: Sequence[float]) -> None:
    """A condition's own block dropout has a layer that notices it: a hard one reads no other block anyway."""
    seen = config.of(condition)
    dropout, dial = seen.training.block_dropout, seen.training.dial
    own = dropout not in (0.0, config.training.block_dropout)
    if not own or config.mode_of(condition) == "soft" or seen.budget.cost or not isinstance(dial, float):
        return
    if not any(0.0 < dial * value < 1.0 for value in localities):
        raise ProlocError(
            f"condition {condition.name!r} has block_dropout, which none of its layers would notice: dial times lambda "
            "is 0 or 1 in each. Give it another schedule or dial, or leave that override out."
        )


def model_folder(folder: Path, condition: str, seed: int) -> Path:
    """Where a study keeps the tuned model of a run."""
    return folder / "runs" / run_name(condition, seed) / "model"


def teacher_folder(folder: Path, seed: int) -> Path:
    """Where a study keeps the tuned reference of a seed while it teaches."""
    return folder / "teachers" / run_name(REFERENCE, seed)


def reference_log(folder: Path, seed: int, steps: int) -> list[float] | None:
    """Cross-entropy of the reference at every step; None where no such run finished with every step logged."""
    path = run_path(folder, REFERENCE, seed)
    found = load_run(path) if path.is_file() else None
    if found is None or found.training is None or len(found.training.log) != steps:
        return None
    return [point.loss for point in found.training.log]


def comparable(config: StudyConfig) -> dict[str, Any]:
    """The part of a configuration that all results of one folder must share, flat, JSON-able."""
    data = config.portable(exclude={"seeds", "conditions"})
    data["training"] = {k: v for k, v in data["training"].items() if k not in ("report_to", "checkpoint_every")}
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= {f"{key}.{part}": v for part, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat | {f"conditions.{each.name}": each.model_dump(mode="json") for each in config.conditions}


def _check_same_study(config: StudyConfig, found: StudyRecord, texts: dict[str, Any], folder: Path) -> None:
    """Results of another configuration or text are never mixed in; more seeds or conditions are welcome.

    Args:
        texts: fingerprints by the keys that ``found.text`` has for them; older files lack some.
    """
    ours, theirs = comparable(config), found.config
    keys = {key for key in ours.keys() | theirs.keys() if not key.startswith("conditions.")} - FREE_KEYS
    shared = {key for key in ours.keys() & theirs.keys() if key.startswith("conditions.")}
    changed = sorted(key for key in keys | shared if ours.get(key) != _with_defaults(key, theirs))
    if not changed and any(found.text.get(key, ours) != ours for key, ours in texts.items()):
        changed = ["the content of a text"]
    if changed:
        raise ProlocError(
            f"{folder} holds results of another configuration (different: {', '.join(changed)}); "
            "choose another folder with --out, or remove that one."
        )


def _with_defaults(key: str, found: dict[str, Any]) -> Any:
    """A value of an older folder, with the defaults of what its version did not know yet."""
    if key.startswith("conditions."):
        return {**_defaults("conditions"), **found[key]}
    section, _, name = key.rpartition(".")
    return found[key] if key in found else _defaults(section).get(name)


def _defaults(section: str) -> dict[str, Any]:
    fields = SECTIONS[section].model_fields.items() if section in SECTIONS else ()
    return {name: field.get_default(call_default_factory=True) for name, field in fields if not field.is_required()}


def extend_plan(config: StudyConfig, folder: Path) -> StudyRecord:
    """``study.json`` with this start's conditions and seeds added, so that a report shows old and new runs alike."""
    found, _ = load_study(folder)
    names = [condition.name for condition in config.conditions]
    wider = found.model_copy(
        update={
            "config": {**found.config, **comparable(config)},
            "conditions": list(dict.fromkeys([*found.conditions, *names])),
            "seeds": list(dict.fromkeys([*found.seeds, *config.seeds])),
        }
    )
    if wider != found:
        save_record(folder / "study.json", wider)
    return wider


def in_stages(
    config: StudyConfig, folder: Path, pending: list[tuple[Condition, int]]
) -> list[list[tuple[Condition, int]]]:
    """Pending runs in the order of their needs: references first, again where what others need of them is gone."""
    taught, budgeted = ({each.name for each in found} for found in (config.taught_by_reference(), config.budgeted()))
    reference = next(condition for condition in config.conditions if condition.name == REFERENCE)
    first = []
    for seed in config.seeds:
        waiting = {condition.name for condition, theirs in pending if theirs == seed}
        no_teacher = waiting & taught and not teacher_folder(folder, seed).is_dir()
        no_log = waiting & budgeted and reference_log(folder, seed, config.training.steps) is None
        if no_teacher or no_log:
            first.append((reference, seed))
    return [stage for stage in (first, [each for each in pending if each not in first]) if stage]


def _models_to_keep(config: StudyConfig, folder: Path) -> int:
    """How many models are still to be kept; a finished run whose model is gone cannot give it any more."""
    if not config.keep_models:
        return 0
    missing = [
        (condition.name, seed)
        for condition in config.conditions
        for seed in config.seeds
        if not model_folder(folder, condition.name, seed).is_dir()
    ]
    lost = [run_path(folder, *run) for run in missing if run_path(folder, *run).is_file()]
    lost = [path for path in lost if load_run(path).status == "finished"]
    if lost:
        raise ProlocError(
            f"keep_models: {', '.join(path.stem for path in lost)} finished without their models being kept; choose "
            f"another folder with --out, or delete their files in {lost[0].parent} to have them run again."
        )
    return len(missing)


def _check_room(folder: Path, parameters: int, models: int) -> None:
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ProlocError(f"cannot write results to {folder}: {existing} is not a folder one may write to.")
    needed = SPARE_BYTES + 2 * CHECKPOINT_BYTES_PER_PARAMETER * parameters
    needed += models * (KEPT_BYTES + KEPT_BYTES_PER_PARAMETER * parameters)
    kept = f" and the {models} models to keep" if models else ""
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ProlocError(
            f"{existing} has {free / 1e9:.1f} GB free; checkpoints of this model{kept} need {needed / 1e9:.1f} GB. "
            "Make room or choose another disk with --out."
        )
