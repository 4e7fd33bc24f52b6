"""Synthetic but valid study records for tests: numbers follow simple rules, so that a test can say what to expect."""

from math import log
from pathlib import Path
from random import Random

from proloc.study.results import (
    Metrics,
    PerHead,
    RunResult,
    Sample,
    SampleLayer,
    StudyRecord,
    Training,
    TrainingPoint,
    run_path,
    save_record,
)

NUM_LAYERS, NUM_HEADS = 8, 4
NUM_WINDOWS = 6
FIDELITY_UNIFORM = 0.3
COSTS = {
    "distributed": 1.0,
    "linear": 1.06,
    "cubic": 1.02,
    "quintic": 1.004,
    "localist": 1.37,
    "reversed": 1.12,
    "fixed": 1.03,
    "random": 1.05,
}
POWERS = {"linear": 1, "cubic": 3, "quintic": 5, "fixed": 5, "random": 5, "reversed": 5}
PASSAGE = (
    "Memory is not one power . It keeps what was seen , and it finds it again .\n"
    "A habit is another thing : the nerve repeats an old path , and no one needs to will it . "
    "Attention takes one of many trains of thought , and lets the rest go . "
    "When it tires , the mind wanders back to what is near ."
)


def make_localities(condition: str) -> list[float]:
    """The schedule that the name of a condition promises."""
    if condition in ("distributed", "localist"):
        return [float(condition == "localist")] * NUM_LAYERS
    rising = [(layer / (NUM_LAYERS - 1)) ** POWERS.get(condition, 2) for layer in range(NUM_LAYERS)]
    return rising[::-1] if condition == "reversed" else rising


def make_per_head(per_layer: list[float], spread: float = 0.02) -> PerHead:
    """Heads scattered evenly around the value of their layer."""
    offsets = [spread * (2 * head / (NUM_HEADS - 1) - 1) for head in range(NUM_HEADS)]
    return PerHead(
        mean=sum(per_layer) / len(per_layer),
        per_layer=per_layer,
        per_head=[[value + offset for offset in offsets] for value in per_layer],
    )


def make_metrics(perplexity: float, localities: list[float], learned: float = 0.1) -> Metrics:
    """Metrics in which the undialled fidelity rises by ``learned`` times a layer's locality."""
    undialled = [0.45 + 0.01 * layer + learned * locality for layer, locality in enumerate(localities)]
    used = [f / (f + (1 - locality) * (1 - f)) for f, locality in zip(undialled, localities, strict=True)]
    return Metrics(
        perplexity=perplexity,
        loss=log(perplexity),
        tokens=20_480,
        window_losses=make_window_losses(perplexity),
        fidelity=make_per_head(used, 0.0),
        fidelity_undialled=make_per_head(undialled),
        fidelity_without_sinks=make_per_head([0.8 * value for value in used]),
        fidelity_uniform=FIDELITY_UNIFORM,
        fidelity_lift=make_per_head([value / FIDELITY_UNIFORM for value in used]),
        entropy_bits=make_per_head([6.0 - 3.0 * value for value in used]),
        mean_block_length=21.5,
    )


def make_window_losses(perplexity: float) -> list[float]:
    """Losses of windows whose mean is that of the perplexity; the higher it is, the further they lie apart."""
    offsets = [2 * window / (NUM_WINDOWS - 1) - 1 for window in range(NUM_WINDOWS)]
    return [log(perplexity) * (1 + 0.1 * offset) for offset in offsets]


