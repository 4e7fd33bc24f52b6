"""The files of a study: one ``study.json`` and one JSON per run, written atomically (schema is ours).

A study folder holds::

    study.json                      what was planned: config, model, text, conditions, seeds, the model before tuning
    prepared.safetensors            tokens of all windows, the fitted partitioners, blocks that a model decided
    runs/<condition>-seed<seed>.json     one finished or failed run
    faithfulness/<condition>-seed<seed>.json    with [explain]: how faithful its attributions are
    checkpoints/<condition>-seed<seed>/  only while that run is unfinished
    teachers/distributed-seed<seed>/     the tuned reference, where it teaches, only while the study is unfinished

This module does not import torch, so that a report can be made anywhere.
"""

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from proloc.errors import ProlocError
from proloc.explaining.record import PassageFaithfulness
from proloc.files import write_atomically

SCHEMA_VERSION = 1
PREPARED_FILE = "prepared.safetensors"
_R = TypeVar("_R", bound="Record")


class Record(BaseModel):
    """A frozen piece of a result file; unknown keys are refused so that a typo never passes for data."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class PerHead(Record):
    """One attention statistic, averaged over held-out queries.

    Attributes:
        mean: over layers, heads and queries.
        per_layer: ``[layer]``.
        per_head: ``[layer][head]``.
    """

    mean: float
    per_layer: list[float]
    per_head: list[list[float]]


class Metrics(Record):
    """What was measured on the held-out text.

    Attributes:
        perplexity: exp of ``loss``.
        loss: cross-entropy in nats per predicted token.
        tokens: number of predicted tokens.
        window_losses: ``loss`` of every held-out window, in their order; None in files of older versions.
        fidelity: attention mass on home keys (sinks included) under the weights the model used.
        fidelity_undialled: the same from the same scores before the dial: what the model learned.
        fidelity_without_sinks: home mass over all mass, sinks left out of both.
        fidelity_uniform: mass that uniform attention over the visible keys would put on home keys.
        fidelity_lift: ``fidelity / fidelity_uniform``.
        entropy_bits: entropy of the weights the model used.
        mean_block_length: tokens per opened block on the held-out windows; the last one of a window is cut short by it.
    """

    perplexity: float
    loss: float
    tokens: int
    window_losses: list[float] | None = None
    fidelity: PerHead
    fidelity_undialled: PerHead
    fidelity_without_sinks: PerHead
    fidelity_uniform: float
    fidelity_lift: PerHead
    entropy_bits: PerHead
    mean_block_length: float


class SampleLayer(Record):
    """Attention weights of one layer on the sample passage, mean over heads: ``weights[query][key]``."""

    layer: int
    weights: list[list[float]]


class Sample(Record):
    """A held-out passage with its blocks and the attention of an early and a late layer."""

    tokens: list[str]
    block_ids: list[int]
    sinks: list[bool]
    layers: list[SampleLayer]


class TrainingPoint(Record):
    """One logged optimiser step: cross-entropy, weighted penalty and divergence from a teacher, per token, in nats.

    Attributes:
        share: with a budget, how much of what it pushes was in force, in [0, 1].
        log_multiplier: of the budget, after this step.
        gap: moving average of the cross-entropy minus that of the reference on the same batches, in nats.
        logits, slopes: where lambda is learned, its logit after this step and the gradient's moving average, by layer.
    """

    step: int
    loss: float
    penalty: float
    distillation: float | None = None
    share: float | None = None
    log_multiplier: float | None = None
    gap: float | None = None
    logits: list[float] | None = None
    slopes: list[float] | None = None


class Training(Record):
    steps: int
    tokens: int
    log: list[TrainingPoint]


class DialMetrics(Record):
    """What was measured with the dial at another position."""

    dial: float
    metrics: Metrics


class RunResult(Record):
    """One run: a condition with a seed.

    Attributes:
        localities: lambda of every layer.
        config: everything that decides the result, resolved.
        error: the message when ``status`` is "failed"; then ``metrics`` is None.
        metrics: with the dial where it stood while tuning; at 1 after tuning at many positions.
        dials: the same at other positions, where the study asks for them.
        untuned: the model before tuning, under this condition's dial and blocks; None in files of older versions.
    """

    schema_version: Literal[1] = 1
    study: str
    condition: str
    seed: int
    status: Literal["finished", "failed"]
    error: str | None = None
    config: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, str]
    started: str
    finished: str
    localities: list[float]
    training: Training | None = None
    metrics: Metrics | None = None
    dials: list[DialMetrics] | None = None
    untuned: Metrics | None = None
    sample: Sample | None = None


class StudyRecord(Record):
    """What was planned, and the unmodified model before tuning (``baseline``).

    Attributes:
        conditions: names in the order of the plan; "distributed" is the reference of every comparison.
        model: name, num_layers, num_heads, num_parameters.
        text: source, train_tokens, held_out_tokens, context.
    """

    schema_version: Literal[1] = 1
    name: str
    config: dict[str, Any]
    conditions: list[str]
    seeds: list[int]
    model: dict[str, Any]
    text: dict[str, Any]
    versions: dict[str, str]
    baseline: Metrics


class FaithfulnessResult(Record):
    """How faithful attributions of one run's model are, passage by passage."""

    schema_version: Literal[1] = 1
    study: str
    condition: str
    seed: int
    passages: list[PassageFaithfulness]


def save_record(path: Path, record: Record) -> None:
    """Write a record as JSON, atomically."""
    write_atomically(path, record.model_dump_json(indent=1) + "\n")


def run_name(condition: str, seed: int) -> str:
    return f"{condition}-seed{seed}"


def run_path(folder: Path, condition: str, seed: int) -> Path:
    return folder / "runs" / f"{run_name(condition, seed)}.json"


def faithfulness_path(folder: Path, condition: str, seed: int) -> Path:
    return folder / "faithfulness" / f"{run_name(condition, seed)}.json"


def load_faithfulness(folder: Path, study: StudyRecord) -> list[FaithfulnessResult]:
    """What a study measured of its explanations, in the order of the plan; empty where it measured none.

    Raises:
        ProlocError: a file that is not of this schema.
    """
    paths = [faithfulness_path(folder, condition, seed) for condition in study.conditions for seed in study.seeds]
    return [_load(path, FaithfulnessResult) for path in paths if path.is_file()]


def load_run(path: Path) -> RunResult:
    """Read one run file.

    Raises:
        ProlocError: the file is not a run of this schema.
    """
    return _load(path, RunResult)


def load_study(folder: Path) -> tuple[StudyRecord, list[RunResult]]:
    """Read a study folder: the plan and every run that is there, in the order of the plan.

    Raises:
        ProlocError: no study there, or a file that is not of this schema.
    """
    if not (folder / "study.json").is_file():
        raise ProlocError(f"{folder} holds no study.json; give the folder that `proloc study` wrote.")
    study = _load(folder / "study.json", StudyRecord)
    paths = [run_path(folder, condition, seed) for condition in study.conditions for seed in study.seeds]
    return study, [load_run(path) for path in paths if path.is_file()]


def _load(path: Path, kind: type[_R]) -> _R:
    try:
        return kind.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (ValidationError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ProlocError(
            f"{path} is not a result file of schema {SCHEMA_VERSION} ({reason}); delete it to have it made again."
        ) from error