def make_sample(localities: list[float], tokens: list[str] | None = None, block_length: int = 0) -> Sample:
    """The passage cut into sentences, or every ``block_length`` tokens; weights decay with distance and locality."""
    tokens = tokens or [word if index == 0 else f" {word}" for index, word in enumerate(PASSAGE.split(" "))]
    block_ids, block = [], 0
    for index, token in enumerate(tokens):
        block_ids.append(index // block_length if block_length else block)
        block += token.strip().startswith(".")
    layers = [
        SampleLayer(layer=layer, weights=_weights(block_ids, localities[layer])) for layer in (1, len(localities) - 1)
    ]
    sinks = [index == 0 for index in range(len(tokens))]
    return Sample(tokens=tokens, block_ids=block_ids, sinks=sinks, layers=layers)


def make_run(condition: str, seed: int, study: str = "synthetic", tokens: list[str] | None = None) -> RunResult:
    """A finished run; its perplexity is 20 times the condition's cost, times a seed's luck and a little of its own."""
    random = Random(f"{condition}{seed}")
    luck = 1 + 0.03 * Random(seed).uniform(-1, 1)
    perplexity = 20.0 * COSTS.get(condition, 1.1) * luck * (1 + 0.004 * random.uniform(-1, 1))
    localities = make_localities(condition)
    dialled = any(localities)
    block_length = {"fixed": 9, "random": 7}.get(condition, 0)
    log = [
        TrainingPoint(
            step=step, loss=3.0 + 2.0 * 0.97**step + random.gauss(0, 0.03), penalty=0.2 * 0.95**step * dialled
        )
        for step in range(0, 200, 5)
    ]
    return RunResult(
        study=study,
        condition=condition,
        seed=seed,
        status="finished",
        config={"schedule": condition, "learning_rate": 3e-4},
        versions={"python": "3.11.9", "torch": "2.8.0"},
        machine={"device": "cpu"},
        started="2026-01-01T00:00:00Z",
        finished="2026-01-01T00:10:00Z",
        localities=localities,
        training=Training(steps=200, tokens=819_200, log=log),
        metrics=make_metrics(perplexity, localities),
        untuned=make_metrics(1.5 * perplexity, localities, 0.0),
        sample=make_sample(localities, tokens, block_length),
    )


def make_failed_run(condition: str, seed: int, error: str = "loss became NaN at step 17") -> RunResult:
    """A run that failed: no training, no metrics, no sample."""
    empty = {"training": None, "metrics": None, "untuned": None, "sample": None}
    return make_run(condition, seed).model_copy(update={"status": "failed", "error": error, **empty})


def make_study(
    conditions: list[str] | None = None, seeds: list[int] | None = None, name: str = "synthetic"
) -> StudyRecord:
    """The plan of eight conditions and three seeds, unless told otherwise."""
    return StudyRecord(
        name=name,
        config={"study": {"name": name, "seeds": seeds or [0, 1, 2]}, "train": {"steps": 200}},
        conditions=conditions or list(COSTS),
        seeds=[0, 1, 2] if seeds is None else seeds,
        model={"name": "built-in", "num_layers": NUM_LAYERS, "num_heads": NUM_HEADS, "num_parameters": 4_000_000},
        text={"source": "pydoc topics", "train_tokens": 200_000, "held_out_tokens": 20_480, "context": 256},
        versions={"python": "3.11.9", "torch": "2.8.0", "proloc": "0.1.0"},
        baseline=make_metrics(41.7, [0.0] * NUM_LAYERS),
    )


def make_runs(study: StudyRecord) -> list[RunResult]:
    """Every run of the plan, finished."""
    return [make_run(condition, seed, study.name) for condition in study.conditions for seed in study.seeds]


def write_study(folder: Path, study: StudyRecord, runs: list[RunResult]) -> Path:
    """Write the files that ``load_study`` reads; returns the folder."""
    save_record(folder / "study.json", study)
    for run in runs:
        save_record(run_path(folder, run.condition, run.seed), run)
    return folder


def _weights(block_ids: list[int], locality: float) -> list[list[float]]:
    rows = []
    for query, home in enumerate(block_ids):
        row = [1 / (1 + query - key) ** 0.7 for key in range(query + 1)]
        row = [weight * (1.0 if block_ids[key] == home or key == 0 else 1 - locality) for key, weight in enumerate(row)]
        row[0] += 0.8
        total = sum(row)
        rows.append([weight / total for weight in row] + [0.0] * (len(block_ids) - query - 1))
    return rows
